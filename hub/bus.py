"""The bus as the rest of the hub sees it: connect, publish until acknowledged, request, serve.

A layer over nats-py, because of what nats-py does on its own (measured, ADR 0006, 0012): it gives
up after 60 reconnects, lets a request wait out its timeout when the connection is gone, shows a
refused publish as a timeout, asks a server that refused its key for ever, and takes whoever
listens at an address for the server that did. Everything here outlives a connection, and ends when
the bus is refused: what was asked is asked again, what was subscribed to stays subscribed to, and
whoever listens at our address is told nothing before it has proved to be the server that we mean.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import nats.errors
from nats.aio.client import Client

from foundation import codec
from foundation.atomic import read_bounded
from foundation.errors import HubError, NotRunning, Refused, Unavailable
from hub.creds import read_seed
from hub.nats import MAX_PAYLOAD_BYTES, config_path
from hub.serving import AT_ONCE, Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from foundation.workspace import Workspace
    from hub.serving import Handler

RECONNECT_WAIT_S = 0.1
CONNECT_WITHIN_S = 5.0
_DOUBTED_S = (0.02, 0.1, 0.3)
ACKNOWLEDGED_WITHIN_S = 10.0
LISTENING_WITHIN_S = 5.0
PING_EVERY_S = 20
"""A connection whose server has answered nothing for three turns is given up."""
CONGESTED_BYTES = 262_144
"""While so much waits in this process to be written, nothing is written there twice."""
_ATTEMPT_S = 2
_CLOSED_WITHIN_S = 1.0
_URL_LIMIT = 1024
_CONFIG_LIMIT = 65_536
_NAMED = b'\nserver_name: "'
_UNAVAILABLE = 503
GARBLED = "Hub-Garbled"
"""The only header of a message that arrived with a subject or headers that are no text."""
_GARBLED_HEADERS = f"NATS/1.0\r\n{GARBLED}: 1\r\n\r\n".encode()
_HEADER_BYTES = len("NATS/1.0\r\n\r\n")
_FIELD_BYTES = len(": \r\n")
_CLOCK_S = 0.001
_DENIED_PUBLISH = "permissions violation for publish to "
_DENIED_SUBSCRIPTION = "permissions violation for subscription to "
_LOST = (
    nats.errors.OutboundBufferLimitError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    OSError,
    RuntimeError,  # uvloop's word for a socket that is closed already
)
_IMPOSSIBLE = (
    nats.errors.BadSubjectError,
    nats.errors.BadHeaderError,
    nats.errors.MaxPayloadError,
)

WRONG_LAST_SEQUENCE = 10071
STREAM_NOT_FOUND = 10059


class StreamRefused(HubError):
    """JetStream understood the request and says no; ``code`` is its ``err_code``."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message, reason=f"jetstream-{code}")
        self.code = code


class Ack(NamedTuple):
    """The stream has the message, on disk: its sequence there, and whether it had it before."""

    seq: int
    duplicate: bool


class Login(NamedTuple):
    """Who we are and whom we mean."""

    seed: str
    name: str
    """Of a role or a slot: answers to us go to ``_INBOX_<name>.>``."""
    server_name: str = ""
    """That of our server; "" accepts every one."""


class _ForeignServerError(nats.errors.Error):
    """Another server than ours has our address."""


class _NoServerError(nats.errors.Error):
    """Whoever has our address does not speak NATS."""


class _Client(Client):
    """nats-py's client, changed in three places."""

    server_name = ""
    server_id = ""
    over = False
    """Whoever has it wants no connection any more."""

    def _connect_command(self) -> bytes:
        """Log in; to a server of another name than *server_name* say nothing.

        A copied workspace has our keys, so its server would let us in.
        """
        info = self._server_info
        if self.server_name and info.get("server_name") != self.server_name:
            raise _ForeignServerError(f"a server named {info.get('server_name')}")
        self.server_id = str(info.get("server_id", ""))
        return super()._connect_command()

    async def _process_connect_init(self) -> None:
        """Exchange greetings; whatever a stranger says is an error that is tried again.

        Any other exception would end nats-py's reconnecting without a word to anybody. And a
        cancellation it may miss (asyncio.wait_for of Python 3.11 drops one that comes with the
        result), and then it would try for ever.
        """
        try:
            if not self.over:
                await super()._process_connect_init()
        except (OSError, nats.errors.Error) as error:
            if "expecting INFO" not in str(error) and "json parse error" not in str(error):
                raise
            raise _NoServerError("the responder does not speak NATS") from error
        except Exception as error:
            raise _NoServerError(f"the responder does not speak NATS: {error}") from error
        if self.over:
            self._let_go()
            raise asyncio.CancelledError

    def _let_go(self) -> None:
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Take a message; if its subject or headers are no text, say so in place of the headers.

        An exception here would end nats-py's reading without a word to anybody.
        """
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (UnicodeError, IndexError):
            text = subject.decode("utf-8", "replace").encode()
            await super()._process_msg(sid, text, reply, data, _GARBLED_HEADERS)


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
        """Have :meth:`Bus.request` look at it: it is answered, too late or to be sent again."""
        if not self.woken.done():
            self.woken.set_result(None)

    def fail(self, error: HubError) -> None:
        self.error = error
        self.wake()


class Bus:
    """One login. It comes back by itself until :meth:`close`, or until it is refused."""

    def __init__(self, url: str, login: Login) -> None:
        """Prepare a connection to *url*; :func:`connect` makes one."""
        self.url = url
        self.closed = asyncio.Event()
        """Set when the connection will not come back: connect anew."""
        self.closed_because: HubError | None = None
        """Why, if not by :meth:`close`: refused our key (``denied``), or another's server."""
        self._login = login
        self._loop = asyncio.get_running_loop()
        self._client = _Client()
        self._client.server_name = login.server_name
        self._inbox = f"_INBOX_{login.name}.{os.urandom(12).hex()}."
        self._failed_login: asyncio.Future[HubError] = self._loop.create_future()
        self._opened = False
        self._connected = asyncio.Event()
        """Set while there is a connection, and when there will not be one any more."""
        self._losses = 0
        self._flushes: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._denied: set[str] = set()
        self._numbered = 0
        self._asked: dict[str, _Asked] = {}
        self._feeds: set[Feed] = set()
        self._services: list[Service] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()

    @property
    def server_id(self) -> str:
        """The id of the server that we are connected to, "" while we are not."""
        return self._client.server_id if self._is_connected() else ""

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
        fields = _answer(subject, answer.data)
        seq = fields.get("seq")
        if not isinstance(seq, int):
            raise Unavailable(f"{subject}: {fields} acknowledges nothing", reason="bus-failed")
        return Ack(seq, bool(fields.get("duplicate")))

    async def call(
        self, subject: str, body: Mapping[str, Any] | None = None, *, within_s: float = 5.0
    ) -> dict[str, Any]:
        """Ask the JetStream API, ``$JS.API.`` + *subject*, and return its answer.

        Raises: as :meth:`publish`.
        """
        payload = b"" if body is None else codec.dumps(dict(body)).encode()
        answer = await self.request(f"$JS.API.{subject}", payload, within_s=within_s)
        return _answer(subject, answer.data)

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
        any of these will do. So what it asks for must be safe to be asked for twice. Without
        *unserved_waits* it fails when nobody serves *subject* (``bus-unserved``).

        Raises:
            Refused: our key may not publish there (``denied``); the subject, a header or the
                size of the payload is impossible (``bus-impossible``).
            Unavailable: no answer in time (``bus-timeout``), or the bus is closed
                (``bus-closed``).
        """
        self._check_open()
        labels = _checked(subject, payload, headers)
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
                if not (sent and self._client.pending_data_size > CONGESTED_BYTES):
                    sent |= await self._publish(subject, payload, self._inbox + token, labels)
                left_s = asked.deadline_s - loop.time()
                wait_s = left_s if per_try_s is None or left_s < per_try_s else per_try_s
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
        """Send every request that waits for its answer again, now: somebody may serve again."""
        for asked in self._asked.values():
            asked.wake()

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
        self._check_open()
        if not await self._publish(subject, payload, reply, _checked(subject, payload, headers)):
            self._check_open()
            raise Unavailable(f"{subject}: the connection to the bus was lost", reason="bus-lost")

    # --- listening -------------------------------------------------------------------------

    async def feed(self, *, within_s: float = LISTENING_WITHIN_S) -> Feed:
        """Return a new inbox of ours, with what arrives there.

        Raises: as :meth:`subscribe`.
        """
        feed = Feed(self, f"_INBOX_{self._login.name}.{os.urandom(12).hex()}")
        feed.subscription = await self._listen(feed.inbox, feed.take, within_s)
        self._feeds.add(feed)
        return feed

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
        await self._listen(
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
        to another kind of subject. An exception is a bug: the loop's exception handler is told,
        and the asker nothing. Closing the bus cancels what is at work.

        Raises: as :meth:`subscribe`.
        """
        service = Service(handler, self._answer_to, at_once)
        self._services.append(service)
        await self._listen(subject, service.take, within_s)

    async def forget(self, feed: Feed) -> None:
        """Let nothing more arrive in *feed*.

        Raises:
            Unavailable: the bus is closed, and the subscription with it.
        """
        self._feeds.discard(feed)
        self._check_open()
        if feed.subscription is not None:
            await _unsubscribe(feed.subscription)

    async def close(self) -> None:
        """End the connection, and what :meth:`serve` began."""
        self._shut(None)
        working = {task for service in self._services for task in service.cancel()}
        if self._closing is not None:
            working.add(self._closing)
        if working := {task for task in working if task is not asyncio.current_task()}:
            await asyncio.wait(working)

    # --- the connection --------------------------------------------------------------------

    async def open(self) -> None:
        """Log in for the first time.

        Raises: as :func:`connect`.
        """
        opening = asyncio.ensure_future(
            self._client.connect(
                self.url,
                name=self._login.name,
                nkeys_seed_str=self._login.seed,
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
            if not self._client.is_connected:
                raise _kept_out(self.url, "it ended the connection")
            await self._client.subscribe(f"{self._inbox}*", cb=self._take_answer)
        except BaseException as error:
            self._client.over = True
            opening.cancel()
            await asyncio.wait({opening})
            await self.close()
            if isinstance(error, nats.errors.Error | OSError | ValueError):
                raise _nobody(self.url, error) from None
            raise
        self._opened = True
        self._connected.set()

    async def _on_connected(self) -> None:
        self._connected.set()
        self.resend()

    async def _on_lost(self) -> None:
        self._losses += 1
        if not self.closed.is_set():
            self._connected.clear()
        for flush in self._flushes:
            flush.cancel()
        for feed in self._feeds:
            feed.lose()

    async def _on_closed(self) -> None:
        """Note that nats-py gave up, if not because we told it to."""
        self._shut(_kept_out(self.url, _words(self._client.last_error)))

    async def _on_error(self, error: Exception) -> None:
        """Find out whom *error* concerns: who asked for what was denied, or the login."""
        text = _words(error)
        if not self._opened:
            # A server that is slow to greet is given all the time that there is.
            if not isinstance(error, TimeoutError) and not self._failed_login.done():
                self._failed_login.set_result(_why_not(self.url, error))
        elif isinstance(error, _ForeignServerError):
            self._shut(_foreign(self.url))
        elif _refuses(text):
            # Asking a server that has forgotten our key again and again leads nowhere.
            self._shut(_kept_out(self.url, text))
        elif text.startswith((_DENIED_PUBLISH, _DENIED_SUBSCRIPTION)):
            self._deny(text)
        elif not isinstance(error, nats.errors.Error | OSError):
            self._loop.call_exception_handler(
                {"message": "what arrived on the bus met a bug", "exception": error}
            )
        if not self._client.is_connected:
            self._drop_transport()

    def _drop_transport(self) -> None:
        """Close the socket of an attempt that failed: nats-py forgets it at the next one."""
        if (transport := self._client._transport) is not None:  # noqa: SLF001 - has no other way
            transport.close()  # type: ignore[no-untyped-call]

    def _deny(self, text: str) -> None:
        """Tell who asks what *text* denies. nats-py has put it in lower case."""
        denied = text.partition('"')[2].partition('"')[0]
        if text.startswith(_DENIED_SUBSCRIPTION):
            self._denied.add(denied)
            return
        for asked in self._asked.values():
            if asked.subject.lower() == denied:
                asked.fail(Refused(f"this key may not publish to {asked.subject}", reason="denied"))

    def _shut(self, error: HubError | None) -> None:
        """Be closed for good, because of *error* or by :meth:`close`."""
        if self.closed.is_set():
            return
        self.closed_because = error
        self._client.over = True
        self.closed.set()
        self._connected.set()  # whoever waits for that sees that we are closed
        for feed in self._feeds:
            feed.lose()
        for service in self._services:
            service.cancel()
        for asked in self._asked.values():
            asked.fail(self._closed_error())
        if self._client._flush_queue is not None:  # noqa: SLF001 - else it asserts that it began
            self._closing = self._loop.create_task(self._close_client())

    async def _close_client(self) -> None:
        for _ in range(2):
            try:
                async with asyncio.timeout(_CLOSED_WITHIN_S):
                    await self._client.close()
                break
            except (OSError, RuntimeError):  # a timeout too; uvloop's word for a closed socket
                # It had something to send and nobody to send it to, and stopped half way. What
                # it wanted to send is gone now, so the second time it gets to its end.
                self._client._status = Client.DISCONNECTED  # noqa: SLF001 - else it does nothing
        # Cancelled while it closed a connection that was refused, it takes that for done.
        self._drop_transport()
        await asyncio.sleep(0)
        for flush in self._flushes:
            flush.cancel()

    def _is_connected(self) -> bool:
        return self._connected.is_set() and not self.closed.is_set() and self._client.is_connected

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise self._closed_error()

    def _closed_error(self) -> Unavailable:
        why = f": {self.closed_because}" if self.closed_because else ""
        return Unavailable(f"the connection to the bus is closed{why}", reason="bus-closed")

    async def _until_connected(self) -> None:
        while not self._is_connected():
            self._check_open()
            if self._connected.is_set():  # it is lost, and nats-py is about to say so
                await asyncio.sleep(RECONNECT_WAIT_S)
            await self._connected.wait()

    async def _round_trip(self) -> bool:
        """Return once the server has read all that was sent; False: the connection was lost."""
        losses = self._losses
        # Its PING overtakes what its flusher has not written yet, the second one does not.
        for _ in range(2):
            # Never cancelled while there is a connection: the late PONG would end its reading.
            flush = self._loop.create_task(self._client.flush(4 * PING_EVERY_S))
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)
            await asyncio.wait({flush})
            if flush.cancelled() or flush.exception() is not None:
                return False
        return losses == self._losses and self._is_connected()

    # --- messages --------------------------------------------------------------------------

    async def _publish(
        self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None
    ) -> bool:
        """Hand a message to the connection; False: there is none."""
        if not self._connected.is_set():
            return False
        try:
            await self._client.publish(subject, payload, reply=reply, headers=headers)
        except _LOST:
            return False
        except _IMPOSSIBLE as error:
            raise Refused(f"{subject}: {_words(error)}", reason="bus-impossible") from None
        return True

    async def _take_answer(self, message: Msg) -> None:
        asked = self._asked.get(message.subject[len(self._inbox) :])
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

    async def _answer_to(self, inbox: str, payload: bytes) -> None:
        """Send an answer; without a connection nobody waits for it: who asks will ask again."""
        await self._publish(inbox, payload, "", _checked(inbox, payload, None))

    async def _subscribe(
        self, subject: str, taken: Callable[[Msg], Awaitable[None]]
    ) -> Subscription:
        try:
            return await self._client.subscribe(subject, cb=taken)
        except _IMPOSSIBLE as error:
            raise Refused(f"{subject}: {_words(error)}", reason="bus-impossible") from None
        except _LOST:
            self._check_open()
            raise Unavailable(f"{subject}: the connection was lost", reason="bus-lost") from None

    async def _listen(
        self, subject: str, take: Callable[[Msg], object], within_s: float
    ) -> Subscription:
        """Subscribe to *subject* for good; return once the server has."""

        async def taken(message: Msg) -> None:
            take(message)

        subscription: Subscription | None = None
        try:
            async with asyncio.timeout(within_s):
                await self._until_connected()
                subscription = await self._subscribe(subject, taken)
                while not await self._round_trip():  # lost: the next connection begins with it
                    await self._until_connected()
        except BaseException as error:
            if subscription is not None:
                await _unsubscribe(subscription)
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"no connection to the bus at {self.url} in {within_s:g} s",
                    reason="bus-timeout",
                ) from None
            raise
        if subject.lower() in self._denied:
            self._denied.discard(subject.lower())
            await _unsubscribe(subscription)
            raise Refused(f"this key may not subscribe to {subject}", reason="denied")
        return subscription


class Feed:
    """Messages that arrive in an inbox, in order; ``None`` in between: the connection was lost."""

    def __init__(self, bus: Bus, inbox: str) -> None:
        """Collect for *inbox* of *bus*; made by :meth:`Bus.feed`."""
        self.inbox = inbox
        self.subscription: Subscription | None = None
        self._bus = bus
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()

    def take(self, message: Msg) -> None:
        """Add *message*, as the connection does."""
        self._arrived.put_nowait(message)

    async def close(self) -> None:
        """Take no more messages.

        Raises:
            Unavailable: the bus is closed, and the subscription with it.
        """
        await self._bus.forget(self)

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


async def connect(
    workspace: Workspace,
    role: str = "operator",
    *,
    seed: str | None = None,
    name: str | None = None,
    url: str | None = None,
    within_s: float = CONNECT_WITHIN_S,
) -> Bus:
    """Log in to the bus of *workspace* as *role* (one of :data:`hub.nats.ROLES`).

    Given *seed*, with that key instead, as whom it is registered for: a slot's leaf passes the
    slot's *name*, for answers go to ``_INBOX_<name>.>`` and its key may listen nowhere else.

    The hub's own processes find the bus where the hub recorded it before it started them. For
    all others that record is a claim: they ask the hub, and pass its *url*.

    Raises:
        NotRunning: no address is recorded, or nobody answers there.
        Refused: no key of ours to log in with (``creds-missing``), or the server does not
            know it (``denied``).
        Unavailable: it does not let us in in time, or it is another's server (``bus-foreign``).
    """
    if url is None:
        url = read_url(workspace)
    if seed is None:
        seed = read_seed(workspace, role)
    login = Login(seed, name or role, _server_name(workspace))
    try:
        async with asyncio.timeout(within_s):
            return await _opened(url, login)
    except TimeoutError:
        raise Unavailable(
            f"the bus at {url} did not answer in {within_s:g} s", reason="bus-timeout"
        ) from None


async def _opened(url: str, login: Login) -> Bus:
    """Log in; believe a server that does not know us only when it says so again and again.

    Whoever has connected and not yet said who he is when the server reads its accounts is sent
    away as a stranger (measured with nats-server 2.15.1), and every join makes it read them.
    """
    for wait_s in (*_DOUBTED_S, None):
        bus = Bus(url, login)
        try:
            await bus.open()
        except Refused as error:
            if error.reason != "denied" or wait_s is None:
                raise
            await asyncio.sleep(wait_s)
        else:
            return bus
    raise AssertionError("the last attempt returns or raises")


def read_url(workspace: Workspace) -> str:
    """Return the recorded address of the bus, ``nats://127.0.0.1:4222``.

    Raises:
        NotRunning: none is recorded.
    """
    try:
        return read_bounded(workspace.nats_url, _URL_LIMIT).decode("ascii").strip()
    except (OSError, ValueError):
        raise NotRunning(
            f"no hub runs in {workspace.root}: `hub start --detach`", reason="not-running"
        ) from None


def _server_name(workspace: Workspace) -> str:
    """Return the name that the hub gave its server, "" if it cannot be told.

    The supervisor writes it before it starts the server. A copied or left file of it names a
    server that is nowhere any more, or one that a live hub of this directory will replace.
    """
    try:
        config = b"\n" + read_bounded(config_path(workspace), _CONFIG_LIMIT)
        return config.partition(_NAMED)[2].partition(b'"')[0].decode("ascii")
    except (OSError, ValueError):
        return ""


def _checked(
    subject: str, payload: bytes, headers: Mapping[str, str] | None
) -> dict[str, str] | None:
    """Return *headers* as nats-py wants them.

    Raises:
        Refused: the server would read something else, or end the connection for the size, in
            which nats-py does not count the headers; or nats-py would change a header's value.
    """
    wrong = ""
    size = len(payload)
    labels = None
    if headers:
        labels = dict(headers)
        size += _HEADER_BYTES
        for name, value in labels.items():
            size += len(name) + len(value.encode()) + _FIELD_BYTES
            if not name or "\r" in value or "\n" in value:
                wrong = f"no header: {name!r}: {value!r}"
    if not subject or subject[0] == "." or subject[-1] == "." or ".." in subject:
        wrong = f"{subject!r} is no subject"
    if size > MAX_PAYLOAD_BYTES:
        wrong = f"{size} bytes, of {MAX_PAYLOAD_BYTES} that the bus takes in a message"
    if wrong:
        raise Refused(f"{subject}: {wrong}", reason="bus-impossible")
    return labels


async def _unsubscribe(subscription: Subscription) -> None:
    with suppress(nats.errors.Error, OSError, RuntimeError):  # then it is gone with the connection
        await subscription.unsubscribe()


def _words(error: Exception | None) -> str:
    """Return the words of the server, or of nats-py, in *error*."""
    if isinstance(error, nats.errors.AuthorizationError):
        return "authorization violation"
    return (str(error or "") or type(error).__name__).removeprefix("nats: ").strip("'")


def _refuses(text: str) -> bool:
    """Tell whether the server's *text* means that it does not know our key (any more)."""
    return text.lower().startswith(("authorization violation", "user authentication"))


def _kept_out(url: str, text: str) -> HubError:
    if _refuses(text):
        return Refused(f"the server at {url} refused our key: {text}", reason="denied")
    return Unavailable(f"the server at {url} let us not in: {text}", reason="bus-failed")


def _why_not(url: str, error: Exception) -> HubError:
    """Return why the server at *url* let us not in at first."""
    if isinstance(error, _ForeignServerError):
        return _foreign(url)
    if isinstance(error, _NoServerError) or not isinstance(error, nats.errors.Error):
        return _nobody(url, error)
    return _kept_out(url, _words(error))


def _foreign(url: str) -> Unavailable:
    return Unavailable(f"another workspace's server answers at {url}", reason="bus-foreign")


def _nobody(url: str, error: Exception) -> NotRunning:
    return NotRunning(
        f"no bus answers at {url} ({error}): `hub start --detach`", reason="not-running"
    )


def _answer(subject: str, payload: bytes) -> dict[str, Any]:
    """Return the JetStream answer in *payload*, or raise the error that it is."""
    try:
        fields = codec.loads_object(payload)
    except ValueError as wrong:
        raise Unavailable(f"{subject}: {wrong}", reason="bus-failed") from None
    error = fields.get("error")
    if isinstance(error, dict):
        if error.get("code") == _UNAVAILABLE:
            raise Unavailable(f"{subject}: {error.get('description')}", reason="bus-unavailable")
        raise StreamRefused(
            f"{subject}: {error.get('description', error)}", code=int(error.get("err_code", 0))
        )
    return fields
