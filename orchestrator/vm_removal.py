"""The verbs ``bones vm rm`` and ``bones vm prune``: VMs go, and what was killed leaves nothing."""

from __future__ import annotations

import os

from foundation.errors import HubError, NotRunning
from foundation.failpoint import hit
from foundation.workspace import Workspace
from hub import output
from hub.render import printable
from hub.verbs import root_or_default
from hub.wording import several, size
from orchestrator import control, targets
from orchestrator.store import cluster_of, in_order
from orchestrator.vm_shared import PROGRAM, for_each, meant, say, store_of, tell
from owner import private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from orchestrator.store import Store

_NONE = "there are no VMs"
_NOTHING = "nothing was removed"


@output.verb("bones.vm.rm", interrupted="`bones vm rm` again removes the rest")
def rm(
    names: Sequence[str] = (),
    *,
    everything: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    root: str | None = None,
    as_json: bool = False,
) -> int:
    """Stop VMs and delete them with their disks; without *yes* only after asking."""
    store = store_of(root)
    there = in_order({*store.members(), *store.half_removed()})
    found, failed = meant(there, names, everything=everything, verb="rm")
    plan = [_would_go(store, name) for name in found]
    if dry_run:
        return _tell_plan(plan, failed, as_json=as_json)
    if found and not yes and (refusal := _refused(plan, as_json=as_json)):
        return refusal

    def remove(name: str) -> str:
        hit("rm.asked")
        if store.exists(name):  # else it is half removed already
            control.stop(store, name)  # what cannot be stopped keeps its files
        hit("rm.stopped")
        store.destroy(name)
        hit("rm.destroyed")
        return "removed"

    done = for_each(_forgotten(store, root, found, failed), remove, failed)
    return tell("bones.vm.rm", done, failed, "removed", as_json=as_json, nothing=_NONE)


def _would_go(store: Store, name: str) -> dict[str, Any]:
    """Return what would be deleted with *name*: its directory, the size of its disk, how it is."""
    place = store.place(name)
    try:
        disk = os.stat(place.disk)
    except OSError:
        disk_bytes = used_bytes = 0
    else:
        disk_bytes, used_bytes = disk.st_size, disk.st_blocks * 512
    return {
        "name": name,
        "directory": place.directory,
        "disk_bytes": disk_bytes,
        "used_bytes": used_bytes,
        "running": control.is_running(store, name),
    }


def _lines(plan: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "would be deleted with their disks:"
    for one in plan:
        how = "  running: it is stopped first" if one["running"] else ""
        yield (
            f"  {one['name']:16} {size(one['used_bytes'])} used of {size(one['disk_bytes'])}"
            f"  {one['directory']}{how}"
        )


def _tell_plan(plan: list[dict[str, Any]], failed: dict[str, str], *, as_json: bool) -> int:
    if as_json:
        output.print_data("bones.vm.rm", {"dry_run": True, "plan": plan, "failed": failed})
    else:
        if plan:
            output.line("\n".join(map(printable, _lines(plan))))
        for name, why in failed.items():
            say(f"{name}: {why}")
        if not plan and not failed:
            say(_NONE)
    return 1 if failed else 0


def _refused(plan: Sequence[dict[str, Any]], *, as_json: bool) -> int:
    """Ask whether *plan* is to be; return 0, or the exit code if it is not."""
    from swarm.asking import agreed  # noqa: PLC0415

    try:
        if agreed(_lines(plan), as_json=as_json):
            return 0
    except KeyboardInterrupt:
        return output.end_interrupted(_NOTHING, program=PROGRAM)
    say(_NOTHING)
    return 1


@output.verb("bones.vm.prune")
def prune(*, root: str | None = None, as_json: bool = False) -> int:
    """Remove what killed holders, and removals that were killed, have left."""
    store = store_of(root)
    removed = store.half_removed()
    try:
        store.sweep()
    except OSError as error:
        raise HubError(f"{several(removed)}: {error}", reason="store") from None
    cleared = [name for name in store.members() if _was_killed(store, name)]
    clear(store, root, cleared)
    if as_json:
        output.print_data("bones.vm.prune", {"cleared": cleared, "removed": removed})
        return 0
    if removed:
        output.line(f"removed what was half removed: {several(removed)}")
    if cleared:
        output.line(f"cleared up after killed holders: {several(cleared)}")
    if not removed and not cleared:
        say("nothing to clear up")
    return 0


def clear(store: Store, root: str | None, killed: Sequence[str]) -> None:
    """Remove what the holders of *killed* have left: logins of their clusters, sockets, pidfiles.

    Raises:
        HubError: a hub runs and did not revoke the logins; then the pidfiles stay, for the next.
    """
    for cluster, names in targets.clusters(killed).items():
        _forget(store, root_or_default(root), cluster)  # first: a pidfile tells that it is to be
        for name in names:
            _clear(store, name)


def _was_killed(store: Store, name: str) -> bool:
    """Tell whether the last holder of *name* was killed, and nobody has seen to that yet."""
    return store.holder_of(name) is not None and not control.is_running(store, name)


def _forgotten(
    store: Store, root: str | None, names: list[str], failed: dict[str, str]
) -> list[str]:
    """Return those of *names* that nobody can log in as any more; why not is put into *failed*.

    A holder that ends in order has seen to it itself. Of one that was killed only the members'
    pidfiles tell, which go with them.
    """
    gone = {}
    for cluster in targets.clusters(name for name in names if _was_killed(store, name)):
        try:
            _forget(store, root_or_default(root), cluster)
        except HubError as error:
            gone[cluster] = str(error)
    failed.update({name: gone[cluster_of(name)] for name in names if cluster_of(name) in gone})
    return [name for name in names if name not in failed]


def _forget(store: Store, root: str | None, cluster: str) -> None:
    """Have the hub revoke what a killed holder and its guests could log in with, if one runs."""
    import asyncio  # noqa: PLC0415 - of this verb alone, as is what it loads

    from orchestrator.forgetting import forget  # noqa: PLC0415

    lock = store.take_cluster(cluster)
    if lock is None:
        return  # a new holder has it, whose logins have replaced them
    try:
        asyncio.run(forget(Workspace.find(root).root, cluster))
    except NotRunning:
        pass
    finally:
        private.close(lock)


def _clear(store: Store, name: str) -> None:
    from foundation.atomic import remove  # noqa: PLC0415

    lock = store.take(name)
    if lock is None:
        return  # somebody has it by now
    try:
        place = store.place(name)
        remove(place.socket)
        remove(place.pidfile)
    finally:
        private.close(lock)
