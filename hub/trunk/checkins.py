"""Announces every check-in of trunk on the bus: each once, in the order of the line.

The stream remembers how far it got: its last ``trunk.event.checkin`` names the check-in, and is
expected to be the last when more are published, so neither a repeat nor a second publisher can put
one there twice. What the writer tells is published from memory, many in one atomic batch (one sync
of the store for all); what was missed, as by a trunk that was killed, is read from the repository.

An event is one JSON object::

    {"time": …, "kind": "checkin", "data": {"checkin": HASH, "parent": HASH or "", "slot": NAME,
     "message": TEXT, "files": [PATH, …], "count": N}}

MESSAGE and FILES are cut off where they are long; COUNT is how many files were changed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import sqlite3
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from foundation import codec
from foundation.clock import utc_now
from foundation.errors import HubError, Unavailable
from hub.bus import WRONG_LAST_SEQUENCE, StreamRefused
from hub.repository import Repository, explain
from hub.trunk.head import Arrival, arrival_of
from hub.trunk.ledger import Ledger
from hub.trunk.streams import EVENTS
from slotgc import treepath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hub.bus import Bus
    from hub.repository import CheckinRow

SUBJECT = "trunk.event.checkin"
FORKED = "trunk.event.forked"

LONGEST_MESSAGE = 1000
MOST_FILES = 50
_PATHS_BYTES = 8192

QUEUED = 5000
"""Check-ins kept in memory while the bus is away; more are read from the repository again."""
TOGETHER = 200
_NO_MESSAGE = 10037
_LOOK_BACK = 1000
_SUPERSEDED_AT_MOST = 20


class Last(NamedTuple):
    """How far the stream got."""

    seq: int
    """The sequence of the last message on the subject, 0: there is none."""
    checkin: str
    """What it announces, "" if nothing."""
    time: str
    """When that was made."""


class Checkins:
    """What is still to be announced. Filled from the writer's thread, emptied on the loop."""

    def __init__(self, repository: str, loop: asyncio.AbstractEventLoop) -> None:
        """Announce the check-ins of the repository file *repository*."""
        self._repository = repository
        self._loop = loop
        self._lock = threading.Lock()
        self._queue: deque[Arrival] = deque()
        self._behind = False
        self._forks: deque[tuple[str, ...]] = deque(maxlen=10)
        self._woken = asyncio.Event()

    # --- for the writer --------------------------------------------------------------------

    def opened(self) -> None:
        """Note that check-ins may have arrived that nobody told."""
        self._behind = True
        self._loop.call_soon_threadsafe(self._woken.set)

    def arrived(self, arrivals: Sequence[Arrival]) -> None:
        """Announce *arrivals*, which follow what was told before."""
        if not arrivals:
            return
        with self._lock:
            if len(self._queue) + len(arrivals) > QUEUED:
                self._queue.clear()
                self._behind = True
            else:
                self._queue.extend(arrivals)
        self._loop.call_soon_threadsafe(self._woken.set)

    def forked(self, leaves: Sequence[str]) -> None:
        """Announce that trunk has several *leaves*."""
        self._forks.append(tuple(sorted(leaves)))
        self._loop.call_soon_threadsafe(self._woken.set)

    # --- on the loop -----------------------------------------------------------------------

    async def serve(self, bus: Bus) -> None:
        """Announce over *bus* until it is closed.

        Raises:
            HubError: the stream does not take it, or the repository cannot be read. Nothing is
                lost: serve again.
        """
        superseded = 0
        last = await self._recall(bus)
        while not bus.closed.is_set():
            self._woken.clear()
            await self._tell_forks(bus)
            try:
                last, published = await self._advance(bus, last)
            except StreamRefused as error:
                superseded += 1
                if error.code != WRONG_LAST_SEQUENCE or superseded > _SUPERSEDED_AT_MOST:
                    raise
                last = await self._recall(bus)
                self._behind = True
                continue
            superseded = 0
            if not published:
                await self._woken.wait()

    async def _advance(self, bus: Bus, last: Last) -> tuple[Last, int]:
        """Publish some of what follows *last*; return the new last, and how many that were."""
        with self._lock:
            follows = bool(self._queue) and self._queue[0].parent == last.checkin
            if follows and not self._behind:
                group = [self._queue.popleft() for _ in range(min(len(self._queue), TOGETHER))]
            elif self._queue or self._behind:
                self._queue.clear()
                self._behind = False
                group = None
            else:
                return last, 0
        if group is not None:
            try:
                return await _publish(bus, last, group), len(group)
            except BaseException:
                self._behind = True  # they are in the queue no more
                raise
        try:
            return await self._catch_up(bus, last)
        except BaseException:
            self._behind = True
            raise

    async def _catch_up(self, bus: Bus, last: Last) -> tuple[Last, int]:
        """Publish what the repository has beyond *last*."""
        rows = await asyncio.to_thread(_rows_after, self._repository, last)
        published = 0
        for start in range(0, len(rows), TOGETHER):
            some = rows[start : start + TOGETHER]
            group = await asyncio.to_thread(_arrivals, self._repository, some)
            last = await _publish(bus, last, group)
            published += len(group)
        # What arrived meanwhile may be among them.
        told = {row.hash for row in rows}
        with self._lock:
            while self._queue and self._queue[0].checkin in told:
                self._queue.popleft()
        return last, published

    async def _tell_forks(self, bus: Bus) -> None:
        while self._forks:
            leaves = self._forks[0]
            body = {"time": utc_now(), "kind": "forked", "data": {"leaves": list(leaves)}}
            name = hashlib.sha256("".join(leaves).encode()).hexdigest()
            await bus.publish(FORKED, codec.dumps(body).encode(), msg_id=f"forked-{name}")
            self._forks.popleft()

    async def _recall(self, bus: Bus) -> Last:
        """Learn from the stream how far it got."""
        message = await _stored(bus, {"last_by_subj": SUBJECT})
        if message is None:
            return Last(0, "", "")
        seq = int(message["seq"])
        for earlier in range(seq, max(seq - _LOOK_BACK, 0), -1):
            if earlier != seq:
                message = await _stored(bus, {"seq": earlier}) or {}
            said = _said(message)
            # One that says nothing is not ours: an acknowledgement can be made to land here.
            if said is not None:
                return Last(seq, *said)
        return Last(seq, "", str(message.get("time", "")))


async def _publish(bus: Bus, last: Last, group: Sequence[Arrival]) -> Last:
    """Put *group* behind *last*, all or nothing; return the new last.

    Raises:
        StreamRefused: *last* is not the last.
        HubError: it may be there or not.
    """
    expected = {"Nats-Expected-Last-Subject-Sequence": str(last.seq)}
    newest = group[-1]
    if len(group) == 1:
        ack = await bus.publish(SUBJECT, event(newest), msg_id=newest.checkin, headers=expected)
        if ack.duplicate:
            raise StreamRefused(f"{newest.checkin} is announced", code=WRONG_LAST_SEQUENCE)
        return Last(ack.seq, newest.checkin, newest.time)
    batch = {"Nats-Batch-Id": os.urandom(8).hex()}
    for number, arrival in enumerate(group, 1):
        headers = {
            **batch,
            "Nats-Batch-Sequence": str(number),
            "Nats-Msg-Id": arrival.checkin,
            **(expected if number == 1 else {}),
            **({"Nats-Batch-Commit": "1"} if number == len(group) else {}),
        }
        if number in (1, len(group)):
            answer = await bus.request(SUBJECT, event(arrival), headers=headers, within_s=10.0)
            _check(answer.data)
        else:
            await bus.send(SUBJECT, event(arrival), headers=headers)
    return Last(int(codec.loads_object(answer.data)["seq"]), newest.checkin, newest.time)


def _check(answer: bytes) -> None:
    """Raise what the server says against a batch; the first message's answer is empty."""
    error = codec.loads_object(answer).get("error") if answer else None
    if error:
        # What is wrong with a batch that was torn, or that is there already, the stream tells.
        raise StreamRefused(str(error), code=WRONG_LAST_SEQUENCE)


def event(arrival: Arrival) -> bytes:
    """Return the event that announces *arrival*."""
    files: list[Any] = []
    room = _PATHS_BYTES
    for path in arrival.paths[:MOST_FILES]:
        room -= len(path)
        if room < 0:
            break
        files.append(treepath.to_json(path))
    data = {
        "checkin": arrival.checkin,
        "parent": arrival.parent,
        "slot": arrival.slot,
        "message": arrival.message[:LONGEST_MESSAGE],
        "files": files,
        "count": len(arrival.paths),
    }
    return codec.dumps({"time": arrival.time, "kind": "checkin", "data": data}).encode()


async def _stored(bus: Bus, request: dict[str, Any]) -> dict[str, Any] | None:
    try:
        answer = await bus.call(f"STREAM.MSG.GET.{EVENTS}", request)
    except StreamRefused as error:
        if error.code == _NO_MESSAGE:
            return None
        raise
    message: dict[str, Any] = answer["message"]
    return message


def _said(message: dict[str, Any]) -> tuple[str, str] | None:
    """Return check-in and time of the event in *message*, None if it is none."""
    if message.get("subject") != SUBJECT:
        return None
    try:
        body = codec.loads_object(base64.b64decode(message.get("data", "")))
    except ValueError:
        return None
    data, time = body.get("data"), body.get("time")
    checkin = data.get("checkin") if isinstance(data, dict) else None
    return (checkin, time) if isinstance(checkin, str) and isinstance(time, str) else None


def _rows_after(path: str, last: Last) -> list[CheckinRow]:
    """Return the check-ins on the line after *last*, or, if that is not on it, made after it."""
    with Repository(path) as repository:
        try:
            return repository.line(after=last.checkin)
        except HubError as error:
            if isinstance(error, Unavailable):
                raise
            # The repository is another one than was announced: restored, or its trunk moved.
            return [row for row in repository.line() if row.time > last.time]


def _arrivals(path: str, rows: Sequence[CheckinRow]) -> list[Arrival]:
    try:
        with Ledger(path) as ledger:
            return [arrival_of(row, ledger.paths(row.hash)) for row in rows]
    except sqlite3.Error as error:
        raise explain(error, path) from None
