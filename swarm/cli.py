"""The ``bones swarm`` command line."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from foundation.errors import HubError
from hub.commandline import DryRunOfSlots, Json, Root, Yes, new_app, run_app, seconds_option
from slotgc.leaf import look_all
from swarm import verbs
from swarm.which import workspace_of

app = new_app(
    "swarm",
    "Slots: who works on what. A slot is found from the current directory, or named."
    '\n\nExample:  cd "$(bones swarm join --slot auth)" && …; bones swarm commit -m Keys',
    epilog="Exit codes: 0 ok, 1 failed or conflict, 2 usage, 3 no hub or no leaf, 75 try again, "
    "100 owned by another.",
)
rescue = new_app(
    "rescue",
    "Unsaved work of dead slots, in .bones/rescue.\n\nExample:  bones swarm rescue ls",
)
app.add_typer(rescue)


def slots_there() -> list[str]:
    """Return the names of the slots around here, for a shell to complete."""
    try:
        return [leaf.name for leaf in look_all(workspace_of(None))]
    except (OSError, HubError):
        return []


NewSlot = Annotated[
    str, typer.Option("--slot", metavar="SLOT", help="Its name.", autocompletion=slots_there)
]
SlotName = Annotated[
    str | None,
    typer.Option(
        "--slot",
        metavar="SLOT",
        help="Which. [default: the one around the current directory, else BONES_SLOT]",
        autocompletion=slots_there,
    ),
]
Message = Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What it does.")]
Task = Annotated[str, typer.Option("--task", metavar="LABEL", help="What it is for, for people.")]
Files = Annotated[list[str] | None, typer.Argument(metavar="FILE")]


class Result(StrEnum):
    """How the work ended."""

    success = "success"
    fail = "fail"


@app.command()
def join(
    *,
    slot: NewSlot,
    root: Root = None,
    as_json: Json = False,
    task: Task = "",
    timeout: Annotated[
        float | None,
        seconds_option("Give up this long after the last sign of progress. [default: 60]"),
    ] = None,
) -> NoReturn:
    """Join a slot, print its worktree.

    A slot that is new is made, a dead one goes on with its files, one that is
    joined is found.

    Example:  cd "$(bones swarm join --slot auth)"
    """
    sys.exit(verbs.join(slot=slot, root=root, task=task, timeout_s=timeout, as_json=as_json))


@app.command()
def commit(
    files: Files = None,
    *,
    message: Message,
    root: Root = None,
    as_json: Json = False,
    slot: SlotName = None,
    timeout: Annotated[
        float | None, seconds_option("How long the hub may be away; then exit 75. [default: 30]")
    ] = None,
) -> NoReturn:
    """Land on trunk what the slot has changed.

    All of it, or what is at or below the FILEs; prints the check-in. On return it is on disk. Where
    others have changed the same lines nothing is committed or touched, and each
    path is named with who holds the other version (exit 1).

    Example:  bones swarm commit -m 'Add a key type' src/keys.py
    """
    sys.exit(
        verbs.commit(
            message=message,
            files=files or (),
            root=root,
            slot=slot,
            timeout_s=timeout,
            as_json=as_json,
        )
    )


@app.command()
def update(
    *,
    root: Root = None,
    as_json: Json = False,
    slot: SlotName = None,
    markers: Annotated[
        bool,
        typer.Option("--markers", help="Write conflict markers where both changed the same."),
    ] = False,
) -> NoReturn:
    """Bring trunk's tip into the worktree.

    What was changed here stays changed. Where both changed the same lines nothing
    is touched and the paths are named (exit 1), unless --markers asks for conflict
    markers in them.

    Example:  bones swarm update --markers
    """
    sys.exit(verbs.update(root=root, slot=slot, markers=markers, as_json=as_json))


@app.command()
def diff(
    files: Files = None, *, root: Root = None, as_json: Json = False, slot: SlotName = None
) -> NoReturn:
    """Show what the slot has changed.

    Since it last agreed with trunk, as `git apply` takes it. Of all files, or of
    those at or below the FILEs.

    Example:  bones swarm diff src
    """
    from swarm.work_verbs import diff as show  # noqa: PLC0415

    sys.exit(show(files=files or (), root=root, slot=slot, as_json=as_json))


@app.command()
def status(*, root: Root = None, as_json: Json = False, slot: SlotName = None) -> NoReturn:
    """Show a slot; outside of one, all that there are.

    Example:  bones swarm status --slot auth
    """
    sys.exit(verbs.status(root=root, slot=slot, as_json=as_json))


@app.command()
def cwd(*, root: Root = None, as_json: Json = False, slot: SlotName = None) -> NoReturn:
    """Print the worktree of a slot.

    Example:  cd "$(bones swarm cwd --slot auth)"
    """
    sys.exit(verbs.cwd(root=root, slot=slot, as_json=as_json))


@app.command()
def close(
    *,
    root: Root = None,
    as_json: Json = False,
    slot: SlotName = None,
    result: Annotated[
        Result, typer.Option("--result", help="How the work ended.", show_default=True)
    ] = Result.success,
    no_artifact: Annotated[
        bool, typer.Option("--no-artifact", help="A success that needed no commit.")
    ] = False,
    summary: Annotated[
        str, typer.Option("--summary", metavar="TEXT", help="What came of it, for people.")
    ] = "",
) -> NoReturn:
    """End a slot; unsaved work is rescued.

    Its leaf ends, its directory goes. Success needs nothing left uncommitted and a
    commit since the join, a stock one too; --no-artifact waives the commit.
    Closing a slot that is gone is no error.

    Example:  bones swarm close --summary 'keys can be typed'
    """
    sys.exit(
        verbs.close(
            root=root,
            slot=slot,
            result=result.value,
            no_artifact=no_artifact,
            summary=summary,
            as_json=as_json,
        )
    )


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND")],
    *,
    slot: NewSlot,
    root: Root = None,
    as_json: Json = False,
    task: Task = "",
    commit_on_exit: Annotated[
        bool,
        typer.Option("--commit-on-exit", help="Commit what it leaves changed, however it ends."),
    ] = False,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="Of that commit. [default: task]")
    ] = "",
    no_artifact: Annotated[
        bool, typer.Option("--no-artifact", help="It may succeed without a commit.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the slot joined; it may be joined already.")
    ] = False,
) -> NoReturn:
    """Run an agent in a slot of its own.

    Joins the slot, runs COMMAND in its worktree, closes the slot by how that
    ended. A slot that is joined already is refused (exit 100) without --keep.
    The agent finds its slot by itself; its output is shown, kept in the slot's
    leaf.log and published as slot.SLOT.log. The exit code is the agent's (128 and
    the signal that ended it); 1 if it was no success.

    Example:  bones swarm run --slot auth --commit-on-exit -- ./agent --task keys
    """
    from swarm.running import run as run_agent  # noqa: PLC0415

    sys.exit(
        run_agent(
            command=command,
            slot=slot,
            root=root,
            task=task,
            commit_on_exit=commit_on_exit,
            message=message,
            no_artifact=no_artifact,
            keep=keep,
            as_json=as_json,
        )
    )


@app.command()
def reap(
    *,
    root: Root = None,
    as_json: Json = False,
    dry_run: DryRunOfSlots = False,
    yes: Yes = False,
) -> NoReturn:
    """Clean up after dead slots, as `hub gc`.

    Their unsaved work is moved to .bones/rescue first.

    Example:  bones swarm reap --dry-run
    """
    from swarm.work_verbs import reap as reap_dead  # noqa: PLC0415

    sys.exit(reap_dead(root=root, dry_run=dry_run, yes=yes, as_json=as_json))


@rescue.command("ls")
def ls(*, root: Root = None, as_json: Json = False) -> NoReturn:
    """List what was rescued, the oldest first.

    Example:  bones swarm rescue ls --json
    """
    from swarm import rescue_verbs  # noqa: PLC0415

    sys.exit(rescue_verbs.ls(root=root, as_json=as_json))


@rescue.command("restore")
def restore(
    name: Annotated[str, typer.Argument(help="The rescue, as `ls` names it.")],
    *,
    root: Root = None,
    as_json: Json = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Where. [default: ./NAME]")
    ] = None,
) -> NoReturn:
    """Bring rescued work back, byte for byte.

    A new directory gets the files that were changed or added. Onto a directory that is there, they
    are applied as a patch, deletions too: if a path holds something else than the rescue or its
    base, all such paths are named and nothing is touched. The rescue stays.

    Example:  bones swarm rescue restore auth-20261121T053000Z --to .
    """
    from swarm import rescue_verbs  # noqa: PLC0415

    sys.exit(rescue_verbs.restore(name, root=root, to=to, as_json=as_json))


def main(arguments: list[str]) -> NoReturn:
    """Run ``bones swarm`` with *arguments* and exit."""
    run_app(app, arguments, program="bones swarm")
