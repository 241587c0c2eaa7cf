"""What our command lines share: how one is made and run, and the options of several verbs."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from foundation.errors import Usage
from hub import __version__, output
from hub.verbs import ROOT_VARIABLE

_LONGEST_WAIT_S = 1e6
_MISTAKE: Any = typer.BadParameter.__mro__[1]
"""What the library raises for a wrong command line (it does not export the class itself)."""


def new_app(
    name: str, help_text: str, *, epilog: str | None = None, completes: bool = False
) -> typer.Typer:
    """Return the command line *name*, of no verbs yet; *completes*: it can set a shell up."""
    return typer.Typer(
        name=name,
        help=help_text,
        epilog=epilog,
        no_args_is_help=True,
        add_completion=completes,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_app(app: typer.Typer, arguments: list[str], *, program: str) -> NoReturn:
    """Run *app* with *arguments* and exit; with ``--json`` a mistake in them is JSON too."""
    try:
        app(arguments, prog_name=program, standalone_mode="--json" not in arguments)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
    except _MISTAKE as mistake:
        error = Usage(mistake.format_message(), reason="usage")
        sys.exit(output.print_error(_verb(mistake, arguments, program), error, as_json=True))
    sys.exit(0)


def _verb(mistake: Any, arguments: list[str], program: str) -> str:
    """Return the verb in which there is a *mistake*: `bones hub start` is hub.start."""
    of_its_own = ["bones", "hub"], ["bones", "swarm"]
    words = program.split()
    if mistake.ctx is not None:
        known = mistake.ctx.command_path.split()
        meant = arguments[len(known) - len(words) :][:1] if _has_verbs(mistake.ctx) else []
        words = [*known, *(word for word in meant if not word.startswith("-"))]
    return ".".join(words[words[:2] in of_its_own :])


def _has_verbs(context: Any) -> bool:
    return hasattr(context.command, "commands")


def seconds(text: str) -> float:
    """Read a positive number of seconds; name it if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < _LONGEST_WAIT_S:
        raise typer.BadParameter(f"{text}: a time is a positive number of seconds")
    return value


def seconds_option(help_text: str) -> Any:
    """Return an option that is a number of seconds, None by default."""
    return typer.Option(parser=seconds, metavar="SECONDS", help=help_text)


def version_option(program: str) -> Any:
    """Return the option ``--version`` of *program*."""

    def told(wanted: bool) -> None:
        if wanted:
            output.line(f"{program} {__version__}")
            raise typer.Exit

    return typer.Option("--version", callback=told, is_eager=True, help="Print the version.")


Root = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="DIR",
        envvar=ROOT_VARIABLE,
        help="The workspace around DIR instead of the one around the current directory.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Timeout = Annotated[
    float | None, seconds_option("Give up this long after the last sign of progress. [default: 30]")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")]
DryRunOfSlots = Annotated[
    bool, typer.Option("--dry-run", help="Only say what becomes of each slot, and why.")
]
DryRunOfEnding = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be ended, and why.")
]
