"""A guest's console, followed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from orchestrator.watch import WRITTEN, Watch

_BLOCK = 1 << 16
_AGAIN_S = 0.05
"""A console grows a letter at a time."""
_UNWATCHED_EVERY_S = 1.0
"""One that was replaced, or cannot be watched, is looked at this often."""


class Console:
    """A console's file, read as it grows; one that was cut or replaced is read from its start."""

    def __init__(self, path: str) -> None:
        """Read nothing yet of what is at *path*."""
        self._path = path
        self._at = 0
        self._inode = 0
        self._watched = -1
        self._watch: Watch | None = None

    def read(self) -> bytes:
        """Return some of what is new; nothing while there is none, or no such file."""
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._at:
                    self._inode, self._at = status.st_ino, 0
                file.seek(self._at)
                chunk = file.read(_BLOCK)
        except FileNotFoundError:
            return b""
        self._at += len(chunk)
        return chunk

    async def grown(self, over: asyncio.Future[None]) -> None:
        """Return when there may be more of it, or *over* is done."""
        if self._watch is None or self._watched != self._inode:
            self.close()
            self._watch, self._watched = Watch(self._path, WRITTEN), self._inode
            return  # what was written before it was watched is no change
        changing = asyncio.ensure_future(self._watch.change(_UNWATCHED_EVERY_S))
        both: set[asyncio.Future[Any]] = {changing, over}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        changing.cancel()
        if not over.done():
            await asyncio.sleep(_AGAIN_S)

    def close(self) -> None:
        """Watch it no more; again is no error."""
        if self._watch is not None:
            self._watch.close()
