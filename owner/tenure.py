"""One ownership from its acquisition to its end: renewed by one thread, watched by another.

They share nothing but the belief. Whatever a renewal is stuck in, the watchdog sees the belief
end by a clock of its own.
"""

from __future__ import annotations

import threading

from foundation.errors import HubError, LeaseLost
from owner import lease as rules
from owner import private
from owner.belief import Belief
from owner.guard import WAIT_S
from owner.store import Store
from owner.timer import Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from owner.boottime import Boottime
    from owner.lease import Lease

_RETRIES = 8
"""A renewal that failed is tried again after this part of the interval."""


class Timers:
    """A tenure's two, made before anything is acquired: they may be lacking."""

    def __init__(self, clock: Boottime) -> None:
        """Make both.

        Raises:
            OSError: no descriptors are left.
        """
        self.alarm = Timer(clock)
        try:
            self.pace = Timer(clock)
        except BaseException:
            self.alarm.close()
            raise

    def stop(self) -> None:
        """Have the threads that wait for them end."""
        self.pace.stop()
        self.alarm.stop()

    def close(self) -> None:
        """Give them back: no thread waits for them."""
        self.pace.close()
        self.alarm.close()


class Tenure:
    """What stands behind an owner. Its methods may be called from any thread."""

    def __init__(
        self, path: str, lease: Lease, clock: Boottime, timers: Timers, renew_interval_ns: int
    ) -> None:
        """Own *lease*, which is recorded at *path*, and *timers*; :meth:`run` is to follow."""
        self.belief = Belief(lease, clock)
        self._path = path
        self._clock = clock
        self._timers = timers
        self._interval_ns = renew_interval_ns
        self._process = private.process()
        self._renews = True
        self._handed_over = False

    def run(self) -> None:
        """Renew and watch from now on.

        Raises:
            RuntimeError: no threads are left.
        """
        pending = [
            (self._watch, "owner-watchdog", self._timers.alarm),
            (self._keep_renewing, "owner-renewal", self._timers.pace),
        ]
        while pending:
            main, name, _timer = pending[0]
            try:
                threading.Thread(target=main, name=name, daemon=True).start()
            except BaseException as error:
                # Ctrl-C comes while it waits for a thread that does run: that one closes its own.
                for _main, _name, timer in pending[not isinstance(error, Exception) :]:
                    timer.close()
                self._timers.stop()
                raise
            del pending[0]

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that owns."""
        return self._process != private.process()

    def holds(self) -> bool:
        """Tell whether the lease is ours now, by the clock."""
        return not self.is_forked and self.belief.holds()

    def cancel(self) -> None:
        """Renew no more; a renewal under way may still count."""
        if not self.is_forked:
            self._renews = False
            self._timers.pace.stop()
            self.belief.trouble = "renewing was cancelled"

    def release(self) -> bool:
        """Hand over; return whether that is on record. See :meth:`owner.Owner.release`."""
        if self.is_forked or self._handed_over:
            return True
        self.belief.give_up()
        self._renews = False
        self._timers.stop()
        lease = self.belief.lease
        left_s = (lease.deadline_ns - self._clock.now_ns()) / 1e9
        try:
            with Store(self._path, "release", timeout_s=min(WAIT_S, left_s)) as store:
                if rules.is_same(store.newest(), lease):
                    store.write(rules.release(lease))
        except HubError:
            return False
        self._handed_over = True
        return True

    def enter_fence(self, timeout_s: float) -> Store:
        """Return the store, entered, in which nobody can take over.

        Raises:
            LeaseLost: the lease is not ours.
            Unavailable: somebody stayed in the guard.
        """
        self._check()
        left_s = (self.belief.lease.belief_ends_ns - self._clock.now_ns()) / 1e9
        store = Store(self._path, "fence", timeout_s=min(timeout_s, left_s))
        try:
            store.__enter__()
        except HubError:
            self._check()
            raise
        try:
            self._check_in(store)
        except BaseException:
            store.leave()
            raise
        return store

    def _check_in(self, store: Store) -> None:
        self._check()
        lease = self.belief.lease
        now_ns = self._clock.now_ns()
        try:
            rules.check_mine(store.newest(), lease, now_ns=now_ns)
        except LeaseLost as error:
            self.belief.end(str(error))
            raise
        # Who goes in and out without a pause would keep the renewal out of the guard for ever.
        if self._renews and now_ns >= lease.deadline_ns - lease.ttl_ns + self._interval_ns:
            try:
                self._renew_in(store)
            except LeaseLost:
                raise
            except HubError as error:
                self.belief.trouble = str(error)

    def _check(self) -> None:
        if self.is_forked:
            raise LeaseLost("this is a forked child of the owner", reason="not-owner")
        if not self.belief.holds():
            words = self.belief.reason or "it was released"
            raise LeaseLost(f"{self._path} is not owned any more: {words}", reason="not-owner")

    def _renew_in(self, store: Store) -> None:
        renewed = rules.renew(store.newest(), self.belief.lease, now_ns=self._clock.now_ns())
        self._check()
        store.write(renewed)
        self.belief.extend(renewed)

    def _keep_renewing(self) -> None:
        next_ns = self._clock.now_ns() + self._interval_ns
        try:
            while self._timers.pace.wait_until(next_ns) and self.belief.holds():
                next_ns = self._clock.now_ns() + self._renew()
        except LeaseLost as error:
            self.belief.holds()  # if its time is over, that is why
            self.belief.end(str(error))
        except BaseException as error:
            self.belief.trouble = f"its renewal failed: {error!r}"
            raise
        finally:
            self._timers.pace.close()

    def _renew(self) -> int:
        """Renew, or fail; return after how many nanoseconds to do it again."""
        self.belief.trouble = self.belief.trouble or "a renewal has begun and not returned"
        left_s = (self.belief.lease.belief_ends_ns - self._clock.now_ns()) / 1e9
        try:
            with Store(self._path, "renew", timeout_s=left_s) as store:
                self._renew_in(store)
        except LeaseLost:
            raise
        except HubError as error:
            self.belief.trouble = str(error)
            return self._interval_ns // _RETRIES
        return self._interval_ns

    def _watch(self) -> None:
        try:
            while self.belief.holds() and self._timers.alarm.wait_until(
                self.belief.lease.belief_ends_ns
            ):
                pass
        except BaseException as error:
            self.belief.end(f"its watchdog failed: {error!r}")
            raise
        finally:
            self.belief.tell()
            self._timers.alarm.close()
