"""Git objects as bytes: their names, how they stand in a pack, a pack's index. Pure.

Source: gitformat-pack(5). No deltas: each entry stands for itself, wherever it is put.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import partial
from typing import NamedTuple

from foundation.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Row = tuple[bytes, bytes, bytes]
    """Name, CRC-32 and offset of an object in a pack."""

BLOB, TREE, COMMIT, TAG = b"blob", b"tree", b"commit", b"tag"
TYPES = {COMMIT: 1, TREE: 2, BLOB: 3, TAG: 4}

_PACK_MAGIC, _PACK_VERSION = b"PACK", 2
_INDEX_MAGIC = b"\377tOc\0\0\0\2"
_STORED_BYTES = 8192
"""What is shorter is stored as it is: compressing it takes 100 us, for some KiB of a disk's space,
and of a tree, all hashes, little is saved."""
_COPIED_BYTES = 2048
_COMPRESSED_BYTES = 8 * 2**20
"""What is longer is stored: a hundred megabytes would take two seconds."""
_FIRST_BYTES = 256


class Format(NamedTuple):
    """How a repository names its objects."""

    name: str
    size: int
    """Bytes of a name."""
    new: Callable[..., Any]

    def name_of(self, kind: bytes, content: bytes) -> bytes:
        """Return the name of an object, raw."""
        header = b"%s %d\0" % (kind, len(content))
        if len(content) < _COPIED_BYTES:
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


def entry(kind: bytes, content: bytes) -> bytes:
    """Return an object as it stands in a pack."""
    return _header(TYPES[kind], len(content)) + _deflated(content)


def content_of(packed: bytes) -> bytes:
    """Return the content of an object that :func:`entry` packed."""
    at = 0
    while packed[at] & 128:
        at += 1
    return zlib.decompress(packed[at + 1 :])


def pack_header(count: int) -> bytes:
    """Return what a pack of *count* objects begins with: 12 bytes."""
    return _PACK_MAGIC + (_PACK_VERSION << 32 | count).to_bytes(8, "big")


def pack_row(name: bytes, packed: bytes, offset: int) -> Row:
    """Return what an index has of the object *name* that stands in its pack at *offset*.

    Raises:
        OverflowError: the offset is beyond 2 GiB.
    """
    if offset >> 31:
        raise OverflowError(f"a pack of more than {offset} bytes")
    return name, zlib.crc32(packed).to_bytes(4, "big"), offset.to_bytes(4, "big")


def pack_index(form: Format, rows: list[Row], packed: bytes) -> bytes:
    """Return the index of a pack that holds *rows*; *packed* is its checksum."""
    rows = sorted(rows)
    fanout, filled = [], 0  # how many names begin with a byte up to this one
    for count, row in enumerate(rows):
        first = row[0][0]
        if first > filled:
            fanout.append(count.to_bytes(4, "big") * (first - filled))
            filled = first
    fanout.append(len(rows).to_bytes(4, "big") * (_FIRST_BYTES - filled))
    names, checksums, offsets = zip(*rows, strict=True)
    index = b"".join([_INDEX_MAGIC, *fanout, *names, *checksums, *offsets, packed])
    return index + bytes(form.new(index).digest())


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
