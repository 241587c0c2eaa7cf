"""The holder's ends of its members' sockets: nobody waits for another."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, TypeVar

from foundation import codec
from foundation.errors import HubError, Refused, Unavailable, to_wire
from orchestrator import protocol
from orchestrator.holder.connection import Client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[dict[str, Any], Client], Awaitable[dict[str, Any]]]

Result = TypeVar("Result")

REQUEST_WITHIN_S = 10.0
"""A whole line, from the one before it; a client that wants nothing closes."""
CONNECTIONS = 512
_AGAIN_S = 0.1


class Server:
    """Serves members' sockets."""

    def __init__(
        self,
        handler: Handler,
        *,
        outlive: frozenset[str],
        on_unbound: Callable[[], None],
        complain: Callable[[str, BaseException], None],
        request_within_s: float = REQUEST_WITHIN_S,
    ) -> None:
        """Have *handler* answer.

        What a client asked for ends with its connection, but for the verbs of *outlive*.
        *on_unbound* is told of a bound client's end; *complain* of bugs.
        """
        self._handler = handler
        self._outlive = outlive
        self._on_unbound = on_unbound
        self._complain = complain
        self._request_within_s = request_within_s
        self._listening: dict[str, socket.socket] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Future[dict[str, Any]]] = set()

    def listen(self, member: str, listener: socket.socket) -> None:
        """Serve *listener*, the socket of *member*, which is ours from now on; no former one."""
        self.retire(member)
        listener.setblocking(False)
        self._listening[member] = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, member, listener)

    def _accept(self, member: str, listener: socket.socket) -> None:
        # Not asyncio's server: in 3.11 a connection that it has accepted when it is closed is
        # neither served nor closed, and its client waits for ever.
        loop = asyncio.get_running_loop()
        try:
            sock, _address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: it would call us again at once, and again
            self._complain("a connection", error)
            loop.remove_reader(listener)
            loop.call_later(_AGAIN_S, self._listen_again, member, listener)
            return
        task = loop.create_task(self._serve(member, sock))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def _listen_again(self, member: str, listener: socket.socket) -> None:
        if self._listening.get(member) is listener:
            asyncio.get_running_loop().add_reader(listener, self._accept, member, listener)

    def retire(self, member: str) -> None:
        """Take no more connections for *member*; those there are get their answers."""
        listener = self._listening.pop(member, None)
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    async def drain(self, within_s: float) -> None:
        """Let those that are being answered have their answers; then close all connections."""
        if self._answering:
            await asyncio.wait(self._answering, timeout=within_s)
            await asyncio.sleep(0)  # now they are sent
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving, timeout=within_s)

    async def _serve(self, member: str, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=protocol.LINE_LIMIT, loop=loop)
        streams = asyncio.StreamReaderProtocol(reader, loop=loop)
        sock.setblocking(False)
        transport, _protocol = await loop.connect_accepted_socket(lambda: streams, sock)
        writer = asyncio.StreamWriter(transport, streams, reader, loop)
        client = Client(member, reader, writer, self._request_within_s)
        if client.uid != os.geteuid():
            client.send({"error": to_wire(_foreign(member))})
            await client.close()
            return
        if len(self._serving) > CONNECTIONS:
            client.send({"error": to_wire(_busy(member))})
            await client.close()
            return
        reading = asyncio.create_task(client.read())
        try:
            await self._converse(client, reading)
        except TimeoutError:
            pass  # a client that says nothing, or a line a letter at a time
        except Exception as error:  # noqa: BLE001 - one client's trouble must not be another's
            self._complain("a bug in a conversation", error)
        finally:
            reading.cancel()
            if client.bound:
                self._on_unbound()
            await client.close()

    async def _converse(self, client: Client, reading: asyncio.Task[None]) -> None:
        """Answer request after request, to the end of the connection or of the member."""
        while True:
            if client.following:
                await _first(client.skip_upload(), reading)
            line = await _first(client.line(), reading)
            if line is None:
                return
            answering = asyncio.ensure_future(self.answer(line, client))
            self._answering.add(answering)
            try:
                await asyncio.wait({answering, reading}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():  # the client has gone
                    if self._verb(line) not in self._outlive:
                        answering.cancel()
                    await asyncio.wait({answering})
                if answering.cancelled():
                    return
                client.send(answering.result())
            finally:
                answering.cancel()
                self._answering.discard(answering)
            await client.drain()
            if client.member not in self._listening and not client.bound:
                return

    @staticmethod
    def _verb(line: bytes) -> str:
        try:
            return str(codec.loads_object(line).get("verb"))
        except ValueError:
            return ""

    async def answer(self, line: bytes, client: Client) -> dict[str, Any]:
        """Return the answer to the request *line*."""
        try:
            request = codec.loads_object(line)
            if request.get("verb") != protocol.BIND:  # which is how versions are compared
                protocol.check_version(request, "whoever asks")
            return {"data": await self._handler(request, client)}
        except HubError as error:
            return {"error": to_wire(error)}
        except (ValueError, KeyError, TypeError) as error:
            self._complain("a request", error)
            wrong = Refused(f"the request is not understood: {error!r}", reason="protocol")
            return {"error": to_wire(wrong)}
        except OSError as error:
            self._complain("the system", error)
            return {"error": to_wire(HubError(str(error), reason="system"))}
        except Exception as error:  # noqa: BLE001 - one verb's bug must not end the cluster
            self._complain("a bug in a verb", error)
            wrong_here = HubError(f"a bug in the holder: {error!r} (its log)", reason="bug")
            return {"error": to_wire(wrong_here)}


async def _first(line: Awaitable[Result], reading: asyncio.Task[None]) -> Result | None:
    """Return the next line, None if there will be none."""
    getting = asyncio.ensure_future(line)
    try:
        await asyncio.wait({getting, reading}, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            await asyncio.sleep(0)  # a last line may have come with the end
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


def _foreign(member: str) -> Refused:
    return Refused(
        f"VM {member} is user {os.geteuid()}'s, and answers nobody else", reason="foreign"
    )


def _busy(member: str) -> Unavailable:
    return Unavailable(
        f"the holder of {member} has {CONNECTIONS} connections: end some of what is run or "
        "followed there",
        reason="busy",
    )
