"""Having one guest know what is so now, however often that changes and however it fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from foundation.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Tell = Callable[[], Awaitable[None]]
    """Finds out what is so, and tells it the guest."""
    Complain = Callable[[str, BaseException], None]

WITHIN_S = 10.0
AGAIN_S = 0.2
AGAIN_AT_MOST_S = 60.0


class Telling:
    """What one guest is told. One telling at a time: the last one is of what is so by then."""

    def __init__(self, what: str, tell: Tell, complain: Complain) -> None:
        """Tell nothing yet. *complain* gets *what* could not be told, once for each change."""
        self._what = what
        self._tell = tell
        self._complain = complain
        self._is_told = True
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def change(self) -> None:
        """Have it told, from the beginning if it is just being told. Nothing is waited for."""
        self._is_told = False
        self._changed.set()
        self._tried.clear()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._until_told())

    def close(self) -> None:
        """Tell nothing more; again is no error."""
        if self._task is not None:
            self._task.cancel()

    async def first(self) -> None:
        """Return when what there is to be told has been told, or could not be for once."""
        if self._task is not None and not self._task.done():
            trying = asyncio.ensure_future(self._tried.wait())
            await asyncio.wait({trying, self._task}, return_when=asyncio.FIRST_COMPLETED)
            trying.cancel()

    async def _until_told(self) -> None:
        again_s = AGAIN_S
        while not self._is_told:
            if self._changed.is_set():
                self._changed.clear()
                again_s = AGAIN_S
            self._is_told = True
            try:
                async with asyncio.timeout(WITHIN_S):
                    await self._tell()
                if self._is_told:
                    self._tried.set()
            except (HubError, OSError) as error:  # TimeoutError is an OSError
                self._is_told = False
                self._tried.set()
                if again_s == AGAIN_S:
                    self._complain(self._what, error)
                await self._wait_for_change(again_s)
                again_s = min(2 * again_s, AGAIN_AT_MOST_S)

    async def _wait_for_change(self, at_most_s: float) -> None:
        try:
            async with asyncio.timeout(at_most_s):
                await self._changed.wait()
        except TimeoutError:
            pass
