"""Events on their way to the bus, in order, each once; kept in memory while the hub is away."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from foundation.errors import HubError, NotRunning, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    class Publish(Protocol):
        """Stores an event: :meth:`hub.link.Link.publish`."""

        def __call__(
            self, subject: str, payload: bytes, *, msg_id: str, within_s: float
        ) -> Awaitable[None]:
            """Return when it is on disk; raise as :meth:`hub.bus.Bus.publish`."""


KEPT = 1000
_WITHIN_S = 10.0
_RETRY_S = 1.0


class Outgoing:
    """Publishes what it is given when the hub is there; of more than :data:`KEPT`, the latest."""

    def __init__(self, publish: Publish, complain: Callable[[str, HubError], None]) -> None:
        """Store by *publish*; *complain* is told of the kind that the stream does not take."""
        self._publish = publish
        self._complain = complain
        self._waiting: deque[tuple[str, bytes, str]] = deque(maxlen=KEPT)
        self._woken = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def waiting(self) -> int:
        """How many events are not published yet."""
        return len(self._waiting)

    def add(self, subject: str, payload: bytes, msg_id: str) -> None:
        """Have an event published when the hub is there. Never blocks."""
        self._waiting.append((subject, payload, msg_id))
        self._emptied.clear()
        self._woken.set()

    async def keep(self) -> None:
        """Publish for ever."""
        while True:
            self._woken.clear()
            while self._waiting:
                one = self._waiting[0]
                subject, payload, msg_id = one
                try:
                    await self._publish(subject, payload, msg_id=msg_id, within_s=_WITHIN_S)
                except (NotRunning, Unavailable):
                    await asyncio.sleep(_RETRY_S)
                    continue
                except HubError as error:  # nobody will ever take it
                    self._complain(subject.partition(".event.")[2], error)
                if self._waiting and self._waiting[0] is one:
                    self._waiting.popleft()
            self._emptied.set()
            await self._woken.wait()

    async def flush(self, within_s: float) -> bool:
        """Wait until all is published; return whether it is."""
        try:
            async with asyncio.timeout(within_s):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True
