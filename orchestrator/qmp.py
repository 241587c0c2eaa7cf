"""QEMU's monitor protocol over a socket that QEMU already has the other end of.

A JSON object a line, both ways: a greeting, then answers in the order of the commands, and events
in between. QEMU takes such a socket by ``-chardev socket,id=qmp,fd=N -mon qmp,mode=control``.
Source: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, cast

from foundation import codec
from foundation.errors import HubError, Unavailable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Event = Callable[[str, dict[str, Any]], None]
    """Told an event's name (``STOP``, ``RESUME``, ``SHUTDOWN``, …) and its data."""

LINE_LIMIT = 1 << 20
"""The longest line, in bytes, that is accepted from QEMU."""
ANSWER_S = 10.0


class Qmp:
    """One connection to a monitor. All of it belongs to one loop."""

    def __init__(self, on_event: Event | None = None) -> None:
        """Connect nothing: :meth:`open` does."""
        self._on_event = on_event
        self._wire: _Wire
        self._number = 0
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._because = "it was closed"

    @classmethod
    async def open(
        cls, sock: socket.socket, *, on_event: Event | None = None, timeout_s: float = ANSWER_S
    ) -> Self:
        """Return a connection that takes commands, once QEMU has greeted on *sock*.

        *sock*, an AF_UNIX stream socket, is ours from here on, whatever happens. *on_event* is
        called on the loop, for each event in order.

        Raises:
            Unavailable: QEMU ended first (``qmp-gone``), or said nothing in time
                (``qmp-no-answer``).
        """
        qmp = cls(on_event)
        sock.setblocking(False)
        try:
            _transport, qmp._wire = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Wire(qmp._received, qmp._lost), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        try:
            async with asyncio.timeout(timeout_s):
                await qmp._greeted
            await qmp.execute("qmp_capabilities", timeout_s=timeout_s)
        except TimeoutError:
            await qmp.close()
            raise _no_answer("greeting", timeout_s) from None
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout_s: float = ANSWER_S,
    ) -> Any:
        """Return what *command* returns, as JSON has it; several may be under way.

        Raises:
            HubError: QEMU refused it, in its own words (``qmp-refused``).
            Unavailable: the connection is over (``qmp-gone``), or there was no answer in time
                (``qmp-no-answer``): then it may have been carried out or not.
        """
        if self._ended.done():
            raise self._gone()
        self._number += 1
        number = self._number
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._wire.send({"execute": command, "arguments": arguments or {}, "id": number})
        try:
            async with asyncio.timeout(timeout_s):
                message = await answer
        except TimeoutError:
            raise _no_answer(command, timeout_s) from None
        finally:
            del self._asked[number]
        if "error" in message:
            error = message["error"]
            words = error.get("desc", error) if isinstance(error, dict) else error
            raise HubError(f"QEMU refused {command}: {words}", reason="qmp-refused")
        return message["return"]

    async def monitor(self, line: str, *, timeout_s: float = ANSWER_S) -> str:
        """Return what the human monitor prints for *line*: that is where its errors are too.

        Raises: as :meth:`execute`.
        """
        arguments = {"command-line": line}
        said = await self.execute("human-monitor-command", arguments, timeout_s=timeout_s)
        return str(said).replace("\r\n", "\n").strip()

    def abort(self) -> None:
        """Close, in the loop's next turn; what is under way fails as ``qmp-gone``."""
        self._wire.abort()

    async def close(self) -> None:
        """Close; what is under way fails as ``qmp-gone``. Again is no error."""
        self.abort()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Return when the connection is over, whoever ended it."""
        await asyncio.shield(self._ended)

    def _received(self, line: bytes) -> None:
        message = codec.loads_object(line)
        if "QMP" in message:
            if not self._greeted.done():
                self._greeted.set_result(None)
        elif "event" in message:
            if self._on_event is not None:
                data = message.get("data")
                self._on_event(str(message["event"]), data if isinstance(data, dict) else {})
        elif "return" in message or "error" in message:
            number = message.get("id")
            answer = self._asked.get(number) if isinstance(number, int) else None
            # None: an answer that nobody waits for any more.
            if answer is not None and not answer.done():
                answer.set_result(message)

    def _lost(self, because: str) -> None:
        self._because = because
        self._ended.set_result(None)
        for waiting in (self._greeted, *self._asked.values()):
            if not waiting.done():
                waiting.set_exception(self._gone())
                waiting.exception()  # retrieved: whoever waited may be gone

    def _gone(self) -> Unavailable:
        return Unavailable(f"QEMU's monitor is gone: {self._because}", reason="qmp-gone")


class _Wire(asyncio.Protocol):
    """Lines in, lines out; whatever is not the protocol ends the connection."""

    def __init__(self, received: Callable[[bytes], None], lost: Callable[[str], None]) -> None:
        self._received = received
        self._lost = lost
        self._transport: asyncio.Transport
        self._rest = bytearray()
        self._because = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is of no common class

    def data_received(self, data: bytes) -> None:
        self._rest += data
        end = self._rest.rfind(b"\n") + 1
        lines, self._rest = self._rest[:end].splitlines(), self._rest[end:]
        if len(self._rest) > LINE_LIMIT or any(len(line) > LINE_LIMIT for line in lines):
            self._refuse(f"a line longer than {LINE_LIMIT} bytes")
            return
        for line in lines:
            try:
                self._received(bytes(line))
            except codec.DecodeError as error:
                self._refuse(str(error))
                return

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self._because or (str(exc) if exc else "it closed"))

    def send(self, message: dict[str, Any]) -> None:
        self._transport.write(codec.dumps(message).encode() + b"\n")

    def abort(self) -> None:
        self._because = self._because or "it was closed"
        self._transport.abort()

    def _refuse(self, why: str) -> None:
        self._because = f"what it said is not understood: {why}"
        self._rest.clear()
        self._transport.abort()


def _no_answer(to: str, within_s: float) -> Unavailable:
    return Unavailable(f"QEMU did not answer {to} within {within_s:g} s", reason="qmp-no-answer")
