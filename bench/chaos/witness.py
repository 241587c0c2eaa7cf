"""A log in memory that processes share: what was written stays when the writer is killed.

Neither a lock nor a file: a full disk, a lack of descriptors or a stopped reader cannot keep a
process from saying what it believes.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = struct.Struct("=q")
_ENTRY = struct.Struct("=qqqqq")


class Entry(NamedTuple):
    """One statement of one process."""

    kind: int
    pid: int
    epoch: int
    before: int
    """CLOCK_BOOTTIME, nanoseconds, before what is stated was looked at."""
    after: int
    """And after it was."""


def now_ns() -> int:
    """Return CLOCK_BOOTTIME in nanoseconds: it goes on in a suspend and nobody can set it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Witness:
    """The log of one place; its processes follow each other, so it has one writer at a time."""

    def __init__(self, capacity: int) -> None:
        """Have room for *capacity* entries (memory is used as they come)."""
        self.capacity = capacity
        self._memory = mmap.mmap(-1, _HEAD.size + capacity * _ENTRY.size)

    def write(self, entry: Entry) -> None:
        """Append *entry*. The count goes last: a killed writer leaves no torn entry."""
        count = len(self)
        if count < self.capacity:
            _ENTRY.pack_into(self._memory, _HEAD.size + count * _ENTRY.size, *entry)
            _HEAD.pack_into(self._memory, 0, count + 1)

    def __len__(self) -> int:
        return int(_HEAD.unpack_from(self._memory, 0)[0])

    @property
    def is_full(self) -> bool:
        """Whether statements may have been lost."""
        return len(self) >= self.capacity

    def __iter__(self) -> Iterator[Entry]:
        for number in range(len(self)):
            yield self._at(number)

    def last(self) -> Entry | None:
        """Return the newest entry."""
        count = len(self)
        return self._at(count - 1) if count else None

    def _at(self, number: int) -> Entry:
        return Entry(*_ENTRY.unpack_from(self._memory, _HEAD.size + number * _ENTRY.size))
