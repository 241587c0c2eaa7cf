"""Git objects: their names, and a pack of new ones.

A record's objects go into one small pack instead of a loose file each: two files to make rather
than five, and none of the 256 directories, each of which costs as much as a file.

Source: gitformat-pack(5). No deltas: each entry stands for itself, wherever it is put.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from foundation.atomic import write_all
from foundation.errors import Refused
from foundation.failpoint import hit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

BLOB, TREE, COMMIT, TAG = b"blob", b"tree", b"commit", b"tag"
TYPES = {COMMIT: 1, TREE: 2, BLOB: 3, TAG: 4}

_PACK_MAGIC, _PACK_VERSION = b"PACK", 2
_INDEX_MAGIC = b"\377tOc\0\0\0\2"
_STORED_BYTES = 2048
"""What is shorter fills a block of the disk in any case: compressing it takes 60 us for nothing."""
_COMPRESSED_BYTES = 8 * 2**20
"""What is longer is stored: a hundred megabytes would take two seconds."""
_FIRST_BYTES = 256
_FANOUT = struct.Struct(f">{_FIRST_BYTES}I")


class Format(NamedTuple):
    """How a repository names its objects."""

    name: str
    size: int
    """Bytes of a name."""
    new: Callable[..., Any]

    def name_of(self, kind: bytes, content: bytes) -> bytes:
        """Return the name of an object, raw."""
        header = b"%s %d\0" % (kind, len(content))
        if len(content) < _STORED_BYTES:
            return bytes(self.new(header + content).digest())
        named = self.new(header)
        named.update(content)
        return bytes(named.digest())


FORMATS = {
    "sha1": Format("sha1", 20, partial(hashlib.sha1, usedforsecurity=False)),
    "sha256": Format("sha256", 32, hashlib.sha256),
}


def format_named(name: str) -> Format:
    """Return the object format *name*, as ``git rev-parse --show-object-format`` prints it.

    Raises:
        Refused: we cannot write it (``git-object-format``).
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise Refused(
            f"the git repository names its objects by {name!r}; slots can be made of sha1 and "
            "sha256 repositories",
            reason="git-object-format",
        ) from None


class Pack:
    """New objects, until they are written."""

    def __init__(self, form: Format) -> None:
        """Begin with none."""
        self._form = form
        self._entries: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, kind: bytes, content: bytes) -> bytes:
        """Take an object in; return its name, raw."""
        name = self._form.name_of(kind, content)
        if name not in self._entries:
            self._entries[name] = _header(TYPES[kind], len(content)) + _deflated(content)
        return name

    def get(self, name: bytes) -> bytes | None:
        """Return the content of an object that was taken in and is not written yet."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        at = 0
        while entry[at] & 128:
            at += 1
        return zlib.decompress(entry[at + 1 :])

    def write(self, pack_fd: int) -> str:
        """Write what was taken in to ``objects/pack``, open as *pack_fd*, and forget it.

        Returns the pack's name (``pack-HASH``), "" if there was nothing to write. The pack counts
        once its index is there: killed in between, it is a file that nobody reads.
        """
        if not self._entries:
            return ""
        pieces = [_PACK_MAGIC, (_PACK_VERSION << 32 | len(self._entries)).to_bytes(8, "big")]
        at = 12
        rows = []
        for name, entry in self._entries.items():
            rows.append((name, zlib.crc32(entry), at))
            pieces.append(entry)
            at += len(entry)
        summed = self._form.new()
        for piece in pieces:
            summed.update(piece)
        pieces.append(summed.digest())
        pack = f"pack-{summed.hexdigest()}"
        if not _exists(f"{pack}.idx", pack_fd):
            _create(f"{pack}.pack", pieces, pack_fd)
            hit("gitrepo.pack")
            # What begins with tmp_ git prunes.
            _create(f"tmp_{pack}", [pack_index(self._form, rows, pieces[-1])], pack_fd)
            hit("gitrepo.pack-index")
            os.rename(f"tmp_{pack}", f"{pack}.idx", src_dir_fd=pack_fd, dst_dir_fd=pack_fd)
            hit("gitrepo.packed")
        self._entries.clear()
        return pack


def _header(kind: int, size: int) -> bytes:
    """Return type and size of an entry: four bits of the size, then seven a byte."""
    byte, size = kind << 4 | size & 15, size >> 4
    out = bytearray()
    while size:
        out.append(byte | 128)
        byte, size = size & 127, size >> 7
    out.append(byte)
    return bytes(out)


def _deflated(content: bytes) -> bytes:
    """Return *content* as a zlib stream."""
    size = len(content)
    if size < _STORED_BYTES:  # one stored block. Source: RFC 1950, RFC 1951 3.2.4
        return b"\x78\x01\x01%s%s%s%s" % (
            size.to_bytes(2, "little"),
            (size ^ 0xFFFF).to_bytes(2, "little"),
            content,
            zlib.adler32(content).to_bytes(4, "big"),
        )
    return zlib.compress(content, 1 if size <= _COMPRESSED_BYTES else 0)


def pack_index(form: Format, rows: list[tuple[bytes, int, int]], packed: bytes) -> bytes:
    """Return the index of a pack: *rows* of name, CRC-32 and offset; *packed*, its checksum.

    Raises:
        ValueError: an offset is beyond 2 GiB.
    """
    rows.sort()
    counts = [0] * _FIRST_BYTES
    for row in rows:
        counts[row[0][0]] += 1
    if any(row[2] >> 31 for row in rows):
        raise ValueError("a pack of more than 2 GiB")
    index = b"".join(
        [
            _INDEX_MAGIC,
            _FANOUT.pack(*accumulate(counts)),
            *[row[0] for row in rows],
            *[row[1].to_bytes(4, "big") for row in rows],
            *[row[2].to_bytes(4, "big") for row in rows],
            packed,
        ]
    )
    return index + bytes(form.new(index).digest())


def _create(name: str, pieces: list[bytes], dir_fd: int) -> None:
    """Write a file that nobody reads yet; a half of it may be there, of one killed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o444, dir_fd=dir_fd)
    except FileExistsError:
        os.unlink(name, dir_fd=dir_fd)
        fd = os.open(name, flags, 0o444, dir_fd=dir_fd)
    try:
        write_all(fd, b"".join(pieces))
    finally:
        os.close(fd)


def _exists(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True
