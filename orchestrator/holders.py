"""The holders of a workspace, for who ends all that runs in it."""

from __future__ import annotations

import os

from foundation.process import has_exited, terminate_all
from foundation.record import Record
from orchestrator import holding
from orchestrator.protocol import STOP_WITHIN_S
from orchestrator.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace


class Holder(Record):
    """A holder that runs."""

    pid: int
    members: tuple[str, ...]


def find(workspace: Workspace) -> list[Holder]:
    """Return the holders of *workspace*, whoever launched them: they have its members' locks."""
    held = _held(workspace)
    for _holder, pidfd in held:
        os.close(pidfd)
    return [holder for holder, _pidfd in held]


def end(workspace: Workspace, *, grace_s: float = STOP_WITHIN_S) -> list[Holder]:
    """End all holders of *workspace*, gently at first; return those that have ended.

    Each stops its VMs side by side, so that what they have written is on their disks.
    """
    held = _held(workspace)
    try:
        terminate_all([pidfd for _holder, pidfd in held], grace_s=grace_s)
        return [holder for holder, pidfd in held if has_exited(pidfd)]
    finally:
        for _holder, pidfd in held:
            os.close(pidfd)


def _held(workspace: Workspace) -> list[tuple[Holder, int]]:
    """Return the holders with a pidfd each, which the caller closes."""
    store = Store.of_workspace(workspace)
    members: dict[int, list[str]] = {}
    pidfds: dict[int, int] = {}
    for name in store.members():
        identity = store.holder_of(name)
        if identity is None:
            continue
        members.setdefault(identity.pid, []).append(name)
        if identity.pid in pidfds:
            continue
        pidfd = holding.opened(store, name, identity)
        if pidfd is not None:
            pidfds[identity.pid] = pidfd
    return [(Holder(pid=pid, members=tuple(members[pid])), fd) for pid, fd in pidfds.items()]
