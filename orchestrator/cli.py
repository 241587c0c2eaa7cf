"""The ``bones`` command line."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from hub import __version__, output
from hub.cli import app as hub_app
from hub.cli import run_app
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
