"""A thread's alarm clock: it rings at a moment of CLOCK_BOOTTIME, which any thread may set."""

from __future__ import annotations

import os
from _struct import pack

from foundation import libc
from owner import private
from owner.boottime import NS_PER_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from owner.boottime import Boottime

_CLOCK_BOOTTIME = 7  # clock_gettime(2)
_TFD_TIMER_ABSTIME = 1  # timerfd_create(2)

_timerfd_create = libc.function("timerfd_create")
_timerfd_settime = libc.function("timerfd_settime")


class Timer:
    """One thread waits, any other may set the moment meanwhile, and wakes nobody by that.

    A timerfd, because what Python's own waits count stands still in suspend: a moment that
    passed meanwhile rings at the awakening.
    """

    def __init__(self, clock: Boottime) -> None:
        """Make a timer that is not set, and whose moments are those of *clock*.

        Raises:
            OSError: no descriptors are left.
        """
        self._clock = clock
        self._fd = private.opened(lambda: _timerfd_create(_CLOCK_BOOTTIME, os.O_CLOEXEC))

    def wait(self) -> None:
        """Wait until it has rung since it was last set or waited for.

        Raises:
            OSError: the kernel refuses.
        """
        os.read(self._fd, 8)

    def set(self, moment_ns: int) -> None:
        """Have it ring at *moment_ns*, at once if that has passed, and at no moment set before."""
        self._set(*divmod(max(1, self._clock.local_ns(moment_ns)), NS_PER_S))

    def clear(self) -> None:
        """Have it ring at no moment."""
        self._set(0, 0)

    def close(self) -> None:
        """Give the descriptor back; nobody waits for it or sets it from then on."""
        private.close(self._fd)

    def _set(self, seconds: int, nanoseconds: int) -> None:
        # Source: timerfd_create(2), struct itimerspec: the interval, then the moment.
        _timerfd_settime(
            self._fd, _TFD_TIMER_ABSTIME, pack("@4l", 0, 0, seconds, nanoseconds), None
        )
