"""The supervisor's end of the control socket: many clients, none of which can hold it up."""

from __future__ import annotations

import _socket
import os

from foundation import codec, control
from foundation.errors import Refused, to_wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hub.reactor import Reactor

_ACCEPTED_AT_ONCE = 64
_AT_MOST = 1024
_DESCRIPTORS_KEPT = 64
"""What the supervisor itself needs, to start a child for instance."""


class Client:
    """One connection. What goes wrong on it ends it, and nothing else."""

    def __init__(self, sock: _socket.socket) -> None:
        """Own *sock*, which does not block."""
        self.sock = sock
        self.lines = control.LineBuffer()
        self.broken = False

    def send(self, message: dict[str, Any]) -> None:
        """Send *message*; a client that does not read its answers loses them."""
        if self.broken:
            return  # half of something was sent: no more after it
        try:
            self.sock.sendall(control.encode(message))
        except OSError:
            self.broken = True


class Clients:
    """Accepts connections, reads requests, keeps those who wait for readiness."""

    def __init__(
        self,
        reactor: Reactor,
        listener: _socket.socket,
        answer: Callable[[Client, dict[str, Any]], None],
    ) -> None:
        """Own *listener*; *answer* gets every request."""
        self._reactor = reactor
        self._answer = answer
        self._clients: dict[int, Client] = {}
        self._waiting: list[Client] = []
        self._listener = listener
        self._inode = (0, 0)
        self._at_most = max(1, min(_AT_MOST, os.sysconf("SC_OPEN_MAX") - _DESCRIPTORS_KEPT))
        self._listen()

    def _listen(self) -> None:
        self._listener.setblocking(False)
        self._reactor.watch(self._listener.fileno(), lambda _events: self._accept())

    def listen_again(self, path: str) -> None:
        """Bind *path* anew if somebody removed or replaced our socket there."""
        try:
            status = os.lstat(path)
            now = (status.st_dev, status.st_ino)
        except OSError:
            now = (0, 0)
        if self._inode == (0, 0):
            self._inode = now
        if now == self._inode and now != (0, 0):
            return
        try:
            fresh = control.listen(path)
            status = os.lstat(path)
        except OSError:
            return  # a full or read-only disk: at the next look
        self._reactor.forget(self._listener.fileno())
        self._listener.close()
        self._listener = fresh
        self._inode = (status.st_dev, status.st_ino)
        self._listen()

    def _accept(self) -> None:
        for _turn in range(_ACCEPTED_AT_ONCE):
            if len(self._clients) >= self._at_most:
                self._reactor.forget(self._listener.fileno())  # the others wait their turn
                return
            try:
                fd, _address = self._listener._accept()  # type: ignore[attr-defined] # noqa: SLF001 - C only
            except OSError:
                return
            sock = _socket.socket(fileno=fd)
            os.set_inheritable(fd, False)
            sock.setblocking(False)
            client = Client(sock)
            self._clients[fd] = client
            self._reactor.watch(fd, self._reader(client))

    def _reader(self, client: Client) -> Callable[[int], None]:
        return lambda _events: self._read(client)

    def _read(self, client: Client) -> None:
        try:
            chunk = client.sock.recv(65536)
            lines = client.lines.feed(chunk)
        except BlockingIOError:
            return
        except (OSError, ValueError):  # reset (measured: it killed a prototype), or a huge line
            self._drop(client)
            return
        if not chunk:
            self._drop(client)
            return
        for line in lines:
            try:
                request = codec.loads_object(line)
            except codec.DecodeError as error:
                refused = Refused(f"not understood: {error}", reason="protocol")
                client.send({"error": to_wire(refused)})
                continue
            self._answer(client, request)
        if client.broken:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        fd = client.sock.fileno()
        if self._clients.pop(fd, None) is None:
            return
        self._waiting = [other for other in self._waiting if other is not client]
        self._reactor.forget(fd)
        client.sock.close()
        if len(self._clients) == self._at_most - 1:
            self._listen()

    def wait(self, client: Client) -> None:
        """Keep *client* for :meth:`release`."""
        self._waiting.append(client)

    def progress(self, progress: dict[str, Any]) -> None:
        """Tell everyone who waits how far it is."""
        for client in list(self._waiting):
            client.send({"progress": progress})
            if client.broken:
                self._drop(client)

    def release(self, message: dict[str, Any]) -> None:
        """Answer everyone who waits with *message*."""
        waiting, self._waiting = self._waiting, []
        for client in waiting:
            client.send(message)
            if client.broken:
                self._drop(client)

    def close(self, last_words: dict[str, Any]) -> None:
        """Answer whoever has connected and was not heard with *last_words*; close everything."""
        known = set(self._clients)
        self._accept()
        for fd, client in list(self._clients.items()):
            if fd not in known or client in self._waiting or _has_input(client):
                client.send(last_words)
            self._drop(client)
        self._reactor.forget(self._listener.fileno())
        self._listener.close()


def _has_input(client: Client) -> bool:
    try:
        return bool(client.sock.recv(65536))
    except OSError:
        return False
