"""One connection to a holder: lines in, answers out."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from foundation import codec
from foundation.errors import Refused, Unavailable, to_wire
from orchestrator import protocol

_WAITING = 8
"""Lines of a client that may wait to be looked at; then it is read no further."""
_BEHIND_BYTES = 64 << 20
"""Output that a client has not taken; then what it asked for is given up."""
_FLUSH_WITHIN_S = 2.0


class Client:
    """One connection, to the socket of one member."""

    def __init__(
        self,
        member: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request_within_s: float,
    ) -> None:
        """Serve whoever is at *reader* and *writer*; *request_within_s* for each line."""
        self.member = member
        self._request_within_s = request_within_s
        self.bound = False
        """Its end is the holder's."""
        self.pid, self.uid = _peer(writer.get_extra_info("socket"))
        self._reader = reader
        self._writer = writer
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(_WAITING)
        self.following = False
        """What follows the last request has not come to its end."""

    async def read(self) -> None:
        """Take lines in, to the end of the connection."""
        try:
            while True:
                line = await self._reader.readuntil()
                await self._lines.put(line[:-1])
        except asyncio.IncompleteReadError:
            pass  # it closed; half a line is nothing
        except asyncio.LimitOverrunError:
            wrong = f"a line longer than {protocol.LINE_LIMIT} bytes"
            self.send({"error": to_wire(Refused(wrong, reason="protocol"))})
        except OSError:
            pass

    async def line(self) -> bytes:
        """Return the next line.

        Raises:
            TimeoutError: it has not come in time.
        """
        within_s = None if self.bound else self._request_within_s
        async with asyncio.timeout(within_s):
            return await self.next_line()

    async def next_line(self) -> bytes:
        """Return the next line, however long it takes."""
        line = await self._lines.get()
        assert line is not None
        return line

    def expect_upload(self) -> None:
        """Take note that bytes follow the request, even if it is refused before they come."""
        self.following = True

    async def upload(self) -> bytes:
        """Return the bytes that follow a request, however slowly they come.

        Raises:
            Refused: they are no bytes, or too many.
        """
        content = bytearray()
        while True:
            message = codec.loads_object(await self.next_line())
            if message.get("end"):
                self.following = False
                return bytes(content)
            content += protocol.unpack(message.get("bytes"))
            if len(content) > protocol.UPLOAD_LIMIT:
                raise Refused(
                    f"more than {protocol.UPLOAD_LIMIT >> 20} MiB in one go", reason="too-large"
                )

    async def skip_upload(self) -> None:
        """Read past what still follows a request that has been answered."""
        while self.following:
            line = await self.next_line()
            try:
                self.following = not codec.loads_object(line).get("end")
            except ValueError:
                pass  # it was refused, and this may be why

    def send(self, message: dict[str, Any]) -> None:
        """Send *message*; to nobody if the client has gone."""
        if not self._writer.is_closing():
            self._writer.write(protocol.encode(message))

    def progress(self, **progress: Any) -> None:
        """Tell it of progress."""
        self.send({"progress": progress})

    def output(self, content: bytes, **progress: Any) -> None:
        """Send *content* as progress, in as many lines as it takes.

        Raises:
            Unavailable: the client does not take what it is sent (``behind``).
        """
        for at in range(0, len(content), protocol.CHUNK):
            piece = content[at : at + protocol.CHUNK]
            self.progress(bytes=protocol.pack(piece), **progress)
        if self._writer.transport.get_write_buffer_size() > _BEHIND_BYTES:
            raise Unavailable("the client does not take its output", reason="behind")

    async def drain(self) -> None:
        """Wait until the client has taken most of what it was sent; it may have gone."""
        try:
            await self._writer.drain()
        except OSError:
            pass

    async def close(self) -> None:
        """Close, once it has taken the rest or does not."""
        try:
            self._writer.close()
            async with asyncio.timeout(_FLUSH_WITHIN_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Return the pid and the uid of the process that asks. Source: unix(7), SO_PEERCRED."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _gid = struct.unpack("=iII", credentials)
    return pid, uid
