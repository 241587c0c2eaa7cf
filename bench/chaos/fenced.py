"""A resource that notices by itself when its fence does not hold."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time

_STATE = struct.Struct("=qq")

TWO_INSIDE = 1
WENT_BACK = 2
OVERWRITTEN = 3


class Resource:
    """Shared memory that holds the highest epoch seen and a count of visits, and a lock to enter.

    The lock is fcntl's, which no lease of ours uses; the kernel frees it before it closes a dying
    process's files, so whoever comes next by a flock does not meet a corpse inside.
    """

    def __init__(self, path: str) -> None:
        """Make it; forks share it."""
        self._path = path
        self._memory = mmap.mmap(-1, _STATE.size)
        self._fd = -1

    def open(self) -> None:
        """Take a descriptor of this very process's: once, for closing any would free the lock."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)

    def visit(self, epoch: int, for_s: float) -> int:
        """Use the resource as the owner of *epoch*; return 0, or what was found wrong."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return TWO_INSIDE
        try:
            highest, visits = self._state()
            if highest > epoch:
                return WENT_BACK
            mine = (epoch, visits + 1)
            _STATE.pack_into(self._memory, 0, *mine)
            time.sleep(for_s)
            return 0 if self._state() == mine else OVERWRITTEN
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _state(self) -> tuple[int, int]:
        epoch, visits = _STATE.unpack_from(self._memory, 0)
        return epoch, visits

    @property
    def visits(self) -> int:
        """How often somebody was inside."""
        return self._state()[1]
