"""The event that tells an owner, in threads and on event loops, that it is owner no more."""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Generator


class Lost:
    """Set once, never cleared; any number of threads, loops and tasks may wait for it.

    A signal handler may ask it, or set it, between any two steps of the thread that it interrupts:
    who waits is entered first, and looks whether it is set after that. (threading.Event has a
    lock inside that such a handler would wait for in vain.)
    """

    def __init__(self) -> None:
        """Make an event that is not set."""
        self._mutex = _thread.RLock()
        self._is_set = False
        self._threads: set[_thread.LockType] = set()
        self._waiting: set[tuple[AbstractEventLoop, Future[None]]] = set()

    def is_set(self) -> bool:
        """Tell whether the lease was lost."""
        return self._is_set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block this thread until it is set; return false if it is not after *timeout_s*."""
        gate = _thread.allocate_lock()
        gate.acquire()
        try:
            with self._mutex:
                self._threads.add(gate)
            if not self._is_set:
                gate.acquire(timeout=-1 if timeout_s is None else max(0, timeout_s))
        finally:
            with self._mutex:
                self._threads.discard(gate)
        return self._is_set

    async def wait_async(self) -> None:
        """Wait until it is set, without blocking the loop; ``await lost`` does the same."""
        import asyncio  # noqa: PLC0415 - whoever calls this has it

        loop = asyncio.get_running_loop()
        future: Future[None] = loop.create_future()
        try:
            with self._mutex:
                self._waiting.add((loop, future))
            if not self._is_set:
                await future
        finally:
            with self._mutex:
                self._waiting.discard((loop, future))

    def __await__(self) -> Generator[object, None, None]:
        return self.wait_async().__await__()

    def fire(self) -> None:
        """Set it, for its owner; once more ends what an exception broke off, and does no harm."""
        with self._mutex:
            self._is_set = True
            threads, waiting = list(self._threads), list(self._waiting)
        for gate in threads:
            try:
                gate.release()
            except RuntimeError:  # it is open
                pass
        for loop, future in waiting:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # that loop was closed: nobody waits in it
                pass


def _wake(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)
