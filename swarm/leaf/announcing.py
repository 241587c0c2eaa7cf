"""What a slot announces, in order, each event once; kept in memory while the hub is away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.clock import utc_now
from foundation.errors import HubError, Unavailable
from hub.outgoing import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarm.leaf.link import Link


class Announcer(Outgoing):
    """Publishes ``slot.SLOT.event.KIND``: ``{"time","kind","slot","epoch","seq","data"}``.

    ``seq`` counts the events of one epoch; one that is missing was dropped: more than
    :data:`hub.outgoing.KEPT` waited, or the leaf was killed.
    """

    def __init__(self, link: Link, slot: str, complain: Callable[[str, HubError], None]) -> None:
        """Publish over *link*; *complain* is told of what the stream does not take."""
        super().__init__(link.publish, complain)
        self._link = link
        self._slot = slot
        self._numbered = 0

    def announce(self, kind: str, **data: Any) -> None:
        """Have an event published when the hub is there."""
        body = self._body(kind, data)
        msg_id = f"{self._slot}-{self._link.epoch}-{self._numbered}"
        self.add(f"slot.{self._slot}.event.{kind}", body, msg_id)

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
