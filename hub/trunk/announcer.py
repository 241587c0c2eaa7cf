"""Publishes the supervisor's outbox, each event once and in order.

The stream itself remembers how far it got: every message of ours carries, in headers, the
name of the outbox's numbering and the number up to which the stream is complete. And it
refuses a message that does not follow the one we believe to be the last, so neither a repeat
after the dedup window nor a second publisher can put an event there twice.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.clock import utc_now
from hub import outbox
from hub.bus import WRONG_LAST_SEQUENCE, StreamRefused
from hub.trunk.streams import EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hub.bus import Bus

SUBJECTS = "hub.event.>"
OUTBOX = "Hub-Outbox"
POSITION = "Hub-Seq"

_NO_MESSAGE = 10037
_ATTEMPTS = 20
_LOOK_BACK = 1000


class Announcer:
    """The reading side of one outbox."""

    def __init__(self, bus: Bus, directory: str) -> None:
        """Publish from the outbox in *directory* to *bus*."""
        self._bus = bus
        self._directory = directory
        self._outbox = ""
        self._position = 0
        self._last_in_stream: int | None = None
        self._epoch = 0

    async def drain(self) -> int:
        """Publish all that the outbox holds; return how many events that was.

        Raises:
            Unavailable: the bus did not take one in time. What it took is not sent again.
            StreamRefused: the stream does not take it.
        """
        published = 0
        superseded = 0
        while entries := await self._pending():
            # First durable here, then published: else a power cut could take a number back
            # that the stream has, and its next owner would be passed over.
            outbox.sync(self._directory)
            try:
                for entry in entries:
                    if entry.seq <= self._position:
                        continue
                    await self._announce_lost(entry)
                    await self._announce(entry)
                    published += 1
                    superseded = 0
            except StreamRefused as error:
                self._last_in_stream = None
                superseded += 1
                if error.code != WRONG_LAST_SEQUENCE or superseded > _ATTEMPTS:
                    raise
            except BaseException:
                self._last_in_stream = None
                raise
        return published

    @property
    def last_in_stream(self) -> int:
        """The sequence of the newest hub event in the stream, as far as we know."""
        return self._last_in_stream or 0

    async def announce_own(self, kind: str, data: dict[str, Any], *, name: str) -> None:
        """Publish an event of trunk's own, once per *name*; it moves no position.

        Raises: as :meth:`drain`.
        """
        if self._last_in_stream is None:
            await self._recall()
        body = {"seq": 0, "time": utc_now(), "kind": kind, "epoch": self._epoch, "data": data}
        await self._publish(kind, body, self._position, f"{self._outbox}-{name}")

    async def _pending(self) -> list[outbox.Entry]:
        if self._last_in_stream is None or outbox.read_id(self._directory) != self._outbox:
            await self._recall()
        return outbox.read_after(self._directory, self._position)

    async def _announce(self, entry: outbox.Entry) -> None:
        self._epoch = entry.epoch
        await self._publish(
            entry.kind,
            {
                "seq": entry.seq,
                "time": entry.time,
                "kind": entry.kind,
                "epoch": entry.epoch,
                "data": entry.data,
            },
            entry.seq,
            f"{self._outbox}-{entry.seq}",
        )

    async def _announce_lost(self, entry: outbox.Entry) -> None:
        """Say which events will never come, if *entry* is not the one after the position."""
        first, last = self._position + 1, entry.seq - 1
        if first > last:
            return
        data = {"first": first, "last": last, "count": last - first + 1}
        body = {
            "seq": last,
            "time": entry.time,
            "kind": "events-lost",
            "epoch": entry.epoch,
            "data": data,
        }
        await self._publish("events-lost", body, last, f"{self._outbox}-{first}-{last}-lost")

    async def _publish(self, kind: str, body: dict[str, Any], position: int, msg_id: str) -> None:
        headers = {
            OUTBOX: self._outbox,
            POSITION: str(position),
            "Nats-Expected-Stream": EVENTS,
            "Nats-Expected-Last-Subject-Sequence": str(self._last_in_stream or 0),
            "Nats-Expected-Last-Subject-Sequence-Subject": SUBJECTS,
        }
        ack = await self._bus.publish(
            f"hub.event.{kind}", codec.dumps(body).encode(), msg_id=msg_id, headers=headers
        )
        self._position = position
        # A duplicate is acknowledged with its first sequence, which need not be the last one.
        self._last_in_stream = None if ack.duplicate else ack.seq
        if ack.duplicate:
            await self._recall()

    async def _recall(self) -> None:
        """Learn from the stream how far it got."""
        self._outbox = outbox.read_id(self._directory) or "none"
        self._position = 0
        self._last_in_stream = 0
        message = await self._message({"last_by_subj": SUBJECTS})
        if message is None:
            return
        last = int(message["seq"])
        for seq in range(last, max(last - _LOOK_BACK, 0), -1):
            if seq != last:
                message = await self._message({"seq": seq})
            headers = {} if message is None else parse_headers(message)
            # One without our headers is not ours: a PubAck can be made to land here.
            if OUTBOX in headers:
                if headers[OUTBOX] == self._outbox:
                    self._position = int(headers[POSITION])
                break
        self._last_in_stream = last

    async def _message(self, request: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer = await self._bus.call(f"STREAM.MSG.GET.{EVENTS}", request)
        except StreamRefused as error:
            if error.code == _NO_MESSAGE:
                return None
            raise
        message: dict[str, Any] = answer["message"]
        return message


def parse_headers(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of a hub event as STREAM.MSG.GET gives it, of others none."""
    if not str(message["subject"]).startswith("hub.event."):
        return {}
    lines = base64.b64decode(message.get("hdrs", "")).decode("utf-8", "replace").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:])
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}
