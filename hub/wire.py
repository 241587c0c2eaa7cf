"""One connection to a nats-server: bytes to messages and back, and nothing that outlives it.

The NATS client protocol is six verbs over TCP. What is here is the part of it that we use, on
asyncio's own transport, so that a message costs one parse and one call: through nats-py, whose
reading, dispatching and flushing are tasks and queues, a request cost three times as much
(ADR 0012).

Source: the NATS client protocol; headers: ADR-4 of nats-architecture.
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import nkeys

from foundation import codec
from hub.nats import parse_info

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PING_EVERY_S = 20.0
_PINGS_UNANSWERED = 2
_LINE_LIMIT = 65_536
"""INFO is the longest line: a server that names all of a cluster's addresses."""

_EOL = b"\r\n"
_HEADER_LINE = b"NATS/1.0"
_NO_HEADERS: Mapping[str, str] = {}


class Stored(NamedTuple):
    """Where and when a stream keeps a message: its sequence, nanoseconds since 1970."""

    seq: int
    time_ns: int


class Message(NamedTuple):
    """One message. A status that the server sent as such stands in the headers, ``Status``."""

    subject: str
    reply: str
    data: bytes
    headers: Mapping[str, str]

    def stored(self) -> Stored:
        """Return where the stream keeps it, if a consumer delivered it.

        Source: nats-architecture ADR-15: ``$JS.ACK.…`` with 9 tokens, 11 or 12 with a domain.

        Raises:
            ValueError: no consumer did.
        """
        tokens = self.reply.split(".")
        at = {9: 5, 11: 7, 12: 7}.get(len(tokens))
        if tokens[:2] != ["$JS", "ACK"] or at is None:
            raise ValueError(f"{self.reply} is no address of a consumer")
        return Stored(int(tokens[at]), int(tokens[at + 2]))


class Wire(asyncio.Protocol):
    """One TCP connection to a server. Made by :func:`dial`, gone at its first failure."""

    def __init__(
        self,
        on_message: Callable[[int, Message], None],
        on_error: Callable[[str], None],
        on_lost: Callable[[Wire], None],
    ) -> None:
        """Prepare to tell what happens.

        *on_message* is told what arrives for the subscription of which number, *on_error* what
        the server complains of, *on_lost*, once, that this connection has ended.
        """
        loop = asyncio.get_running_loop()
        self.info: asyncio.Future[dict[str, Any] | None] = loop.create_future()
        """What the server says of itself; None: it did not, see ``error``."""
        self.gone: asyncio.Future[None] = loop.create_future()
        self.error = ""
        """The last complaint of the server: why it is about to end the connection."""
        self.server_id = ""
        self.congested = False
        """What was written waits in this process: the server does not read."""
        self._on_message = on_message
        self._on_error = on_error
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._pongs: deque[asyncio.Future[bool] | None] = deque()
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0
        self._keeping: asyncio.TimerHandle | None = None

    # --- what a transport tells its protocol -----------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102
        if self._keeping is not None:
            self._keeping.cancel()
        if not self.info.done():
            self.info.set_result(None)
        while self._pongs:
            self._answer_ping(pong=False)
        self.gone.set_result(None)
        self._on_lost(self)

    def pause_writing(self) -> None:  # noqa: D102
        self.congested = True

    def resume_writing(self) -> None:  # noqa: D102
        self.congested = False

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self._chunks:
            self._chunks.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        try:
            at, self._need = self._parse(data)
        except (ValueError, IndexError) as error:
            self.error = str(error)
            self.abort()
            return
        if at < len(data):
            self._chunks.append(data[at:])
            self._have = len(data) - at
            if not self._need and self._have > _LINE_LIMIT:
                self.error = "a line without an end"
                self.abort()

    # --- reading ---------------------------------------------------------------------------

    def _parse(self, data: bytes) -> tuple[int, int]:
        """Take what is whole in *data*.

        Return how far it went, and how many bytes the rest must have to be whole, if known.

        Raises:
            ValueError, IndexError: this is not the protocol.
        """
        at = 0
        while (end := data.find(_EOL, at)) >= 0:
            line = data[at:end]
            words = line.split()
            verb = words[0] if words else b""
            if verb in (b"MSG", b"HMSG"):
                start = end + 2
                stop = start + int(words[-1])
                if len(data) < stop + 2:
                    return at, stop + 2 - at
                headers = _NO_HEADERS
                if verb == b"HMSG":
                    body = start + int(words[-2])
                    headers = parse_headers(data[start:body])
                    reply = words[3] if len(words) == 6 else b""  # noqa: PLR2004 - five without
                    start = body
                else:
                    reply = words[3] if len(words) == 5 else b""  # noqa: PLR2004 - four without
                at = stop + 2
                message = Message(
                    words[1].decode("utf-8", "replace"),
                    reply.decode("utf-8", "replace"),
                    data[start:stop],
                    headers,
                )
                self._on_message(int(words[2]), message)
                continue
            at = end + 2
            if verb == b"PING":
                self._transport.write(b"PONG\r\n")
            elif verb == b"PONG":
                if self._pongs:
                    self._answer_ping(pong=True)
            elif verb == b"-ERR":
                self.error = line[4:].strip().strip(b"'").decode("utf-8", "replace")
                self._on_error(self.error)
            elif verb != b"+OK":
                info = parse_info(line)
                self.server_id = str(info.get("server_id", ""))
                if not self.info.done():
                    self.info.set_result(info)
        if not self.info.done() and not b"INFO ".startswith(data[at : at + 5]):
            parse_info(data[at:])  # it says what is wrong
        return at, 0

    def _answer_ping(self, *, pong: bool) -> None:
        waiter = self._pongs.popleft()
        if waiter is not None and not waiter.done():
            waiter.set_result(pong)

    # --- writing ---------------------------------------------------------------------------

    def write(self, command: bytes) -> None:
        """Send *command*; what a dead connection is told is lost."""
        self._transport.write(command)

    async def ping(self) -> bool:
        """Return once the server has read all that was sent; False: the connection was lost."""
        if self.gone.done():
            return False
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._ping(waiter)
        return await waiter

    def _ping(self, waiter: asyncio.Future[bool] | None) -> None:
        self._pongs.append(waiter)
        self._transport.write(b"PING\r\n")

    def close(self) -> None:
        """Send what is written, then end."""
        self._transport.close()

    def abort(self) -> None:
        """End now."""
        self._transport.abort()

    def _keep_alive(self) -> None:
        """End a connection whose server has answered nothing for three turns; ask it again."""
        loop = asyncio.get_running_loop()
        self._keeping = loop.call_later(PING_EVERY_S, self._keep_alive)
        if not self.info.done():
            return
        if len(self._pongs) >= _PINGS_UNANSWERED:
            self.error = self.error or "it fell silent"
            self.abort()
        else:
            self._ping(None)


async def dial(
    url: str,
    greet: Callable[[dict[str, Any]], bytes],
    *,
    on_message: Callable[[int, Message], None],
    on_error: Callable[[str], None],
    on_lost: Callable[[Wire], None],
) -> Wire:
    """Connect to the server at *url* and log in with what *greet* returns for its greeting.

    Raises:
        ConnectionError: it let us not in; the text is its own.
        OSError, ValueError, OverflowError: nobody is there who speaks NATS.

        And whatever *greet* raises.
    """
    host, _, port = url.rpartition("//")[2].rpartition(":")
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(
        lambda: Wire(on_message, on_error, on_lost), host, int(port)
    )
    try:
        info = await wire.info
        if info is None:
            raise ValueError(wire.error or "it ended the connection")
        wire.write(greet(info))
        if not await wire.ping():
            raise ConnectionError(wire.error or "it ended the connection")
    except BaseException:
        wire.abort()
        raise
    return wire


def connect_command(info: Mapping[str, Any], *, seed: str, name: str) -> bytes:
    """Return how a client named *name*, with the key of *seed*, answers the greeting *info*."""
    key = nkeys.from_seed(bytearray(seed.encode()))
    told = {
        "verbose": False,
        "pedantic": False,
        "lang": "python",
        "version": "1",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
        "name": name,
        "nkey": key.public_key.decode(),
        "sig": base64.b64encode(key.sign(str(info.get("nonce", "")).encode())).decode(),
    }
    return b"CONNECT %b\r\n" % codec.dumps(told).encode()


def publish_command(
    subject: str,
    reply: str,
    payload: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    limit: int,
) -> bytes:
    """Return the command that publishes *payload*, which makes *limit* bytes with its headers.

    Raises:
        ValueError: *subject* or a header is impossible, or it is longer: the server would end the
            connection for it.
    """
    size = len(payload)
    if reply:
        checked(reply)
    if headers:
        lines = [_HEADER_LINE]
        for name, value in headers.items():
            if not name or not name.isascii() or not name.isprintable() or ":" in name:
                raise ValueError(f"{name!r} cannot name a header")
            if "\r" in value or "\n" in value:
                raise ValueError(f"header {name} holds a line's end: {value!r}")
            lines.append(f"{name}: {value}".encode())
        head = _EOL.join(lines) + b"\r\n\r\n"
        size += len(head)
        first = f"HPUB {checked(subject)} {reply} {len(head)} {size}\r\n".encode() + head
    else:
        first = f"PUB {checked(subject)} {reply} {size}\r\n".encode()
    if size > limit:
        raise ValueError(f"{size} bytes, of {limit} that the bus takes in a message")
    return b"".join((first, payload, _EOL))


def subscribe_command(subject: str, sid: int) -> bytes:
    """Return the command that asks for *subject*, wildcards allowed, under the number *sid*.

    Raises:
        ValueError: *subject* is impossible.
    """
    return f"SUB {checked(subject)} {sid}\r\n".encode()


def checked(subject: str) -> str:
    """Return *subject*.

    Raises:
        ValueError: a server could not read it, or would read something else.
    """
    if (
        not subject
        or subject[0] == "."
        or subject[-1] == "."
        or ".." in subject
        or not subject.isprintable()
        or " " in subject
    ):
        raise ValueError(f"{subject!r} is no subject")
    return subject


def parse_headers(block: bytes) -> dict[str, str]:
    """Return the headers in *block*; the status in its first line as ``Status``, ``Description``.

    Names are compared as they were sent; of a name that stands twice the last one counts.

    Raises:
        ValueError: it is none.
    """
    first, *lines = block.split(_EOL)
    if not first.startswith(_HEADER_LINE):
        raise ValueError("a block of headers of another version")
    headers: dict[str, str] = {}
    status, _, description = first[len(_HEADER_LINE) :].strip().partition(b" ")
    if status:
        headers["Status"] = status.decode("utf-8", "replace")
        if description:
            headers["Description"] = description.strip().decode("utf-8", "replace")
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("utf-8", "replace")] = value.strip().decode(
                "utf-8", "replace"
            )
    return headers
