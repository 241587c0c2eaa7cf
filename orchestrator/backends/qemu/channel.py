"""One channel to a guest's agent: two ports of a virtio serial device, one command at a time."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, NamedTuple

from foundation.errors import HubError
from orchestrator.backends.qemu.marks import Marks

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Sink = Callable[[int, bytes], None]
    """Told 1 or 2, and bytes of a command's output."""

_CHUNK = 65_536


class Pair(NamedTuple):
    """Our ends of one channel's ports."""

    a: socket.socket
    b: socket.socket


class Channel:
    """Our end of one. All of it belongs to one loop."""

    def __init__(
        self,
        first: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        second: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Take the streams of port a and of port b."""
        self._out, self._in = first
        self._err, self._unused = second
        self._agent_ended: asyncio.Future[None] | None = None

    @classmethod
    async def of(cls, pair: Pair) -> Channel:
        """Return a channel over our ends of *pair*."""
        return cls(
            await asyncio.open_unix_connection(sock=pair.a, limit=_CHUNK),
            await asyncio.open_unix_connection(sock=pair.b, limit=_CHUNK),
        )

    def close(self) -> None:
        """Close it; whoever talks finds it ended."""
        self._in.transport.abort()
        self._unused.transport.abort()

    def lost(self) -> None:
        """Be told that the agent has let go of its port: what was under way has no end."""
        if self._agent_ended is not None and not self._agent_ended.done():
            self._agent_ended.set_result(None)

    async def talk(self, line: bytes, token: str, stdin: bytes, sink: Sink) -> int:
        """Have the agent do *line*, which holds *token*, and read *stdin*; return the status.

        Raises:
            HubError: the guest ended (``vm-ended``), or its agent did, or is not ours (``agent``).
        """
        self._agent_ended = asyncio.get_running_loop().create_future()
        parts = [
            asyncio.ensure_future(part)
            for part in (
                self._write(line + b"\n", stdin),
                _read(self._out, Marks(token), lambda data: sink(1, data)),
                _read(self._err, Marks(token), lambda data: sink(2, data)),
            )
        ]
        together = asyncio.gather(*parts)
        try:
            await asyncio.wait((together, self._agent_ended), return_when=asyncio.FIRST_COMPLETED)
            if not together.done():
                raise HubError("the guest's agent was ended", reason="agent")
            return together.result()[1]
        finally:
            together.cancel()
            await asyncio.gather(together, *parts, return_exceptions=True)

    async def _write(self, line: bytes, stdin: bytes) -> int:
        try:
            self._in.write(line)
            view = memoryview(stdin)
            for start in range(0, len(stdin), _CHUNK):
                self._in.write(view[start : start + _CHUNK])
                await self._in.drain()
            await self._in.drain()
        except OSError as error:
            raise _ended() from error
        return len(stdin)


async def _read(reader: asyncio.StreamReader, marks: Marks, sink: Callable[[bytes], None]) -> int:
    while marks.status is None:
        try:
            data = await reader.read(_CHUNK)
        except OSError as error:
            raise _ended() from error
        if not data:
            raise _ended()
        try:
            output = marks.feed(data)
        except ValueError as error:
            raise HubError(f"the guest's agent talks nonsense: {error}", reason="agent") from error
        if output:
            sink(output)
    return marks.status


def new_token() -> str:
    """Return a token that nothing in a guest can know beforehand."""
    return secrets.token_hex(16)


def _ended() -> HubError:
    return HubError("the VM ended", reason="vm-ended")
