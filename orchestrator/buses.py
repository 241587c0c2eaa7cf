"""The buses of one holder: most have one cluster, but its members may be of several."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from orchestrator.bus import CLOSED_WITHIN_S, Bus
from orchestrator.store import cluster_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.asked import Handler
    from orchestrator.guest_access import GuestAccess


class Buses:
    """A bus for each cluster, made when it is first needed. Of one running loop."""

    def __init__(
        self,
        root: str,
        epoch: int,
        *,
        on_hub: Callable[[], None] = lambda: None,
        complain: Callable[[str, str], None] = lambda _what, _error: None,
    ) -> None:
        """Make none yet; the arguments are those of :class:`Bus`, *epoch* serves every cluster."""
        self._root = root
        self._epoch = epoch
        self._on_hub = on_hub
        self._complain = complain
        self._handler: Handler | None = None
        self._buses: dict[str, Bus] = {}

    def announce(self, member: str, kind: str, data: dict[str, Any]) -> None:
        """Announce an event of *member*: :meth:`Bus.announce`."""
        self.of(cluster_of(member)).announce(member, kind, data)

    def serve(self, handler: Handler) -> None:
        """Have *handler* answer for every cluster, also for those to come: :meth:`Bus.serve`."""
        self._handler = handler
        for bus in self._buses.values():
            bus.serve(handler)

    async def guest_access(self, member: str) -> GuestAccess:
        """Return what the guest *member* needs to reach the hub: :meth:`Bus.guest_access`."""
        return await self.of(cluster_of(member)).guest_access()

    async def close(self, within_s: float = CLOSED_WITHIN_S) -> None:
        """Close them all, side by side: :meth:`Bus.close`."""
        await asyncio.gather(*(bus.close(within_s) for bus in self._buses.values()))

    def of(self, cluster: str) -> Bus:
        """Return the bus of *cluster*."""
        bus = self._buses.get(cluster)
        if bus is None:
            bus = self._buses[cluster] = Bus(
                self._root, cluster, self._epoch, on_hub=self._on_hub, complain=self._complain
            )
            if self._handler is not None:
                bus.serve(self._handler)
        return bus
