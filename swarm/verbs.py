"""The fast verbs of a slot: join, commit, update, status, cwd, close. Call, print, exit code."""

from __future__ import annotations

import os
import sys

from foundation.errors import HubError, NotRunning, Refused
from hub import output
from hub.commits import Conflicted
from hub.wording import several
from slotgc import treepath
from swarm import render
from swarm.patience import Patience
from swarm.slot import COMMIT_WITHIN_S, JOIN_WITHIN_S, Closed, slot_at
from swarm.which import named_or_here, paths_in, slot_of, workspace_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from swarm.slot import Result, Slot

_MERGE = "`bones swarm update --markers{slot}` brings theirs in, with markers where both changed"
_MARK = "`bones swarm update --markers{slot}` writes markers where both changed; or undo yours"


def join(
    *,
    slot: str,
    root: str | None = None,
    task: str = "",
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Join a slot and print its worktree."""
    from swarm.slot import join as join_slot  # noqa: PLC0415

    progress = Progress()
    try:
        joined = join_slot(
            workspace_of(root).root,
            slot,
            task,
            timeout_s=JOIN_WITHIN_S if timeout_s is None else timeout_s,
            progress=progress,
        )
    except HubError as error:
        progress.end()
        return output.print_error("swarm.join", error, as_json=as_json)
    except KeyboardInterrupt:
        progress.end()
        return _interrupted("`bones swarm join` again goes on")
    progress.end()
    return output.show(render.joined(joined.info, as_json=as_json))


def commit(
    *,
    message: str,
    files: Sequence[str] = (),
    root: str | None = None,
    slot: str | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Land what a slot has changed, or only *files* of it, and print the check-in."""
    verb = "swarm.commit"
    within_s = COMMIT_WITHIN_S if timeout_s is None else timeout_s
    try:
        found = slot_of(root, slot)
        paths = paths_in(found, files)
        with Patience(found, "not landed yet", within_s):
            done = found.commit(message, paths, timeout_s=within_s)
    except Conflicted as error:
        return show_conflict(verb, error, _MERGE.format(slot=_naming(found)), as_json=as_json)
    except HubError as error:
        if files and error.reason == "nothing-to-commit":
            named = several([treepath.show(os.fsencode(name)) for name in files])
            error = Refused(f"{error} at or below {named}", reason=error.reason)
        return output.print_error(verb, error, as_json=as_json)
    except KeyboardInterrupt:
        return _interrupted("it may land all the same; nothing lands twice: `bones swarm status`")
    return output.show(render.committed(done, as_json=as_json))


def update(
    *,
    root: str | None = None,
    slot: str | None = None,
    markers: bool = False,
    as_json: bool = False,
) -> int:
    """Bring trunk's tip into a slot's worktree."""
    verb = "swarm.update"
    try:
        found = slot_of(root, slot)
        with Patience(found, "not updated yet", JOIN_WITHIN_S):
            done = found.update(markers=markers)
    except Conflicted as error:
        return show_conflict(verb, error, _MARK.format(slot=_naming(found)), as_json=as_json)
    except HubError as error:
        return output.print_error(verb, error, as_json=as_json)
    except KeyboardInterrupt:
        return _interrupted("`bones swarm update` again goes on")
    return output.show(render.updated(done, as_json=as_json))


def status(*, root: str | None = None, slot: str | None = None, as_json: bool = False) -> int:
    """Show a slot; where none is meant, all of the workspace."""
    try:
        found = named_or_here(root, slot)
        if found is None:
            from swarm.overview import show_all  # noqa: PLC0415 - looks at much more

            return show_all(workspace_of(root), as_json=as_json)
        return output.show(render.status(_status(found), as_json=as_json))
    except HubError as error:
        return output.print_error("swarm.status", error, as_json=as_json)


def _status(slot: Slot) -> dict[str, Any]:
    """Return STATUS with the changes; without them where they cannot be told."""
    try:
        return slot.status(changes=True)
    except Refused as error:
        if error.reason == "no-slot":
            raise
        return {**slot.status(), "changes": None, "trouble": str(error)}


def cwd(*, root: str | None = None, slot: str | None = None, as_json: bool = False) -> int:
    """Print the worktree of a slot."""
    try:
        found = slot_of(root, slot)
    except HubError as error:
        return output.print_error("swarm.cwd", error, as_json=as_json)
    if as_json:
        output.print_data("swarm.cwd", {"slot": found.name, "worktree": found.worktree})
    else:
        output.line(found.worktree)
    return 0


def close(
    *,
    root: str | None = None,
    slot: str | None = None,
    result: Result = "success",
    no_artifact: bool = False,
    summary: str = "",
    as_json: bool = False,
) -> int:
    """End a slot's leaf and clean up after it."""
    try:
        found = slot_of(root, slot)
        _leave(found)
        with Patience(found, "not closed yet", COMMIT_WITHIN_S):
            done = found.close(result, artifact=not no_artifact, summary=summary)
    except HubError as error:
        if slot and error.reason == "no-slot":  # closed before, and that is what was asked for
            gone = Closed(slot=slot, result=result)
            return output.show(render.closed(gone, as_json=as_json))
        if error.reason == "leaf-dead":
            error = NotRunning(f"{error}, `bones swarm reap` rescues them", reason=error.reason)
        return output.print_error("swarm.close", error, as_json=as_json)
    except KeyboardInterrupt:
        return _interrupted("`bones swarm close` again goes on")
    return output.show(render.closed(done, as_json=as_json))


def _naming(slot: Slot) -> str:
    """Return the option that names *slot*, "" where the current directory does."""
    return "" if slot_at() == (slot.root, slot.name) else f" --slot {slot.name}"


def _leave(slot: Slot) -> None:
    """Be elsewhere than in *slot*, lest this very process keep its directory from going."""
    here = slot_at()
    if here is not None and here[1] == slot.name:
        os.chdir(slot.root)


def show_conflict(verb: str, error: Conflicted, way_out: str, *, as_json: bool) -> int:
    """Print where others have changed the same, and *way_out*; return the exit code."""
    return output.show(
        render.conflicted(verb, str(error), error.conflicts, way_out, as_json=as_json)
    )


def _interrupted(words: str) -> int:
    output.say(f"interrupted: {words}", program=render.PROGRAM)
    return 130


class Progress:
    """Shows a leaf's or an apply's progress; the bar is imported only if there is any."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._bar: Any = None

    def __call__(self, progress: dict[str, Any]) -> None:
        """Show one sign of it: a note, or how far a phase is."""
        if "phase" not in progress:
            self.end()
            output.say(str(progress.get("note", "")), program=render.PROGRAM)
            return
        if self._bar is None:
            from hub.bar import Bar  # noqa: PLC0415

            self._bar = Bar(sys.stderr)
        done, total = progress.get("done", 0), progress.get("total", 0)
        self._bar.show(str(progress["phase"]), int(done), int(total))

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.end()
            self._bar = None
