"""The history of the hub and its slots, as a person or a program reads it.

Read straight from the stream EVENTS, by sequence and without acknowledgements, so reading
changes nothing and any number may read. Sequences have no holes of their own: where one is
missing, the store is damaged, and the reader says so in its place.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from contextlib import aclosing, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from foundation import clock, codec
from foundation.errors import NotRunning, Refused, Unavailable
from foundation.record import Record
from hub.bus import GARBLED, STREAM_NOT_FOUND, StreamRefused, connect
from hub.output import envelope
from hub.status import status_of
from hub.trunk.streams import EVENTS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping
    from typing import TextIO

    from nats.aio.msg import Msg

    from foundation.workspace import Workspace
    from hub.bus import Bus, Feed

VERB = "hub.events"

MISSING = "missing"
"""The kind of an event that stands for those the store lost; ``data`` is ``{"first","last"}``."""
UNREADABLE = "unreadable"
"""The kind of a message that is no event: damaged, or not sent as one."""

_BATCH = 256
_POLL_S = 20
_SILENT_S = 5.0
_RETRY_S = 0.1
_RETRY_AT_MOST_S = 1.0
_SECOND_NS = 1_000_000_000


class Event(Record):
    """One event. ``seq`` is its place in the stream, ``time`` when it happened (RFC 3339)."""

    seq: int
    time: str
    subject: str
    kind: str
    data: dict[str, Any]


def address(workspace: Workspace) -> str:
    """Return where the bus of *workspace* answers, by the word of the hub that listens there.

    Not by that of ``hub-nats-url``, which a copied workspace has too, and which outlives a stop.

    Raises:
        NotRunning: no hub is ready in this very directory.
    """
    now = status_of(workspace)
    if now.info is not None:
        return now.info.nats_url
    if now.state == "stopped":
        text = f"no hub runs in {now.root}: `hub start --detach`"
    else:
        text = f"no hub is ready in {now.root} ({now.reason or now.state}): `hub status`"
    raise NotRunning(text, reason="not-running")


async def read(
    workspace: Workspace,
    after: int = 0,
    *,
    follow: bool = False,
    find: Callable[[Workspace], str] = address,
) -> AsyncGenerator[Event]:
    """Yield the events after sequence *after*, oldest first; with *follow* go on for ever.

    A reader that follows outlives the hub: it waits for the next one and goes on where it was.
    *find* gives the address of the bus; it is asked again before every connection.

    Raises:
        NotRunning: no hub runs when the reading begins.
        Refused: the stream ends before *after*: it was replaced (``events-replaced``).
        Unavailable: the bus does not answer, without *follow* also when it stopped to.
    """
    wait_s = _RETRY_S
    begun = False
    while True:
        try:
            async with await _connected(workspace, find) as bus:
                begun = True
                async with aclosing(_read_once(bus, after, follow=follow)) as events:
                    async for event in events:
                        after, wait_s = event.seq, _RETRY_S
                        yield event
            if not follow:
                return
        except (NotRunning, Unavailable):
            if not (follow and begun):
                raise
        except Refused as error:
            # Somebody else's server has the address that our hub had a moment ago.
            if not (follow and begun and error.reason == "denied"):
                raise
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _RETRY_AT_MOST_S)


async def _connected(workspace: Workspace, find: Callable[[Workspace], str]) -> Bus:
    url = await asyncio.to_thread(find, workspace)
    try:
        return await connect(workspace, "operator", url=url)
    except NotRunning:
        raise Unavailable(
            f"the bus of the hub in {workspace.root} does not answer at {url}: `hub status`",
            reason="bus-down",
        ) from None


def print_events(
    workspace: Workspace,
    *,
    after: int,
    follow: bool,
    as_json: bool,
    out: TextIO | None,
    find: Callable[[Workspace], str] = address,
) -> None:
    """Print the events after sequence *after*, a line each; with *follow* until interrupted.

    With *as_json* it prints one envelope whose data is ``{"events": [EVENT, …]}``; with *follow*
    as well, an envelope a line whose data is an EVENT itself: ``{"seq","time","subject","kind",
    "data"}``. A reader that has seen enough ends it without a word; *out* is None where there is
    no stdout, and then nothing is printed or followed.

    Raises:
        KeyboardInterrupt: it was interrupted.
        OSError: *out* cannot be written.

        And as :func:`read`.
    """
    if out is None:
        with open(os.devnull, "w", encoding="ascii") as nowhere:
            print_events(
                workspace, after=after, follow=False, as_json=as_json, out=nowhere, find=find
            )
        return
    events = read(workspace, after, follow=follow, find=find)
    try:
        asyncio.run(_print(events, follow=follow, as_json=as_json, out=out))
        out.flush()
    except (BrokenPipeError, asyncio.CancelledError):
        # The reader has seen enough. The interpreter flushes once more at its end.
        if out is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


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
    ours = event.subject.startswith(("hub.", "trunk.", "-"))
    known = _SUMMARIES if ours else _OF_SLOTS if event.subject.startswith("slot.") else {}
    spell = known.get(event.kind)
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


async def _print(
    events: AsyncGenerator[Event], *, follow: bool, as_json: bool, out: TextIO
) -> None:
    collected: list[dict[str, Any]] = []
    task = asyncio.current_task()
    assert task is not None
    async with aclosing(events):
        with _watched(out, task.cancel):
            async for event in events:
                if as_json and not follow:
                    collected.append(event.as_dict())
                    continue
                out.write(envelope(VERB, event.as_dict()) if as_json else f"{line(event)}\n")
                if follow:
                    out.flush()
    if as_json and not follow:
        out.write(envelope(VERB, {"events": collected}))


@contextmanager
def _watched(out: TextIO, leave: Callable[[], object]) -> Generator[None]:
    """Call *leave* when whoever reads *out* goes away: the next event may take for ever.

    Source: epoll_ctl(2): without any event asked for, EPOLLERR and EPOLLHUP are reported.
    """
    loop = asyncio.get_running_loop()
    with select.epoll() as errors:
        try:
            errors.register(out, 0)
        except (OSError, ValueError):  # a plain file, or none at all
            yield
            return
        loop.add_reader(errors, leave)
        try:
            yield
        finally:
            loop.remove_reader(errors)


async def _read_once(bus: Bus, after: int, *, follow: bool) -> AsyncGenerator[Event]:
    """Yield the events after *after*; to the end, or with *follow* until the connection fails."""
    try:
        last = int((await bus.call(f"STREAM.INFO.{EVENTS}"))["state"]["last_seq"])
    except StreamRefused as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        if follow:  # trunk is about to make it
            raise Unavailable("there is no stream of events yet", reason="no-events") from error
        return
    if last < after:
        raise Refused(
            f"the stream of events ends at {last}, before {after}: it was replaced; "
            "read it from the beginning",
            reason="events-replaced",
        )
    suspected = 0
    while follow or after < last:
        complete = True
        async with aclosing(_messages(bus, after + 1, follow=follow)) as messages:
            async for message in messages:
                seq, stored = _stored(message)
                if seq <= after:
                    continue
                if seq > after + 1:
                    if seq != suspected:  # lost on the way, or from the store? Ask again.
                        suspected, complete = seq, False
                        break
                    yield _missing(after + 1, seq - 1, stored)
                yield parse(message)
                after = seq
        if complete:
            if after < last:
                yield _missing(after + 1, last, clock.utc_now())
            return


async def _messages(bus: Bus, start: int, *, follow: bool) -> AsyncGenerator[Msg]:
    """Yield the stream's messages from sequence *start*; to its end, or with *follow* for ever.

    Raises:
        Unavailable: the connection was lost, or the server forgot the reader.
    """
    name = f"reader-{os.urandom(8).hex()}"
    config = {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "ack_policy": "none",
        "replay_policy": "instant",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 60 * _SECOND_NS,
    }
    await bus.call(f"CONSUMER.CREATE.{EVENTS}.{name}", {"stream_name": EVENTS, "config": config})
    ask: dict[str, Any] = {"batch": _BATCH, "no_wait": True}
    if follow:
        ask = {"batch": _BATCH, "expires": _POLL_S * _SECOND_NS, "idle_heartbeat": _SECOND_NS}
    feed = await bus.feed()
    try:
        while True:
            await bus.send(
                f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{name}",
                codec.dumps(ask).encode(),
                reply=feed.inbox,
            )
            for _ in range(_BATCH):
                message = await _delivered(feed)
                if message is None:
                    break
                yield message
            else:
                continue
            if not follow:
                return
    finally:
        with suppress(Unavailable):  # then the server forgets it after inactive_threshold
            await feed.close()
            await bus.send(f"$JS.API.CONSUMER.DELETE.{EVENTS}.{name}", b"", reply=feed.inbox)


async def _delivered(feed: Feed) -> Msg | None:
    """Return the next message, None when the server has no more for this request."""
    while True:
        try:
            message = await feed.next(_SILENT_S)
        except TimeoutError:
            raise Unavailable("the bus fell silent", reason="bus-timeout") from None
        if message is None:
            raise Unavailable("the connection to the bus was lost", reason="bus-lost")
        if message.subject != feed.inbox:
            return message
        status = (message.headers or {}).get("Status")
        if status in ("404", "408"):
            return None
        if status != "100":
            raise Unavailable(f"the bus ended the reading: {message.headers}", reason="bus-lost")


def parse(message: Msg) -> Event:
    """Return the event in *message*; one of kind ``unreadable`` if there is none."""
    seq, stored = _stored(message)
    # A direct get can be made to answer into the stream; what it stores tells where it is from.
    headers = message.headers or {}
    forged = "Nats-Stream" in headers or GARBLED in headers
    body: dict[str, Any] = {}
    try:
        body = codec.loads_object(message.data)
    except ValueError:
        forged = True
    if forged or _is_servers(body):
        data = {"bytes": len(message.data)}
        return Event(seq=seq, time=stored, subject=message.subject, kind=UNREADABLE, data=data)
    kind, time, content = body.get("kind"), body.get("time"), body.get("data")
    return Event(
        seq=seq,
        time=time if isinstance(time, str) else stored,
        subject=message.subject,
        kind=kind if isinstance(kind, str) else message.subject.partition(".event.")[2],
        data=content if isinstance(content, dict) else body,
    )


def _stored(message: Msg) -> tuple[int, str]:
    """Return where and when the stream stored *message*, which a consumer delivered."""
    metadata = message.metadata
    time = metadata.timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return metadata.sequence.stream, time


def _is_servers(body: Mapping[str, Any]) -> bool:
    """Tell whether *body* is an answer of the server, an acknowledgement for example.

    The server answers wherever it is told to, so anybody who may publish can have that stored
    as somebody else's event.
    """
    acknowledges = isinstance(body.get("stream"), str) and ("seq" in body or "error" in body)
    answers = str(body.get("type")).startswith("io.nats.jetstream.")
    return "kind" not in body and (acknowledges or answers)


def _missing(first: int, last: int, time: str) -> Event:
    return Event(
        seq=last,
        time=time,
        subject="-",
        kind=MISSING,
        data={"first": first, "last": last},
    )
