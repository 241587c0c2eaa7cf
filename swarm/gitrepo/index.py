"""An entry of git's index, as bytes. Pure.

Source: gitformat-index(5), versions 2 and 3.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

STAT_BYTES = 40
MTIME_AT, MODE_AT = 8, 24
LENGTH = 0x0FFF
EXTENDED = 0x4000
_STAT = struct.Struct(">10I")
_SKIP_WORKTREE = b"\x40\0"  # the first byte of the extended flags
_NS = 1_000_000_000
_WORD = 0xFFFFFFFF


class Stamp(NamedTuple):
    """What the file system said of a file when it was known to have its content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    seen_ns: int = 0
    """When that was, nanoseconds since the epoch: before its content was read. 0: not known."""


class Owner(NamedTuple):
    """Whose the files of a worktree are, as an index has it."""

    device: int
    user: int
    group: int


def entry(
    path: bytes, mode: int, name: bytes, stamp: Stamp | None, owner: Owner, *, absent: bool = False
) -> bytes:
    """Return the entry of *path*.

    Without a *stamp* git will look at the file before it believes anything; *absent*: it is not
    in the worktree, and git shall not miss it (skip-worktree).
    """
    if stamp is None:
        stat = _STAT.pack(0, 0, 0, 0, 0, 0, mode, 0, 0, 0)
    else:
        stat = stat_of(stamp, mode, owner)
    flags = min(len(path), LENGTH) | (EXTENDED if absent else 0)
    more = _SKIP_WORKTREE if absent else b""
    return padded(b"%s%s%s%s%s" % (stat, name, flags.to_bytes(2, "big"), more, path))


def stat_of(stamp: Stamp, mode: int, owner: Owner) -> bytes:
    """Return what an entry begins with: 40 bytes."""
    return _STAT.pack(
        stamp.ctime_ns // _NS & _WORD,
        stamp.ctime_ns % _NS,
        stamp.mtime_ns // _NS & _WORD,
        stamp.mtime_ns % _NS,
        owner.device & _WORD,
        stamp.inode & _WORD,
        mode,
        owner.user & _WORD,
        owner.group & _WORD,
        stamp.size & _WORD,
    )


def smudged(raw: bytes) -> bytes:
    """Return an entry with no size, at which git compares contents: its own way to ask for that."""
    return raw[: STAT_BYTES - 4] + b"\0\0\0\0" + raw[STAT_BYTES:]


def stamp_of(raw: bytes, seen_ns: int) -> Stamp:
    """Return the stamp that an entry holds; of the inode 32 bits."""
    field = _STAT.unpack_from(raw)
    return Stamp(
        size=field[9],
        mtime_ns=field[2] * _NS + field[3],
        ctime_ns=field[0] * _NS + field[1],
        inode=field[5],
        seen_ns=seen_ns,
    )


def padded(raw: bytes) -> bytes:
    """Return an entry with the NULs that end it: at least one, up to a multiple of eight bytes."""
    return raw + b"\0" * (8 - len(raw) % 8)
