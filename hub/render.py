"""What the verbs show of a hub, as text. Pure: the verbs print it, and the hub itself too."""

from __future__ import annotations

from foundation.record import Record
from hub import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.info import HubInfo
    from hub.status import HubStatus
    from hub.stop import Stopped


class Shown(Record):
    """What a verb prints, and its exit code."""

    stdout: str = ""
    stderr: str = ""
    status: int = 0


def started(info: HubInfo, *, as_json: bool, verb: str = "hub.start") -> Shown:
    """Show a hub that a start made or found."""
    if as_json:
        return Shown(stdout=output.envelope(verb, info.as_dict()))
    already = "already running, " if info.already_running else ""
    return Shown(
        stderr=output.talk(
            f"{already}fossil at {info.fossil_url}, nats at {info.nats_url} (pid {info.pid})"
        )
    )


def stopped(what: Stopped, *, as_json: bool) -> Shown:
    """Show what a stop did."""
    if as_json:
        return Shown(stdout=output.envelope("hub.stop", what.as_dict()))
    if what.killed:
        return Shown(
            stderr=output.talk(f"the hub did not answer and was killed (pid {what.pids[0]})")
        )
    if not what.was_running:
        return Shown(stderr=output.talk(f"no hub runs in {what.root}"))
    return Shown(stderr=output.talk("stopped"))


def url(info: HubInfo, *, as_json: bool) -> Shown:
    """Show where the servers answer."""
    if as_json:
        data = {"fossil": info.fossil_url, "nats": info.nats_url}
        return Shown(stdout=output.envelope("hub.url", data))
    return Shown(stdout=f"fossil {info.fossil_url}\nnats {info.nats_url}\n")


def _restarts(count: int) -> str:
    if count == 0:
        return ""
    return "restarted once" if count == 1 else f"restarted {count} times"


def status(now: HubStatus, *, as_json: bool) -> Shown:
    """Show the state of a hub and of its children."""
    if as_json:
        return Shown(stdout=output.envelope("hub.status", now.as_dict()), status=now.exit_code)
    pid = f"  pid {now.info.pid}" if now.info is not None else ""
    lines = [f"{now.state:9} {now.root}{pid}" + (f"  ({now.reason})" if now.reason else "")]
    for child in now.children:
        place = ""
        if now.info is not None:
            place = {"fossil": now.info.fossil_url, "nats": now.info.nats_url}.get(child.name, "")
        fields = (
            f"{child.name + ' ' + now.versions.get(child.name, ''):13}",
            f"{child.phase:9}",
            f"{f'pid {child.pid}' if child.pid else 'no process':11}",
            place,
            _restarts(child.restarts),
        )
        lines.append(("  " + " ".join(field for field in fields if field)).rstrip())
    return Shown(stdout="\n".join(lines) + "\n", status=now.exit_code)
