"""A thread's alarm clock: it rings at a moment of CLOCK_BOOTTIME, or is stopped."""

from __future__ import annotations

import ctypes
import os
import select
import threading

from owner import private
from owner.boottime import NS_PER_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from owner.boottime import Boottime

_CLOCK_BOOTTIME = 7  # clock_gettime(2)
_TFD_TIMER_ABSTIME = 1  # timerfd_create(2)
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class _Times(ctypes.Structure):
    """Source: timerfd_create(2), struct itimerspec: the interval, then the moment."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("s", ctypes.c_long),
        ("ns", ctypes.c_long),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Timer:
    """One thread waits, any other may stop it for good.

    A timerfd, because what Python's own waits count stands still in suspend: a moment that
    passed meanwhile rings at the awakening.
    """

    def __init__(self, clock: Boottime) -> None:
        """Make a timer whose moments are those of *clock*.

        Raises:
            OSError: no descriptors are left.
        """
        self._clock = clock
        self._mutex = threading.RLock()
        self._closed = False
        self._timer = private.opened(_make_timer)
        try:
            self._stop = private.opened(_make_event)
        except BaseException:
            private.close(self._timer)
            raise

    def wait_until(self, moment_ns: int) -> bool:
        """Wait until *moment_ns* and return true; return false once the timer was stopped.

        Raises:
            OSError: the kernel refuses.
        """
        seconds, nanoseconds = divmod(max(1, self._clock.local_ns(moment_ns)), NS_PER_S)
        times = _Times(0, 0, seconds, nanoseconds)
        if _libc.timerfd_settime(self._timer, _TFD_TIMER_ABSTIME, ctypes.byref(times), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        poll = select.poll()
        poll.register(self._timer, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        return self._stop not in {fd for fd, _events in poll.poll()}

    def stop(self) -> None:
        """Have the thread that waits, now or later, return; it is to close the timer."""
        with self._mutex:
            if not self._closed:
                os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Give the descriptors back; to stop it from then on does nothing."""
        with self._mutex:
            if not self._closed:
                self._closed = True
                private.close(self._timer)
                private.close(self._stop)


def _make_timer() -> int:
    fd: int = _libc.timerfd_create(_CLOCK_BOOTTIME, _FLAGS)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    return fd


def _make_event() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
