"""What a purge of a workspace means to its VMs: none may run, and their disks are named first."""

from __future__ import annotations

import os
from contextlib import contextmanager

from foundation.errors import Refused
from hub.wording import several
from orchestrator import control, holders
from orchestrator.store import Store
from owner import private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from foundation.workspace import Workspace


def disks(workspace: Workspace) -> tuple[str, ...]:
    """Return the VMs that have a disk, or half a one that a killed `rm` has left."""
    store = Store.of_workspace(workspace)
    members = store.members()
    found = [name for name in members if os.path.lexists(store.place(name).disk)]
    return (*found, *(f"{name} (half removed)" for name in store.half_removed()))


def refuse_alive(workspace: Workspace) -> None:
    """Refuse while a VM runs.

    Raises:
        Refused: one does, or its holder (``alive``).
    """
    members = {name for holder in holders.find(workspace) for name in holder.members}
    members.update(control.running_members(Store.of_workspace(workspace)))
    if members:
        raise Refused(
            f"VMs run in {workspace.root}: {several(sorted(members))}: `bones down` ends them",
            reason="alive",
        )


@contextmanager
def without_vms(workspace: Workspace) -> Iterator[None]:
    """See that none runs, and that none is started meanwhile.

    Raises:
        Refused: one runs, or is just being started (``alive``).
    """
    if not os.path.isdir(workspace.state):
        yield
        return
    lock = Store.of_workspace(workspace).close_off()
    if lock is None:
        raise Refused(f"a VM is just being started in {workspace.root}", reason="alive")
    try:
        refuse_alive(workspace)
        yield
    finally:
        private.close(lock)
