"""An Ethernet switch in a thread: every port is a datagram socket, every datagram a frame.

It learns who is where by who sends, floods what is for everybody or for someone unknown, and waits
for nobody: what a port cannot take now is kept for it, up to a limit, and dropped beyond. The
kernel alone keeps as few as ten (``net.unix.max_dgram_qlen``), which a TCP sender overruns at once.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

from foundation.record import Record

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from orchestrator.net.policy import Filter

    Rejects = Callable[[bytes, str], bytes]
    """Takes a frame and why it was refused, and returns what its sender is told, b"": nothing."""

KEPT_BYTES = 1 << 20
"""What is kept for a port that is full, in bytes of frames."""
MACS_PER_PORT = 16
"""Learned from one port; a guest that invents more of them fills no memory."""

_DATAGRAM = 1 << 16
_BATCH = 32
"""Frames taken from one port before the others have their turn."""
_HEADER = 14
_FOREVER_S = 30.0
"""A command is obeyed after the batch under way; a thread that has ended says so itself."""


class Counts(Record):
    """What has gone through a port, in frames; *in* is from the guest, *out* to it."""

    frames_in: int
    bytes_in: int
    frames_out: int
    bytes_out: int
    closed: int
    """Not taken in, or not put out, since the port was closed."""
    dropped: int
    """Not put out, since the guest did not take them, or is gone."""
    refused: dict[str, int]
    """By the filters, by their slugs; ``short``: no frame; ``bug``: what handled it failed."""


class Port:
    """A port of a switch; made by :meth:`Switch.add`."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "closed",
        "dropped",
        "frames_in",
        "frames_out",
        "inward",
        "kept",
        "kept_bytes",
        "macs",
        "opened",
        "outward",
        "refused",
        "rejects",
        "sock",
    )

    def __init__(
        self, sock: socket.socket, inward: Filter, outward: Filter, rejects: Rejects
    ) -> None:
        """Own *sock*; *inward* filters what comes from it, *outward* what goes to it."""
        self.sock = sock
        self.inward = inward
        self.outward = outward
        self.rejects = rejects
        self.opened = False
        self.macs = 0
        self.kept: deque[bytes] = deque()
        self.kept_bytes = 0
        self.frames_in = self.bytes_in = self.frames_out = self.bytes_out = 0
        self.closed = self.dropped = 0
        self.refused: dict[str, int] = {}

    def counts(self) -> Counts:
        """Return what has gone through so far."""
        return Counts(
            frames_in=self.frames_in,
            bytes_in=self.bytes_in,
            frames_out=self.frames_out,
            bytes_out=self.bytes_out,
            closed=self.closed,
            dropped=self.dropped,
            refused=dict(self.refused),
        )


def anything(_frame: bytes) -> str:
    """Filter nothing."""
    return ""


def silently(_frame: bytes, _reason: str) -> bytes:
    """Tell nothing."""
    return b""


class Switch:
    """Ports come and go while frames are under way. For one caller's thread, beside its own."""

    def __init__(self) -> None:
        """Start the thread."""
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._ports: dict[int, Port] = {}
        self._learned: dict[bytes, Port] = {}
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def add(
        self,
        sock: socket.socket,
        *,
        inward: Filter = anything,
        outward: Filter = anything,
        rejects: Rejects = silently,
    ) -> Port:
        """Return a new port, closed: nothing comes in or goes out; what the guest sends is lost.

        *sock*, an AF_UNIX datagram socket, is the switch's from here on. *rejects* answers those
        whose frames *outward* refuses. All three are called in the switch's thread.
        """
        sock.setblocking(False)
        port = Port(sock, inward, outward, rejects)

        def plug() -> None:
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._ports[sock.fileno()] = port

        self._do(plug)
        return port

    def open(self, port: Port) -> None:
        """Let frames through *port*."""

        def let() -> None:
            port.opened = True

        self._do(let)

    def shut(self, port: Port) -> None:
        """Let nothing through *port* any more: on return no frame of it is under way to others."""
        self._do(lambda: self._forget(port))

    def remove(self, port: Port) -> None:
        """Take *port* away and close its socket; again is no error."""

        def unplug() -> None:
            self._forget(port)
            if self._ports.pop(port.sock.fileno(), None) is not None:
                self._epoll.unregister(port.sock.fileno())
                port.sock.close()

        self._do(unplug)

    def close(self) -> None:
        """Close every port, and end the thread; again is no error."""
        if self._thread.is_alive():

            def end() -> None:
                self._ending = True

            self._do(end)
            self._thread.join()

    def _do(self, command: Callable[[], None]) -> None:
        """Have the thread carry *command* out between two batches, and wait for it."""
        if not self._thread.is_alive():
            raise RuntimeError("the switch is closed")
        done: Future[None] = Future()
        self._commands.append((command, done))
        os.eventfd_write(self._wake, 1)
        done.result(_FOREVER_S)

    # --- in the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending:
                for fd, events in self._epoll.poll():
                    if fd == self._wake:
                        self._obey()
                        continue
                    port = self._ports.get(fd)
                    if port is None:  # removed since the poll
                        continue
                    if events & select.EPOLLOUT:
                        self._flush(port)
                    if events & ~select.EPOLLOUT:
                        self._take(port)
        finally:
            for port in self._ports.values():
                port.sock.close()
            self._ports.clear()
            self._epoll.close()
            os.close(self._wake)

    def _obey(self) -> None:
        os.eventfd_read(self._wake)
        while self._commands:
            command, done = self._commands.popleft()
            try:
                command()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                done.set_exception(error)
            else:
                done.set_result(None)

    def _take(self, port: Port) -> None:
        """Take a batch of frames from *port*."""
        for _turn in range(_BATCH):
            try:
                frame = port.sock.recv(_DATAGRAM)
            except OSError:  # BlockingIOError: that was all
                return
            port.frames_in += 1
            port.bytes_in += len(frame)
            if not port.opened:
                port.closed += 1
                continue
            try:
                self._forward(port, frame)
            except Exception:  # noqa: BLE001 - a bug costs this frame, never the network
                port.refused["bug"] = port.refused.get("bug", 0) + 1

    def _forward(self, source: Port, frame: bytes) -> None:
        if len(frame) < _HEADER:
            source.refused["short"] = source.refused.get("short", 0) + 1
            return
        reason = source.inward(frame)
        if reason:
            source.refused[reason] = source.refused.get(reason, 0) + 1
            return
        sender = frame[6:12]
        if self._learned.get(sender) is not source:
            self._learn(sender, source)
        target = self._learned.get(frame[:6])
        if target is None:
            for other in self._ports.values():
                if other is not source:
                    self._pass(source, other, frame)
        elif target is not source:
            self._pass(source, target, frame)

    def _learn(self, mac: bytes, port: Port) -> None:
        if mac[0] & 1 or port.macs >= MACS_PER_PORT:  # the first: a group's, which nobody has
            return
        before = self._learned.get(mac)
        if before is not None:
            before.macs -= 1
        self._learned[mac] = port
        port.macs += 1

    def _pass(self, source: Port, port: Port, frame: bytes) -> None:
        """Put a frame of *source* out by *port*, if that may be."""
        if not port.opened:
            port.closed += 1
            return
        reason = port.outward(frame)
        if not reason:
            self._put(port, frame)
            return
        port.refused[reason] = port.refused.get(reason, 0) + 1
        answer = port.rejects(frame, reason)
        if answer:
            self._put(source, answer)

    def _put(self, port: Port, frame: bytes) -> None:
        """Put *frame* out by *port*, now or as soon as it can take it; or drop it."""
        if port.kept:
            self._keep(port, frame)
            return
        try:
            port.sock.send(frame)
        except BlockingIOError:
            self._keep(port, frame)
            if port.kept:
                self._epoll.modify(port.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except OSError:  # nobody holds the other end any more
            port.dropped += 1
        else:
            port.frames_out += 1
            port.bytes_out += len(frame)

    def _keep(self, port: Port, frame: bytes) -> None:
        if port.kept_bytes + len(frame) > KEPT_BYTES:
            port.dropped += 1
            return
        port.kept.append(frame)
        port.kept_bytes += len(frame)

    def _flush(self, port: Port) -> None:
        """Put out what was kept for *port*, until it is full again."""
        while port.kept:
            frame = port.kept[0]
            try:
                port.sock.send(frame)
            except BlockingIOError:
                return
            except OSError:
                port.dropped += 1
            else:
                port.frames_out += 1
                port.bytes_out += len(frame)
            port.kept.popleft()
            port.kept_bytes -= len(frame)
        self._epoll.modify(port.sock.fileno(), select.EPOLLIN)

    def _forget(self, port: Port) -> None:
        """Close *port*, and unlearn who is there."""
        port.opened = False
        self._learned = {mac: at for mac, at in self._learned.items() if at is not port}
        port.macs = 0
        port.dropped += len(port.kept)
        port.kept.clear()
        port.kept_bytes = 0
