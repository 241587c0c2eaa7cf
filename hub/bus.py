"""The bus as the rest of the hub sees it: connect, publish until acknowledged, request.

A thin layer over nats-py, and the only module that knows it, because of what nats-py does on
its own (measured, ADR 0006): it gives up after 60 reconnects, lets a request wait out its
timeout when the connection is gone, shows a refused publish as a timeout, sends again without
a Msg-Id, asks a server that refused its key for ever, and takes whoever listens at an address
for the server that did.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import nats.errors
from nats.aio.client import Client

from foundation import codec
from foundation.atomic import read_bounded
from foundation.errors import HubError, NotRunning, Refused, Unavailable
from hub.creds import read_seed
from hub.nats import config_path, parse_info

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from foundation.workspace import Workspace

RECONNECT_WAIT_S = 0.1
CONNECT_WITHIN_S = 5.0
ACKNOWLEDGED_WITHIN_S = 10.0
_URL_LIMIT = 1024
_INFO_LIMIT = 65_536
_CONFIG_LIMIT = 65_536
_NAMED = b'\nserver_name: "'
_UNAVAILABLE = 503

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


class _ForeignServerError(nats.errors.Error):
    """Another server than ours has our address."""


class _Client(Client):
    """nats-py's client; to a server of another name than *server_name* it says nothing.

    A copied workspace has our keys, so its server would let us in.
    """

    server_name = ""

    def _connect_command(self) -> bytes:
        _check_name(self._server_info, self.server_name)
        return super()._connect_command()


class Bus:
    """One connection. It comes back by itself until :meth:`close`, or until it is refused."""

    def __init__(self, url: str, server_name: str = "") -> None:
        """Prepare a connection to *url*; :func:`connect` makes one."""
        self.url = url
        self.closed = asyncio.Event()
        """Set when the connection will not come back: connect anew."""
        self._client = _Client()
        self._client.server_name = server_name
        self._connected = asyncio.Event()
        self._failed_login: asyncio.Future[HubError] = asyncio.get_running_loop().create_future()
        self._waiting: dict[asyncio.Future[Msg], str] = {}
        self._feeds: set[Feed] = set()
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()

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
    ) -> Msg:
        """Return the answer to a request, sent again whenever the connection was lost.

        Raises:
            Refused: our key may not publish there (``denied``); the subject or the size of
                the payload is impossible (``bus-impossible``).
            Unavailable: no answer in time.
        """
        labels = dict(headers) if headers else None
        try:
            async with asyncio.timeout(within_s):
                while True:
                    await self._until_connected()
                    answer = await self._ask(subject, payload, labels, within_s)
                    if answer is not None:
                        return answer
                    await asyncio.sleep(RECONNECT_WAIT_S)
        except (TimeoutError, nats.errors.TimeoutError):
            raise Unavailable(
                f"the bus did not answer {subject} within {within_s:g} s", reason="bus-timeout"
            ) from None
        except nats.errors.Error as error:
            raise _failure(subject, error) from error

    async def feed(self) -> Feed:
        """Return a new inbox of ours, with what arrives there."""
        await self._until_connected()
        feed = Feed(self, self._client.new_inbox())
        try:
            feed.subscription = await self._client.subscribe(feed.inbox, cb=feed.take)
        except nats.errors.Error as error:
            raise _failure(feed.inbox, error) from error
        self._feeds.add(feed)
        return feed

    async def send(self, subject: str, payload: bytes, *, reply: str) -> None:
        """Publish without waiting; answers go to the inbox *reply*.

        Raises: as :meth:`request`.
        """
        try:
            await self._client.publish(subject, payload, reply=reply)
        except nats.errors.Error as error:
            raise _failure(subject, error) from error

    def forget(self, feed: Feed) -> None:
        """Tell *feed* no longer when the connection is lost."""
        self._feeds.discard(feed)

    async def close(self) -> None:
        """End the connection."""
        client = self._client
        if client._flush_queue is None:  # noqa: SLF001 - it never began, and asserts that it did
            await self._on_closed()
            return
        try:
            await client.close()
        except OSError:
            # It had something to send and nobody to send it to, and stopped half way. What
            # it wanted to send is gone now, so the second time it gets to its end.
            client._status = Client.DISCONNECTED  # noqa: SLF001
            await client.close()
        # Cancelled while it closed a connection that was refused, it takes that for done.
        if (transport := client._transport) is not None:  # noqa: SLF001
            transport.close()  # type: ignore[no-untyped-call]
            await asyncio.sleep(0)

    async def _until_connected(self) -> None:
        if self._connected.is_set():
            return
        waits = {asyncio.ensure_future(event.wait()) for event in (self._connected, self.closed)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.closed.is_set():
            raise Unavailable("the connection to the bus is closed", reason="bus-closed")

    async def _ask(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, within_s: float
    ) -> Msg | None:
        """Send once; return the answer, None if it must be sent again."""
        asking = asyncio.ensure_future(
            self._client.request(subject, payload, timeout=within_s, headers=headers)
        )
        verdict: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[verdict] = subject
        try:
            await asyncio.wait({asking, verdict}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                try:
                    return asking.result()
                except (nats.errors.NoRespondersError, nats.errors.ConnectionReconnectingError):
                    return None  # no JetStream, not yet or not any more: until the deadline
            return None if verdict.cancelled() else verdict.result()
        finally:
            del self._waiting[verdict]
            verdict.cancel()
            asking.cancel()

    async def _on_connected(self) -> None:
        self._connected.set()

    async def _on_lost(self) -> None:
        self._connected.clear()
        for verdict in self._waiting:
            verdict.cancel()
        for feed in self._feeds:
            feed.lose()

    async def _on_closed(self) -> None:
        self.closed.set()
        await self._on_lost()

    async def _on_error(self, error: Exception) -> None:
        """Find out whom *error* concerns: whoever publishes what was denied, or the login."""
        text = str(error)
        if "permissions violation" in text.lower():
            denied = text.partition('"')[2].partition('"')[0]
            for verdict, subject in self._waiting.items():
                # The server's text arrives in lower case.
                if subject.lower() == denied.lower() and not verdict.done():
                    verdict.set_exception(
                        Refused(f"this key may not publish to {subject}", reason="denied")
                    )
        elif isinstance(error, _ForeignServerError) or "authorization" in text.lower():
            if not self._failed_login.done():
                self._failed_login.set_result(
                    _foreign(self.url)
                    if isinstance(error, _ForeignServerError)
                    else Refused(
                        f"the server at {self.url} refused our key: {text}", reason="denied"
                    )
                )
            if self._opened and self._closing is None:
                # Another server stands at our address, or this one forgot us. nats-py would
                # ask it ten times a second for ever, and leak a socket each time.
                self._closing = asyncio.ensure_future(self.close())

    async def _open(self, seed: str, role: str) -> None:
        opening = asyncio.ensure_future(
            self._client.connect(
                self.url,
                name=f"hub-{role}",
                nkeys_seed_str=seed,
                inbox_prefix=f"_INBOX_{role}",
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # a float serves
                connect_timeout=2,
                ping_interval=20,
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
        except BaseException as error:
            opening.cancel()
            await asyncio.wait({opening})
            await self.close()
            if isinstance(error, nats.errors.Error | OSError):
                raise _failure(self.url, error) from error
            raise
        self._opened = True
        self._connected.set()


class Feed:
    """Messages that arrive in an inbox, in order; ``None`` in between: the connection was lost."""

    def __init__(self, bus: Bus, inbox: str) -> None:
        """Collect for *inbox* of *bus*; made by :meth:`Bus.feed`."""
        self.inbox = inbox
        self.subscription: Subscription | None = None
        self._bus = bus
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()

    async def take(self, message: Msg) -> None:
        """Add *message*, as the connection does."""
        self._arrived.put_nowait(message)

    async def close(self) -> None:
        """Take no more messages.

        Raises:
            Unavailable: the connection is gone, and the subscription with it.
        """
        self._bus.forget(self)
        try:
            if self.subscription is not None:
                await self.subscription.unsubscribe()
        except nats.errors.Error as error:
            raise _failure(self.inbox, error) from error

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
    url: str | None = None,
    within_s: float = CONNECT_WITHIN_S,
) -> Bus:
    """Log in to the bus of *workspace* as *role* (one of :data:`hub.nats.ROLES`).

    The hub's own processes find it where the hub recorded it before it started them. For all
    others that record is a claim: they ask the hub, and pass its *url*.

    Raises:
        NotRunning: no address is recorded, or nobody answers there.
        Refused: no key of ours to log in with (``creds-missing``), or the server does not
            know it (``denied``).
        Unavailable: it does not let us in in time, or it is another's server (``bus-foreign``).
    """
    if url is None:
        url = read_url(workspace)
    seed = read_seed(workspace, role)
    name = _server_name(workspace)
    try:
        async with asyncio.timeout(within_s):
            _check_name(await _greeting(url), name)
            bus = Bus(url, name)
            await bus._open(seed, role)  # noqa: SLF001 - this function is its constructor
    except _ForeignServerError:
        raise _foreign(url) from None
    except TimeoutError:
        raise Unavailable(
            f"the bus at {url} did not answer in {within_s:g} s", reason="bus-timeout"
        ) from None
    return bus


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


def _check_name(info: Mapping[str, Any], expected: str) -> None:
    """Accept the greeting *info* of the server named *expected*; "" accepts every server.

    Raises:
        _ForeignServerError: it is of another.
    """
    if expected and info.get("server_name") != expected:
        raise _ForeignServerError(f"a server named {info.get('server_name')}")


def _foreign(url: str) -> Unavailable:
    return Unavailable(f"another workspace's server answers at {url}", reason="bus-foreign")


def _failure(what: str, error: Exception) -> HubError:
    """Return what *error* of the library is to our callers."""
    impossible = (
        nats.errors.BadSubjectError,
        nats.errors.BadHeaderError,
        nats.errors.MaxPayloadError,
    )
    if isinstance(error, impossible):
        return Refused(f"{what}: {error}", reason="bus-impossible")
    return Unavailable(f"{what}: {str(error) or type(error).__name__}", reason="bus-failed")


async def _greeting(url: str) -> dict[str, Any]:
    """Return what the server at *url* says of itself.

    Raises:
        NotRunning: nobody listens there, or someone who does not speak NATS.
    """
    host, _, port = url.rpartition("//")[2].rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port), limit=_INFO_LIMIT)
        try:
            return parse_info(await reader.readline())
        finally:
            writer.close()
            await writer.wait_closed()
    except (OSError, ValueError, OverflowError) as error:
        raise NotRunning(
            f"no bus answers at {url} ({error}): `hub start --detach`", reason="not-running"
        ) from None


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
