"""Cleaning up after dead slots: what is clean goes, what is not is rescued, the rest stays.

========================  =====================  =================================================
the slot                  judged                 becomes of it
========================  =====================  =================================================
dead, or its maker died   clean                  removed
dead, or its maker died   unsaved work           rescued (with *clean_only*: stays)
dead, or its maker died   something works in it  stays
anything else             is not judged          stays
========================  =====================  =================================================

A slot is judged in place, without a lock, because that may take a second. Then, under the locks
(:class:`slotgc.hold.Claim`), its leaf is judged once more, and the directory is renamed away:
:mod:`slotgc.passage` says what follows. Whoever works in it is looked for there once more, and has
it back. A clean one is judged a second time, by its content: somebody may have written in between,
or left no trace of it.
"""

from __future__ import annotations

import os
import sys
import time

from foundation import codec
from foundation.atomic import write_all
from foundation.errors import HubError, Unavailable
from foundation.failpoint import hit
from foundation.record import Record
from foundation.workspace import Workspace
from slotgc import account, passage, rescue, sharing, work
from slotgc.history import Trunk
from slotgc.hold import WITHIN_S, Claim, swarm_lock
from slotgc.leaf import DEAD, UNBORN, Leaf, look, look_all
from slotgc.removal import remove_tree
from slotgc.use import in_use, sightings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slotgc.use import Sighting

_ONE_WITHIN_S = 30.0
"""How long one slot waits for swarm.lock: a hundred agents may close theirs at once."""

_SEEN_FOR_S = 1.0
"""Who was seen longer ago is looked for again: what is taken from somebody must be put back."""

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
        left = _left(workspace)
    except OSError as error:
        raise HubError(f"{workspace.rescue} cannot be read: {error}", reason="rescue") from None
    for name in left:
        action = REMOVE if name.startswith((passage.JUDGING, passage.REMOVING)) else RESCUE
        verdicts.append(Verdict(name=name, action=action, reason="a killed pass has left it"))
    return verdicts


def prune(workspace_dir: str | os.PathLike[str], *, clean_only: bool = False) -> Pruned:
    """Clean up after every dead slot of *workspace_dir*, and what a killed pass has left.

    One that fails keeps no other from being cleaned up. Several passes at once do no harm.

    Raises:
        HubError: the slots cannot be listed.
    """
    workspace = Workspace(os.path.abspath(workspace_dir))
    pruned = Pruned(removed=[], rescued={}, kept={}, failed={})
    trunk = Trunk(workspace.repository)
    _go_on(workspace, pruned, trunk)
    leaves, seen = _look(workspace)
    dead = [leaf.name for leaf in leaves if _is_dead(leaf)]
    others = dead[1::2] if len(dead) >= sharing.WORTH else []
    helper = sharing.begin(workspace.root, others, clean_only=clean_only)
    theirs = set(others) if helper else set()
    mine = [leaf for leaf in leaves if leaf.name not in theirs]
    answer = None
    try:
        _prune(workspace, mine, seen, pruned, trunk, clean_only=clean_only)
    finally:
        if helper is not None:
            answer = helper.end()
    if not (helper is None or _add(pruned, answer)):
        left = [look(workspace, name) for name in others]
        there = [leaf for leaf in left if os.path.lexists(f"{workspace.swarm}/{leaf.name}")]
        _go_on(workspace, pruned, trunk)
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
) -> None:
    seen_s = time.monotonic()
    patience_s = WITHIN_S
    for leaf in leaves:
        try:
            if time.monotonic() - seen_s > _SEEN_FOR_S and _is_dead(leaf):
                seen, seen_s = sightings(), time.monotonic()
            verdict = _verdict(workspace, leaf, seen, trunk, clean_only=clean_only)
            hit("gc.judged")
            _carry_out(workspace, verdict, pruned, trunk, patience_s)
        except Unavailable as error:
            patience_s = 0.0  # a hundred slots that wait for one who hangs would take minutes
            pruned.failed[leaf.name] = str(error)
        except (OSError, HubError) as error:
            pruned.failed[leaf.name] = str(error)


def _add(pruned: Pruned, answer: dict[str, Any] | None) -> bool:
    """Add what a helper answered to *pruned*; False if it did not answer."""
    if answer is None:
        return False
    pruned.removed.extend(answer["removed"])
    pruned.removed.sort()
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
    pruned = Pruned(removed=[], rescued={}, kept={}, failed={})
    leaves = [look(workspace, name) for name in names]
    trunk = Trunk(workspace.repository)
    _prune(workspace, leaves, sightings(), pruned, trunk, clean_only=clean_only == "1")
    write_all(1, codec.dumps(pruned.as_dict()).encode())


def prune_slot(workspace_dir: str | os.PathLike[str], name: str) -> Pruned:
    """Clean up after the dead slot *name* alone, as :func:`prune` would; of none, nothing.

    Raises:
        ValueError: *name* cannot be a slot's.
    """
    workspace = Workspace(os.path.abspath(workspace_dir))
    pruned = Pruned(removed=[], rescued={}, kept={}, failed={})
    try:
        leaf = look(workspace, name)
        if not os.path.lexists(f"{workspace.swarm}/{name}"):
            return pruned
        seen = sightings() if _is_dead(leaf) else []
        trunk = Trunk(workspace.repository)
        verdict = _verdict(workspace, leaf, seen, trunk, clean_only=False)
        _carry_out(workspace, verdict, pruned, trunk, _ONE_WITHIN_S)
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
        return leaves, sightings() if any(map(_is_dead, leaves)) else []
    except OSError as error:
        raise HubError(f"{workspace.swarm} cannot be read: {error}", reason="swarm") from None


def _is_dead(leaf: Leaf) -> bool:
    return leaf.state == DEAD or (leaf.state == UNBORN and leaf.abandoned)


def _verdict(
    workspace: Workspace, leaf: Leaf, seen: list[Sighting], trunk: Trunk, *, clean_only: bool
) -> Verdict:
    """Judge a slot where it is."""
    if not _is_dead(leaf):
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
    words = f"unsaved work: {found.describe()}"
    if clean_only:
        return Verdict(name=leaf.name, action=KEEP, reason=f"{words}; `hub gc` rescues it")
    return Verdict(name=leaf.name, action=RESCUE, reason=f"{leaf.reason}; {words}")


def _carry_out(
    workspace: Workspace, verdict: Verdict, pruned: Pruned, trunk: Trunk, patience_s: float
) -> None:
    if verdict.action == KEEP:
        pruned.kept[verdict.name] = verdict.reason
        return
    passage.make_place(workspace)
    clean = verdict.action == REMOVE
    taken = _take(workspace, verdict.name, pruned, clean=clean, patience_s=patience_s)
    if taken is None:
        return
    name, claimed, looked = taken
    hit("gc.taken")
    try:
        _settle(workspace, name, pruned, trunk, looked=looked)
    finally:
        os.close(claimed)


def _take(
    workspace: Workspace, slot: str, pruned: Pruned, *, clean: bool, patience_s: float
) -> tuple[str, int, bool] | None:
    """Rename *slot* away under the locks; None if it stays.

    Else its new name, its claim, and whether nobody works in it there.

    Raises:
        OSError, HubError: it stays.
    """
    source = f"{workspace.swarm}/{slot}"
    with Claim(workspace, slot, within_s=patience_s) as claim:
        hit("gc.locked")
        if not os.path.lexists(source):
            return None  # another pass was faster
        if not _is_dead(claim.leaf):
            pruned.kept[slot] = claim.leaf.reason
            return None
        claimed = passage.claim(source)
        if claimed is None:
            pruned.kept[slot] = "another process has locked it"
            return None
        try:
            if os.fstat(claimed).st_mode & 0o700 != 0o700:  # noqa: PLR2004
                os.fchmod(claimed, 0o700)  # a directory that is read-only cannot move
            account.disown(source)
            name = passage.new_name(workspace, slot)
            name = passage.JUDGING + name if clean else name
            os.rename(source, f"{workspace.rescue}/{name}")
        except BaseException:
            os.close(claimed)
            raise
    try:
        hit("gc.renamed")
        # Somebody may have come in between; now nobody can any more, by its path. Without the
        # lock: looking at every process takes longer than all that is done under it.
        user = in_use(f"{workspace.rescue}/{name}")
        if user and _put_back(workspace, slot, name):
            os.close(claimed)
            pruned.kept[slot] = user
            return None
    except BaseException:
        os.close(claimed)
        raise
    return name, claimed, not user


def _put_back(workspace: Workspace, slot: str, name: str) -> bool:
    """Put what is called *name* back to be *slot*; False where that cannot be: it goes on there."""
    try:
        lock = swarm_lock(workspace)
    except HubError:
        return False
    try:
        if os.path.lexists(f"{workspace.swarm}/{slot}"):
            return False  # somebody has joined a new one meanwhile
        os.rename(f"{workspace.rescue}/{name}", f"{workspace.swarm}/{slot}")
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _settle(workspace: Workspace, name: str, pruned: Pruned, trunk: Trunk, *, looked: bool) -> None:
    """Bring what was taken away to its end, from whatever step it stands at; we have claimed it.

    *looked*: we have just seen that nobody works in it.
    """
    slot, _made_at = passage.parse_name(name)
    try:
        if name.startswith(passage.JUDGING):
            name = _judge_again(workspace, name, trunk, looked=looked)
        if name.startswith(passage.REMOVING):
            pruned.removed.append(slot)
            remove_tree(f"{workspace.rescue}/{name}")
            hit("gc.removed")
        else:
            pruned.rescued[slot] = name
            hit("gc.rescued")
            rescue.finish(workspace, name)
    except (OSError, HubError) as error:
        key = name if slot in pruned.failed else slot
        pruned.failed[key] = f"{workspace.rescue}/{name} is not finished: {error}"


def _judge_again(workspace: Workspace, name: str, trunk: Trunk, *, looked: bool) -> str:
    """Judge once more what was taken away as clean; return its next name."""
    place = f"{workspace.rescue}/{name}"
    plain = name.removeprefix(passage.JUDGING)
    used = "" if looked else in_use(place)
    has_work = used or work.judge(workspace, place, by_content=True, trunk=trunk).exists()
    new = plain if has_work else passage.REMOVING + plain
    passage.step(workspace, name, new)
    hit("gc.judged-again")
    return new


def _go_on(workspace: Workspace, pruned: Pruned, trunk: Trunk) -> None:
    """Finish what killed passes have left; what a living one has in hand is left to it."""
    try:
        left = _left(workspace)
    except OSError as error:
        pruned.failed[workspace.rescue] = str(error)
        return
    for name in left:
        try:
            claimed = passage.claim(f"{workspace.rescue}/{name}")
        except OSError as error:
            pruned.failed[name] = str(error)
            continue
        if claimed is None:
            continue
        try:
            _settle(workspace, name, pruned, trunk, looked=False)
        finally:
            os.close(claimed)


def _left(workspace: Workspace) -> list[str]:
    """Return the names of what killed passes have left, and of what living ones have in hand."""
    if not passage.is_place(workspace):
        return []
    steps = (passage.JUDGING, passage.REMOVING)
    names = [name for name in os.listdir(workspace.rescue) if name.startswith(steps)]
    return sorted([*names, *rescue.unfinished(workspace)])
