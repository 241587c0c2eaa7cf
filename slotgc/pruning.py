"""Cleaning up after dead slots: what is clean goes, what is not is rescued, the rest stays.

========================  =====================  =================================================
the slot                  judged                 becomes of it
========================  =====================  =================================================
dead, or its maker died   clean                  removed
dead, or its maker died   unsaved work           rescued (with *clean_only*: stays)
dead, or its maker died   something works in it  stays
anything else             is not judged          stays
========================  =====================  =================================================

Under the locks (:class:`slotgc.hold.Claim`) the leaf of a slot is judged once more, and its
directory is renamed away (:mod:`slotgc.taking`): :mod:`slotgc.passage` says what follows. There
whoever works in it is looked for once more, and has it back; then it is judged, where nobody who
knew its path can write (:mod:`slotgc.settling`). With *clean_only* it is judged in place before,
too: what holds work is not touched.
"""

from __future__ import annotations

import os
import sys
import time

from foundation.errors import HubError, Unavailable
from foundation.failpoint import hit
from foundation.record import Record
from foundation.workspace import Workspace
from slotgc import passage, sharing, work
from slotgc.history import Trunk
from slotgc.hold import WITHIN_S
from slotgc.leaf import look, look_all
from slotgc.settling import go_on, left, settle
from slotgc.taking import Taken, is_dead, take, users
from slotgc.use import in_use, sightings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from slotgc.leaf import Leaf
    from slotgc.use import Sighting

    OnProgress = Callable[[int, int], None]
    """How many slots of how many are seen to."""

_ONE_WITHIN_S = 30.0
"""How long one slot waits for swarm.lock: a hundred agents may close theirs at once."""

_SEEN_FOR_S = 1.0
"""Who was seen longer ago is looked for again: what is taken from somebody must be put back."""

_AT_ONCE = 16
"""Slots that are taken before any of them is judged. Each holds a descriptor."""

REMOVE, RESCUE, KEEP = "remove", "rescue", "keep"


class Verdict(Record):
    """What a pass would do with a slot: ``remove``, ``rescue`` or ``keep``, and why, in words."""

    name: str
    action: str
    reason: str


class Pruned(Record):
    """What a pass has done, slots by name.

    ``rescued`` names the rescue of each. ``kept`` are those that stay by rule; ``failed`` those
    that should have gone, or are gone but not finished (the next pass goes on); both say why.
    """

    removed: list[str]
    rescued: dict[str, str]
    kept: dict[str, str]
    failed: dict[str, str]
    histories: list[str]
    """Those removed with the commits of their git, whose contents trunk has, and those rescued for
    what their git holds alone."""


class PruneError(HubError):
    """Some slots could not be cleaned up; the others were."""

    def __init__(self, removed: list[str], failed: dict[str, str]) -> None:
        """Take the names that are gone, and of those that failed the reasons."""
        told = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        super().__init__(f"not cleaned up: {told}", reason="prune")
        self.removed = removed
        self.failed = failed


def plan(workspace_dir: str | os.PathLike[str], *, clean_only: bool = False) -> list[Verdict]:
    """Return what :func:`prune` would do with each slot of *workspace_dir*; change nothing.

    What a killed pass has left follows, by the name it has in ``.bones/rescue``.

    Raises:
        HubError: the slots cannot be listed.
    """
    workspace = Workspace(os.path.abspath(workspace_dir))
    leaves, seen = _look(workspace)
    trunk = Trunk(workspace.repository)
    verdicts = [_verdict(workspace, leaf, seen, trunk, clean_only=clean_only) for leaf in leaves]
    try:
        unfinished = left(workspace)
    except OSError as error:
        raise HubError(f"{workspace.rescue} cannot be read: {error}", reason="rescue") from None
    verdicts += [_verdict_on_left(workspace, name, trunk) for name in unfinished]
    return verdicts


def prune(
    workspace_dir: str | os.PathLike[str],
    *,
    clean_only: bool = False,
    on_progress: OnProgress | None = None,
) -> Pruned:
    """Clean up after every dead slot of *workspace_dir*, and what a killed pass has left.

    One that fails keeps no other from being cleaned up. Several passes at once do no harm.

    Raises:
        HubError: the slots cannot be listed.
    """
    workspace = Workspace(os.path.abspath(workspace_dir))
    pruned = Pruned(removed=[], rescued={}, kept={}, failed={}, histories=[])
    trunk = Trunk(workspace.repository)
    go_on(workspace, pruned, trunk)
    leaves, seen = _look(workspace)
    dead = [leaf.name for leaf in leaves if is_dead(leaf)]
    others = dead[1::2] if len(dead) >= sharing.WORTH else []
    helper = sharing.begin(workspace.root, others, clean_only=clean_only)
    theirs = set(others) if helper else set()
    mine = [leaf for leaf in leaves if leaf.name not in theirs]
    done = 0

    def one_more(count: int = 1) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done + (helper.seen_to if helper else 0), len(dead))

    answer = None
    try:
        _prune(workspace, mine, seen, pruned, trunk, clean_only=clean_only, one_more=one_more)
    finally:
        if helper is not None:
            answer = helper.end(lambda: one_more(0))
    if not (helper is None or _add(pruned, answer)):
        again = [look(workspace, name) for name in others]
        there = [leaf for leaf in again if os.path.lexists(f"{workspace.swarm}/{leaf.name}")]
        go_on(workspace, pruned, trunk)
        _prune(workspace, there, sightings(), pruned, trunk, clean_only=clean_only)
    return pruned


def _prune(
    workspace: Workspace,
    leaves: list[Leaf],
    seen: list[Sighting],
    pruned: Pruned,
    trunk: Trunk,
    *,
    clean_only: bool,
    one_more: Callable[[], None] = lambda: None,
) -> None:
    """Clean up after *leaves*; *one_more* is called after each that is dead."""
    seen_s = time.monotonic()
    patience_s = WITHIN_S
    taken: list[Taken] = []
    for leaf in leaves:
        if not is_dead(leaf):
            pruned.kept[leaf.name] = leaf.reason
            continue
        one = None
        try:
            if time.monotonic() - seen_s > _SEEN_FOR_S:
                seen, seen_s = sightings(), time.monotonic()
            stays = _why_stays(workspace, leaf, seen, trunk, clean_only=clean_only)
            hit("gc.judged")
            one = _take(workspace, leaf.name, stays, pruned, patience_s)
        except Unavailable as error:
            patience_s = 0.0  # a hundred slots that wait for one who hangs would take minutes
            pruned.failed[leaf.name] = str(error)
        except (OSError, HubError) as error:
            pruned.failed[leaf.name] = str(error)
        if one is None:
            one_more()
            continue
        taken.append(one)
        if len(taken) == _AT_ONCE:
            _settle(workspace, taken, pruned, trunk, one_more)
            taken = []
    _settle(workspace, taken, pruned, trunk, one_more)


def _take(
    workspace: Workspace, slot: str, stays: str, pruned: Pruned, patience_s: float
) -> Taken | None:
    """Take *slot* unless it *stays* for that reason.

    Raises:
        OSError, HubError: it cannot be taken.
    """
    if not stays:
        passage.make_place(workspace)
        taken = take(workspace, slot, patience_s)
        if not isinstance(taken, str):
            return taken
        stays = taken
    pruned.kept[slot] = stays
    return None


def _settle(
    workspace: Workspace,
    taken: list[Taken],
    pruned: Pruned,
    trunk: Trunk,
    one_more: Callable[[], None],
) -> None:
    """Bring all that was *taken* to its end, or back; let go of it."""
    if not taken:
        return
    waiting = {one.slot: one for one in taken}
    try:
        for one, user, is_back in users(workspace, taken):
            if is_back:
                pruned.kept[one.slot] = user
            else:
                hit("gc.taken")
                settle(workspace, one.name, pruned, trunk, looked=not user)
            os.close(waiting.pop(one.slot).claimed)
            one_more()
    except OSError as error:
        for one in waiting.values():
            pruned.failed[one.slot] = f"{workspace.rescue}/{one.name} is not finished: {error}"
    finally:
        for one in waiting.values():
            os.close(one.claimed)


def _add(pruned: Pruned, answer: dict[str, Any] | None) -> bool:
    """Add what a helper answered to *pruned*; False if it did not answer."""
    if answer is None:
        return False
    pruned.removed.extend(answer["removed"])
    pruned.removed.sort()
    pruned.histories.extend(answer["histories"])
    for mine, theirs in (
        (pruned.rescued, answer["rescued"]),
        (pruned.kept, answer["kept"]),
        (pruned.failed, answer["failed"]),
    ):
        mine.update(theirs)
    return True


def main() -> None:
    """Be a helper: clean up after the slots that are named, and print what became of them."""
    _program, root, clean_only, *names = sys.argv
    workspace = Workspace(root)
    pruned = Pruned(removed=[], rescued={}, kept={}, failed={}, histories=[])
    leaves = [look(workspace, name) for name in names]
    trunk = Trunk(workspace.repository)
    _prune(
        workspace,
        leaves,
        sightings(),
        pruned,
        trunk,
        clean_only=clean_only == "1",
        one_more=sharing.tell_of_one,
    )
    sharing.answer(pruned.as_dict())


def prune_slot(workspace_dir: str | os.PathLike[str], name: str) -> Pruned:
    """Clean up after the dead slot *name* alone, as :func:`prune` would; of none, nothing.

    Raises:
        ValueError: *name* cannot be a slot's.
    """
    workspace = Workspace(os.path.abspath(workspace_dir))
    pruned = Pruned(removed=[], rescued={}, kept={}, failed={}, histories=[])
    try:
        leaf = look(workspace, name)
        if not os.path.lexists(f"{workspace.swarm}/{name}"):
            return pruned
        stays = leaf.reason
        trunk = Trunk(workspace.repository)
        if is_dead(leaf):
            stays = _why_stays(workspace, leaf, sightings(), trunk, clean_only=False)
        taken = _take(workspace, name, stays, pruned, _ONE_WITHIN_S)
        _settle(workspace, [taken] if taken else [], pruned, trunk, lambda: None)
    except (OSError, HubError) as error:
        pruned.failed[name] = str(error)
    return pruned


def prune_dead(workspace_dir: str | os.PathLike[str], *, clean_only: bool = False) -> list[str]:
    """As :func:`prune`; return the names of the slots that are gone, rescued ones among them.

    Raises:
        PruneError: a slot failed, after the whole pass.
        HubError: the slots cannot be listed.
    """
    pruned = prune(workspace_dir, clean_only=clean_only)
    gone = sorted([*pruned.removed, *pruned.rescued])
    if pruned.failed:
        raise PruneError(gone, pruned.failed)
    return gone


def _look(workspace: Workspace) -> tuple[list[Leaf], list[Sighting]]:
    try:
        leaves = look_all(workspace)
        return leaves, sightings() if any(map(is_dead, leaves)) else []
    except OSError as error:
        raise HubError(f"{workspace.swarm} cannot be read: {error}", reason="swarm") from None


def _why_stays(
    workspace: Workspace, leaf: Leaf, seen: list[Sighting], trunk: Trunk, *, clean_only: bool
) -> str:
    """Return why the slot of *leaf*, which is dead, must stay where it is, "" if it need not."""
    if clean_only:
        verdict = _verdict(workspace, leaf, seen, trunk, clean_only=True)
        return verdict.reason if verdict.action == KEEP else ""
    slot = f"{workspace.swarm}/{leaf.name}"
    try:
        os.listdir(slot)  # or it could not be judged
        return in_use(slot, seen)
    except OSError as error:
        return f"it cannot be judged: {error}"


def _verdict(
    workspace: Workspace, leaf: Leaf, seen: list[Sighting], trunk: Trunk, *, clean_only: bool
) -> Verdict:
    """Judge a slot where it is."""
    if not is_dead(leaf):
        return Verdict(name=leaf.name, action=KEEP, reason=leaf.reason)
    slot = f"{workspace.swarm}/{leaf.name}"
    try:
        user = in_use(slot, seen)
        if user:
            return Verdict(name=leaf.name, action=KEEP, reason=user)
        found = work.judge(workspace, slot, trunk=trunk)
    except OSError as error:
        return Verdict(name=leaf.name, action=KEEP, reason=f"it cannot be judged: {error}")
    if not found.exists():
        return Verdict(name=leaf.name, action=REMOVE, reason=f"{leaf.reason}; no unsaved work")
    words = f"{'git history' if found.is_history() else 'unsaved work'}: {found.describe()}"
    if clean_only:
        return Verdict(name=leaf.name, action=KEEP, reason=f"{words}; `hub gc` rescues it")
    return Verdict(name=leaf.name, action=RESCUE, reason=f"{leaf.reason}; {words}")


def _verdict_on_left(workspace: Workspace, name: str, trunk: Trunk) -> Verdict:
    """Judge what a killed pass has left as far as that had not been done."""
    is_clean = name.startswith(passage.REMOVING)
    if name.startswith(passage.JUDGING):
        try:
            is_clean = not work.judge(workspace, f"{workspace.rescue}/{name}", trunk=trunk).exists()
        except OSError:
            is_clean = False
    action = REMOVE if is_clean else RESCUE
    return Verdict(name=name, action=action, reason="a killed pass has left it")
