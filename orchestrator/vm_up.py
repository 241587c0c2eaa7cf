"""The verb ``bones vm up``: what cannot be is refused before anything is created."""

from __future__ import annotations

from foundation.errors import HubError
from foundation.workspace import Workspace
from hub import output
from hub.verbs import root_or_default
from hub.wording import several
from orchestrator import control, protocol, targets
from orchestrator.store import Options
from orchestrator.vm_shared import say, store_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from orchestrator.protocol import Status
    from orchestrator.store import Store

_ENDLESS_MB = 1 << 40


@output.verb("bones.vm.up", interrupted="`bones vm ls` shows what exists and what goes on")
def up(
    names: Sequence[str] = (),
    *,
    count: int = 1,
    cpus: int | None = None,
    memory_mb: int | None = None,
    disk_mb: int | None = None,
    no_egress: bool = False,
    root: str | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Have VMs run; those that do already are left alone."""
    machine_mb = _machine_mb()
    targets.to_start(names, count)  # before a workspace is looked for: the words alone may be wrong
    options = targets.options(cpus, memory_mb, disk_mb, egress=not no_egress, machine_mb=machine_mb)
    store = store_of(root)
    wanted = targets.to_start(names, count, store.members())
    had = {name: store.config(name).options for name in wanted if store.exists(name)}
    targets.check_memory({name: had.get(name, options).memory_mb for name in wanted}, machine_mb)
    for name, theirs in had.items():
        _tell_what_is_kept(name, theirs, cpus=cpus, memory_mb=memory_mb, disk_mb=disk_mb)
    store_of(root, make=True)
    settings = {"workspace": Workspace.find(root_or_default(root)).root}
    found: dict[str, Status] = {}
    for members in targets.clusters(wanted).values():
        config = control.SpawnConfig(
            names=tuple(members), bound=False, options=options, settings=settings
        )
        try:
            _session, statuses = control.bring_up(
                store,
                config,
                timeout_s=protocol.BOOT_WITHIN_S if timeout_s is None else timeout_s,
                announce=say,
            )
        except HubError:
            _tell_what_is_left(store, [name for name in members if name not in had])
            raise
        found.update(statuses)
    if as_json:
        told = [found[name].as_dict() for name in wanted]
        output.print_data("bones.vm.up", {"store": store.directory, "vms": told})
    else:
        for name in wanted:
            output.line(f"{name} is up: {found[name].ip}")
    return 0


def _machine_mb() -> int:
    """Return the memory of this machine in MB."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next(line.split() for line in file if line.startswith("MemTotal:"))
    except (OSError, StopIteration):
        return _ENDLESS_MB  # QEMU will say
    return int(found[1]) >> 10


def _tell_what_is_kept(name: str, had: Options, **asked: Any) -> None:
    kept = had.as_dict()
    if any(value not in (None, kept[option]) for option, value in asked.items()):
        say(
            f"{name} exists, and keeps what it was created with: {had.cpus} CPU, "
            f"{had.memory_mb} MB, disk {had.disk_mb} MB; `bones vm rm {name}` removes it"
        )


def _tell_what_is_left(store: Store, new: list[str]) -> None:
    left = [name for name in new if store.exists(name) and not control.is_running(store, name)]
    if left:
        say(
            f"created, and did not come up: {several(left)}; CPUs, memory and disk are kept, "
            f"`bones vm rm {' '.join(left)}` removes what is to be created anew"
        )
