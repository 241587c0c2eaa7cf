"""The bus as the rest of the hub sees it: connect, publish until acknowledged, request, serve.

Everything here outlives a connection, and ends when the bus is refused: what was asked is asked
again, what was subscribed to is subscribed to again, and whoever listens at our address is told
nothing before it has proved to be the server that we mean (ADR 0006, 0012).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from foundation import codec
from foundation.atomic import read_bounded
from foundation.errors import HubError, NotRunning, Refused, Unavailable
from hub.creds import read_seed
from hub.nats import MAX_PAYLOAD_BYTES, config_path
from hub.serving import AT_ONCE, Service
from hub.wire import Message, Wire, connect_command, dial, publish_command, subscribe_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from foundation.workspace import Workspace
    from hub.serving import Handler

RECONNECT_WAIT_S = 0.1
RECONNECT_AT_MOST_S = 1.0
CONNECT_WITHIN_S = 5.0
_DOUBTED_S = (0.02, 0.1, 0.3)
ACKNOWLEDGED_WITHIN_S = 10.0
LISTENING_WITHIN_S = 5.0
_ATTEMPT_S = 2.0
_CLOSED_WITHIN_S = 1.0
_URL_LIMIT = 1024
_CONFIG_LIMIT = 65_536
_NAMED = b'\nserver_name: "'
_UNAVAILABLE = 503
_DENIED_PUBLISH = 'Permissions Violation for Publish to "'
_DENIED_SUBSCRIPTION = 'Permissions Violation for Subscription to "'

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


class _Asked:
    """One request until it is answered: the same bytes, with the same inbox, however often."""

    __slots__ = ("again", "answer", "command", "per_try_s", "subject", "unserved_waits")

    def __init__(
        self,
        subject: str,
        command: bytes,
        answer: asyncio.Future[Message],
        per_try_s: float | None,
        *,
        unserved_waits: bool,
    ) -> None:
        self.subject = subject
        self.command = command
        self.answer = answer
        self.per_try_s = per_try_s
        self.unserved_waits = unserved_waits
        self.again: asyncio.TimerHandle | None = None


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
        self._inbox = f"_INBOX_{login.name}.{os.urandom(12).hex()}."
        self._wire: Wire | None = None
        self._connected = asyncio.Event()
        self._reconnecting: asyncio.Task[None] | None = None
        self._sid = 1
        self._subjects: dict[int, str] = {1: f"{self._inbox}*"}
        self._takers: dict[int, Callable[[Message], object]] = {1: self._take_answer}
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
        return "" if self._wire is None else self._wire.server_id

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
    ) -> Message:
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
        self._numbered += 1
        token = f"{self._numbered:x}"
        command = self._command(subject, payload, self._inbox + token, headers)
        answer: asyncio.Future[Message] = self._loop.create_future()
        asked = _Asked(subject, command, answer, per_try_s, unserved_waits=unserved_waits)
        self._asked[token] = asked
        deadline = self._loop.call_later(within_s, self._expire, asked, within_s)
        self._send(asked)
        try:
            return await answer
        finally:
            del self._asked[token]
            deadline.cancel()
            if asked.again is not None:
                asked.again.cancel()

    def resend(self) -> None:
        """Send every request that waits for its answer again, now: somebody may serve again."""
        for asked in self._asked.values():
            self._send(asked)

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
        command = self._command(subject, payload, reply, headers)
        if self._wire is None:
            self._check_open()
            raise Unavailable(f"{subject}: the connection to the bus was lost", reason="bus-lost")
        self._wire.write(command)

    # --- listening -------------------------------------------------------------------------

    async def feed(self, *, within_s: float = LISTENING_WITHIN_S) -> Feed:
        """Return a new inbox of ours, with what arrives there.

        Raises: as :meth:`subscribe`.
        """
        feed = Feed(self, f"_INBOX_{self._login.name}.{os.urandom(12).hex()}")
        feed.sid = await self._listen(feed.inbox, feed.take, within_s)
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
            subject, lambda one: callback(one.subject, one.data, one.headers), within_s
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

    def forget(self, feed: Feed) -> None:
        """Let nothing more arrive in *feed*.

        Raises:
            Unavailable: the connection is gone, and the subscription with it.
        """
        self._feeds.discard(feed)
        self._subjects.pop(feed.sid, None)
        self._takers.pop(feed.sid, None)
        self._check_open()
        if self._wire is not None:
            self._wire.write(f"UNSUB {feed.sid}\r\n".encode())

    async def close(self) -> None:
        """End the connection, and what :meth:`serve` began."""
        wire = self._wire
        self._shut(None)
        working = {task for service in self._services for task in service.cancel()}
        if self._reconnecting is not None:
            working.add(self._reconnecting)
        if working := {task for task in working if task is not asyncio.current_task()}:
            await asyncio.wait(working)
        if wire is not None:
            await asyncio.wait({wire.gone}, timeout=_CLOSED_WITHIN_S)
            wire.abort()

    # --- the connection --------------------------------------------------------------------

    async def open(self) -> None:
        """Log in for the first time.

        Raises: as :func:`connect`.
        """
        try:
            self._established(await self._dial())
        except _ForeignServerError:
            raise _foreign(self.url) from None
        except ConnectionRefusedError as error:
            raise _nobody(self.url, error) from None
        except ConnectionError as error:
            raise _kept_out(self.url, str(error)) from None
        except (OSError, ValueError, OverflowError) as error:
            raise _nobody(self.url, error) from None

    async def _dial(self) -> Wire:
        login = self._login

        def greet(info: dict[str, Any]) -> bytes:
            # A copied workspace has our keys, so its server would let us in.
            if login.server_name and info.get("server_name") != login.server_name:
                raise _ForeignServerError(f"a server named {info.get('server_name')}")
            return connect_command(info, seed=login.seed, name=login.name)

        return await dial(
            self.url,
            greet,
            on_message=self._take,
            on_error=self._complained,
            on_lost=self._lost,
        )

    def _established(self, wire: Wire) -> None:
        if wire.gone.done():
            raise ConnectionError(wire.error or "it ended the connection")
        self._wire = wire
        for sid, subject in self._subjects.items():
            wire.write(subscribe_command(subject, sid))
        self._connected.set()
        self.resend()

    async def _reconnect(self) -> None:
        wait_s = RECONNECT_WAIT_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 1.2, RECONNECT_AT_MOST_S)
            try:
                async with asyncio.timeout(_ATTEMPT_S):
                    self._established(await self._dial())
            except _ForeignServerError:
                self._shut(_foreign(self.url))
            except ConnectionError as error:
                if not _refuses(str(error)):
                    continue
                self._shut(_kept_out(self.url, str(error)))
            except (OSError, ValueError, OverflowError):
                continue
            return

    def _lost(self, wire: Wire) -> None:
        """Note that *wire* has ended; begin to look for the next one."""
        if wire is not self._wire:
            return
        self._wire = None
        self._connected.clear()
        for feed in self._feeds:
            feed.lose()
        if self.closed.is_set():
            return
        if _refuses(wire.error):
            # Asking a server that has forgotten our key again and again leads nowhere.
            self._shut(_kept_out(self.url, wire.error))
        else:
            self._reconnecting = self._loop.create_task(self._reconnect())

    def _shut(self, error: HubError | None) -> None:
        """Be closed for good, because of *error* or by :meth:`close`."""
        if self.closed.is_set():
            return
        self.closed_because = error
        self.closed.set()
        self._connected.set()  # whoever waits for that sees that we are closed
        if self._reconnecting is not None and self._reconnecting is not asyncio.current_task():
            self._reconnecting.cancel()
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        for feed in self._feeds:
            feed.lose()
        for service in self._services:
            service.cancel()
        for asked in self._asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(self._closed_error())

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise self._closed_error()

    def _closed_error(self) -> Unavailable:
        why = f": {self.closed_because}" if self.closed_because else ""
        return Unavailable(f"the connection to the bus is closed{why}", reason="bus-closed")

    async def _until_connected(self) -> Wire:
        while self._wire is None:
            self._check_open()
            await self._connected.wait()
        return self._wire

    # --- messages --------------------------------------------------------------------------

    def _command(
        self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None
    ) -> bytes:
        try:
            return publish_command(subject, reply, payload, headers, limit=MAX_PAYLOAD_BYTES)
        except ValueError as error:
            raise Refused(f"{subject}: {error}", reason="bus-impossible") from None

    def _send(self, asked: _Asked) -> None:
        if asked.answer.done():
            return
        wire = self._wire
        if wire is not None and not (wire.congested and asked.again is not None):
            wire.write(asked.command)
        if asked.per_try_s is not None:
            self._send_again_in(asked, asked.per_try_s)

    def _send_again_in(self, asked: _Asked, wait_s: float) -> None:
        if asked.again is not None:
            asked.again.cancel()
        asked.again = self._loop.call_later(wait_s, self._send, asked)

    def _expire(self, asked: _Asked, within_s: float) -> None:
        if not asked.answer.done():
            asked.answer.set_exception(
                Unavailable(
                    f"the bus did not answer {asked.subject} within {within_s:g} s",
                    reason="bus-timeout",
                )
            )

    def _take(self, sid: int, message: Message) -> None:
        take = self._takers.get(sid)
        if take is not None:
            take(message)

    def _take_answer(self, message: Message) -> None:
        asked = self._asked.get(message.subject[len(self._inbox) :])
        if asked is None or asked.answer.done():
            return
        if message.data or message.headers.get("Status") != "503":
            asked.answer.set_result(message)
        elif asked.unserved_waits:
            self._send_again_in(asked, RECONNECT_WAIT_S)  # nobody serves it, not yet or not now
        else:
            asked.answer.set_exception(
                Unavailable(f"nobody serves {asked.subject}", reason="bus-unserved")
            )

    def _answer_to(self, inbox: str, payload: bytes) -> None:
        """Send an answer; without a connection nobody waits for it: who asks will ask again."""
        if self._wire is not None:
            self._wire.write(self._command(inbox, payload, "", None))

    def _complained(self, text: str) -> None:
        """Tell whoever asked for, or subscribed to, what *text* of the server denies."""
        if text.startswith(_DENIED_PUBLISH):
            denied = text[len(_DENIED_PUBLISH) :].partition('"')[0]
            for asked in self._asked.values():
                if asked.subject == denied and not asked.answer.done():
                    asked.answer.set_exception(
                        Refused(f"this key may not publish to {denied}", reason="denied")
                    )
        elif text.startswith(_DENIED_SUBSCRIPTION):
            self._denied.add(text[len(_DENIED_SUBSCRIPTION) :].partition('"')[0])

    async def _listen(
        self, subject: str, take: Callable[[Message], object], within_s: float
    ) -> int:
        """Subscribe to *subject* for good; return its number once the server has."""
        self._sid += 1
        sid = self._sid
        try:
            command = subscribe_command(subject, sid)
        except ValueError as error:
            raise Refused(f"{subject}: {error}", reason="bus-impossible") from None
        try:
            async with asyncio.timeout(within_s):
                wire = await self._until_connected()
                self._subjects[sid] = subject
                self._takers[sid] = take
                wire.write(command)
                while not await wire.ping():  # lost: the next connection begins with it
                    wire = await self._until_connected()
        except BaseException as error:
            self._subjects.pop(sid, None)
            self._takers.pop(sid, None)
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    f"no connection to the bus at {self.url} in {within_s:g} s",
                    reason="bus-timeout",
                ) from None
            raise
        if subject in self._denied:
            self._denied.discard(subject)
            del self._subjects[sid], self._takers[sid]
            raise Refused(f"this key may not subscribe to {subject}", reason="denied")
        return sid


class Feed:
    """Messages that arrive in an inbox, in order; ``None`` in between: the connection was lost."""

    def __init__(self, bus: Bus, inbox: str) -> None:
        """Collect for *inbox* of *bus*; made by :meth:`Bus.feed`."""
        self.inbox = inbox
        self.sid = 0
        self._bus = bus
        self._arrived: asyncio.Queue[Message | None] = asyncio.Queue()

    def take(self, message: Message) -> None:
        """Add *message*, as the connection does."""
        self._arrived.put_nowait(message)

    async def close(self) -> None:
        """Take no more messages.

        Raises:
            Unavailable: the connection is gone, and the subscription with it.
        """
        self._bus.forget(self)

    def lose(self) -> None:
        """Note that the connection was lost."""
        self._arrived.put_nowait(None)

    async def next(self, within_s: float) -> Message | None:
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


class _ForeignServerError(Exception):
    """Another server than ours has our address."""


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


def _refuses(text: str) -> bool:
    """Tell whether the server's *text* means that it does not know our key (any more)."""
    return text.lower().startswith(("authorization violation", "user authentication"))


def _kept_out(url: str, text: str) -> HubError:
    if _refuses(text):
        return Refused(f"the server at {url} refused our key: {text}", reason="denied")
    return Unavailable(f"the server at {url} let us not in: {text}", reason="bus-failed")


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
