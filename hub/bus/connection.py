"""One login's connection to the bus: made, lost, made anew by itself, closed for good."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import nats.errors

from foundation.errors import HubError, Unavailable
from hub.bus import errors
from hub.bus.client import Client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

RECONNECT_WAIT_S = 0.1
PING_EVERY_S = 20
"""A connection whose server has answered nothing for three turns is given up."""
CONGESTED_BYTES = 262_144
"""While so much waits in this process to be written, nothing is written there twice."""
_ATTEMPT_S = 2


class Login(NamedTuple):
    """Who we are and whom we mean."""

    seed: str
    name: str
    """Of a role or a slot: answers to us go to ``_INBOX_<name>.>``."""
    server_name: str = ""
    """That of our server; "" accepts every one."""


class Watcher:
    """Whoever depends on a connection: told of its turns, on the loop."""

    def came_back(self) -> None:
        """There is a connection again."""

    def was_lost(self) -> None:
        """There is none, for now."""

    def was_closed(self, error: Unavailable) -> None:
        """There will not be one any more, *error* says why. Told once."""

    def was_denied(self, what: errors.Denied) -> None:
        """The server did not let us do *what*."""


class Connection:
    """It comes back by itself until :meth:`shut`, or until it is refused."""

    def __init__(self, url: str, login: Login) -> None:
        """Prepare a connection to *url*; :meth:`open` makes it."""
        self.url = url
        self.login = login
        self.client = Client()
        self.client.server_name = login.server_name
        self.closed = asyncio.Event()
        self.closed_because: HubError | None = None
        self.closing: asyncio.Task[None] | None = None
        """Begun by :meth:`shut`; whoever closes the connection waits for it."""
        self.watchers: list[Watcher] = []
        self._loop = asyncio.get_running_loop()
        self._failed_login: asyncio.Future[HubError] = self._loop.create_future()
        self._opened = False
        self._connected = asyncio.Event()
        """Set while there is a connection, and when there will not be one any more."""
        self._lost = asyncio.Event()
        """Set while a connection that was made is away, and when there will not be one any more."""
        self._losses = 0
        self._flushes: set[asyncio.Task[None]] = set()

    # --- its life --------------------------------------------------------------------------

    async def open(self, inbox: str, take: Callable[[Msg], Awaitable[None]]) -> None:
        """Log in for the first time, and have *take* called with what arrives in *inbox*.

        Raises: as :func:`hub.bus.connect`; then :meth:`shut` is still to be called.
        """
        opening = asyncio.ensure_future(
            self.client.connect(
                self.url,
                name=self.login.name,
                nkeys_seed_str=self.login.seed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # a float serves
                connect_timeout=_ATTEMPT_S,
                ping_interval=PING_EVERY_S,
                # What cannot be sent now is sent again by whoever asks.
                pending_size=0,
                error_cb=self._on_error,
                disconnected_cb=self._on_lost,
                reconnected_cb=self._on_connected,
                closed_cb=self._on_closed,
            )
        )
        try:
            # On its own nats-py asks a server that refused it again, for ever.
            waits: set[asyncio.Future[Any]] = {opening, self._failed_login}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise self._failed_login.result()
            opening.result()
            if not self.client.is_connected:
                raise errors.ended(self.url)
            await self.client.subscribe(inbox, cb=take)
        except BaseException as error:
            self.client.over = True
            opening.cancel()
            await asyncio.wait({opening})
            await self.close()
            if isinstance(error, nats.errors.Error | OSError | ValueError):
                raise errors.unheard(self.url, error) from None
            raise
        self._opened = True
        self._connected.set()

    async def close(self) -> None:
        """End it; on return nothing of it is left."""
        self.shut(None)
        if self.closing is not None:
            await asyncio.wait({self.closing})

    def shut(self, error: HubError | None) -> None:
        """Be closed for good, because of *error* or because nobody wants it any more."""
        if self.closed.is_set():
            return
        self.closed_because = error
        self.client.over = True
        self.closed.set()
        self._connected.set()  # whoever waits for that sees that we are closed
        self._lost.set()
        for watcher in self.watchers:
            watcher.was_closed(self._closed_error())
        if self.client.has_begun:
            self.closing = self._loop.create_task(self._end())

    async def _end(self) -> None:
        await self.client.end()
        await asyncio.sleep(0)
        for flush in self._flushes:
            flush.cancel()

    async def _on_connected(self) -> None:
        self._connected.set()
        if not self.closed.is_set():
            self._lost.clear()
        for watcher in self.watchers:
            watcher.came_back()

    async def _on_lost(self) -> None:
        self._losses += 1
        self._lost.set()
        if not self.closed.is_set():
            self._connected.clear()
        for flush in self._flushes:
            flush.cancel()
        for watcher in self.watchers:
            watcher.was_lost()

    async def _on_closed(self) -> None:
        """Note that nats-py gave up, if not because we told it to."""
        self.shut(errors.kept_out(self.url, errors.words(self.client.last_error)))

    async def _on_error(self, error: Exception) -> None:
        """Find out whom *error* concerns: who asked for what was denied, or the login."""
        text = errors.words(error)
        if not self._opened:
            # A server that is slow to greet is given all the time that there is.
            if not isinstance(error, TimeoutError) and not self._failed_login.done():
                self._failed_login.set_result(errors.why_not(self.url, error))
        elif isinstance(error, errors.ForeignServerError):
            self.shut(errors.foreign(self.url))
        elif errors.refuses(text):
            # Asking a server that has forgotten our key again and again leads nowhere.
            self.shut(errors.kept_out(self.url, text))
        elif (what := errors.denied(text)) is not None:
            for watcher in self.watchers:
                watcher.was_denied(what)
        elif errors.is_a_bug(error):
            self._loop.call_exception_handler(
                {"message": "what arrived on the bus met a bug", "exception": error}
            )
        if not self.client.is_connected:
            self.client.drop_transport()

    # --- how it is ---------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether there is a connection now."""
        return self._connected.is_set() and not self.closed.is_set() and self.client.is_connected

    @property
    def is_congested(self) -> bool:
        """Whether so much waits to be written that nothing should be written twice."""
        return self.client.pending_data_size > CONGESTED_BYTES

    def check_open(self) -> None:
        """Raise Unavailable (``bus-closed``) if it will not come back."""
        if self.closed.is_set():
            raise self._closed_error()

    def _closed_error(self) -> Unavailable:
        why = f": {self.closed_because}" if self.closed_because else ""
        return Unavailable(f"the connection to the bus is closed{why}", reason="bus-closed")

    async def until_connected(self) -> None:
        """Return while there is a connection; raise as :meth:`check_open`."""
        while not self.is_up:
            self.check_open()
            if self._connected.is_set():  # it is lost, and nats-py is about to say so
                await asyncio.sleep(RECONNECT_WAIT_S)
            await self._connected.wait()

    async def until_lost(self) -> None:
        """Return while there is no connection; also when it is closed."""
        await self._lost.wait()

    async def round_trip(self) -> bool:
        """Return once the server has read all that was sent; False: the connection was lost."""
        losses = self._losses
        # Its PING overtakes what its flusher has not written yet, the second one does not.
        for _ in range(2):
            # Never cancelled while there is a connection: the late PONG would end its reading.
            flush = self._loop.create_task(self.client.flush(4 * PING_EVERY_S))
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)
            await asyncio.wait({flush})
            if flush.cancelled() or flush.exception() is not None:
                return False
        return losses == self._losses and self.is_up

    # --- what goes over it -------------------------------------------------------------------

    async def publish(
        self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None
    ) -> bool:
        """Hand a message that :func:`hub.bus.message.checked` knows to be possible to the server.

        False: there is no connection. Raises Refused (``bus-impossible``).
        """
        if not self._connected.is_set():
            return False
        try:
            await self.client.publish(subject, payload, reply=reply, headers=headers)
        except errors.LOST:
            return False
        except errors.IMPOSSIBLE as error:
            raise errors.impossible(subject, error) from None
        return True

    async def subscribe(
        self, subject: str, taken: Callable[[Msg], Awaitable[None]]
    ) -> Subscription:
        """Have *taken* called with what arrives on *subject*, over every connection to come.

        Raises:
            Refused: it is no subject (``bus-impossible``).
            Unavailable: there is no connection now (``bus-lost``), or none any more.
        """
        try:
            return await self.client.subscribe(subject, cb=taken)
        except errors.IMPOSSIBLE as error:
            raise errors.impossible(subject, error) from None
        except errors.LOST:
            self.check_open()
            raise Unavailable(f"{subject}: the connection was lost", reason="bus-lost") from None


async def unsubscribe(subscription: Subscription) -> None:
    """End *subscription*, if the connection has not ended it."""
    with suppress(nats.errors.Error, OSError, RuntimeError):  # then it is gone with the connection
        await subscription.unsubscribe()
