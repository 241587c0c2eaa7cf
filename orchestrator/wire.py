"""A client's connection to a holder: requests out, answers in."""

from __future__ import annotations

import os
import select
import socket
import time

from foundation import codec, control
from foundation.control import LineBuffer
from foundation.errors import HubError, Unavailable, from_wire
from orchestrator import protocol
from owner import private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self

    Message = dict[str, Any]

_NOBODY = (ConnectionRefusedError, FileNotFoundError, NotADirectoryError)
_BLOCK = 1 << 16


class Wire:
    """One connection. A child that is forked meanwhile does not keep it open."""

    def __init__(self, fd: int, member: str) -> None:
        """Own *fd*, of :func:`owner.private.opened`, which leads to the holder of *member*."""
        self.member = member
        self._fd = fd
        self._lines = LineBuffer()
        self._ready: list[bytes] = []

    @classmethod
    def open(cls, path: str, member: str) -> Self | None:
        """Connect to the holder that listens at *path*; None if nobody does.

        Raises:
            OSError: the socket cannot be reached, or is another user's.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                control.through_directory(path, sock.connect)
            except _NOBODY:
                return None
            sock.setblocking(False)
            return cls(private.opened(sock.detach), member)

    def __enter__(self) -> Self:
        """Close at the end of the ``with``."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, for polling."""
        return self._fd

    def close(self) -> None:
        """Close; the other side sees it even where another process has our descriptor too."""
        if self._fd < 0:
            return
        sock = socket.socket(fileno=self._fd)
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.detach()
        private.close(self._fd)
        self._fd = -1

    def send(self, verb: str, **arguments: Any) -> None:
        """Send a request; nothing is waited for but room in the socket."""
        self._write({"verb": verb, **arguments}, protocol.ANSWER_WITHIN_S)

    def upload(self, chunks: Iterable[bytes], within_s: float) -> None:
        """Send what follows a request, *chunks* of any size; *within_s* for each line."""
        for chunk in chunks:
            for at in range(0, len(chunk), protocol.CHUNK):
                piece = chunk[at : at + protocol.CHUNK]
                self._write({"bytes": protocol.pack(piece)}, within_s)
        self._write({"end": True}, within_s)

    def follow(self, message: Message) -> None:
        """Send one line of what follows a request."""
        self._write(message, protocol.ANSWER_WITHIN_S)

    def _write(self, message: Message, within_s: float) -> None:
        rest = memoryview(protocol.encode(message))
        deadline_s = time.monotonic() + within_s
        try:
            while rest:
                try:
                    rest = rest[os.write(self._fd, rest) :]
                except BlockingIOError:
                    if not self._wait(select.POLLOUT, deadline_s - time.monotonic()):
                        raise self._silent(within_s) from None
        except OSError:
            pass  # it has closed already; its last words are still there to be read

    def _wait(self, event: int, left_s: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, event)
        return bool(poll.poll(max(0.0, left_s) * 1000))

    def answer(
        self, *, within_s: float, progress: Callable[[Message], None] | None = None
    ) -> Message:
        """Return the data of an answer; *within_s* counts from the last line received.

        Raises:
            Unavailable: no answer in time (``no-answer``), the holder ended (``gone``) or is of
                another version (``protocol-version``).
            HubError: the error that it answered.
        """
        while True:
            message = self.receive(within_s)
            if "data" in message:
                data = message["data"]
                return data if isinstance(data, dict) else {}
            if progress is not None and isinstance(message.get("progress"), dict):
                progress(message["progress"])

    def ask(self, verb: str, *, within_s: float, **arguments: Any) -> Message:
        """Send *verb* and return the data of its answer; raises as :meth:`answer`."""
        self.send(verb, **arguments)
        return self.answer(within_s=within_s)

    def receive(self, within_s: float) -> Message:
        """Return the next line; an error that it holds is raised. Raises as :meth:`answer`."""
        deadline_s = time.monotonic() + within_s
        while (message := self.next()) is None:
            self.fill(max(0.0, deadline_s - time.monotonic()), within_s)
        return message

    def next(self) -> Message | None:
        """Return the next line of what has been read, None if it is not whole yet.

        Raises as :meth:`answer`.
        """
        if not self._ready:
            return None
        try:
            message = codec.loads_object(self._ready.pop(0))
        except codec.DecodeError as error:
            raise self._not_understood(error) from None
        if "error" in message:
            raise from_wire(message["error"])
        protocol.check_version(message, f"the holder of {self.member}")
        return message

    def fill(self, left_s: float, within_s: float = 0.0) -> None:
        """Read what there is, and wait up to *left_s* for it. Raises as :meth:`answer`."""
        if not self._wait(select.POLLIN, left_s):
            raise self._silent(within_s or left_s)
        try:
            chunk = os.read(self._fd, _BLOCK)
        except OSError:
            chunk = b""
        if not chunk:
            raise Unavailable(
                f"the holder of {self.member} ended before it answered", reason="gone"
            )
        try:
            self._ready += self._lines.feed(chunk)
        except ValueError as error:
            raise self._not_understood(error) from None

    def _silent(self, within_s: float) -> Unavailable:
        return Unavailable(
            f"the holder of {self.member} did not answer within {within_s:g} s", reason="no-answer"
        )

    def _not_understood(self, error: ValueError) -> HubError:
        return HubError(
            f"the answer of {self.member}'s holder is not understood: {error}", reason="protocol"
        )
