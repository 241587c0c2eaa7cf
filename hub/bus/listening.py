"""Listening: what was subscribed to once stays so, over every connection to come."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from foundation.errors import Refused, Unavailable
from hub.bus.connection import Watcher, unsubscribe
from hub.bus.message import checked
from hub.bus.requests import new_inbox
from hub.bus.serving import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from hub.bus.connection import Connection
    from hub.bus.errors import Denied
    from hub.bus.serving import Handler


class Feed:
    """Messages that arrive in an inbox, in order; ``None`` in between: the connection was lost."""

    def __init__(self, listening: Listening, inbox: str) -> None:
        """Collect for *inbox*; made by :meth:`hub.bus.Bus.feed`."""
        self.inbox = inbox
        self.subscription: Subscription | None = None
        self._listening = listening
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()

    def take(self, message: Msg) -> None:
        """Add *message*, as the connection does."""
        self._arrived.put_nowait(message)

    async def close(self) -> None:
        """Take no more messages.

        Raises:
            Unavailable: the bus is closed, and the subscription with it.
        """
        await self._listening.forget(self)

    def lose(self) -> None:
        """Note that the connection was lost."""
        self._arrived.put_nowait(None)

    async def next(self, within_s: float) -> Msg | None:
        """Return the next message; None if the connection was lost.

        Raises:
            TimeoutError: nothing came within *within_s* seconds.
        """
        async with asyncio.timeout(within_s):
            return await self._arrived.get()


class Listening(Watcher):
    """All that listens over one connection: feeds, services and callbacks."""

    def __init__(self, connection: Connection) -> None:
        """Listen over *connection*."""
        self._connection = connection
        self._denied: set[str] = set()
        self._feeds: set[Feed] = set()
        self._services: list[Service] = []

    async def feed(self, within_s: float) -> Feed:
        """Return a new inbox of ours, with what arrives there."""
        feed = Feed(self, new_inbox(self._connection.login.name))
        feed.subscription = await self.listen(feed.inbox, feed.take, within_s)
        self._feeds.add(feed)
        return feed

    async def forget(self, feed: Feed) -> None:
        """Let nothing more arrive in *feed*.

        Raises:
            Unavailable: the bus is closed, and the subscription with it.
        """
        self._feeds.discard(feed)
        self._connection.check_open()
        if feed.subscription is not None:
            await unsubscribe(feed.subscription)

    async def serve(self, subject: str, handler: Handler, at_once: int, within_s: float) -> None:
        """Have *handler* answer what arrives on *subject*, *at_once* at a time."""
        service = Service(handler, self._answer, at_once)
        self._services.append(service)
        await self.listen(subject, service.take, within_s)

    async def listen(
        self, subject: str, take: Callable[[Msg], object], within_s: float
    ) -> Subscription:
        """Have *take* called with what arrives on *subject*; return once the server knows.

        Raises: as :meth:`hub.bus.Bus.subscribe`.
        """

        async def taken(message: Msg) -> None:
            take(message)

        connection = self._connection
        subscription: Subscription | None = None
        try:
            async with asyncio.timeout(within_s):
                await connection.until_connected()
                subscription = await connection.subscribe(subject, taken)
                while not await connection.round_trip():  # lost: the next one begins with it
                    await connection.until_connected()
        except BaseException as error:
            if subscription is not None:
                await unsubscribe(subscription)
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"no connection to the bus at {connection.url} in {within_s:g} s",
                    reason="bus-timeout",
                ) from None
            raise
        if subject.lower() in self._denied:
            self._denied.discard(subject.lower())
            await unsubscribe(subscription)
            raise Refused(f"this key may not subscribe to {subject}", reason="denied")
        return subscription

    def cancel(self) -> set[asyncio.Task[None]]:
        """Give up what services have at work, and return those tasks."""
        return {task for service in self._services for task in service.cancel()}

    def was_lost(self) -> None:
        """Tell whoever reads a feed."""
        for feed in self._feeds:
            feed.lose()

    def was_closed(self, _error: Unavailable) -> None:
        """Tell them too, and serve no more."""
        self.was_lost()
        self.cancel()

    def was_denied(self, what: Denied) -> None:
        """Note what our key may not hear, for whoever is about to."""
        if what.listening:
            self._denied.add(what.subject)

    async def _answer(self, inbox: str, payload: bytes) -> None:
        """Send an answer, once there is a connection; where there will not be one, drop it.

        What is asked arrives before our own return is known, and who asks has a connection of
        their own: it was not lost, so they will not ask again.
        """
        labels = checked(inbox, payload, None)
        with suppress(Unavailable):
            await self._connection.until_connected()
            await self._connection.publish(inbox, payload, "", labels)
