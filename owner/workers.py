"""The threads behind leases: each is called at a moment of CLOCK_BOOTTIME, for one duty at a time.

To start a thread and to end it costs more than all else that a short lease does. So one whose
duty has ended sleeps on, without a moment to wake at, until another duty wants it: whoever begins
or ends a duty sets a timer, and nobody is woken by that. Each duty has a thread of its own as long
as it lasts: what one is stuck in delays no other.
"""

from __future__ import annotations

import os
from _thread import RLock, start_new_thread

from owner.timer import Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from owner.boottime import Boottime

IDLE_MOST = 4
"""So many sleep on; the others end."""

_idle: list[Worker] = []
os.register_at_fork(after_in_child=_idle.clear)  # a child has none of its parent's threads


class Duty:
    """What a worker is called for, until it says itself or is told that this is over."""

    def __init__(
        self, ring: Callable[[], int | None], failed: Callable[[BaseException], None]
    ) -> None:
        """Call *ring* at its moment; it returns the next, or None if there is none any more.

        It may be called too early, as soon as the worker was taken. *failed* hears of what it
        raises, and of what else ends the worker; nobody is called after that.
        """
        self.ring = ring
        self.failed = failed


class Worker:
    """A thread and its timer. From :func:`hire`."""

    def __init__(self, clock: Boottime) -> None:
        """Start it, without a duty.

        Raises:
            OSError: no descriptors are left.
            RuntimeError: no threads are left.
        """
        self._timer = Timer(clock)
        self._mutex = RLock()
        self._duty: Duty | None = None
        self._rings = False
        self._ends = False
        try:
            start_new_thread(self._run, ())
        except Exception:
            self._timer.close()
            raise
        except BaseException:  # Ctrl-C, once it runs: it closes its timer itself
            self.dismiss()
            raise

    @property
    def has_ended(self) -> bool:
        """Whether its thread has ended, or is about to."""
        return self._ends

    def take(self, duty: Duty) -> None:
        """Be *duty*'s, and nobody else's, until that ends."""
        with self._mutex:
            self._duty = duty

    def call_at(self, moment_ns: int) -> None:
        """Call the duty from *moment_ns* on.

        Raises:
            RuntimeError: the thread has ended: somebody closed its descriptor.
        """
        with self._mutex:
            if self._ends:
                raise RuntimeError("an idle thread of a lease has ended")
            self._timer.set(moment_ns)

    def end(self, duty: Duty) -> None:
        """Call *duty* no more, if this is its worker still; a call under way goes on.

        The worker is whoever's hires it next from then on, or from the end of that call on.
        """
        with self._mutex:
            if self._duty is not duty:
                return
            self._duty = None
            if self._ends:
                return
            self._timer.clear()
            if self._rings:
                return
        self.rest()

    def rest(self) -> None:
        """Sleep until the next duty; this one has none."""
        _idle.append(self)
        if len(_idle) > IDLE_MOST:
            try:
                _idle.pop(0).dismiss()
            except IndexError:  # others have hired them meanwhile
                pass

    def dismiss(self) -> None:
        """End the thread, which has no duty."""
        with self._mutex:
            if not self._ends:
                self._ends = True
                self._timer.set(0)

    def _run(self) -> None:
        try:
            while not self._ends:
                self._timer.wait()
                self._call()
        except BaseException as error:
            with self._mutex:
                self._ends = True
                duty, self._duty = self._duty, None
            if duty is not None:
                duty.failed(error)
            raise
        finally:
            with self._mutex:  # whoever sets it at this moment
                self._timer.close()

    def _call(self) -> None:
        """Call the duty, if there is one still."""
        with self._mutex:
            duty = self._duty
            self._rings = duty is not None
        if duty is None:
            return
        next_ns = duty.ring()
        with self._mutex:
            self._rings = False
            if self._duty is duty and next_ns is not None:
                self._timer.set(next_ns)
                return
            self._duty = None
        self.rest()


def hire(clock: Boottime) -> Worker:
    """Return a worker without a duty, which is the caller's until its duty has ended.

    Raises:
        OSError: no descriptors are left.
        RuntimeError: no threads are left.
    """
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return Worker(clock)
        if not worker.has_ended:
            return worker
