"""An event as a person reads it: one line, whatever it holds. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from foundation import codec
from hub.events import MISSING, UNREADABLE

if TYPE_CHECKING:
    from hub.events import Event


def line(event: Event) -> str:
    """Return *event* as one line for people, whatever it holds."""
    text = f"{event.seq:>6}  {local_time(event.time)}  {event.subject}  {summary(event)}"
    return _printable(text).rstrip()


def local_time(text: str) -> str:
    """Return an RFC 3339 time as the clock on the wall shows it."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text


def summary(event: Event) -> str:
    """Return what happened, in a few words."""
    data = event.data
    spell = _BY_WHOM.get(event.subject.partition(".")[0], {}).get(event.kind)
    try:
        text = spell.format_map(_Said(data)) if spell else _pairs(data)
    except (ValueError, KeyError, TypeError, IndexError):
        text = _pairs(data)
    return _printable(text)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


_SUMMARIES = {
    "ready": "ready in {took_ms} ms: {fossil_url} {nats_url} (pid {pid})",
    "stopping": "stopping: {reason}",
    "child-exited": "{child} {status} after {uptime_s} s (pid {pid})",
    "child-restarted": "{child} restarted in {down_ms} ms (pid {pid}, restart {restarts})",
    "failed": "{child} failed: {reason}",
    "events-lost": "{count} events were lost before they could be published",
    "store-damaged": "the event store lost messages: expected {expected}, found {found}",
    "checkin": "{slot} {checkin:.10} {message} ({counted})",
    "forked": "trunk has several tips: {leaves}",
    MISSING: "events {first} to {last} are missing: the event store is damaged",
    UNREADABLE: "not an event ({bytes} bytes)",
}


_OF_SLOTS = {
    "joined": "joined at {checkin:.10} (pid {pid}) {task}",
    "updated": "updated to {checkin:.10}",
    "conflict": "refused, others have changed the same in {counted}: {paths}",
    "run-started": "runs {argv} (pid {pid})",
    "run-ended": "the agent {status}",
    "closed": "closed ({result}) {summary}",
    "left": "its leaf ended, the slot stays",
}


_OF_VMS = {
    "downloading": "waits for what all VMs need, which is being made or fetched",
    "starting": "starts",
    "running": "runs at {ip} (pid {pid})",
    "stopping": "is being stopped",
    "stopped": "stopped",
    "error": "failed ({reason}, was {was}): {error}",
    "gateway-failed": "has no way out of its network: {error}",
    "gateway-restarted": "has its way out again",
    "forward-lost": "port {host_port} no longer leads to it: {error}",
}

_BY_WHOM = {
    "hub": _SUMMARIES,
    "trunk": _SUMMARIES,
    "-": _SUMMARIES,
    "slot": _OF_SLOTS,
    "vm": _OF_VMS,
}
"""By the first token of an event's subject: its kinds in words."""


class _Said(dict[str, Any]):
    """The fields of an event as its summary says them."""

    def __getitem__(self, key: str) -> Any:
        if key == "counted":
            count = super().get("count", "?")
            return "1 file" if count == 1 else f"{count} files"
        value = super().get(key, "?")
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return " ".join(value)
        if key == "status" and isinstance(value, int):
            return f"was ended by signal {-value}" if value < 0 else f"exited with {value}"
        if isinstance(value, float):
            return round(value, 1)
        if key == "message" and isinstance(value, str):
            return value.partition("\n")[0]
        return _pairs(value) if isinstance(value, dict) else value


def _pairs(data: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value if isinstance(value, str | int) else codec.dumps(value)}"
        for key, value in data.items()
    )
