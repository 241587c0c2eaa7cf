"""The streams of the bus: what they keep, and whether they still keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.atomic import read_bounded, write_file
from foundation.errors import Refused
from foundation.record import Record
from hub.bus import STREAM_NOT_FOUND, StreamRefused

if TYPE_CHECKING:
    from foundation.workspace import Workspace
    from hub.bus import Bus

EVENTS = "EVENTS"
LOGS = "LOGS"

_SECOND_NS = 1_000_000_000
_MARK_LIMIT = 4096

CONFIGS: dict[str, dict[str, Any]] = {
    EVENTS: {
        "name": EVENTS,
        # A pattern that begins with a wildcard is refused by the server, hence one by one.
        "subjects": [
            "hub.event.>",
            "trunk.event.>",
            "slot.*.event.>",
            "task.*.event.>",
            "vm.*.*.event.>",
        ],
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "discard": "new",
        "duplicate_window": 120 * _SECOND_NS,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "allow_atomic": True,
    },
    LOGS: {
        "name": LOGS,
        "subjects": ["slot.*.log"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "max_msgs": -1,
        "max_bytes": 512 * 2**20,
        "max_age": 14 * 86_400 * _SECOND_NS,
        "discard": "old",
        "duplicate_window": 120 * _SECOND_NS,
        "allow_direct": True,
        "persist_mode": "async",
    },
}


class StreamState(Record):
    """What a stream holds: up to which sequence, and how many before it are gone."""

    created: str
    last_seq: int
    deleted: int


async def ensure(bus: Bus, config: dict[str, Any]) -> StreamState:
    """Make the stream that *config* describes, or make the one that is there so.

    Raises:
        Refused: it is there with a configuration that cannot become this one (``stream-config``).
        Unavailable, StreamRefused: the server could not do it.
    """
    name = config["name"]
    try:
        there = await bus.call(f"STREAM.INFO.{name}")
    except StreamRefused as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        return _state(await bus.call(f"STREAM.CREATE.{name}", config))
    # Only what we ask for is compared: a server fills in defaults of its own.
    other = {
        key: there["config"].get(key) for key in config if differs(config, there["config"], key)
    }
    if not other:
        return _state(there)
    try:
        return _state(await bus.call(f"STREAM.UPDATE.{name}", {**there["config"], **config}))
    except StreamRefused as error:
        raise Refused(
            f"stream {name} was made with {other} and cannot be changed to "
            f"{ {key: config[key] for key in other} }: {error}",
            reason="stream-config",
        ) from error


def differs(wanted: dict[str, Any], there: dict[str, Any], key: str) -> bool:
    """Return whether *there* has another value for *key*; false and zero may be left out."""
    return bool(wanted[key] != there.get(key) and (wanted[key] or there.get(key)))


async def state(bus: Bus, name: str) -> StreamState:
    """Return what the stream *name* holds."""
    return _state(await bus.call(f"STREAM.INFO.{name}"))


def _state(answer: dict[str, Any]) -> StreamState:
    held = answer["state"]
    return StreamState(
        created=str(answer["created"]),
        last_seq=int(held["last_seq"]),
        deleted=int(held.get("num_deleted", 0)),
    )


class Mark:
    """The high-water mark of EVENTS, kept beside the store to catch it forgetting.

    A flipped bit makes nats-server cut the store at the flip, without a word (measured); but
    nothing is ever deleted from EVENTS, so less than there was is damage.
    """

    def __init__(self, workspace: Workspace) -> None:
        """Read the mark of *workspace*; none, or a damaged one, proves nothing."""
        self.path = f"{workspace.nats}/events.mark"
        self.state: StreamState | None = None
        try:
            fields = codec.loads_object(read_bounded(self.path, _MARK_LIMIT))
            self.state = StreamState(
                created=str(fields["created"]),
                last_seq=int(fields["last_seq"]),
                deleted=int(fields["deleted"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def damage(self, now: StreamState) -> dict[str, Any] | None:
        """Return what *now* lacks that was there before, None if nothing is missing."""
        before = self.state
        if before is None:
            before = now.replace(deleted=0)
        if now.last_seq >= before.last_seq and now.deleted <= before.deleted:
            # Another ``created`` alone is none: a stream whose metadata was damaged is made
            # anew over its messages, and has them all (measured).
            return None
        return {"expected": before.as_dict(), "found": now.as_dict()}

    def note(self, now: StreamState) -> None:
        """Remember *now*.

        Not durable: after a power cut an older mark only proves less.

        Raises:
            OSError: it cannot be written.
        """
        if now != self.state:
            write_file(self.path, codec.dumps(now.as_dict()).encode() + b"\n", durable=False)
            self.state = now
