"""The verbs start, stop, status and url: call, print, return the exit code."""

from __future__ import annotations

import os
import sys

from foundation.errors import HubError, OwnedByAnother
from hub import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hub.discovery import HubInfo
    from hub.status import HubStatus

ROOT_VARIABLE = "HUB_ROOT"


def root_or_default(root: str | None) -> str | None:
    """Return *root*, else what HUB_ROOT names, else None: look upward from here."""
    return root or os.environ.get(ROOT_VARIABLE) or None


def start(
    *, root: str | None = None, detach: bool = False, fossil_port: int | None = None,
    nats_port: int | None = None, timeout_s: float | None = None, as_json: bool = False,
    exclusive: bool = False, verb: str = "hub.start",
) -> int:
    """Start a hub, or say that one runs; with *exclusive* that is an error (exit 100)."""
    from hub import start as starting  # noqa: PLC0415

    def ready(info: HubInfo) -> None:
        _print_ready(verb, info, as_json=as_json)

    progress = _Progress()
    try:
        info = starting.start(
            root_or_default(root), detach=detach, fossil_port=fossil_port, nats_port=nats_port,
            timeout_s=starting.TIMEOUT_S if timeout_s is None else timeout_s,
            progress=progress, on_ready=ready,
        )
        progress.end()
        if info is None:
            return 0
        if exclusive:
            raise OwnedByAnother(f"a hub runs already in {info.root} (pid {info.pid})",
                                 reason="already-running")
    except HubError as error:
        progress.end()
        return output.print_error(verb, error, as_json=as_json)
    except KeyboardInterrupt:
        progress.end()
        output.say("interrupted: nothing was started")
        return 130
    ready(info)
    asked = {"fossil": fossil_port, "nats": nats_port}
    for name, port in asked.items():
        url = info.fossil_url if name == "fossil" else info.nats_url
        if port is not None and not url.endswith(f":{port}"):
            output.say(f"--{name}-port {port} was not applied: the hub runs already; "
                       f"`hub stop` first")
    return 0


def _print_ready(verb: str, info: HubInfo, *, as_json: bool) -> None:
    if as_json:
        output.print_data(verb, info.as_dict())
        return
    already = "already running, " if info.already_running else ""
    output.say(f"{already}fossil at {info.fossil_url}, nats at {info.nats_url} (pid {info.pid})")


class _Progress:
    """Hands progress to the bar, which is imported only if there is any."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, progress: dict[str, Any]) -> None:
        if "warning" in progress:
            self.end()
            output.say(f"warning: {progress['warning']}")
            return
        if self._bar is None:
            from hub.bar import Bar  # noqa: PLC0415

            self._bar = Bar(sys.stderr)
        self._bar.show(str(progress["phase"]), int(progress["done"]), int(progress["total"]))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.end()
            self._bar = None


def stop(*, root: str | None = None, force: bool = False, timeout_s: float | None = None,
         as_json: bool = False) -> int:
    """Stop the hub."""
    from hub import stop as stopping  # noqa: PLC0415

    try:
        stopped = stopping.stop(
            root_or_default(root), force=force,
            timeout_s=stopping.TIMEOUT_S if timeout_s is None else timeout_s,
        )
    except HubError as error:
        return output.print_error("hub.stop", error, as_json=as_json)
    if as_json:
        output.print_data("hub.stop", stopped.as_dict())
    elif stopped.killed:
        output.say(f"the hub did not answer and was killed (pid {stopped.pids[0]})")
    elif not stopped.was_running:
        output.say(f"no hub runs in {stopped.root}")
    else:
        output.say("stopped")
    return 0


def status(*, root: str | None = None, as_json: bool = False) -> int:
    """Show the state of the hub; the exit code says it too."""
    from hub import status as asking  # noqa: PLC0415

    try:
        now = asking.status(root_or_default(root))
    except HubError as error:
        return output.print_error("hub.status", error, as_json=as_json)
    if as_json:
        output.print_data("hub.status", now.as_dict())
    else:
        output.line("\n".join(_status_lines(now)))
    return now.exit_code


def _status_lines(now: HubStatus) -> list[str]:
    head = f"{now.state:9} {now.root}" + (f"  ({now.reason})" if now.reason else "")
    lines = [head]
    for child in now.children:
        restarts = f"restarted {child.restarts} times" if child.restarts else ""
        version = f" {now.versions[child.name]}" if now.versions.get(child.name) else ""
        url = ""
        if now.info is not None:
            url = {"fossil": now.info.fossil_url, "nats": now.info.nats_url}.get(child.name, "")
        pid = f"pid {child.pid}" if child.pid else "no process"
        fields = (f"{child.name + version:13}", f"{child.phase:9}", f"{pid:11}", url, restarts)
        lines.append(("  " + " ".join(field for field in fields if field)).rstrip())
    return lines


def url(*, root: str | None = None, as_json: bool = False) -> int:
    """Print the URLs of the running hub."""
    from hub.status import running_info  # noqa: PLC0415

    try:
        info = running_info(root_or_default(root))
    except HubError as error:
        return output.print_error("hub.url", error, as_json=as_json)
    if as_json:
        output.print_data("hub.url", {"fossil": info.fossil_url, "nats": info.nats_url})
    else:
        output.line(f"fossil {info.fossil_url}\nnats {info.nats_url}")
    return 0
