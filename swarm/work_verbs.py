"""The verbs that look at what slots hold: diff, reap. Call, print, exit code."""

from __future__ import annotations

import os
from typing import NamedTuple

from foundation.errors import HubError
from hub import gc, output
from hub.render import printable
from hub.repository import Entry
from hub.wording import several
from slotgc import artifact, pruning, treepath
from slotgc.hold import refuse_foreign
from swarm import history, render
from swarm.asking import agreed
from swarm.history import FileChange
from swarm.showing import print_diff
from swarm.slot import TOP
from swarm.unified import Version, difference
from swarm.which import paths_in, slot_of, workspace_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hub.repository import Repository
    from swarm.slot import Slot


class Change(NamedTuple):
    """A changed path; kinds and hashes as in :class:`hub.commits.Change`."""

    path: bytes
    kind: str
    hash: str
    base_kind: str
    base_hash: str


@output.verb("swarm.diff")
def diff(
    *,
    files: Sequence[str] = (),
    root: str | None = None,
    slot: str | None = None,
    as_json: bool = False,
) -> int:
    """Show what a slot has changed against its base."""
    found = slot_of(root, slot)
    paths = paths_in(found, files)
    now = found.status(changes=True)
    changes = [Change(treepath.from_json(row[0]), *row[1:]) for row in now["changes"]]
    if paths is not None:
        changes = [one for one in changes if _is_below(one.path, paths)]
    workspace = workspace_of(found.root)
    with history.open_repository(workspace.repository) as repository:
        shown = _differences(found, repository, changes)
        count = print_diff("swarm.diff", {"slot": found.name}, shown, as_json=as_json)
    if now["more"]:
        words = f"{now['more']} more changed files are too many to be told of: commit in parts"
        output.say(words, program=render.PROGRAM)
    elif not count and not as_json:
        where = f" at or below {several(files)}" if files else ""
        words = f"slot {found.name} has changed nothing{where}"
        output.say(printable(words), program=render.PROGRAM)
    return 0


def _is_below(path: bytes, named: Sequence[bytes]) -> bool:
    return any(one in (TOP, path) or path.startswith(one + b"/") for one in named)


def _differences(
    slot: Slot, repository: Repository, changes: Sequence[Change]
) -> Iterator[FileChange]:
    for one in changes:
        base = Entry(one.base_kind, one.base_hash) if one.base_kind else None
        yield FileChange(
            path=one.path,
            old_kind=one.base_kind,
            old_hash=one.base_hash,
            new_kind=one.kind,
            new_hash=one.hash,
            diff=difference(one.path, history.version(repository, base), _worktree(slot, one)),
        )


def _worktree(slot: Slot, change: Change) -> Version | None:
    """Return the file as it is in the worktree; one that has vanished since is deleted."""
    path = os.fsencode(slot.worktree) + b"/" + change.path
    if not change.kind:
        return None
    try:
        if change.kind == "link":
            return Version(change.kind, os.readlink(path))
        fd = artifact.open_regular(path)
        with open(fd, "rb") as file:
            return Version(change.kind, file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HubError(
            f"{treepath.show(change.path)} cannot be read: {error.strerror or error}",
            reason="unreadable",
        ) from None


@output.verb("swarm.reap", interrupted="`bones swarm reap` again goes on")
def reap(
    *, root: str | None = None, dry_run: bool = False, yes: bool = False, as_json: bool = False
) -> int:
    """Clean up after the dead slots; without *yes* only after asking."""
    verb = "swarm.reap"
    workspace = workspace_of(root)
    refuse_foreign(workspace)
    plan = pruning.plan(workspace.root)
    lines = [f"{one.action:6}  {one.name}: {one.reason}" for one in plan]
    if dry_run:
        if as_json:
            rows = [one.as_dict() for one in plan]
            output.print_data(verb, {"dry_run": True, "root": workspace.root, "plan": rows})
        else:
            _tell(lines, f"no slots in {workspace.root}")
        return 0
    due = [one for one in plan if one.action != pruning.KEEP]
    if due and not yes and not agreed(lines, as_json=as_json):
        output.say("nothing was cleaned up", program=render.PROGRAM)
        return 1
    done = pruning.prune(workspace.root)
    if as_json:
        output.print_data(verb, {"dry_run": False, "root": workspace.root, **done.as_dict()})
    else:
        stay = len(done.kept)
        why = f"; {stay} stay{'s' * (stay == 1)}: --dry-run says why" if stay else ""
        _tell(gc.lines(done), f"nothing to clean up{why}")
    return 1 if done.failed else 0


def _tell(lines: Iterable[str], otherwise: str) -> None:
    output.lines(map(printable, lines), printable(otherwise), program=render.PROGRAM)
