"""The history of the hub and its slots, event by event.

Read straight from the stream EVENTS, by sequence and without acknowledgements, so reading
changes nothing and any number may read. Sequences have no holes of their own: where one is
missing, the store is damaged, and the reader says so in its place.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from foundation import clock, codec
from foundation.errors import NotRunning, Refused, Unavailable
from foundation.record import Record
from hub.bus import GARBLED, STREAM_NOT_FOUND, StreamRefused, connect
from hub.status import status_of
from hub.trunk.streams import EVENTS
from hub.wording import starting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from nats.aio.msg import Msg

    from foundation.workspace import Workspace
    from hub.bus import Bus, Feed

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
        text = f"no hub runs in {now.root}: `{starting()}`"
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
