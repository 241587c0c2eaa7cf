"""Six schedules that give a lease two owners, or none: each against the usual one, then ours.

Nothing is left to luck: a gate holds an instance at the very step.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation.errors import LeaseLost, Unavailable
from owner import FOLLOWER, OWNER, Owner, join, joining
from owner import store as owner_store
from tests.owner.files import guard_held
from tests.owner.instances import Instance
from tests.owner.naive import Held, NaiveLease, NotOwned
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.faults]

TTL_S = 0.4


class Gate:
    """Holds whoever gets to *point*, once, until it is opened."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, point: str) -> None:
        if point == self.point and not self.reached.is_set():
            self.reached.set()
            assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()


class Background:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except (Held, NotOwned) as error:
            self.result = error

    def end(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot.owner"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate in ours; its point is set by the test, and it is open at the end."""
    made = Gate("")
    monkeypatch.setattr(owner_store, "hit", made)
    monkeypatch.setattr(joining, "WAIT_S", 0.05)
    yield made
    made.open()


def age(lock: Path) -> None:
    """Let ten seconds pass for *lock*."""
    os.utime(lock, (time.time() - 10, time.time() - 10))


def challenge(path: Path) -> str:
    """Join where nobody may become owner; return what came of it."""
    try:
        role = join(path, ttl_s=TTL_S).role
    except Unavailable as error:
        return error.reason
    assert role == FOLLOWER, "two owners"
    return role


# --- D1: two waiters break the lock of one that was killed ---------------------------------


def test_naive_two_waiters_break_one_dead_lock_and_both_own(path: Path) -> None:
    path.with_suffix(".lockdir").mkdir()  # whoever made it was killed
    age(path.with_suffix(".lockdir"))
    slow, fast_inside = Gate("lock.found-stale"), Gate("acquire.read")
    b = NaiveLease(path, 10, at=slow)
    c = NaiveLease(path, 10, at=fast_inside)
    b_joins = Background(b.acquire)
    assert slow.reached.wait(10)  # b is about to break the lock
    c_joins = Background(c.acquire)
    assert fast_inside.reached.wait(10)  # c broke it, made its own and found no lease
    slow.open()
    b_joins.end()  # b broke the lock of c
    fast_inside.open()
    c_joins.end()
    assert b.believes()
    assert c.believes()


def test_ours_a_killed_holder_of_the_guard_leaves_nothing_to_break(path: Path) -> None:
    with Instance(path, HUB_FAILPOINT="owner.acquire.guarded") as a:
        a.tell("become(10)")
        assert a.wait() == -9
    with Instance(path) as b, Instance(path) as c:
        for one in (b, c):
            one.tell("become(10)")
        assert sorted(one.answer() for one in (b, c)) == [(FOLLOWER, 1), (OWNER, 1)]


# --- D2: frozen in a renewal, between the check and the write --------------------------------


def test_naive_a_renewal_thawed_after_a_takeover_takes_the_lease_back(path: Path) -> None:
    frozen = Gate("writing")
    a = NaiveLease(path, TTL_S)
    a.acquire()
    a._at = frozen
    a_renews = Background(a.renew)
    assert frozen.reached.wait(10)
    age(a.lock)
    b = NaiveLease(path, 10, wall_s=lambda: time.time() + TTL_S)
    b.acquire()
    frozen.open()
    assert a_renews.end() is None  # "renewed"
    assert b.believes()
    assert a.token in path.read_text()  # and the file says a
    a.renew()
    assert a.believes()
    assert b.believes()


def test_ours_nobody_takes_over_from_a_frozen_renewal_and_it_revives_nothing(
    path: Path, gate: Gate
) -> None:
    gate.point = "owner.renew.written"
    with join(path, ttl_s=TTL_S) as a:
        assert gate.reached.wait(10)
        assert a.lost.wait(10)  # its own clock told it
        eventually(lambda: challenge(path) == "guard-busy")  # past its deadline, too
        assert not a.is_owner
        gate.open()
        b = joined_in_the_end(path)
        assert (b.epoch, a.is_owner, b.is_owner) == (2, False, True)
        b.release()


def joined_in_the_end(path: Path) -> Owner:
    """Join until that makes an owner."""
    made: list[Owner] = []

    def is_owner() -> bool:
        try:
            made[:] = [join(path, ttl_s=10)]
        except Unavailable:
            return False
        return made[0].role == OWNER

    eventually(is_owner)
    return made[0]


# --- D3: frozen in a release, between the comparison and the removal -------------------------


def test_naive_a_release_thawed_after_a_takeover_removes_the_others_lease(path: Path) -> None:
    frozen = Gate("release.compared")
    a = NaiveLease(path, TTL_S, at=frozen)
    a.acquire()
    a_releases = Background(a.release)
    assert frozen.reached.wait(10)
    age(a.lock)
    b = NaiveLease(path, 10, wall_s=lambda: time.time() + TTL_S)
    b.acquire()
    frozen.open()
    a_releases.end()
    c = NaiveLease(path, 10)
    c.acquire()
    assert b.believes()
    assert c.believes()


@pytest.mark.parametrize("step", ["guarded", "copied", "written"])
def test_ours_nobody_gets_past_a_frozen_release(path: Path, gate: Gate, step: str) -> None:
    gate.point = f"owner.release.{step}"
    a = join(path, ttl_s=TTL_S)
    a_releases = Background(a.release)
    assert gate.reached.wait(10)
    assert not a.is_owner
    if step != "guarded":
        eventually(lambda: challenge(path) == "guard-busy")
    gate.open()
    assert a_releases.end() is True
    with joined_in_the_end(path) as b, join(path, ttl_s=10) as c:
        assert (b.role, b.epoch) == (OWNER, 2)
        assert (c.role, c.epoch) == (FOLLOWER, 2)
    assert not a.lost.is_set()


# --- D4: the challenger cannot read the record ----------------------------------------------


def test_naive_one_failed_read_steals_a_living_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = NaiveLease(path, 60), NaiveLease(path, 60)
    a.acquire()

    def fails() -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(b, "_content", fails)
    b.acquire()
    assert a.believes()
    assert b.believes()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM])
def test_ours_who_cannot_read_the_record_does_not_become_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_arguments: object) -> bytes:
        raise OSError(number, os.strerror(number))

    with join(path, ttl_s=60) as a:
        with monkeypatch.context() as broken:
            broken.setattr(owner_store, "read_bounded", fails)
            assert challenge(path) == "lease-io"
        with monkeypatch.context() as broken:
            broken.setattr(os, "pread", fails)
            broken.setattr(joining, "_seen", lambda *_arguments: None)  # as if it had expired
            assert challenge(path) == "lease-io"
        assert a.is_owner
        assert join(path, ttl_s=60).role == FOLLOWER


# --- D5: the wall clock jumps ---------------------------------------------------------------


def test_naive_a_clock_set_forward_gives_the_lease_two_owners(path: Path) -> None:
    a = NaiveLease(path, 60)
    a.acquire()
    b = NaiveLease(path, 60, wall_s=lambda: time.time() + 3600)
    b.acquire()
    assert a.believes()
    assert b.believes()


def test_naive_a_clock_set_back_keeps_a_dead_owners_lease(path: Path) -> None:
    NaiveLease(path, 0.05).acquire()
    b = NaiveLease(path, 0.05, wall_s=lambda: time.time() - 3600)
    time.sleep(0.06)
    with pytest.raises(Held):
        b.acquire()


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_ours_the_wall_clock_decides_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    real_s, real_ns, real_clock_ns = time.time, time.time_ns, time.clock_gettime_ns

    def clock_ns(which: int) -> int:
        jump_ns = jump_s * 10**9 if which == time.CLOCK_REALTIME else 0
        return real_clock_ns(which) + jump_ns

    a = join(path, ttl_s=1.0, renew_interval_s=0.05)
    with monkeypatch.context() as jumped:
        jumped.setattr(time, "time", lambda: real_s() + jump_s)
        jumped.setattr(time, "time_ns", lambda: real_ns() + jump_s * 10**9)
        jumped.setattr(time, "clock_gettime_ns", clock_ns)
        assert join(path, ttl_s=TTL_S).role == FOLLOWER
        assert not a.lost.wait(1.2)  # it is renewed
        a.cancel()
        assert a.lost.wait(10)
        assert joined_in_the_end(path).release()


# --- D6: the renewal blocks -----------------------------------------------------------------


def test_naive_a_blocked_renewal_is_noticed_after_the_lease_has_expired(path: Path) -> None:
    blocked = Gate("renew.checked")
    a = NaiveLease(path, TTL_S)
    a.acquire()
    expires_s = time.monotonic() + TTL_S
    a._at = blocked
    a_renews = Background(a.renew_loop_once)
    assert blocked.reached.wait(10)
    eventually(lambda: time.monotonic() > expires_s)
    assert a.lost_at_s is None  # expired, and nobody has told its owner
    blocked.open()
    a_renews.end()


def test_ours_a_blocked_renewal_is_noticed_before_the_deadline(path: Path) -> None:
    with join(path, ttl_s=1.5) as a:  # 0.3 s are left to look, on a machine that stalls
        with guard_held(path):
            assert a.lost.wait(10)
            deadline_ns = owner_store.read_record(str(path)).deadline_ns  # type: ignore[union-attr]
            assert time.clock_gettime_ns(time.CLOCK_BOOTTIME) < deadline_ns
            assert "renew" in a.lost_reason
            with pytest.raises(LeaseLost):
                a.fenced().__enter__()
        assert not a.is_owner
