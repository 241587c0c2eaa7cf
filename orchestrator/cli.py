"""The ``bones`` command line."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from hub.cli import app as hub_app
from hub.commandline import (
    DryRun,
    DryRunOfEnding,
    Json,
    Root,
    Timeout,
    Yes,
    new_app,
    run_app,
    seconds_option,
    version_option,
)
from orchestrator import trunk_verbs, verbs
from orchestrator.vm_cli import app as vm_app
from swarm.cli import app as swarm_app

app = new_app(
    "bones",
    "The substrate of a swarm of coding agents on one git repository."
    '\n\nExample:  bones up && cd "$(bones swarm join --slot auth)"',
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 no hub, 75 try again, 100 owned by another; "
    "status: 0 healthy, 3 not running, 4 unknown, 5 degraded.",
    completes=True,
)
app.add_typer(hub_app, name="hub")
app.add_typer(swarm_app, name="swarm")
app.add_typer(vm_app, name="vm")


@app.command()
def up(
    *,
    root: Root = None,
    as_json: Json = False,
    timeout: Timeout = None,
) -> NoReturn:
    """Have a hub run here, ready to take commits.

    Seeds the trunk from what git tracks the first time. Where a hub runs, it says so.

    Example:  bones up
    """
    sys.exit(verbs.up(root=root, timeout_s=timeout, as_json=as_json))


@app.command()
def status(*, root: Root = None, as_json: Json = False) -> NoReturn:
    """Show hub, trunk, slots and VMs, and what needs a person.

    Exit code, of the hub: 0 healthy, 3 not running, 4 unknown, 5 degraded.

    Example:  bones status
    """
    sys.exit(verbs.status(root=root, as_json=as_json))


@app.command()
def log(
    *,
    root: Root = None,
    as_json: Json = False,
    count: Annotated[int, typer.Option("--lines", "-n", min=1, metavar="N", help="How many.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Every one.")] = False,
    slot: Annotated[
        str, typer.Option("--slot", metavar="SLOT", help="Only those of this slot.")
    ] = "",
) -> NoReturn:
    """List the check-ins of trunk, newest first.

    The hub need not run.

    Example:  bones log -n 5
    """
    sys.exit(
        trunk_verbs.log(root=root, count=None if everything else count, slot=slot, as_json=as_json)
    )


CheckIn = "a hash, the first digits of one, tip or root"


@app.command()
def diff(
    old: Annotated[str | None, typer.Argument(metavar="CHECKIN", help=f"Which: {CheckIn}.")] = None,
    new: Annotated[str | None, typer.Argument(metavar="CHECKIN", help="And up to which.")] = None,
    *,
    root: Root = None,
    as_json: Json = False,
) -> NoReturn:
    """Show what a check-in changed, or what is between two.

    The tip if none is named. As `git apply` takes it; what is binary or too large
    is only named.

    Example:  bones diff root tip
    """
    sys.exit(trunk_verbs.diff(old, new, root=root, as_json=as_json))


@app.command()
def revert(
    checkin: Annotated[str, typer.Argument(metavar="CHECKIN", help=f"Which: {CheckIn}.")],
    *,
    root: Root = None,
    as_json: Json = False,
    message: Annotated[
        str,
        typer.Option("--message", "-m", metavar="TEXT", help="[default: revert and its message]"),
    ] = "",
) -> NoReturn:
    """Undo a check-in by a new one; print that.

    What others have changed since stays. Where they changed the same lines it is
    refused, and each path is named (exit 1).

    Example:  bones revert 1a2b3c4d
    """
    sys.exit(trunk_verbs.revert(checkin, message=message, root=root, as_json=as_json))


@app.command()
def apply(
    *,
    root: Root = None,
    as_json: Json = False,
    branch: Annotated[
        str,
        typer.Option("--branch", metavar="BRANCH", help="Which. [default: swarm/ and the base]"),
    ] = "",
    dry_run: DryRun = False,
) -> NoReturn:
    """Bring trunk's check-ins back into git, on a branch.

    Each becomes a commit with its slot as the author, its time and its message;
    again it adds only what is new. Your branch, index and files stay as they are.

    Example:  bones apply --branch swarm && git merge swarm
    """
    sys.exit(trunk_verbs.apply(branch, root=root, dry_run=dry_run, as_json=as_json))


@app.command()
def events(
    *,
    root: Root = None,
    as_json: Json = False,
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Only newer ones.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new ones.")] = False,
) -> NoReturn:
    """Print what happened; the hub must run.

    As `hub events`: from the durable stream EVENTS, oldest first.

    Example:  bones events --follow --json
    """
    sys.exit(trunk_verbs.events(root=root, after=after, follow=follow, as_json=as_json))


@app.command()
def down(
    *,
    root: Root = None,
    as_json: Json = False,
    dry_run: DryRunOfEnding = False,
    yes: Yes = False,
    keep_hub: Annotated[bool, typer.Option("--keep-hub", help="End all but the hub.")] = False,
    timeout: Annotated[
        float | None, seconds_option("End a hub that hangs after this long. [default: 10]")
    ] = None,
) -> NoReturn:
    """End all that runs in this workspace, and lose nothing.

    Leaves end first, dead slots are removed or their unsaved work rescued, then
    the hub stops. Whatever survives is named, with exit code 1. The trunk, the
    events and the rescues stay.

    Example:  bones down --dry-run
    """
    from orchestrator import down_verb  # noqa: PLC0415

    sys.exit(
        down_verb.down(
            root=root,
            keep_hub=keep_hub,
            dry_run=dry_run,
            yes=yes,
            timeout_s=timeout,
            as_json=as_json,
        )
    )


@app.command()
def purge(
    *, root: Root = None, as_json: Json = False, dry_run: DryRun = False, yes: Yes = False
) -> NoReturn:
    """Remove trunk, events, slots, rescues and VMs for good.

    Refused while a hub, a slot or a VM is alive. Names first what is saved
    nowhere else: check-ins that were never applied to git, unsaved work,
    rescues, VMs' disks. Git's own files stay as they are.

    Example:  bones purge --dry-run
    """
    sys.exit(verbs.purge(root=root, dry_run=dry_run, yes=yes, as_json=as_json))


@app.callback()
def options(
    *,
    version: Annotated[bool, version_option("bones")] = False,
) -> None:
    """Take the options that stand before a verb."""


def main(arguments: list[str]) -> NoReturn:
    """Run the command line *arguments* and exit."""
    run_app(app, arguments, program="bones")
