"""The verb run: an agent in a slot of its own. Join, run, close, exit code.

A hundred of them may begin at once, so nothing is loaded that the agent does not need.
"""

from __future__ import annotations

import sys

from foundation.errors import HubError, OwnedByAnother, Refused
from hub import output
from hub.commits import Conflicted
from hub.render import printable
from swarm import render
from swarm.slot import join
from swarm.verbs import show_conflict
from swarm.which import workspace_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swarm.slot import Closed, Ran, Slot

_SIGNALLED = 128
_REFUSED = {
    "no-artifact": "it has committed nothing (--commit-on-exit commits what an agent leaves, "
    "--no-artifact lets one succeed without)",
    "uncommitted": "it has left changes uncommitted (--commit-on-exit commits them)",
}
"""Why a success is refused: the leaf's own words are for who can still do something about it."""


def run(
    *,
    command: list[str],
    slot: str,
    root: str | None = None,
    task: str = "",
    commit_on_exit: bool = False,
    message: str = "",
    no_artifact: bool = False,
    keep: bool = False,
    as_json: bool = False,
) -> int:
    """Join a slot, run *command* in it, close it by how that ended; return the exit code."""
    verb = "swarm.run"
    ran = None
    try:
        with output.Progress(render.PROGRAM) as progress:
            joined = join(workspace_of(root).root, slot, task, progress=progress)
        if not (joined.info["joined"] or keep):
            raise _joined_already(joined)
        message = message or task or f"work of {slot}"
        try:
            ran = joined.run(
                command,
                commit_on_exit=commit_on_exit,
                message=message,
                output=_tell if as_json else _show,
            )
        except Refused as error:
            if joined.info["joined"] and not keep:  # and nobody has worked in it since
                output.show(render.closed(joined.close("fail", summary=str(error)), as_json=False))
            if error.reason == "not-executable":
                error = _not_executable(command[0], joined, error)
            raise error from None
        if commit_on_exit and not ran.checkin:
            ran = ran.replace(checkin=_committed(joined, message))
        if ran.checkin:
            words = f"what the agent left is check-in {ran.checkin[: render.SHORT]}"
            output.say(words, program=render.PROGRAM)
        code = ran.status if ran.status >= 0 else _SIGNALLED - ran.status
        closed, refused = (None, "") if keep else _close(joined, ran, artifact=not no_artifact)
    except Conflicted as error:
        way_out = f"slot {slot} stays: `bones swarm update --markers --slot {slot}`, then commit"
        return show_conflict(verb, error, way_out, as_json=as_json)
    except HubError as error:
        status = output.print_error(verb, error, as_json=as_json)
        if ran is not None:
            words = (
                f"slot {slot} stays with what the agent left, in {joined.worktree}: mend and "
                f"commit it there, or `bones swarm close --result fail --slot {slot}`"
            )
            output.say(printable(words), program=render.PROGRAM)
        return status
    except KeyboardInterrupt:
        words = (
            f"the agent is ended, slot {slot} stays joined: the same with --keep goes on, "
            f"`bones swarm close --result fail --slot {slot}` ends it"
        )
        return output.end_interrupted(words, program=render.PROGRAM)
    if as_json:
        output.print_data(
            verb,
            {
                "slot": slot,
                "status": ran.status,
                "checkin": ran.checkin,
                "refused": refused,
                "result": "" if closed is None else closed.result,
                "outcome": "" if closed is None else closed.outcome,
                "rescue": "" if closed is None else closed.rescue,
                "reason": "" if closed is None else closed.reason,
            },
        )
    elif refused:
        output.say(
            f"the agent ended with 0, but it was no success: {refused}",
            program=render.PROGRAM,
        )
    return code or (1 if refused else 0)


def _joined_already(slot: Slot) -> OwnedByAnother:
    """Return the error for a slot that somebody works in: to close it would take it from him."""
    name = slot.name
    return OwnedByAnother(
        f"slot {name} is joined already, and whoever did that may work there: name another; "
        f"--keep runs the agent in it and leaves it joined; `bones swarm close --slot {name}` "
        "ends it",
        reason="joined",
    )


def _not_executable(program: str, slot: Slot, error: Refused) -> Refused:
    why = str(error).rpartition(": ")[2]
    place = f"with a / it is a path from {slot.worktree}" if "/" in program else "looked up on PATH"
    return Refused(f"{program} cannot be run: {why} ({place})", reason=error.reason)


def _show(lines: list[str]) -> None:
    """Show what the agent says, as it says it."""
    output.line("\n".join(lines))


def _tell(lines: list[str]) -> None:
    """Show it where it is not in the way of JSON."""
    if sys.stderr is not None:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()


def _committed(slot: Slot, message: str) -> str:
    """Commit what the leaf could not, which says why; "" if nothing was left to commit.

    Raises: as :meth:`swarm.slot.Slot.commit`.
    """
    try:
        return slot.commit(message).checkin
    except Refused as error:
        if error.reason != "nothing-to-commit":
            raise
        return ""


def _close(slot: Slot, ran: Ran, *, artifact: bool) -> tuple[Closed, str]:
    """Close *slot* by how its agent has ended; say why a success was refused, "" if it was not.

    Work that is refused as a success is closed as failed, and so rescued, not left lying.
    """
    summary = f"ended with status {ran.status}"
    why = ""
    if ran.status:
        done = slot.close("fail", summary=summary)
    else:
        try:
            done = slot.close("success", artifact=artifact, summary=summary)
        except Refused as error:
            if error.reason not in _REFUSED:
                raise
            why = _REFUSED[error.reason]
            done = slot.close("fail", summary=f"{summary}, but {why}")
    output.show(render.closed(done, as_json=False))
    return done, why
