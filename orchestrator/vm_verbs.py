"""The verbs ``bones vm …``: find the VMs that are meant, ask their holders, print, exit code."""

from __future__ import annotations

import os

from foundation.errors import HubError, Refused
from foundation.workspace import Workspace
from hub import output
from hub.render import printable
from hub.verbs import root_or_default
from orchestrator import control, protocol, requests, targets
from orchestrator.store import Options, Store
from orchestrator.vm_removal import prune, rm
from orchestrator.vm_shared import PROGRAM, for_each, meant, say, store_of, tell
from slotgc.treepath import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from orchestrator.protocol import Status

__all__ = ["cp", "doctor", "down", "execute", "forward", "logs", "ls", "prune", "rm", "ssh", "up"]

_BLOCK = 1 << 16
_SHELL = ("sh", "-l")


@output.verb("bones.vm.up", interrupted="what was begun goes on: `bones vm ls`")
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
    wanted = targets.to_start(names, count)
    store = store_of(root, make=True)
    asked = {"cpus": cpus, "memory_mb": memory_mb, "disk_mb": disk_mb}
    given = {name: value for name, value in asked.items() if value is not None}
    options = Options(**given, egress=not no_egress).check()
    found: dict[str, Status] = {}
    for members in targets.clusters(wanted).values():
        kept = [name for name in members if given and store.exists(name)]
        for name in kept:
            had = store.config(name).options.as_dict()
            if any(had[option] != value for option, value in given.items()):
                say(f"{name} exists, and keeps what it was created with")
        config = control.SpawnConfig(
            names=tuple(members), bound=False, options=options, settings=_settings(root)
        )
        _session, statuses = control.bring_up(
            store,
            config,
            timeout_s=protocol.BOOT_WITHIN_S if timeout_s is None else timeout_s,
            announce=say,
        )
        found.update(statuses)
    if as_json:
        told = [found[name].as_dict() for name in wanted]
        output.print_data("bones.vm.up", {"store": store.directory, "vms": told})
    else:
        for name in wanted:
            output.line(f"{name} is up: {found[name].ip}")
    return 0


def _settings(root: str | None) -> dict[str, Any]:
    return {"workspace": Workspace.find(root_or_default(root)).root}


@output.verb("bones.vm.ls")
def ls(*, quiet: bool = False, root: str | None = None, as_json: bool = False) -> int:
    """List the VMs of the workspace."""
    store = store_of(root)
    names = store.members()
    if quiet:
        for name in names:
            output.line(name)
        return 0
    rows = [_row(store, name) for name in names]
    if as_json:
        output.print_data("bones.vm.ls", {"store": store.directory, "vms": rows})
        return 0
    output.lines(_table(rows), "no VMs; `bones vm up` makes one", program=PROGRAM)
    return 0


def _row(store: Store, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "state": "unknown", "ip": "", "pid": 0, "error": ""}
    try:
        status = control.get_status(store, name).as_dict()
        row.update({key: status[key] for key in row})
    except HubError as failed:
        row["error"] = str(failed)
    try:
        config = store.config(name)
    except HubError as failed:
        return {**row, "error": str(failed), **Options().as_dict(), "created_at": ""}
    return {**row, **config.options.as_dict(), "created_at": config.created_at}


def _table(rows: list[dict[str, Any]]) -> Iterable[str]:
    for row in rows:
        line = (
            f"{row['name']:16} {row['state']:11} {row['ip'] or '-':12} "
            f"{row['cpus']} CPU  {row['memory_mb']} MB"
        )
        egress = "" if row["egress"] else "  no egress"
        yield printable(f"{line}{egress}  {row['error']}".rstrip())


@output.verb("bones.vm.down", interrupted="`bones vm down` again ends the rest")
def down(
    names: Sequence[str] = (),
    *,
    everything: bool = False,
    root: str | None = None,
    as_json: bool = False,
) -> int:
    """Stop VMs; their disks stay. One that is not running is no failure."""
    store = store_of(root)
    found, failed = meant(store.members(), names, everything=everything, verb="down")
    how = for_each(found, lambda name: control.stop(store, name), failed)
    return tell(
        "bones.vm.down",
        {name: word for name, word in how.items() if word != "not-running"},
        failed,
        "stopped",
        as_json=as_json,
        nothing="nothing was running",
    )


@output.verb("bones.vm.exec")
def execute(
    name: str,
    argv: Sequence[str],
    *,
    stdin: bool = False,
    cwd: str = "",
    root: str | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Run a command in a VM; its output is ours, and so is its exit code."""
    done = requests.execute(
        store_of(root),
        name,
        argv,
        stdin=iter(lambda: os.read(0, _BLOCK), b"") if stdin else None,
        cwd=cwd,
        output=None if as_json else _pass_on,
        timeout_s=timeout_s,
    )
    if as_json:
        said = {"stdout": to_json(done.stdout), "stderr": to_json(done.stderr)}
        output.print_data("bones.vm.exec", {"name": name, "status": done.status, **said})
    return done.status


@output.verb("bones.vm.ssh")
def ssh(name: str, argv: Sequence[str] = (), *, root: str | None = None) -> int:
    """Run a shell, or a command, in a VM: on our terminal if we have one; its exit code is ours."""
    if os.isatty(0) and os.isatty(1):
        from orchestrator import terminal  # noqa: PLC0415 - a quarter of a start, for this verb alone

        return terminal.attach(store_of(root), name, list(argv or _SHELL))
    return execute(name, argv or _SHELL, stdin=not argv, root=root)


def _pass_on(stream: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(stream, view) :]


@output.verb("bones.vm.cp")
def cp(source: str, target: str, *, root: str | None = None, as_json: bool = False) -> int:
    """Copy a file or a directory into a VM, or out of one."""
    from orchestrator.cluster import VM  # noqa: PLC0415

    plan = targets.copy(source, target)
    vm = VM(store_of(root), plan.name)
    local, remote = plan.local, plan.remote
    try:
        if plan.to_guest:
            if remote.endswith("/"):
                remote += os.path.basename(os.path.abspath(local))
            vm.put(local, remote)
        else:
            if os.path.isdir(local):
                local = os.path.join(local, os.path.basename(remote.rstrip("/")))
            vm.get(remote, local)
    except OSError as error:
        raise Refused(f"{local} cannot be copied: {error}", reason="local") from None
    if as_json:
        told = {"name": plan.name, "remote": remote, "local": local, "to_guest": plan.to_guest}
        output.print_data("bones.vm.cp", told)
    return 0


@output.verb("bones.vm.logs")
def logs(name: str, *, follow: bool = False, root: str | None = None, as_json: bool = False) -> int:
    """Print what a VM's console has said since its last start."""
    said = requests.logs(store_of(root), name, follow=follow and not as_json)
    if as_json:
        lines = b"".join(said).decode(errors="replace").splitlines()
        output.print_data("bones.vm.logs", {"name": name, "lines": lines})
        return 0
    for chunk in said:
        _pass_on(1, chunk)
    return 0


@output.verb("bones.vm.forward")
def forward(name: str, port: str, *, root: str | None = None, as_json: bool = False) -> int:
    """Have a port of 127.0.0.1 lead into a VM; print it."""
    host_port, guest_port = targets.ports(port)
    host_port = requests.forward(store_of(root), name, guest_port, host_port)
    if as_json:
        told = {"name": name, "host_port": host_port, "guest_port": guest_port}
        output.print_data("bones.vm.forward", told)
    else:
        output.line(f"127.0.0.1:{host_port}")
    return 0


@output.verb("bones.vm.doctor")
def doctor(*, root: str | None = None, as_json: bool = False) -> int:
    """Print what VMs need on this machine, and what is wrong with those here."""
    from orchestrator import vm_doctor  # noqa: PLC0415 - it loads the backend

    return vm_doctor.doctor(store_of(root), as_json=as_json)
