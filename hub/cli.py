"""The ``hub`` command line, whole. The plain forms of the fast verbs never get here."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated, NoReturn

import typer

from hub import ports, verbs
from hub.commandline import (
    DryRunOfEnding,
    DryRunOfSlots,
    Json,
    Root,
    Timeout,
    Yes,
    new_app,
    run_app,
    version_option,
)

app = new_app(
    "hub",
    "One hub per workspace: a Fossil trunk and a NATS JetStream bus for a swarm of agents."
    "\n\nExample:  hub start --detach && hub status",
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 not running, 75 try again, 100 owned by "
    "another; status: 0 healthy, 3 not running, 4 unknown, 5 degraded.",
    completes=True,
)

_MOST_DIGITS = 18


def _port(text: str) -> int:
    """Read a port as the fast path does; name it if it is none."""
    port = ports.parse(text)
    if port is None:
        raise typer.BadParameter(f"{text}: a port is a number from 1 to {ports.HIGHEST}")
    return port


FossilPort = Annotated[
    int | None,
    typer.Option(
        parser=_port,
        metavar="PORT",
        help="Use this port or fail. [default: the last one, 8765, any]",
    ),
]
NatsPort = Annotated[
    int | None,
    typer.Option(
        parser=_port,
        metavar="PORT",
        help="Use this port or fail. [default: the last one, 4222, any]",
    ),
]


def _count(text: str | int) -> int:
    """Read a whole number (the default comes as one); name it if it is none."""
    text = str(text)
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise typer.BadParameter(f"{text}: a whole number is needed here")
    return int(text)


class LogName(StrEnum):
    """Whose log."""

    fossil = "fossil"
    nats = "nats"
    hub = "hub"
    trunk = "trunk"


@app.command()
def start(
    *,
    root: Root = None,
    as_json: Json = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once it is ready.")
    ] = False,
    fossil_port: FossilPort = None,
    nats_port: NatsPort = None,
    timeout: Timeout = None,
) -> NoReturn:
    """Start the hub, or say that it runs already.

    Without --detach this process is the hub until it is interrupted.

    Example:  hub start --detach
    """
    sys.exit(
        verbs.start(
            root=root,
            detach=detach,
            fossil_port=fossil_port,
            nats_port=nats_port,
            timeout_s=timeout,
            as_json=as_json,
        )
    )


@app.command()
def stop(
    *,
    root: Root = None,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Even while slots are alive.")] = False,
    timeout: Timeout = None,
) -> NoReturn:
    """Stop the hub and wait until it is gone.

    All its processes have ended then and its ports are free.

    Example:  hub stop
    """
    sys.exit(verbs.stop(root=root, force=force, timeout_s=timeout, as_json=as_json))


@app.command()
def restart(
    *,
    root: Root = None,
    as_json: Json = False,
    fossil_port: FossilPort = None,
    nats_port: NatsPort = None,
    timeout: Timeout = None,
) -> NoReturn:
    """Stop the hub if it runs, and start it anew.

    Detached, on the same ports. Slots are not disturbed. Also brings an older hub to this version.

    Example:  hub restart
    """
    sys.exit(
        verbs.restart(
            root=root,
            fossil_port=fossil_port,
            nats_port=nats_port,
            timeout_s=timeout,
            as_json=as_json,
        )
    )


All = Annotated[
    bool,
    typer.Option(
        "--all", help="Every hub of this user; with --root those of workspaces at DIR or below."
    ),
]


@app.command()
def status(*, root: Root = None, as_json: Json = False, everywhere: All = False) -> NoReturn:
    """Show whether the hub runs, and its servers.

    Exit code: 0 healthy, 3 not running, 4 unknown, 5 degraded. With --all: 0 if
    all are healthy or none runs, else 5.

    Example:  hub status --all --json
    """
    sys.exit(verbs.status(root=root, as_json=as_json, everywhere=everywhere))


@app.command()
def url(*, root: Root = None, as_json: Json = False) -> NoReturn:
    """Print where the servers of the running hub answer.

    Example:  hub url
    """
    sys.exit(verbs.url(root=root, as_json=as_json))


@app.command()
def logs(
    name: Annotated[LogName | None, typer.Argument(help="Whose. [default: all]")] = None,
    *,
    root: Root = None,
    as_json: Json = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", parser=_count, metavar="N", help="How many, of each.")
    ] = 20,
) -> NoReturn:
    """Print the last lines of the logs, running or not.

    Example:  hub logs -f nats
    """
    from hub.logview import logs as view  # noqa: PLC0415

    sys.exit(
        view(
            root=root,
            name=None if name is None else str(name),
            follow=follow,
            count=lines,
            as_json=as_json,
        )
    )


@app.command()
def events(
    *,
    root: Root = None,
    as_json: Json = False,
    after: Annotated[int, typer.Option(parser=_count, metavar="SEQ", help="Only newer ones.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new ones.")] = False,
) -> NoReturn:
    """Print what happened; the hub must run.

    From the durable stream EVENTS, oldest first.

    Example:  hub events --follow --json
    """
    sys.exit(verbs.events(root=root, after=after, follow=follow, as_json=as_json))


@app.command()
def gc(
    *,
    root: Root = None,
    as_json: Json = False,
    dry_run: DryRunOfSlots = False,
) -> NoReturn:
    """Clean up after dead slots.

    Clean ones are removed; unsaved work is moved to .bones/rescue first. A slot
    whose leaf may live, or in which some process works, stays.

    Example:  hub gc --dry-run
    """
    from hub.gc import gc as collect  # noqa: PLC0415

    sys.exit(collect(root=root, dry_run=dry_run, as_json=as_json))


@app.command()
def reap(
    *,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="DIR",
            envvar=verbs.ROOT_VARIABLE,
            help="Only workspaces at DIR or below, which need not exist any more.",
        ),
    ] = None,
    as_json: Json = False,
    dry_run: DryRunOfEnding = False,
    yes: Yes = False,
) -> NoReturn:
    """End hubs whose workspace is gone, moved or trashed.

    And the servers that a killed hub left. Only this user's; never a hub whose
    workspace is there. Exit code 1 if something survives.

    Example:  hub reap --dry-run
    """
    sys.exit(verbs.reap(root=root, as_json=as_json, dry_run=dry_run, yes=yes))


@app.command()
def doctor(*, root: Root = None, as_json: Json = False, everywhere: All = False) -> NoReturn:
    """Look for what is wrong here.

    Says what was seen and the command that mends it. Changes nothing. Exit code
    1 if there is a problem.

    Example:  hub doctor
    """
    if everywhere:
        from hub.doctor.everywhere import doctor as examine_all  # noqa: PLC0415

        sys.exit(examine_all(below=verbs.directory_or_anywhere(root), as_json=as_json))
    from hub.doctor import doctor as examine  # noqa: PLC0415

    sys.exit(examine(root=verbs.root_or_default(root), as_json=as_json))


@app.command()
def run(
    *,
    root: Root = None,
    as_json: Json = False,
    fossil_port: FossilPort = None,
    nats_port: NatsPort = None,
) -> NoReturn:
    """Be the hub in the foreground, for a service manager.

    Tells systemd when it is ready; exits with 100 where a hub runs already.

    Example:  hub run --root /srv/project
    """
    sys.exit(
        verbs.start(
            root=root,
            fossil_port=fossil_port,
            nats_port=nats_port,
            as_json=as_json,
            exclusive=True,
            verb="hub.run",
        )
    )


@app.callback()
def options(
    *,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="DIR", help="As after the verb: which workspace."),
    ] = None,
    version: Annotated[bool, version_option("hub")] = False,
) -> None:
    """Take the options that stand before a verb."""
    del version  # its callback has printed it
    if root is not None:
        os.environ[verbs.ROOT_VARIABLE] = root


def main(arguments: list[str], *, program: str = "hub") -> NoReturn:
    """Run the command line *arguments* and exit."""
    run_app(app, arguments, program=program)
