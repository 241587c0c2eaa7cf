"""Ending a slot's leaf, and what it left running."""

from __future__ import annotations

import os

from foundation import procfs
from foundation.errors import HubError
from foundation.process import open_pidfd
from foundation.record import Record
from slotgc.ending import ENDED, GRACE_S, REFUSED, Ending, end_all, end_if
from slotgc.hold import Claim
from slotgc.leaf import DEAD, LIVE, identity_is_behind, look, read_record, slot_directory
from slotgc.mark import is_marked_as_leaf, is_marked_for_slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

_ROUNDS = 20
_AT_ONCE = 200
"""Processes that are held by descriptors at a time; `ulimit -n` is 1024 by default."""


class Eviction(Record):
    """What became of a slot's processes."""

    slot: str
    endings: tuple[Ending, ...]
    """Of the leaf, if there was one, and of what it left running."""
    trouble: str = ""
    """Why the slot may have processes still, in words; "" if it has none."""


def evict(workspace: Workspace, name: str, *, grace_s: float = GRACE_S) -> Eviction:
    """End the leaf of slot *name*; if it could not clean up, what it had started as well.

    A leaf that obeys SIGTERM ends its agent itself. After one that was killed, now or before,
    every process of this user that carries the marks of this workspace and this slot is ended;
    leaf.lock is held meanwhile, so that nobody revives the slot. This process and those above
    it are spared. Nothing in the slot is removed.

    Raises:
        ValueError: *name* cannot be a slot's.
        OSError: out of descriptors.
    """
    leaf = look(workspace, name)
    endings: list[Ending] = []
    if leaf.state == LIVE:
        directory = slot_directory(workspace, name)

        def is_the_leaf(pidfd: int) -> bool:
            identity = read_record(directory)
            if identity is not None and identity.pid == leaf.pid:
                return identity_is_behind(identity, pidfd)
            return is_marked_as_leaf(leaf.pid, workspace.root, name)

        endings.append(end_if(leaf.pid, is_the_leaf, grace_s=grace_s))
        if not endings[0].gone:
            return Eviction(slot=name, endings=tuple(endings), trouble=endings[0].reason)
        if endings[0].outcome == ENDED:
            return Eviction(slot=name, endings=tuple(endings))
    try:
        with Claim(workspace, name) as claim:
            if claim.leaf.state != DEAD and not claim.leaf.abandoned:
                return Eviction(slot=name, endings=tuple(endings), trouble=claim.leaf.reason)
            lock = claim.take()
    except HubError as error:
        return Eviction(slot=name, endings=tuple(endings), trouble=str(error))
    try:
        left = _end_marked(workspace.root, name, grace_s)
    finally:
        os.close(lock)
    trouble = "; ".join(ending.reason for ending in left if not ending.gone)
    return Eviction(slot=name, endings=(*endings, *left), trouble=trouble)


def _end_marked(root: str, name: str, grace_s: float) -> list[Ending]:
    """End what carries the marks of slot *name*, until a look finds no more of it."""
    spared = {os.getpid(), *procfs.ancestors_of(os.getpid())}
    endings: list[Ending] = []
    for _round in range(_ROUNDS):
        opened = _open_marked(root, name, spared)
        try:
            if not opened:
                return endings
            ended = end_all(opened, grace_s)
        finally:
            for pidfd in opened.values():
                os.close(pidfd)
        endings += ended
        spared |= {ending.pid for ending in ended if not ending.gone}
    return [
        *endings,
        Ending(pid=0, outcome=REFUSED, reason=f"the processes of slot {name} keep multiplying"),
    ]


def _open_marked(root: str, name: str, spared: set[int]) -> dict[int, int]:
    """Return the pids and pidfds of what carries the marks of slot *name*, some at a time."""
    opened: dict[int, int] = {}
    for pid in procfs.pids():
        if pid in spared or not is_marked_for_slot(pid, root, name):
            continue
        pidfd = open_pidfd(pid)
        if pidfd is None:
            continue
        # Looked at again, now that the descriptor holds on to this very process.
        if is_marked_for_slot(pid, root, name):
            opened[pid] = pidfd
        else:
            os.close(pidfd)
        if len(opened) == _AT_ONCE:
            break
    return opened
