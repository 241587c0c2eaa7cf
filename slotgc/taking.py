"""Taking dead slots away, under the locks, and giving back what turns out to be in use.

A slot is taken by one rename (:mod:`slotgc.passage`). Then nobody can come in by its path any more,
and only then it is looked who has: once for all that were taken together, for that means to look at
every process there is, and without a lock.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from foundation.errors import HubError
from foundation.failpoint import hit
from slotgc import account, passage
from slotgc.hold import Claim, swarm_lock
from slotgc.leaf import DEAD, UNBORN
from slotgc.use import in_use, sightings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from foundation.workspace import Workspace
    from slotgc.leaf import Leaf


class Taken(NamedTuple):
    """A slot that is ours: its name, that of its directory now, the descriptor that claims it."""

    slot: str
    name: str
    claimed: int


def is_dead(leaf: Leaf) -> bool:
    """Tell whether the slot of *leaf* may be taken."""
    return leaf.state == DEAD or (leaf.state == UNBORN and leaf.abandoned)


def take(workspace: Workspace, slot: str, patience_s: float) -> Taken | str | None:
    """Rename *slot* away under the locks, to be judged.

    Returns why it stays, if so; None if it is no longer there.

    Raises:
        OSError, HubError: it stays.
    """
    source = f"{workspace.swarm}/{slot}"
    with Claim(workspace, slot, within_s=patience_s) as claim:
        hit("gc.locked")
        if not os.path.lexists(source):
            return None  # another pass was faster
        if not is_dead(claim.leaf):
            return claim.leaf.reason
        claimed = passage.claim(source)
        if claimed is None:
            return "another process has locked it"
        try:
            if os.fstat(claimed).st_mode & 0o700 != 0o700:  # noqa: PLR2004
                os.fchmod(claimed, 0o700)  # a directory that is read-only cannot move
            account.disown(source)
            name = passage.JUDGING + passage.new_name(workspace, slot)
            os.rename(source, f"{workspace.rescue}/{name}")
        except BaseException:
            os.close(claimed)
            raise
    try:
        hit("gc.renamed")
    except BaseException:
        os.close(claimed)
        raise
    return Taken(slot, name, claimed)


def users(workspace: Workspace, taken: list[Taken]) -> Iterator[tuple[Taken, str, bool]]:
    """Yield each of *taken* with who works in it, "" if nobody, and whether it was put back.

    Raises:
        OSError: that cannot be known.
    """
    seen = sightings()
    for one in taken:
        user = in_use(f"{workspace.rescue}/{one.name}", seen)
        yield one, user, bool(user) and _put_back(workspace, one)


def _put_back(workspace: Workspace, taken: Taken) -> bool:
    """Give the slot back; False where that cannot be: it goes on as it is."""
    try:
        lock = swarm_lock(workspace)
    except HubError:
        return False
    try:
        if os.path.lexists(f"{workspace.swarm}/{taken.slot}"):
            return False  # somebody has joined a new one meanwhile
        os.rename(f"{workspace.rescue}/{taken.name}", f"{workspace.swarm}/{taken.slot}")
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
