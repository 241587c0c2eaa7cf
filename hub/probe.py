"""One question to a server on loopback, asked without ever blocking the supervisor."""

from __future__ import annotations

import _socket
import errno
import os
import select

from hub.ports import LOOPBACK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.reactor import Reactor

_LIMIT = 64 * 1024


class Probe:
    """Connects, sends *request*, collects the answer; *done* gets ``(answer, error)`` once.

    The answer is complete when the server closes, or at its first newline with *until_line*.
    ``error`` is "" when there is an answer.
    """

    def __init__(
        self,
        reactor: Reactor,
        port: int,
        request: bytes,
        *,
        until_line: bool,
        timeout_s: float,
        done: Callable[[bytes, str], None],
    ) -> None:
        """Begin at once."""
        self._reactor = reactor
        self._request = request
        self._until_line = until_line
        self._done: Callable[[bytes, str], None] | None = done
        self._answer = b""
        self._sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        os.set_inheritable(self._sock.fileno(), False)
        self._sock.setblocking(False)
        self._timer = reactor.call_later(
            timeout_s, lambda: self._finish(f"no answer within {timeout_s:g} s")
        )
        error = self._sock.connect_ex((LOOPBACK, port))
        if error not in (0, errno.EINPROGRESS):
            reactor.call_later(0, lambda: self._finish(os.strerror(error)))
            return
        reactor.watch(self._sock.fileno(), self._connected, select.EPOLLOUT)

    def _connected(self, _events: int) -> None:
        error = self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        try:
            if error:
                raise OSError(error, os.strerror(error))
            if self._request:
                self._sock.send(self._request)  # a few dozen bytes: an empty buffer takes them
        except OSError as failure:
            self._finish(failure.strerror or "failed")
            return
        self._reactor.watch(self._sock.fileno(), self._readable)

    def _readable(self, _events: int) -> None:
        try:
            chunk = self._sock.recv(_LIMIT)
        except BlockingIOError:
            return
        except OSError as failure:
            self._finish(failure.strerror or "failed")
            return
        self._answer += chunk
        if self._until_line and b"\n" in self._answer:
            self._answer = self._answer.partition(b"\n")[0]
            self._finish("")
        elif not chunk or len(self._answer) > _LIMIT:
            self._finish(
                "" if self._answer and not self._until_line else "closed without an answer"
            )

    def _finish(self, error: str) -> None:
        done, self._done = self._done, None
        self.cancel()
        if done is not None:
            done(self._answer, error)

    def cancel(self) -> None:
        """Give up; *done* is not called any more."""
        self._done = None
        self._reactor.cancel(self._timer)
        if self._sock.fileno() >= 0:
            self._reactor.forget(self._sock.fileno())
            self._sock.close()
