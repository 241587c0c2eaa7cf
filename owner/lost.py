"""The event that tells an owner, in threads and on event loops, that it is owner no more."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Generator


class Lost:
    """Set once, never cleared; any number of threads, loops and tasks may wait for it."""

    def __init__(self) -> None:
        """Make an event that is not set."""
        self._mutex = threading.RLock()  # a signal handler may ask in the middle
        self._event = threading.Event()
        self._waiting: set[tuple[AbstractEventLoop, Future[None]]] = set()

    def is_set(self) -> bool:
        """Tell whether the lease was lost."""
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block this thread until it is set; return false if it is not after *timeout_s*."""
        return self._event.wait(timeout_s)

    async def wait_async(self) -> None:
        """Wait until it is set, without blocking the loop; ``await lost`` does the same."""
        import asyncio  # noqa: PLC0415 - whoever calls this has it

        loop = asyncio.get_running_loop()
        future: Future[None] = loop.create_future()
        with self._mutex:
            if self._event.is_set():
                return
            self._waiting.add((loop, future))
        try:
            await future
        finally:
            with self._mutex:
                self._waiting.discard((loop, future))

    def __await__(self) -> Generator[object, None, None]:
        return self.wait_async().__await__()

    def fire(self) -> None:
        """Set it. For the owner of this event."""
        with self._mutex:
            self._event.set()
            waiting = list(self._waiting)
        for loop, future in waiting:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # that loop was closed: nobody waits in it
                pass


def _wake(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)
