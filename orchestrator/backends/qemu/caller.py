"""Having a guest make system calls: the host's side of the guest's caller."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from foundation.errors import HubError
from orchestrator.image import caller, calls

if TYPE_CHECKING:
    import socket

    from orchestrator.image.calls import Call

_TOKEN_BYTES = 16
_CHUNK = 65_536


class Caller:
    """Our end of its port. All of it belongs to one loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the port's streams."""
        self._reader = reader
        self._writer = writer
        self._one = asyncio.Lock()
        self._ended: asyncio.Future[None] | None = None

    @classmethod
    async def over(cls, port: socket.socket) -> Caller:
        """Return it over our end of its port, *port*."""
        return cls(*await asyncio.open_unix_connection(sock=port, limit=_CHUNK))

    def close(self) -> None:
        """Let go; whoever asks finds it ended."""
        self._writer.transport.abort()

    def lost(self) -> None:
        """Be told that the guest's caller has ended: what was under way has no answer."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def make(self, wanted: list[Call]) -> list[int]:
        """Have *wanted* made; return what each returned.

        Raises:
            HubError: one failed that must not (``guest``); the guest ended (``vm-ended``), or its
                caller did (``agent``).
        """
        results = caller.results(await self._ask(wanted))
        calls.check(wanted, results)
        return results

    async def read(self, path: str, most: int) -> bytes:
        """Return the first *most* bytes of a file, none if it cannot be read; raises as above."""
        answer = await self._ask(calls.reading(path, most))
        length = caller.results(answer)[1]
        return caller.written(answer, 1, 1)[: max(0, length)]

    async def _ask(self, wanted: list[Call]) -> bytes:
        # A cancelled one's answer comes all the same: its token is not the next one's.
        token = os.urandom(_TOKEN_BYTES)
        message = caller.request(token, [(one.number, one.arguments) for one in wanted])
        async with self._one:
            self._ended = asyncio.get_running_loop().create_future()
            answering = asyncio.ensure_future(self._answer(message, token))
            try:
                await asyncio.wait((answering, self._ended), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    return answering.result()
                raise HubError("the guest's caller was ended", reason="agent")
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)

    async def _answer(self, message: bytes, token: bytes) -> bytes:
        try:
            self._writer.write(message)
            await self._writer.drain()
            found, begin = b"", -1
            while begin < 0 or len(found) < begin + len(message):
                data = await self._reader.read(_CHUNK)
                if not data:
                    raise _ended()
                found += data
                begin = found.find(token)
                if begin < 0:
                    found = found[-_TOKEN_BYTES:]
        except OSError as error:
            raise _ended() from error
        return found[begin : begin + len(message)]


def _ended() -> HubError:
    return HubError("the VM ended", reason="vm-ended")
