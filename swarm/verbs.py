"""The fast verbs of a slot: join, commit, update, status, cwd, close. Call, print, exit code."""

from __future__ import annotations

import os

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


@output.verb("swarm.join", interrupted="`bones swarm join` again goes on")
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

    with output.Progress(render.PROGRAM) as progress:
        joined = join_slot(
            workspace_of(root).root,
            slot,
            task,
            timeout_s=JOIN_WITHIN_S if timeout_s is None else timeout_s,
            progress=progress,
        )
    return output.show(render.joined(joined.info, as_json=as_json))


@output.verb(
    "swarm.commit",
    interrupted="it may land all the same; nothing lands twice: `bones swarm status`",
)
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
    within_s = COMMIT_WITHIN_S if timeout_s is None else timeout_s
    try:
        found = slot_of(root, slot)
        paths = paths_in(found, files)
        with Patience(found, "not landed yet", within_s):
            done = found.commit(message, paths, timeout_s=within_s)
    except Conflicted as error:
        return show_conflict(
            "swarm.commit", error, _MERGE.format(slot=_naming(found)), as_json=as_json
        )
    except HubError as error:
        if files and error.reason == "nothing-to-commit":
            named = several([treepath.show(os.fsencode(name)) for name in files])
            raise Refused(f"{error} at or below {named}", reason=error.reason) from None
        raise
    return output.show(render.committed(done, as_json=as_json))


@output.verb("swarm.update", interrupted="`bones swarm update` again goes on")
def update(
    *,
    root: str | None = None,
    slot: str | None = None,
    markers: bool = False,
    as_json: bool = False,
) -> int:
    """Bring trunk's tip into a slot's worktree."""
    try:
        found = slot_of(root, slot)
        with Patience(found, "not updated yet", JOIN_WITHIN_S):
            done = found.update(markers=markers)
    except Conflicted as error:
        return show_conflict(
            "swarm.update", error, _MARK.format(slot=_naming(found)), as_json=as_json
        )
    return output.show(render.updated(done, as_json=as_json))


@output.verb("swarm.status")
def status(*, root: str | None = None, slot: str | None = None, as_json: bool = False) -> int:
    """Show a slot; where none is meant, all of the workspace."""
    found = named_or_here(root, slot)
    if found is None:
        from swarm.overview import show_all  # noqa: PLC0415 - looks at much more

        return show_all(workspace_of(root), as_json=as_json)
    return output.show(render.status(_status(found), as_json=as_json))


def _status(slot: Slot) -> dict[str, Any]:
    """Return STATUS with the changes; without them where they cannot be told."""
    try:
        return slot.status(changes=True)
    except Refused as error:
        if error.reason == "no-slot":
            raise
        return {**slot.status(), "changes": None, "trouble": str(error)}


@output.verb("swarm.cwd")
def cwd(*, root: str | None = None, slot: str | None = None, as_json: bool = False) -> int:
    """Print the worktree of a slot."""
    found = slot_of(root, slot)
    if as_json:
        output.print_data("swarm.cwd", {"slot": found.name, "worktree": found.worktree})
    else:
        output.line(found.worktree)
    return 0


@output.verb("swarm.close", interrupted="`bones swarm close` again goes on")
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
            words = f"{error}, `bones swarm reap` rescues them"
            raise NotRunning(words, reason=error.reason) from None
        raise
    elsewhere = found.root if done.outcome == "kept" and _is_above(done.reason) else ""
    return output.show(render.closed(done, as_json=as_json, elsewhere=elsewhere))


def _is_above(reason: str) -> bool:
    """Tell whether *reason*, why a directory stays (:mod:`slotgc.use`), names who asked us."""
    from foundation.procfs import ancestors_of  # noqa: PLC0415 - hardly ever

    return any(reason.startswith(f"process {pid} ") for pid in ancestors_of(os.getpid()))


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
