"""Being woken when a file or a directory changes, on an asyncio loop."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from foundation import libc

if TYPE_CHECKING:
    from typing import Self

# Source: inotify(7), <sys/inotify.h>
WRITTEN = 0x2
"""A file's content has changed."""
NAMED = 0x80 | 0x100
"""A directory has a new name in it."""
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 16

_init = libc.function("inotify_init1")
_add = libc.function("inotify_add_watch")


class Watch:
    """The changes of one file or directory. Where there is none to be watched, it never changes.

    Who waits gives a limit therefore, and looks: the kernel has few of these for each user.
    """

    def __init__(self, path: str, mask: int) -> None:
        """Watch *path* from now on, for what *mask* says (WRITTEN, NAMED)."""
        self._changed = asyncio.Event()
        self._fd = -1
        try:
            self._fd = _init(_NONBLOCK_CLOEXEC)
            _add(self._fd, os.fsencode(path), mask)
        except OSError:
            self.close()
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def __enter__(self) -> Self:
        """Close at the end of the ``with``."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Watch no more; again is no error."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def change(self, at_most_s: float) -> bool:
        """Return True when there has been a change since the last time, False if there is none."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def _read(self) -> None:
        try:
            os.read(self._fd, _BLOCK)
        except BlockingIOError:
            return
        self._changed.set()
