"""The control protocol: one JSON object a line over a Unix socket in a private directory.

A request is ``{"v": VERSION, "verb": …, …arguments}``. The answer is any number of
``{"v", "progress": …}`` lines and one of ``{"v", "data": …}`` or ``{"v", "error": …}``
(:func:`foundation.errors.to_wire`). The connection names the exact process: its end is the
news of that process's death.
"""

from __future__ import annotations

import _socket
import errno
import os

from foundation import codec
from foundation.errors import HubError, Unavailable, from_wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

VERSION = 1
LINE_LIMIT = 256 * 1024
"""The longest line, in bytes, that either side accepts."""

BACKLOG = 1024
_NO_ONE_LISTENS = (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR)


def encode(message: dict[str, Any]) -> bytes:
    """Return *message* as a line of the protocol."""
    return codec.dumps({"v": VERSION, **message}).encode() + b"\n"


class LineBuffer:
    """Bytes in, whole lines out."""

    def __init__(self) -> None:
        """Start empty."""
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that *chunk* completes, without their newlines.

        Raises:
            ValueError: a line is longer than LINE_LIMIT.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LINE_LIMIT or any(len(line) > LINE_LIMIT for line in lines):
            raise ValueError(f"a line longer than {LINE_LIMIT} bytes")
        return lines


def through_directory(path: str, use: Callable[[str], None]) -> None:
    """Call *use* with a short name of the socket *path*.

    A socket's address holds 107 bytes; by way of the directory's descriptor any depth fits.
    """
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        use(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)


def listen(path: str) -> _socket.socket:
    """Return a socket that listens at *path*; the caller holds the lock that makes it alone.

    Raises:
        OSError: the file system has no sockets, or cannot be written.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    os.set_inheritable(server.fileno(), False)
    try:
        # Not by a umask: that is the whole process's, and a caller may have other threads. Until
        # it listens nobody can connect, and only its owner enters the directory.
        through_directory(path, server.bind)
        os.chmod(path, 0o600)
        server.listen(BACKLOG)
    except BaseException:
        server.close()
        raise
    return server


class Connection:
    """A client's end: ask, and be told when the other process ends."""

    def __init__(self, sock: _socket.socket) -> None:
        """Own *sock*."""
        self._sock = sock
        self._lines = LineBuffer()
        self._ready: list[bytes] = []

    @classmethod
    def open(cls, path: str) -> Self | None:
        """Connect to whoever listens at *path*; None if nobody does.

        Raises:
            OSError: the socket is another user's, or its directory cannot be entered.
        """
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        os.set_inheritable(sock.fileno(), False)
        try:
            through_directory(path, sock.connect)
        except OSError as error:
            sock.close()
            if error.errno in _NO_ONE_LISTENS:
                return None
            raise
        return cls(sock)

    def __enter__(self) -> Self:
        """Close at the end of the ``with``."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self._sock.close()

    def close(self) -> None:
        """Close; again is no error."""
        self._sock.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, for polling; -1 once it is closed."""
        return self._sock.fileno()

    def is_quiet(self) -> bool:
        """Tell whether the other side is there, and has said nothing that nobody has read."""
        try:
            self._sock.settimeout(0)
            self._sock.recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            return not self._ready
        except OSError:  # reset, or closed by us
            return False
        return False

    def peer_uid(self) -> int:
        """Return the uid of the process that listens. Source: unix(7), SO_PEERCRED."""
        credentials = self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[4:8], "little")

    def ask(
        self,
        verb: str,
        *,
        timeout_s: float,
        progress: Callable[[dict[str, Any]], None] | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Send *verb* and return the data of its answer.

        *timeout_s* counts from the last line received; progress lines go to *progress*.

        Raises:
            Unavailable: no answer in time, the process ended or began to stop
                (``reason="gone"``), or it speaks another version of the protocol.
            HubError: the error that the other side answered.
        """
        self._sock.settimeout(timeout_s)
        try:
            self._sock.sendall(encode({"verb": verb, **arguments}))
        except TimeoutError:
            raise _no_answer(timeout_s) from None
        except OSError:
            pass  # it has closed already; its last words are still there to be read
        while True:
            message = self._receive(timeout_s)
            if "data" in message:
                data = message["data"]
                return data if isinstance(data, dict) else {}
            if "error" in message:
                raise from_wire(message["error"])
            if progress is not None and isinstance(message.get("progress"), dict):
                progress(message["progress"])

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        while not self._ready:
            try:
                chunk = self._sock.recv(65536)
            except TimeoutError:
                raise _no_answer(timeout_s) from None
            except OSError:
                raise _gone() from None
            if not chunk:
                raise _gone()
            try:
                self._ready = self._lines.feed(chunk)
            except ValueError as error:
                raise HubError(
                    f"the hub's answer is not understood: {error}", reason="protocol"
                ) from None
        try:
            message = codec.loads_object(self._ready.pop(0))
        except codec.DecodeError as error:
            raise HubError(
                f"the hub's answer is not understood: {error}", reason="protocol"
            ) from None
        check_version(message)
        return message

    def wait_end(self, timeout_s: float) -> bool:
        """Wait until the other side closes; return False if it has not after *timeout_s*."""
        self._sock.settimeout(timeout_s)
        try:
            while self._sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass  # reset: closed with something unread
        return True


def check_version(message: dict[str, Any]) -> None:
    """Refuse a message of another protocol version.

    Raises:
        Unavailable: it is of another version.
    """
    if message.get("v") != VERSION:
        raise Unavailable(
            f"the running hub speaks protocol version {message.get('v')}, this program version "
            f"{VERSION}: `hub restart` brings up a hub of this version",
            reason="protocol-version",
        )


def _gone() -> Unavailable:
    return Unavailable("the hub ended before it answered", reason="gone")


def _no_answer(timeout_s: float) -> Unavailable:
    return Unavailable(f"the hub did not answer within {timeout_s:g} s", reason="no-answer")
