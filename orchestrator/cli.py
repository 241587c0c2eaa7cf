"""The ``bones`` command line."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from hub import __version__, output
from hub.cli import Json, Root, run_app, seconds
from hub.cli import app as hub_app
from swarm.cli import app as swarm_app

app = typer.Typer(
    name="bones",
    help="The substrate of a swarm of coding agents on one git repository."
    "\n\nExample:  bones hub start --detach",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(hub_app, name="hub")
app.add_typer(swarm_app, name="swarm")


@app.command()
def down(
    *,
    root: Root = None,
    as_json: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be ended, and why.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keep_hub: Annotated[bool, typer.Option("--keep-hub", help="End all but the hub.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="SECONDS",
            help="End a hub that hangs after this long. [default: 10]",
        ),
    ] = None,
) -> NoReturn:
    """End all that runs in this workspace, and lose nothing.

    Leaves end first, dead slots are removed or their unsaved work rescued, then
    the hub stops. Whatever survives is named, with exit code 1. The trunk, the
    events and the rescues stay.

    Example:  bones down --dry-run
    """
    from orchestrator import verbs  # noqa: PLC0415

    sys.exit(
        verbs.down(
            root=root,
            keep_hub=keep_hub,
            dry_run=dry_run,
            yes=yes,
            timeout_s=timeout,
            as_json=as_json,
        )
    )


def _version(wanted: bool) -> None:
    if wanted:
        output.line(f"bones {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


def main(arguments: list[str]) -> NoReturn:
    """Run the command line *arguments* and exit."""
    if arguments[:1] == ["swarm"]:  # so that a mistake is told of the verb, swarm.…
        run_app(swarm_app, arguments[1:], program="bones swarm")
    run_app(app, arguments, program="bones")
