"""The bus: publish, call, request, send, feed, subscribe, serve."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from foundation import codec
from foundation.errors import Unavailable
from hub.bus import jetstream
from hub.bus.connection import Connection
from hub.bus.listening import Listening
from hub.bus.message import checked
from hub.bus.requests import Requests
from hub.bus.serving import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nats.aio.msg import Msg

    from foundation.errors import HubError
    from hub.bus.connection import Login
    from hub.bus.jetstream import Ack
    from hub.bus.listening import Feed
    from hub.bus.serving import Handler

ACKNOWLEDGED_WITHIN_S = 10.0
LISTENING_WITHIN_S = 5.0


class Bus:
    """One login. It comes back by itself until :meth:`close`, or until it is refused."""

    def __init__(self, url: str, login: Login) -> None:
        """Prepare a connection to *url*; :func:`hub.bus.connect` makes one."""
        self._connection = Connection(url, login)
        self._requests = Requests(self._connection)
        self._listening = Listening(self._connection)
        self._connection.watchers += (self._listening, self._requests)
        self.url = url
        self.closed = self._connection.closed
        """Set when the connection will not come back: connect anew."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()

    @property
    def closed_because(self) -> HubError | None:
        """Why, if not by :meth:`close`: refused our key (``denied``), or another's server."""
        return self._connection.closed_because

    @property
    def server_id(self) -> str:
        """The id of the server that we are connected to, "" while we are not."""
        return self._connection.client.server_id if self._connection.is_up else ""

    async def until_connected(self) -> None:
        """Return while there is a connection.

        Raises:
            Unavailable: there will not be one any more (``bus-closed``).
        """
        await self._connection.until_connected()

    async def until_lost(self) -> None:
        """Return while there is no connection, or when there will not be one any more."""
        await self._connection.until_lost()

    async def open(self) -> None:
        """Log in for the first time.

        Raises: as :func:`hub.bus.connect`.
        """
        await self._connection.open(f"{self._requests.inbox}*", self._requests.take_answer)

    async def close(self) -> None:
        """End the connection, and what :meth:`serve` began."""
        self._connection.shut(None)
        working = self._listening.cancel()
        if self._connection.closing is not None:
            working.add(self._connection.closing)
        if working := {task for task in working if task is not asyncio.current_task()}:
            await asyncio.wait(working)

    # --- asking ----------------------------------------------------------------------------

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        within_s: float = ACKNOWLEDGED_WITHIN_S,
    ) -> Ack:
        """Store a message in the stream of *subject*; on return it survives a power cut.

        Sent again under the same *msg_id* whenever the connection was lost, so the stream
        holds it once (within its dedup window).

        Raises:
            Refused: our key may not publish there (``denied``).
            StreamRefused: the stream says no, a failed expectation in *headers* included.
            Unavailable: not acknowledged in time; it may be stored or not.
        """
        labels = {**(headers or {}), "Nats-Msg-Id": msg_id}
        answer = await self.request(subject, payload, headers=labels, within_s=within_s)
        return jetstream.acknowledgement(subject, answer.data)

    async def call(
        self, subject: str, body: Mapping[str, Any] | None = None, *, within_s: float = 5.0
    ) -> dict[str, Any]:
        """Ask the JetStream API, ``$JS.API.`` + *subject*, and return its answer.

        Raises: as :meth:`publish`.
        """
        payload = b"" if body is None else codec.dumps(dict(body)).encode()
        answer = await self.request(f"$JS.API.{subject}", payload, within_s=within_s)
        return jetstream.answer(subject, answer.data)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        within_s: float = 5.0,
        per_try_s: float | None = None,
        unserved_waits: bool = True,
    ) -> Msg:
        """Return the answer to a request.

        It is sent again whenever the connection was lost or nobody serves *subject*, by
        :meth:`resend`, and, given *per_try_s*, whenever no answer came for so long; an answer to
        any of these will do. So what it asks for must be safe to be asked for twice. Whoever
        serves it may be killed, or lose their own connection, and we hear nothing of that: only
        *per_try_s* helps then. Without *unserved_waits* it fails when nobody serves *subject*
        (``bus-unserved``).

        Raises:
            Refused: our key may not publish there (``denied``); the subject, a header or the
                size of the payload is impossible (``bus-impossible``).
            Unavailable: no answer in time (``bus-timeout``), or the bus is closed
                (``bus-closed``).
        """
        return await self._requests.request(
            subject,
            payload,
            headers=headers,
            within_s=within_s,
            per_try_s=per_try_s,
            unserved_waits=unserved_waits,
        )

    def resend(self) -> None:
        """Send every request that waits for its answer again, now: somebody may serve again."""
        self._requests.resend()

    async def send(
        self,
        subject: str,
        payload: bytes,
        *,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish without waiting; answers go to the inbox *reply*. It may be lost on the way.

        Raises:
            Refused: the subject, a header or the size of the payload is impossible
                (``bus-impossible``).
            Unavailable: there is no connection now.
        """
        connection = self._connection
        connection.check_open()
        labels = checked(subject, payload, headers)
        if not await connection.publish(subject, payload, reply, labels):
            connection.check_open()
            raise Unavailable(f"{subject}: the connection to the bus was lost", reason="bus-lost")

    # --- listening -------------------------------------------------------------------------

    async def feed(self, *, within_s: float = LISTENING_WITHIN_S) -> Feed:
        """Return a new inbox of ours, with what arrives there.

        Raises: as :meth:`subscribe`.
        """
        return await self._listening.feed(within_s)

    async def subscribe(
        self,
        subject: str,
        callback: Callable[[str, bytes, Mapping[str, str]], object],
        *,
        within_s: float = LISTENING_WITHIN_S,
    ) -> None:
        """Have *callback* called with subject, payload and headers of what arrives on *subject*.

        In order, on the loop; it must not block. On return the server has subscribed us. What is
        published while there is no connection is lost.

        Raises:
            Refused: our key may not subscribe to it (``denied``), or it is no subject.
            Unavailable: the bus is closed (``bus-closed``), or there was no connection in time
                (``bus-timeout``).
        """
        await self._listening.listen(
            subject, lambda one: callback(one.subject, one.data, one.headers or {}), within_s
        )

    async def serve(
        self,
        subject: str,
        handler: Handler,
        *,
        at_once: int = AT_ONCE,
        within_s: float = LISTENING_WITHIN_S,
    ) -> None:
        """Have *handler* answer what arrives on *subject*, until the bus is closed.

        It is called with subject, payload and headers in a task of its own, at most *at_once*
        at a time, and returns the answer or None. The answer goes to the asker's inbox, never
        to another kind of subject; while the connection is away it waits for its return. An
        exception is a bug: the loop's exception handler is told, and the asker nothing. Closing
        the bus cancels what is at work.

        Raises: as :meth:`subscribe`.
        """
        await self._listening.serve(subject, handler, at_once, within_s)
