"""The supervisor's loop: descriptors and timers, nothing else. It sleeps until one is due."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """A call that is due at a time of the monotonic clock."""

    __slots__ = ("call", "due_s")

    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        """See :meth:`Reactor.call_later`."""
        self.due_s = due_s
        self.call = call


class Reactor:
    """Calls back when a descriptor is ready or a timer due; one thread, no reentry."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []  # a handful: a heap would be more code, not less time
        self._stopped = False

    def watch(self, fd: int, call: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call *call* with the epoll events of *fd* whenever it has any of *events*."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = call

    def forget(self, fd: int) -> None:
        """Stop watching *fd*; to be called before it is closed. Unknown ones are no error."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call *call* once, *delay_s* seconds from now."""
        timer = Timer(time.monotonic() + delay_s, call)
        self._timers.append(timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Forget *timer*; one that has fired, or None, is no error."""
        if timer in self._timers:
            self._timers.remove(timer)

    def stop(self) -> None:
        """Make :meth:`run` return after the current callback."""
        self._stopped = True

    def run(self) -> None:
        """Serve callbacks until :meth:`stop`."""
        self._stopped = False
        while not self._stopped:
            now_s = time.monotonic()
            due = [timer for timer in self._timers if timer.due_s <= now_s]
            for timer in sorted(due, key=lambda timer: timer.due_s):
                if timer in self._timers and not self._stopped:
                    self._timers.remove(timer)
                    timer.call()
            if self._stopped:
                return
            ready = self._epoll.poll(self._patience_s())
            meant = [(self._callbacks.get(fd), fd, events) for fd, events in ready]
            for call, fd, events in meant:
                # An earlier callback of this round may have closed this descriptor, and even
                # have opened another under its number.
                if call is not None and self._callbacks.get(fd) is call:
                    call(events)
                if self._stopped:
                    return

    def _patience_s(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, min(timer.due_s for timer in self._timers) - time.monotonic())

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()
