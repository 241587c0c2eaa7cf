"""Requests: each asked until it is answered, over as many connections as that takes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from foundation.errors import HubError, Refused, Unavailable
from hub.bus.connection import RECONNECT_WAIT_S, Watcher
from hub.bus.message import checked
from hub.bus.serving import INBOX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.msg import Msg

    from hub.bus.connection import Connection
    from hub.bus.errors import Denied

_CLOCK_S = 0.001


def new_inbox(name: str) -> str:
    """Return a subject that nobody listens to yet, below that to which only *name* may."""
    return f"{INBOX}{name}.{os.urandom(12).hex()}"


class _Asked:
    """One request until it is answered: the same message, with the same inbox, however often."""

    __slots__ = ("again", "answer", "deadline_s", "error", "subject", "unserved_waits", "woken")

    def __init__(
        self, subject: str, deadline_s: float, woken: asyncio.Future[None], *, unserved_waits: bool
    ) -> None:
        self.subject = subject
        self.deadline_s = deadline_s
        self.unserved_waits = unserved_waits
        self.answer: Msg | None = None
        self.error: HubError | None = None
        self.woken = woken
        self.again: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Have :meth:`Requests.request` look: it is answered, too late or to be sent again."""
        if not self.woken.done():
            self.woken.set_result(None)

    def fail(self, error: HubError) -> None:
        self.error = error
        self.wake()


class Requests(Watcher):
    """All requests over one connection; their answers come to one inbox."""

    def __init__(self, connection: Connection) -> None:
        """Ask over *connection*, once :meth:`take_answer` is told of what comes to ``inbox``."""
        self.inbox = f"{new_inbox(connection.login.name)}."
        """What the subjects of all answers begin with."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._numbered = 0
        self._asked: dict[str, _Asked] = {}

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None,
        within_s: float,
        per_try_s: float | None,
        unserved_waits: bool,
    ) -> Msg:
        """Return the answer; see :meth:`hub.bus.Bus.request`."""
        self._connection.check_open()
        labels = checked(subject, payload, headers)
        loop = self._loop
        self._numbered += 1
        token = f"{self._numbered:x}"
        asked = _Asked(
            subject, loop.time() + within_s, loop.create_future(), unserved_waits=unserved_waits
        )
        self._asked[token] = asked
        sent = False
        try:
            while True:
                put_off = sent and self._connection.is_congested
                if not put_off:
                    sent |= await self._connection.publish(
                        subject, payload, self.inbox + token, labels
                    )
                left_s = asked.deadline_s - loop.time()
                wait_s = left_s if per_try_s is None or left_s < per_try_s else per_try_s
                if put_off and wait_s > RECONNECT_WAIT_S:
                    wait_s = RECONNECT_WAIT_S  # nobody tells when there is room again
                asked.again = loop.call_later(wait_s, asked.wake)
                await asked.woken
                asked.again.cancel()
                if asked.answer is not None:
                    return asked.answer
                if asked.error is not None:
                    raise asked.error
                if loop.time() + _CLOCK_S >= asked.deadline_s:
                    raise Unavailable(
                        f"the bus did not answer {subject} within {within_s:g} s",
                        reason="bus-timeout",
                    )
                asked.woken = loop.create_future()
        finally:
            del self._asked[token]
            if asked.again is not None:
                asked.again.cancel()

    def resend(self) -> None:
        """Send every request that waits for its answer again, now."""
        for asked in self._asked.values():
            asked.wake()

    async def take_answer(self, message: Msg) -> None:
        """Find out whose answer *message* is."""
        asked = self._asked.get(message.subject[len(self.inbox) :])
        if asked is None:
            return
        if message.data or (message.headers or {}).get("Status") != "503":
            asked.answer = message
            asked.wake()
        elif not asked.unserved_waits:
            asked.fail(Unavailable(f"nobody serves {asked.subject}", reason="bus-unserved"))
        elif asked.again is not None:
            # Nobody serves it, not yet or not now.
            asked.again.cancel()
            again_s = min(asked.deadline_s, self._loop.time() + RECONNECT_WAIT_S)
            asked.again = self._loop.call_at(again_s, asked.wake)

    def came_back(self) -> None:
        """Ask again."""
        self.resend()

    def was_closed(self, error: Unavailable) -> None:
        """Fail all that waits."""
        for asked in self._asked.values():
            asked.fail(error)

    def was_denied(self, what: Denied) -> None:
        """Fail what our key may not ask."""
        if what.listening:
            return
        for asked in self._asked.values():
            if asked.subject.lower() == what.subject:
                asked.fail(Refused(f"this key may not publish to {asked.subject}", reason="denied"))
