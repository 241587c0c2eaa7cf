"""Which IPv4 addresses are this host's own, and when that changes.

The kernel's table of what it delivers to itself says so, with the broadcasts of its networks; asked
over netlink, which also tells of changes. Source: rtnetlink(7), linux/rtnetlink.h
"""

from __future__ import annotations

import os
import socket
import struct

_GET_ROUTE, _NEW_ROUTE, _DONE, _ERROR = 26, 24, 3, 2
_REQUEST, _DUMP = 0x1, 0x300
_GROUP_ADDRESSES, _GROUP_ROUTES = 0x10, 0x40
_DESTINATION = 1
_LOCAL_TABLE = 255
"""A table with a number of more than a byte is told as 252 there."""
_OURS = (2, 3, 4)
"""Kinds of routes that end here: local, broadcast, anycast."""
_HEADER = struct.Struct("=LHHLL")
_ROUTE = struct.Struct("=BBBBBBBBL")
_ATTRIBUTE = struct.Struct("=HH")
_ANSWER_S = 2.0
_CHUNK = 1 << 16


def own_addresses() -> tuple[tuple[int, int], ...]:
    """Return (network, prefix length) of all that the kernel delivers to this host itself.

    Raises:
        OSError: the kernel does not say.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_ANSWER_S)
        asked = _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        size = _HEADER.size + len(asked)
        sock.send(_HEADER.pack(size, _GET_ROUTE, _REQUEST | _DUMP, 1, 0) + asked)
        found: set[tuple[int, int]] = set()
        while True:
            for kind, body in _messages(sock.recv(_CHUNK)):
                if kind == _DONE:
                    return tuple(sorted(found))
                if kind == _ERROR:
                    code = -int.from_bytes(body[:4], "little", signed=True)
                    raise OSError(code, f"netlink: {os.strerror(code)}")
                if kind == _NEW_ROUTE:
                    found.update(_ours(body))


def watch_addresses() -> socket.socket:
    """Return a socket that becomes readable when an address or a route changes; see :func:`drain`.

    Raises:
        OSError: the kernel does not tell.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, _GROUP_ADDRESSES | _GROUP_ROUTES))
    except BaseException:
        sock.close()
        raise
    return sock


def drain(sock: socket.socket) -> None:
    """Take what *sock* has been told; what it says is of no interest, only that it spoke."""
    while True:
        try:
            sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            continue  # ENOBUFS: more than it could keep, once; there was a change for certain


def _messages(chunk: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(chunk) >= _HEADER.size:
        size, kind, _flags, _number, _port = _HEADER.unpack_from(chunk)
        if size < _HEADER.size:
            break
        found.append((kind, chunk[_HEADER.size : size]))
        chunk = chunk[_aligned(size) :]
    return found


def _ours(route: bytes) -> list[tuple[int, int]]:
    """Return [(network, prefix length)] of a route of the local table that ends here, else []."""
    _family, length, _from, _tos, table, _protocol, _scope, kind, _flags = _ROUTE.unpack_from(route)
    network = 0
    rest = route[_ROUTE.size :]
    while len(rest) >= _ATTRIBUTE.size:
        size, name = _ATTRIBUTE.unpack_from(rest)
        if size < _ATTRIBUTE.size:
            break
        if name == _DESTINATION:
            network = int.from_bytes(rest[_ATTRIBUTE.size : size], "big")
        rest = rest[_aligned(size) :]
    return [(network, length)] if table == _LOCAL_TABLE and kind in _OURS else []


def _aligned(size: int) -> int:
    return (size + 3) & ~3
