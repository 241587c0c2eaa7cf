"""Which loopback port a server gets."""

from __future__ import annotations

import _socket
import errno
import os

from foundation import procfs
from foundation.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LOOPBACK = "127.0.0.1"
HIGHEST = 65535
_LOWEST = 10_000
_ATTEMPTS = 20
DEFAULT = {"fossil": 8765, "nats": 4222}


def parse(text: str) -> int | None:
    """Return the port that *text* names in decimal digits, None if it names none."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(HIGHEST))):
        return None
    port = int(text)
    return port if 0 < port <= HIGHEST else None


def check_pins(fossil: int | None, nats: int | None) -> None:
    """Refuse one pinned port for both servers: the second would find our own first on it.

    Raises:
        Refused: they are the same (``port-invalid``).
    """
    if fossil is not None and fossil == nats:
        raise Refused(
            f"--fossil-port and --nats-port are both {fossil}; they must differ",
            reason="port-invalid",
        )


def choose(server: str, *, pinned: int | None, preferred: Iterable[int | None]) -> int:
    """Return the port for *server*: *pinned*, else the first free *preferred*, else any free.

    Raises:
        Refused: the pinned port is taken, or is none.
    """
    if pinned is not None:
        if not 0 < pinned <= HIGHEST:
            raise Refused(
                f"--{server}-port {pinned}: a port is between 1 and 65535", reason="port-invalid"
            )
        try:
            if _bind(pinned) is None:
                raise taken(server, pinned)
        except PermissionError:
            raise Refused(
                f"port {pinned} for {server} is for root alone: name one from 1024 on",
                reason="port-privileged",
            ) from None
        return pinned
    for port in preferred:
        if port is not None and is_free(port):
            return port
    return any_free()


def taken(server: str, port: int) -> Refused:
    """Return the error for a port that somebody else has."""
    holder = holder_of(port)
    by = f" by {holder}" if holder else ""
    return Refused(
        f"port {port} for {server} is taken{by}: stop that, or name another with "
        f"--{server}-port, or leave the flag out",
        reason="port-taken",
    )


def is_free(port: int) -> bool:
    """Tell whether *port* can be bound on loopback now.

    With SO_REUSEADDR, as both servers bind: connections in TIME_WAIT do not count.
    """
    try:
        return _bind(port) is not None
    except PermissionError:
        return False


def any_free() -> int:
    """Return a port that the kernel says is free; another may take it before we do.

    Below those that the kernel gives to outgoing connections, if possible: such a one can take
    the port of a server that is down for a moment, and keep it for a minute after its end.

    Raises:
        OSError: there is none.
    """
    choice = _first_outgoing() - _LOWEST
    for _attempt in range(_ATTEMPTS):
        below = _LOWEST + int.from_bytes(os.urandom(2), "big") % choice
        if is_free(below):
            return below
    port = _bind(0)
    if port is None:
        raise OSError(errno.EADDRINUSE, "no free port on loopback")
    return port


def _first_outgoing() -> int:
    """Return the first port of outgoing connections. Source: ip(7), ip_local_port_range."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            return max(int(file.read().split()[0]), _LOWEST + 1)
    except (OSError, ValueError):
        return _LOWEST + 1


def _bind(port: int) -> int | None:
    """Bind and let go of *port*; return the number, None if it is taken.

    Raises:
        PermissionError: it is for root alone.
    """
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
        return int(sock.getsockname()[1])
    except PermissionError:
        raise
    except OSError:
        return None
    finally:
        sock.close()


def listener_inodes(port: int) -> set[int]:
    """Return the socket inodes that listen on TCP *port*. Source: proc(5), /proc/net/tcp."""
    inodes: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = file.readlines()[1:]
        except FileNotFoundError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(int(fields[9]))
    return inodes


def holder_of(port: int) -> str | None:
    """Return ``pid N (name)`` of who listens on *port*, None if that cannot be seen."""
    wanted = {f"socket:[{inode}]" for inode in listener_inodes(port)}
    if not wanted:
        return None
    for pid in procfs.pids():
        if not wanted.isdisjoint(procfs.open_files(pid)):
            try:
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    return f"pid {pid} ({file.read().strip()})"
            except OSError:
                continue  # it ended meanwhile
    return None
