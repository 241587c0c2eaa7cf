"""What the verbs show of a hub, as text. Pure: the verbs print it, and the hub itself too."""

from __future__ import annotations

from foundation.record import Record
from hub import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from hub.everywhere import Listed, Listing
    from hub.info import HubInfo
    from hub.reap import Reaped, Spared
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


def everywhere(listing: Listing, *, as_json: bool, below: str | None = None) -> Shown:
    """Show every hub of this user, a line each; notes on the registry go to stderr."""
    if as_json:
        return Shown(
            stdout=output.envelope("hub.status", listing.as_dict()), status=listing.exit_code
        )
    told = [*listing.notes]
    if not listing.hubs:
        told.append("no hub runs" if below is None else f"no hub runs at {below} or below")
    return Shown(
        stdout="".join(f"{_line(hub)}\n" for hub in listing.hubs),
        stderr="".join(output.talk(note) for note in map(printable, told)),
        status=listing.exit_code,
    )


def _line(hub: Listed) -> str:
    told = [hub.reason] if hub.reason else []
    if not hub.registered and hub.state != "starting":
        told.append("not in this registry")
    fields = [f"{hub.state:9} {printable(hub.root)}", f"pid {hub.pid}"]
    if hub.info is not None:
        fields += [hub.info.fossil_url, hub.info.nats_url]
    return printable("  ".join([*fields, *(f"({words})" for words in told)]))


def printable(text: str) -> str:
    """Return *text* with what could steer a terminal escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]
        for char in text
    )


def processes(found: Iterable[Reaped]) -> str:
    """Return how many processes *found* are, in words."""
    count = sum(len(one.processes) for one in found)
    return "1 process" if count == 1 else f"{count} processes"


def reaped(
    found: tuple[Reaped, ...],
    spared: tuple[Spared, ...],
    *,
    as_json: bool,
    dry_run: bool,
    below: str | None = None,
) -> Shown:
    """Show what a reap did or, with *dry_run*, would do; exit code 1 if something survives."""
    left = [pid for one in found for pid in one.survivors]
    if as_json:
        data = {
            "dry_run": dry_run,
            "reaped": [one.as_dict() for one in found],
            "spared": [one.as_dict() for one in spared],
        }
        return Shown(stdout=output.envelope("hub.reap", data), status=1 if left else 0)
    lines = [line for one in found for line in _of_reaped(one, dry_run=dry_run)]
    lines += [
        f"left alone: pid {one.pid} ({one.name}, {one.role}) of {one.root}: {one.reason}"
        for one in spared
    ]
    if left:
        said = f"{len(left)} survived: pid {', '.join(map(str, left))}"
    elif not found:
        said = "nothing to reap" if below is None else f"nothing to reap at {below} or below"
    elif dry_run:
        said = ""
    else:
        said = f"ended {processes(found)}"
    return Shown(
        stdout="".join(f"{printable(line)}\n" for line in lines),
        stderr=output.talk(said) if said else "",
        status=1 if left else 0,
    )


def _of_reaped(one: Reaped, *, dry_run: bool) -> Iterable[str]:
    yield f"{one.kind} of {one.root}: {one.reason}"
    for process in one.processes:
        fate = "would end" if dry_run else "ended"
        if process.pid in one.survivors:
            fate = f"SURVIVES ({one.why}):"
        yield f"  {fate} pid {process.pid} ({process.role}: {process.evidence})"
