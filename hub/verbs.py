"""The verbs start, stop, restart, status, url, events, reap: call, print, return the exit code."""

from __future__ import annotations

import os
import sys

from foundation.errors import HubError, OwnedByAnother, Usage
from hub import output, render

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.info import HubInfo

ROOT_VARIABLE = "HUB_ROOT"
TRUNK_WITHIN_S = 5.0
"""A hub that has just started has no trunk yet, which alone has what happened."""


def root_or_default(root: str | None) -> str | None:
    """Return *root*, else what HUB_ROOT names, else None: look upward from here."""
    return root or os.environ.get(ROOT_VARIABLE) or None


def directory_or_anywhere(root: str | None) -> str | None:
    """Return the directory that *root* or HUB_ROOT names, which need not exist; None: neither."""
    named = root_or_default(root)
    return None if named is None else os.path.realpath(named)


def start(
    *,
    root: str | None = None,
    detach: bool = False,
    fossil_port: int | None = None,
    nats_port: int | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
    exclusive: bool = False,
    verb: str = "hub.start",
    lean: bool = False,
) -> int:
    """Start a hub, or say that one runs; with *exclusive* that is an error (exit 100)."""
    from hub import start as starting  # noqa: PLC0415

    told = False

    def ready(info: HubInfo) -> None:
        nonlocal told
        told = True
        progress.end()
        output.show(render.started(info, as_json=as_json, verb=verb))

    try:
        with output.Progress("hub") as progress:
            info = starting.start(
                root_or_default(root),
                detach=detach,
                fossil_port=fossil_port,
                nats_port=nats_port,
                timeout_s=starting.TIMEOUT_S if timeout_s is None else timeout_s,
                progress=progress,
                on_ready=ready,
                _lean=lean,
            )
        if info is None:
            if told:
                return 0
            raise HubError("stopped before it was ready", reason="interrupted")
        if exclusive:
            raise OwnedByAnother(
                f"a hub runs already in {info.root} (pid {info.pid})", reason="already-running"
            )
    except HubError as error:
        return output.print_error(verb, error, as_json=as_json)
    except KeyboardInterrupt:
        return output.end_interrupted("no hub was started", program="hub")
    ready(info)
    asked = {"fossil": fossil_port, "nats": nats_port}
    for name, port in asked.items():
        url = info.fossil_url if name == "fossil" else info.nats_url
        if port is not None and not url.endswith(f":{port}"):
            output.say(
                f"--{name}-port {port} was not applied: the hub runs already; `hub stop` first"
            )
    return 0


@output.verb("hub.stop")
def stop(
    *,
    root: str | None = None,
    force: bool = False,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Stop the hub."""
    from hub import stop as stopping  # noqa: PLC0415

    stopped = stopping.stop(
        root_or_default(root),
        force=force,
        timeout_s=stopping.TIMEOUT_S if timeout_s is None else timeout_s,
    )
    return output.show(render.stopped(stopped, as_json=as_json))


@output.verb("hub.restart")
def restart(
    *,
    root: str | None = None,
    fossil_port: int | None = None,
    nats_port: int | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Stop the hub, whatever its version and its slots, and start one detached."""
    from hub import stop as stopping  # noqa: PLC0415

    stopping.stop(root_or_default(root), force=True)
    return start(
        root=root,
        detach=True,
        fossil_port=fossil_port,
        nats_port=nats_port,
        timeout_s=timeout_s,
        as_json=as_json,
        verb="hub.restart",
    )


@output.verb("hub.status")
def status(*, root: str | None = None, as_json: bool = False, everywhere: bool = False) -> int:
    """Show the state of the hub, or of all of this user's; the exit code says it too."""
    from hub import status as asking  # noqa: PLC0415

    if everywhere:
        from hub import everywhere as listing  # noqa: PLC0415

        below = directory_or_anywhere(root)
        found = listing.everywhere(below)
        return output.show(render.everywhere(found, as_json=as_json, below=below))
    now = asking.status(root_or_default(root))
    return output.show(render.status(now, as_json=as_json))


@output.verb("hub.url")
def url(*, root: str | None = None, as_json: bool = False) -> int:
    """Print the URLs of the running hub."""
    from hub.status import running_info  # noqa: PLC0415

    return output.show(render.url(running_info(root_or_default(root)), as_json=as_json))


@output.verb("hub.events")
def events(
    *, root: str | None = None, after: int = 0, follow: bool = False, as_json: bool = False
) -> int:
    """Print what happened after event *after*, and with *follow* what happens."""
    return print_events(root=root, after=after, follow=follow, as_json=as_json)


def print_events(*, root: str | None, after: int, follow: bool, as_json: bool) -> int:
    """Do what the verb ``events`` does, of whatever program it is."""
    from foundation.workspace import Workspace  # noqa: PLC0415
    from hub.status import wait_for_trunk  # noqa: PLC0415

    workspace = Workspace.find(root_or_default(root))
    wait_for_trunk(workspace, TRUNK_WITHIN_S)
    from hub import eventview  # noqa: PLC0415 - it loads the bus

    eventview.print_events(workspace, after=after, follow=follow, as_json=as_json, out=sys.stdout)
    return 0


@output.verb("hub.reap")
def reap(
    *,
    root: str | None = None,
    as_json: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> int:
    """End what serves workspaces that are gone; without *yes* only after asking."""
    from hub import reap as reaping  # noqa: PLC0415
    from hub.census import census  # noqa: PLC0415

    below = directory_or_anywhere(root)
    with census() as found:
        plan = reaping.plan(found, below)
        planned = reaping.would(plan)
    if dry_run or not planned:
        return output.show(
            render.reaped(planned, plan.spared, as_json=as_json, dry_run=dry_run, below=below)
        )
    if not yes:
        if not as_json:
            output.show(render.reaped(planned, plan.spared, as_json=False, dry_run=True))
        if as_json or not _has_terminal():
            raise Usage(
                f"{render.processes(planned)} to end, and nobody here to ask: --yes ends "
                "them, --dry-run only says which",
                reason="not-confirmed",
            )
        output.say("end these processes? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            output.say("nothing was ended")
            return 1
    pids = [process.pid for one in planned for process in one.processes]
    done = reaping.reap(below, only=pids)
    return output.show(
        render.reaped(done, plan.spared, as_json=as_json, dry_run=False, below=below)
    )


def _has_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
