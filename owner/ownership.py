"""What a join returns: the ownership itself, or a follower's view of it."""

from __future__ import annotations

from foundation.errors import LeaseLost
from owner import FOLLOWER, OWNER
from owner.guard import WAIT_S
from owner.lost import Lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from owner.holder import Holder
    from owner.store import Store
    from owner.tenure import Tenure


class Owner:
    """An owner, or a follower that knows the holder. From :func:`owner.join`.

    Usable from any thread. As a context manager it releases at the end; without, it owns until
    :meth:`release` or the end of the process, whether or not anybody keeps this object. In a
    forked child it is a follower of its parent and does nothing.

    Knowing that one is owner and then acting is not safe under any lease: a process may be
    frozen in between, and another take over. Act inside :meth:`fenced`; or send :attr:`epoch`
    along and have the resource refuse a smaller one than it has seen, in the same transaction
    as the write.
    """

    def __init__(self, path: str, holder: Holder, tenure: Tenure | None) -> None:
        """Stand for the *tenure* at *path*, or follow *holder* without one."""
        self.path = path
        self.holder = holder
        """Who held the lease when this was made: this one itself if it is the owner."""
        self._tenure = tenure
        self._never = Lost()

    def __repr__(self) -> str:
        return f"<{self.role} of {self.path}: epoch {self.epoch}, pid {self.holder.pid}>"

    @property
    def role(self) -> str:
        """What the join made of it, ``owner`` or ``follower``; it says nothing about now."""
        return FOLLOWER if self._own() is None else OWNER

    @property
    def is_owner(self) -> bool:
        """Whether the lease is ours now, by the clock. Once false, never true again."""
        tenure = self._own()
        return tenure is not None and tenure.holds()

    @property
    def instance_id(self) -> str:
        """The holder's: unique per acquisition."""
        return self.holder.instance_id

    @property
    def epoch(self) -> int:
        """The holder's fencing token: larger than that of every acquisition before."""
        return self.holder.epoch

    @property
    def endpoint(self) -> str:
        """Where the holder serves, "" if it said nothing."""
        return self.holder.endpoint

    @property
    def lost(self) -> Lost:
        """Set when we cease to be owner against our will, a fifth of the ttl before the deadline.

        Whoever acts outside of :meth:`fenced` stops at once. Never set for a follower, and not
        after a release.
        """
        tenure = self._own()
        return self._never if tenure is None else tenure.belief.lost

    @property
    def lost_reason(self) -> str:
        """Why it was lost, in words; "" if it was not."""
        tenure = self._own()
        return "" if tenure is None else tenure.belief.reason

    def release(self) -> bool:
        """Hand over: the next join succeeds at once, with a greater epoch.

        Returns false if that could not be recorded, and the lease is free at its deadline at
        the latest; another call tries again. A follower has nothing to release: true.
        """
        tenure = self._own()
        return tenure is None or tenure.release()

    def cancel(self) -> None:
        """Stop renewing, without a release: when belief ends, ``lost`` is set."""
        tenure = self._own()
        if tenure is not None:
            tenure.cancel()

    def fenced(self, *, timeout_s: float = WAIT_S) -> Fenced:
        """Return a context in which nobody can take over, however long its body is frozen.

        Entering it yields the epoch. Keep the body short, well below the ttl: no renewal and
        nobody else gets past it, and one that is frozen inside holds up all others until it
        goes on or dies. It blocks its thread for up to *timeout_s* while others are inside.

        Entering raises:
            LeaseLost: this is not the owner (any more): do not touch the resource.
            Unavailable: somebody stayed inside for too long; nothing is lost yet.
        """
        return Fenced(self._own(), self.path, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def _own(self) -> Tenure | None:
        tenure = self._tenure
        return None if tenure is None or tenure.is_forked else tenure


class Fenced:
    """The lease's guard, held by its owner. From :meth:`Owner.fenced`."""

    def __init__(self, tenure: Tenure | None, path: str, timeout_s: float) -> None:
        """Name the *tenure* that is to be owner at *path*."""
        self._tenure = tenure
        self._path = path
        self._timeout_s = timeout_s
        self._store: Store | None = None

    def __enter__(self) -> int:
        if self._tenure is None:
            raise LeaseLost(f"{self._path} is not owned by this process", reason="not-owner")
        self._store = self._tenure.enter_fence(self._timeout_s)
        return self._tenure.belief.lease.epoch

    def __exit__(self, *_exc: object) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.leave()
