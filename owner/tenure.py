"""One ownership from its acquisition to its end: renewed by one thread, watched by another.

They share nothing but the belief. Whatever a renewal is stuck in, the watchdog sees the belief
end by a clock of its own. A lease that is released before either moment has come wakes neither.
"""

from __future__ import annotations

from foundation.errors import HubError, LeaseLost
from owner import lease as rules
from owner import private
from owner.belief import Belief
from owner.guard import WAIT_S
from owner.store import Store
from owner.workers import Duty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from owner.boottime import Boottime
    from owner.lease import Lease
    from owner.workers import Worker

_RETRIES = 8
"""A renewal that failed is tried again after this part of the interval."""


class Tenure:
    """What stands behind an owner. Its methods may be called from any thread."""

    def __init__(
        self,
        path: str,
        lease: Lease,
        clock: Boottime,
        workers: tuple[Worker, Worker],
        renew_interval_ns: int,
    ) -> None:
        """Own *lease*, which is recorded at *path*, and both *workers*; :meth:`run` is to follow.

        They were hired before anything was acquired: they may be lacking.
        """
        self.belief = Belief(lease, clock)
        self._path = path
        self._clock = clock
        self._watchdog, self._renewal = workers
        self._watches = Duty(self._watch, self._watch_failed)
        self._renews = Duty(self._renew_if_due, self._renewal_failed)
        self._interval_ns = renew_interval_ns
        self._next_ns = lease.deadline_ns - lease.ttl_ns + renew_interval_ns
        self._process = private.process()
        self._is_renewed = True
        self._handed_over = False
        self._watchdog.take(self._watches)
        self._renewal.take(self._renews)

    def run(self) -> None:
        """Renew and watch from now on.

        Raises:
            RuntimeError: a thread has ended.
        """
        self._watchdog.call_at(self.belief.lease.belief_ends_ns)
        self._renewal.call_at(self._next_ns)

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
            self._is_renewed = False
            self._renewal.end(self._renews)
            self.belief.trouble = "renewing was cancelled"

    def release(self) -> bool:
        """Hand over; return whether that is on record. See :meth:`owner.Owner.release`."""
        if self.is_forked or self._handed_over:
            return True
        self.belief.give_up()
        self._is_renewed = False
        self._renewal.end(self._renews)
        self._watchdog.end(self._watches)
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
        if self._is_renewed and now_ns >= lease.deadline_ns - lease.ttl_ns + self._interval_ns:
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

    def _renew_if_due(self) -> int | None:
        if self._clock.now_ns() < self._next_ns:
            return self._next_ns
        if not self._is_renewed or not self.belief.holds():
            return None
        try:
            after_ns = self._renew()
        except LeaseLost as error:
            self.belief.holds()  # if its time is over, that is why
            self.belief.end(str(error))
            return None
        self._next_ns = self._clock.now_ns() + after_ns
        return self._next_ns

    def _renewal_failed(self, error: BaseException) -> None:
        self.belief.trouble = f"its renewal failed: {error!r}"

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

    def _watch(self) -> int | None:
        if self.belief.holds():
            return self.belief.lease.belief_ends_ns
        self.belief.tell()
        return None

    def _watch_failed(self, error: BaseException) -> None:
        self.belief.end(f"its watchdog failed: {error!r}")
