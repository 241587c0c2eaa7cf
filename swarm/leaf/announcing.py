"""What a slot announces, in order, each event once; kept in memory while the hub is away."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.clock import utc_now
from foundation.errors import HubError, NotRunning, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarm.leaf.link import Link

KEPT = 1000
_WITHIN_S = 10.0
_RETRY_S = 1.0


class Announcer:
    """Publishes ``slot.SLOT.event.KIND``: ``{"time","kind","slot","epoch","seq","data"}``.

    ``seq`` counts the events of one epoch; one that is missing was dropped: more than
    :data:`KEPT` waited, or the leaf was killed.
    """

    def __init__(self, link: Link, slot: str, complain: Callable[[str, HubError], None]) -> None:
        """Publish over *link*; *complain* is told of what the stream does not take."""
        self._link = link
        self._slot = slot
        self._complain = complain
        self._waiting: deque[tuple[str, bytes, str]] = deque(maxlen=KEPT)
        self._numbered = 0
        self._woken = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def waiting(self) -> int:
        """How many events are not published yet."""
        return len(self._waiting)

    def announce(self, kind: str, **data: Any) -> None:
        """Have an event published when the hub is there."""
        body = self._body(kind, data)
        msg_id = f"{self._slot}-{self._link.epoch}-{self._numbered}"
        self._waiting.append((kind, body, msg_id))
        self._emptied.clear()
        self._woken.set()

    async def tell(self, kind: str, *, within_s: float, **data: Any) -> None:
        """Publish the one event of its *kind* in this epoch, after all that waits; now or never.

        Raises:
            Unavailable: it is not known to be stored.
            HubError: the stream does not take it.
        """
        deadline_s = asyncio.get_running_loop().time() + within_s
        if not await self.flush(within_s):
            raise Unavailable(self._link.away or "the bus stores no events now", reason="hub-away")
        await self._link.publish(
            f"slot.{self._slot}.event.{kind}",
            self._body(kind, data),
            msg_id=f"{self._slot}-{self._link.epoch}-{kind}",
            within_s=deadline_s - asyncio.get_running_loop().time(),
        )

    def _body(self, kind: str, data: dict[str, Any]) -> bytes:
        self._numbered += 1
        body = {
            "time": utc_now(),
            "kind": kind,
            "slot": self._slot,
            "epoch": self._link.epoch,
            "seq": self._numbered,
            "data": data,
        }
        return codec.dumps(body).encode()

    async def keep(self) -> None:
        """Publish for as long as the leaf lives."""
        while True:
            self._woken.clear()
            while self._waiting:
                one = self._waiting[0]
                kind, payload, msg_id = one
                try:
                    await self._link.publish(
                        f"slot.{self._slot}.event.{kind}",
                        payload,
                        msg_id=msg_id,
                        within_s=_WITHIN_S,
                    )
                except (NotRunning, Unavailable):
                    await asyncio.sleep(_RETRY_S)
                    continue
                except HubError as error:  # nobody will ever take it
                    self._complain(kind, error)
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
