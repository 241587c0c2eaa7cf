"""What a worktree's own git has stored, object by object, read without git and without trust.

Loose files and packs of the repository itself; what it borrows from the user's is not read, for
that stays when the slot goes. Source: gitrepository-layout(5), gitformat-pack(5).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from typing import NamedTuple

from slotgc.artifact import open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BLOB, TREE, COMMIT, TAG = "blob", "tree", "commit", "tag"

OURS_NS = 1_000_000_000
"""The mtime that we give to a pack of which trunk has everything; no clock of today shows it."""

_PACKED = {1: COMMIT, 2: TREE, 3: BLOB, 4: TAG}
_HEX = frozenset("0123456789abcdef")
_SHA1_DIGITS, _SHA256_DIGITS = 40, 64
_PACK_HEADER = 12
_BESIDE_PACKS = (".idx", ".rev", ".bitmap", ".mtimes", ".keep", ".promisor", "multi-pack-index")
_MOST_OBJECTS = 200_000
_MOST_BYTES = 512 << 20  # files and contents together: a second or two
_LONG_BYTES = 8 << 20
"""Of what trunk has, a longer pack is left out: it would tell nothing but names of trees."""

_LONGEST_HEADER = 32
_CHUNK = 16 << 10


class Stored(NamedTuple):
    """An object: what it is, its name in hex digits, its content."""

    kind: str
    name: str
    content: bytes
    is_ours: bool
    """It stands in a pack that we have marked: trunk has what is in it."""


def root_tree(commit: bytes) -> str:
    """Return the name of the tree of a commit with this content, "" if it has none."""
    line = commit.partition(b"\n")[0]
    return line.removeprefix(b"tree ").decode("ascii", "replace") if line[:5] == b"tree " else ""


def parents(commit: bytes) -> set[str]:
    """Return the names of the parents of a commit with this content."""
    lines = commit.partition(b"\n\n")[0].split(b"\n")
    return {line[7:].decode("ascii", "replace") for line in lines if line.startswith(b"parent ")}


def stored(objects: str, digits: int) -> Iterator[Stored]:
    """Yield what is in the object directory *objects*, whose names have *digits* hex digits.

    Raises:
        OSError: it cannot be read.
        ValueError: something in it is not as git leaves it, is packed by its differences from
            another, or it is too much to be read.
    """
    if digits not in (_SHA1_DIGITS, _SHA256_DIGITS):
        raise ValueError(f"no names of objects have {digits} digits")
    reading = _Reading(digits)
    try:
        names = sorted(os.listdir(objects))
    except FileNotFoundError:
        return
    for directory in names:
        if os.path.islink(f"{objects}/{directory}"):
            raise ValueError(f"{objects}/{directory} is a link")
        if directory == "pack":
            yield from reading.packs(f"{objects}/pack")
        elif len(directory) == 2:  # noqa: PLR2004 - the first two digits
            for name in sorted(os.listdir(f"{objects}/{directory}")):
                yield reading.loose(f"{objects}/{directory}/{name}", directory + name)


class _Reading:
    """One pass over the objects of a repository, with an end to what is read."""

    def __init__(self, digits: int) -> None:
        self._digits = digits
        self._objects = 0
        self._bytes = 0

    def loose(self, path: str, name: str) -> Stored:
        if len(name) != self._digits or not _HEX.issuperset(name):
            raise ValueError(f"{path} is no object that git has finished")
        content = self._file(path)
        head, _at = _inflated(content, 0, _LONGEST_HEADER, whole=False)
        kind, _space, rest = head.partition(b"\0")[0].partition(b" ")
        if kind.decode("ascii", "replace") not in _PACKED.values() or not rest.isdigit():
            raise ValueError(f"{path} is no object")
        size = int(rest)
        start = len(kind) + len(rest) + 2
        self._count(size)
        inflated, _at = _inflated(content, 0, start + size)
        return Stored(kind.decode("ascii"), name, inflated[start:], is_ours=False)

    def packs(self, directory: str) -> Iterator[Stored]:
        for name in sorted(os.listdir(directory)):
            path = f"{directory}/{name}"
            if name.endswith(".pack"):
                status = os.lstat(path)
                is_ours = status.st_mtime_ns == OURS_NS
                if not is_ours or status.st_size < _LONG_BYTES:
                    yield from self._pack(path, self._file(path), is_ours=is_ours)
            elif not name.endswith(_BESIDE_PACKS):
                raise ValueError(f"{path} is no pack that git has finished")

    def _pack(self, path: str, pack: bytes, *, is_ours: bool) -> Iterator[Stored]:
        count = int.from_bytes(pack[8:_PACK_HEADER], "big")
        if pack[:4] != b"PACK":
            raise ValueError(f"{path} is no pack")
        at = _PACK_HEADER
        for _turn in range(count):
            number, size, at = _entry_header(path, pack, at)
            kind = _PACKED.get(number)
            if kind is None:
                raise ValueError(f"{path} holds differences")
            self._count(size)
            content, at = _inflated(pack, at, size)
            yield Stored(kind, self._name(kind, content), content, is_ours)
        if at != len(pack) - self._digits // 2:
            raise ValueError(f"{path} holds more than it says")

    def _name(self, kind: str, content: bytes) -> str:
        short = self._digits == _SHA1_DIGITS
        named = hashlib.sha1(usedforsecurity=False) if short else hashlib.sha256()
        named.update(b"%s %d\0" % (kind.encode("ascii"), len(content)))
        named.update(content)
        return named.hexdigest()

    def _file(self, path: str) -> bytes:
        fd = open_regular(path)
        with os.fdopen(fd, "rb") as file:
            self._count(os.fstat(fd).st_size)
            return file.read(_MOST_BYTES)

    def _count(self, size: int) -> None:
        self._objects += 1  # each file, and each object in it
        self._bytes += size
        if self._objects > _MOST_OBJECTS or self._bytes > _MOST_BYTES:
            raise ValueError("it has stored too much to be read")


def _entry_header(path: str, pack: bytes, at: int) -> tuple[int, int, int]:
    """Return type and size of a pack's entry, and where its content begins."""
    try:
        byte = pack[at]
        number, size, shift, at = byte >> 4 & 7, byte & 15, 4, at + 1
        while byte & 128:
            byte = pack[at]
            size |= (byte & 127) << shift
            shift, at = shift + 7, at + 1
    except IndexError:
        raise ValueError(f"{path} ends early") from None
    return number, size, at


def _inflated(content: bytes, at: int, size: int, *, whole: bool = True) -> tuple[bytes, int]:
    """Return the *size* bytes that the stream at *at* says, and where the stream ends.

    Not *whole*: at most so many, whatever follows.
    """
    stream = zlib.decompressobj()
    pieces = []
    left = size + whole  # one byte more than there should be would be seen
    try:
        while left and not stream.eof:
            piece = content[at : at + _CHUNK]
            if not piece:
                raise ValueError("an object ends early")
            at += len(piece)
            pieces.append(stream.decompress(piece, left))
            left -= len(pieces[-1])
    except zlib.error as error:
        raise ValueError(f"an object is damaged: {error}") from None
    found = b"".join(pieces)
    if whole and (len(found) != size or not stream.eof):
        raise ValueError("an object is not as long as it says")
    return found, at - len(stream.unused_data)
