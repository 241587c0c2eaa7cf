"""The threads behind leases: one lease's never wait for another's, and none is left over."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from owner import join, workers
from owner import store as owner_store
from owner.boottime import Boottime
from owner.workers import IDLE_MOST, Duty, Worker
from tests.owner.files import descriptors, dismiss_idle, guard_held, stored
from tests.support import eventually, run_python

if TYPE_CHECKING:
    from collections.abc import Iterator

TTL_S = 0.6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot.owner"


@pytest.fixture(autouse=True)
def none_idle() -> Iterator[None]:
    """Begin and end without a thread that sleeps."""
    dismiss_idle()
    before = tasks()
    yield

    def all_ended() -> bool:
        dismiss_idle()  # one that was in a renewal may come late
        return tasks() <= before

    eventually(all_ended)


def tasks() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def switches(of: set[str]) -> dict[str, str]:
    """Return how often each of the threads *of* ours has gone to sleep."""
    return {
        task: line
        for task in of
        for line in Path(f"/proc/self/task/{task}/status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    }


def is_asleep(task: str) -> bool:
    return "State:\tS" in Path(f"/proc/self/task/{task}/status").read_text()


def test_a_lease_released_before_its_first_renewal_wakes_no_thread(path: Path) -> None:
    before = tasks()
    join(path, ttl_s=0.3).release()
    sleeping = tasks() - before
    assert len(sleeping) == 2
    eventually(lambda: all(map(is_asleep, sleeping)))
    slept = switches(sleeping)
    for _turn in range(20):
        join(path, ttl_s=0.3).release()
    assert not threading.Event().wait(0.5)  # past the moments at which they would have rung
    assert switches(sleeping) == slept
    assert tasks() - before == sleeping


def test_a_thousand_joins_leave_two_threads_and_their_timers(path: Path) -> None:
    join(path, ttl_s=10).release()
    threads, open_before = tasks(), descriptors()
    for turn in range(1000):
        with join(path.with_suffix(f".{turn % 7}"), ttl_s=10) as a:
            assert a.is_owner
    assert tasks() <= threads
    assert descriptors() <= open_before


def test_after_many_at_once_few_threads_are_kept(tmp_path: Path) -> None:
    threads, open_before = tasks(), descriptors()
    many = [join(tmp_path / f"{number}.owner", ttl_s=TTL_S) for number in range(20)]
    assert len(tasks() - threads) == 40
    assert not many[0].lost.wait(2 * TTL_S), "each is renewed"
    assert all(one.is_owner for one in many)
    assert all(one.release() for one in many)
    eventually(lambda: len(tasks() - threads) == IDLE_MOST)
    eventually(lambda: len(workers._idle) == IDLE_MOST)
    eventually(lambda: descriptors() <= open_before)


def test_a_renewal_that_is_stuck_delays_no_other_and_its_own_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unstuck = threading.Event()
    stuck: list[str] = []

    def hit(point: str) -> None:
        if point == "owner.renew.guarded" and not stuck:
            stuck.append(point)
            unstuck.wait(30)

    monkeypatch.setattr(owner_store, "hit", hit)
    with join(tmp_path / "stuck.owner", ttl_s=1.5, renew_interval_s=0.05) as a:
        eventually(lambda: bool(stuck))
        others = [join(tmp_path / f"{number}.owner", ttl_s=TTL_S) for number in range(5)]
        assert a.lost.wait(10)
        assert Boottime.here().now_ns() < stored(tmp_path / "stuck.owner").deadline_ns
        assert not others[0].lost.wait(TTL_S), "they are renewed"
        assert [one.is_owner for one in others] == [True] * 5
        assert all(one.release() for one in others)
        # What is stuck serves nobody else; a next lease has threads of its own.
        with join(tmp_path / "next.owner", ttl_s=TTL_S) as b:
            assert not b.lost.wait(1.5 * TTL_S)
            assert b.is_owner
        unstuck.set()


def test_a_lease_released_in_its_renewal_lends_that_thread_to_nobody_before_it_is_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unstuck, stuck = threading.Event(), threading.Event()

    def hit(point: str) -> None:
        if point == "owner.renew.recorded":
            stuck.set()
            assert unstuck.wait(30)

    a = join(path, ttl_s=10, renew_interval_s=0.02)
    renewal = a._tenure._renewal  # type: ignore[union-attr]
    with monkeypatch.context() as held:
        held.setattr(owner_store, "hit", hit)
        assert stuck.wait(10)
        released = threading.Thread(target=a.release)
        released.start()
        eventually(lambda: not a.is_owner)
        with join(path.with_suffix(".other"), ttl_s=10) as b:
            assert renewal not in (b._tenure._renewal, b._tenure._watchdog)  # type: ignore[union-attr]
        unstuck.set()
        released.join(10)
    eventually(lambda: renewal in workers._idle)
    assert workers._idle.count(renewal) == 1


def test_threads_of_many_short_leases_at_once_mix_nothing_up(tmp_path: Path) -> None:
    """With moments that come while the lease is handed over, and others while it is not."""
    ends_s = time.monotonic() + 1.5
    lost: list[str] = []
    turns = [0] * 4

    def work(number: int) -> None:
        while time.monotonic() < ends_s:
            turns[number] += 1
            with join(tmp_path / f"{number}.owner", ttl_s=5, renew_interval_s=0.0005) as a:
                for _turn in range(turns[number] % 5):
                    with a.fenced():
                        pass
                if not a.is_owner:
                    lost.append(a.lost_reason)
            if turns[number] % 3 == 0:
                a.cancel()
            if a.lost.is_set():
                lost.append(a.lost_reason)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not lost
    assert min(turns) > 3
    eventually(lambda: len(workers._idle) == IDLE_MOST)
    assert len(set(map(id, workers._idle))) == IDLE_MOST


def test_a_thread_whose_duty_fails_tells_it_and_serves_nobody_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooked: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", hooked.append)
    told: list[BaseException] = []

    def ring() -> int | None:
        raise ZeroDivisionError

    clock = Boottime.here()
    worker = workers.hire(clock)
    duty = Duty(ring, told.append)
    worker.take(duty)
    worker.call_at(clock.now_ns())
    eventually(lambda: bool(hooked))
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert worker.has_ended
    worker.end(duty)
    worker.dismiss()
    assert worker not in workers._idle
    with pytest.raises(RuntimeError, match="ended"):
        worker.call_at(0)


def test_a_thread_that_ended_in_its_sleep_is_not_hired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.unraisablehook", lambda _trouble: None)
    clock = Boottime.here()
    dead = Worker(clock)
    failing = Duty(lambda: 1 // 0, lambda _error: None)
    dead.take(failing)
    dead.call_at(0)
    eventually(lambda: dead.has_ended)
    dead.rest()
    alive = workers.hire(clock)
    assert alive is not dead
    alive.rest()


def test_a_moment_set_again_while_it_is_called_counts() -> None:
    clock = Boottime.here()
    called = threading.Semaphore(0)
    moments = iter((clock.now_ns(), clock.now_ns() + 10_000_000, None))

    def ring() -> int | None:
        called.release()
        return next(moments)

    worker = workers.hire(clock)
    worker.take(Duty(ring, lambda _error: None))
    worker.call_at(0)
    for _turn in range(3):
        assert called.acquire(timeout=10)
    eventually(lambda: worker in workers._idle)
    assert not called.acquire(timeout=0.05)


FORKS = """
import os, sys, time
from owner import join
path = sys.argv[1]
join(path, ttl_s=10).release()  # its threads sleep on
held = join(path + ".held", ttl_s=0.6)
child = os.fork()
if child == 0:
    status = 1
    try:
        assert not held.is_owner
        with join(path, ttl_s=0.6) as a:
            assert a.is_owner and a.epoch == 2, a
            assert not a.lost.wait(1.2), "it is renewed by threads of its own"
            assert a.is_owner
            a.cancel()
            assert a.lost.wait(10)
        assert join(path + ".held", ttl_s=1).role == "follower"
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
assert held.is_owner
with join(path, ttl_s=0.6) as b:
    assert b.epoch == 3
    assert not b.lost.wait(0.8)
    assert b.is_owner and held.is_owner
print("right")
"""


def test_a_forked_child_owns_with_threads_of_its_own(path: Path) -> None:
    assert run_python(FORKS, str(path)).stdout == "right\n"


ENDS = """
import sys, threading
from owner import join, store
path, how = sys.argv[1:]
a = join(path, ttl_s=30, renew_interval_s=0.05)
if how == "idle":
    a.release()
elif how == "stuck":
    reached = threading.Event()
    def hit(point):
        if point == "owner.renew.guarded":
            reached.set()
            threading.Event().wait()
    store.hit = hit
    assert reached.wait(10)
print(a.is_owner)
"""


@pytest.mark.parametrize(("how", "is_owner"), [("idle", False), ("held", True), ("stuck", True)])
def test_a_process_ends_whatever_its_threads_are_in(
    path: Path, how: str, *, is_owner: bool
) -> None:
    done = run_python(ENDS, str(path), how)
    assert (done.stdout, done.stderr) == (f"{is_owner}\n", "")
    with join(path, ttl_s=10) as next_one, guard_held(path.with_suffix(".other")):
        assert next_one.epoch == 2
