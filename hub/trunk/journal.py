"""The journal: the batch that is on its way to Fossil, byte for byte.

A trunk that is killed does not know whether what it sent was stored. Its successor finds the
batch here, looks, and sends what is missing again as it was: the same check-ins under the same
hashes, never new ones for the same commits.

It outlives processes, not the power: nothing in it was acknowledged (ADR 0011). One file, which
holds at most one batch: a line of JSON, ``{"v","parent","checkins","size","digest"}``, then its
body.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from foundation import codec
from foundation.atomic import remove, write_all
from slotgc import artifact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

VERSION = 1
_NAME = "batch"
_LIMIT = 1 << 30
_HEAD_BYTES = 256


class Batch(NamedTuple):
    """A batch as it was sent."""

    parent: str
    """The check-in that it is to follow."""
    checkins: tuple[str, ...]
    """The hashes of its check-ins, in the order of the line."""
    body: bytes


class Journal:
    """The journal of one workspace; one process at a time has it open."""

    def __init__(self, directory: str) -> None:
        """Open the journal in *directory*.

        Raises:
            OSError: it cannot be opened.
        """
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.path = f"{directory}/{_NAME}"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; what is in it stays."""
        os.close(self._fd)

    def record(self, batch: Batch) -> None:
        """Hold *batch*, and no other.

        Raises:
            OSError: it cannot be written; it then holds nothing.
        """
        head = {
            "v": VERSION,
            "parent": batch.parent,
            "checkins": list(batch.checkins),
            "size": len(batch.body),
            "digest": _digest(batch.body),
        }
        self.clear()
        try:
            write_all(self._fd, codec.dumps(head).encode() + b"\n")
            write_all(self._fd, batch.body)
        except OSError:
            self.clear()
            raise

    def clear(self) -> None:
        """Hold nothing."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def read(self) -> Batch | None:
        """Return the batch that it holds, None if it holds none.

        Raises:
            ValueError: what it holds is none: it was never sent, or is not ours.
            OSError: it cannot be read.
        """
        size = os.fstat(self._fd).st_size
        if not size:
            return None
        if size > _LIMIT:
            raise ValueError(f"{size} bytes are no batch")
        os.lseek(self._fd, 0, os.SEEK_SET)
        with os.fdopen(os.dup(self._fd), "rb") as file:
            line = file.readline(_LIMIT)
            body = file.read()
        head = codec.loads_object(line)
        checkins = head.get("checkins")
        if (
            head.get("v") != VERSION
            or not isinstance(checkins, list)
            or not checkins
            or not all(map(artifact.is_name, [head.get("parent"), *checkins]))
        ):
            raise ValueError("its first line describes no batch")
        if head.get("size") != len(body) or head.get("digest") != _digest(body):
            raise ValueError("its body is not what its first line describes")
        return Batch(head["parent"], tuple(checkins), body)

    def set_aside(self) -> str:
        """Move what it holds out of the way, for a person to see; return where to."""
        aside = f"{self.path}.unreadable"
        remove(aside)
        os.link(self.path, aside)
        fd = os.open(f"{self.path}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_TRUNC, 0o600)
        os.rename(f"{self.path}.new", self.path)
        os.close(self._fd)
        self._fd = fd
        return aside


def first_bytes(directory: str) -> bytes:
    """Return how the batch in the journal of *directory* begins, b"" if it holds none.

    Two batches one after the other differ in it, by their parents. For another thread to see that
    one has ended.
    """
    try:
        with open(f"{directory}/{_NAME}", "rb") as file:
            return file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return b""


def _digest(body: bytes) -> str:
    # Against a torn write, not against anybody: who may write here may write to the repository.
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()
