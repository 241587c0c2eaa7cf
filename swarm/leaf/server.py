"""The leaf's end of ``leaf.sock``: lines in, one answer to each, in their order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.control import VERSION, LineBuffer, encode
from foundation.errors import HubError, Refused, Unavailable, to_wire
from hub.commits import Conflicted, conflict_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Handler = Callable[[dict[str, Any], "Client"], Awaitable[dict[str, Any]]]

LIST_BYTES = 200 * 1024
"""What a list in an answer may take of a line; the first rows are told then."""
_WAITING = 64
"""Requests of one connection that may wait; who sends more is not one of ours."""
_BEHIND_BYTES = 1 << 20
"""A client that is so far behind is not told of progress."""


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        """Ask *server* what to answer."""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the client has closed: what it alone wanted may end."""
        self._server = server
        self._lines = LineBuffer()
        self._waiting: deque[bytes] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse whoever is not this user."""
        self._transport = transport  # type: ignore[assignment] # uvloop's is no asyncio.Transport
        if _peer_uid(transport.get_extra_info("socket")) != os.geteuid():
            self._transport.abort()
            return
        self._server.clients.add(self)

    def data_received(self, data: bytes) -> None:
        """Answer whole lines, one after the other."""
        try:
            self._waiting.extend(self._lines.feed(data))
            if len(self._waiting) > _WAITING:
                raise ValueError(f"more than {_WAITING} requests at once")
        except ValueError as error:
            self.send({"error": to_wire(Refused(str(error), reason="protocol"))})
            self._transport.close()
            return
        if self._answering is None and self._waiting:
            self._answering = asyncio.get_running_loop().create_task(self._answer())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Let those know who work for this client."""
        self._server.clients.discard(self)
        self._waiting.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    def eof_received(self) -> None:
        """Close at the client's end, which closes both ways at once."""

    def send(self, message: dict[str, Any]) -> None:
        """Send *message*; to nobody if the client has gone."""
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    def progress(self, progress: dict[str, Any]) -> bool:
        """Tell the client of progress; false if it does not keep up, and was told nothing."""
        if self._transport.get_write_buffer_size() > _BEHIND_BYTES:
            return False
        self.send({"progress": progress})
        return True

    def is_behind(self) -> bool:
        """Tell whether it has not taken all that it was sent."""
        return bool(self._transport.get_write_buffer_size())

    async def _answer(self) -> None:
        while self._waiting:
            self.send(await self._server.answer(self._waiting.popleft(), self))
        self._answering = None


class Server:
    """Serves one slot."""

    def __init__(self, handler: Handler, complain: Callable[[str, BaseException], None]) -> None:
        """Have *handler* answer; *complain* is told of its bugs."""
        self.clients: set[Client] = set()
        self._handler = handler
        self._complain = complain
        self._server: asyncio.Server | None = None

    async def begin(self, listener: socket.socket) -> None:
        """Serve *listener*, which is ours from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Client(self), sock=listener)

    def end(self) -> None:
        """Take no more connections; those there are end with the process, the news of its end."""
        if self._server is not None:
            self._server.close()

    def unsent(self) -> bool:
        """Tell whether an answer is still on its way."""
        return any(client.is_behind() for client in self.clients)

    async def answer(self, line: bytes, client: Client) -> dict[str, Any]:
        """Return the answer to the request *line*."""
        try:
            request = codec.loads_object(line)
            if request.get("v") != VERSION:
                raise Unavailable(
                    f"the leaf speaks protocol version {VERSION}, this program version "
                    f"{request.get('v')}: close the slot with the program that joined it",
                    reason="protocol-version",
                )
            return {"data": await self._handler(request, client)}
        except HubError as error:
            return {"error": wire_of(error)}
        except (ValueError, KeyError, TypeError) as error:
            self._complain("request", error)
            wrong = Refused(f"the request is not understood: {error!r}", reason="protocol")
            return {"error": to_wire(wrong)}
        except OSError as error:
            self._complain("system", error)
            return {"error": to_wire(HubError(str(error), reason="system"))}
        except Exception as error:  # noqa: BLE001 - one verb's bug must not end the leaf
            self._complain("bug", error)
            wrong_here = HubError(f"a bug in the leaf: {error!r} (see leaf.log)", reason="bug")
            return {"error": to_wire(wrong_here)}


def wire_of(error: HubError) -> dict[str, Any]:
    """Return *error* as it crosses the socket, conflicts with their places."""
    wire: dict[str, Any] = dict(to_wire(error))
    if isinstance(error, Conflicted):
        wire["conflicts"] = fitting(map(conflict_json, error.conflicts))
    return wire


def fitting(rows: Iterable[Any], limit_bytes: int = LIST_BYTES) -> list[Any]:
    """Return the first of *rows* that go into *limit_bytes* of JSON together."""
    taken: list[Any] = []
    size = 0
    for row in rows:
        size += len(codec.dumps(row)) + 1
        if size > limit_bytes:
            break
        taken.append(row)
    return taken


def _peer_uid(sock: socket.socket) -> int:
    """Return the uid of the process that asks. Source: unix(7), SO_PEERCRED."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little")
