"""One at a time does what all need, and what takes long of it is told to all who wait for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.backends.base import Progress


class Turns:
    """Whose turn it is. All of it belongs to one loop."""

    def __init__(self) -> None:
        """Nobody is waiting."""
        self._turn = asyncio.Lock()
        self._listening: list[Progress] = []
        self._under_way = ""

    @asynccontextmanager
    async def taken(self, progress: Progress) -> AsyncIterator[Progress]:
        """Wait for our turn, and have it; yield whom to tell what takes long.

        Until then *progress* is told what whoever has it tells, from what is under way now on.
        """
        self._listening.append(progress)
        try:
            if self._under_way:
                progress(self._under_way)
            async with self._turn:
                try:
                    yield self._tell
                finally:
                    self._under_way = ""
        finally:
            self._listening.remove(progress)

    def _tell(self, words: str) -> None:
        self._under_way = words
        for progress in list(self._listening):
            progress(words)
