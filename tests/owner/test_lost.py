"""An owner learns in time, in every thread and on every loop, that it is owner no more."""

from __future__ import annotations

import _thread
import asyncio
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from foundation.errors import LeaseLost
from owner import join, workers
from owner import lease as rules
from owner.belief import BELIEVING, ENDED, GIVEN_UP, LOST, NEXT, RELEASED, RENEWED, Belief
from owner.boottime import Boottime
from owner.lost import Lost
from owner.timer import Timer
from tests.owner.files import change, guard_held, stored
from tests.owner.test_lease import SECOND, make
from tests.support import eventually, run_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TTL_S = 0.4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot.owner"


class Clock(Boottime):
    """A clock that the test moves."""

    def __init__(self, now_s: float) -> None:
        super().__init__(0)
        self.now_s = now_s

    def now_ns(self) -> int:
        return int(self.now_s * SECOND)


# --- the belief -----------------------------------------------------------------------------


def test_belief_ends_by_the_clock_though_no_thread_of_ours_has_run() -> None:
    clock = Clock(100)
    belief = Belief(make(), clock)
    clock.now_s = 107.999
    assert belief.holds()
    clock.now_s = 108
    assert not belief.holds()
    assert belief.lost.is_set()
    assert belief.reason == "it was not renewed in time"


def test_a_renewal_that_comes_through_too_late_revives_nothing() -> None:
    clock = Clock(100)
    belief = Belief(make(), clock)
    renewed = rules.restarted(make(), now_ns=107 * SECOND)
    clock.now_s = 108  # its write took a second
    belief.extend(renewed)
    assert not belief.holds()
    assert belief.lost.is_set()
    clock.now_s = 101
    assert not belief.holds()


def test_a_renewal_extends_what_is_believed() -> None:
    clock = Clock(100)
    belief = Belief(make(), clock)
    belief.trouble = "No space left on device"
    belief.extend(rules.restarted(make(), now_ns=107 * SECOND))
    clock.now_s = 114.9
    assert belief.holds()
    clock.now_s = 115
    assert not belief.holds()
    assert belief.reason == "it was not renewed in time"


def test_the_reason_tells_what_the_last_renewal_failed_of() -> None:
    clock = Clock(100)
    belief = Belief(make(), clock)
    belief.trouble = "No space left on device"
    clock.now_s = 200
    assert not belief.holds()
    assert belief.reason == "it was not renewed in time: No space left on device"


def test_nothing_is_told_after_a_release_and_nothing_untold_by_one() -> None:
    clock = Clock(100)
    released = Belief(make(), clock)
    released.give_up()
    clock.now_s = 200
    released.end("the watchdog was late")
    assert not released.holds()
    assert not released.lost.is_set()
    assert released.reason == ""

    lost = Belief(make(), clock)
    lost.give_up()  # its time had passed when it was given up
    assert lost.lost.is_set()


def test_every_phase_says_what_becomes_of_it() -> None:
    phases, events = {BELIEVING, RELEASED, LOST}, {RENEWED, GIVEN_UP, ENDED}
    assert set(NEXT) == {(phase, event) for phase in phases for event in events}
    for (phase, _event), after in NEXT.items():
        assert after in phases
        assert after != BELIEVING or phase == BELIEVING, "nothing revives it"


def test_a_signal_handler_may_ask_in_the_middle_of_anything() -> None:
    belief = Belief(make(), Clock(100))
    asked: list[bool] = []
    previous = signal.signal(signal.SIGUSR1, lambda *_args: asked.append(belief.holds()))
    try:
        with belief._mutex, belief.lost._mutex:
            signal.raise_signal(signal.SIGUSR1)
        assert asked == [True]
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_who_is_interrupted_in_ending_it_keeps_nobody_from_hearing_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(lost: Lost) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        fire(lost)

    fire = Lost.fire
    monkeypatch.setattr(Lost, "fire", interrupted)
    with join(path, ttl_s=TTL_S) as a:
        assert a._tenure is not None
        with pytest.raises(KeyboardInterrupt):
            a._tenure.belief.end("Ctrl-C came here")
        assert a.lost.wait(10)
        assert a.lost_reason == "Ctrl-C came here"


# --- the event ------------------------------------------------------------------------------


HANDLER = """
import asyncio, faulthandler, sys, threading
from owner import lost as module

faulthandler.dump_traceback_later(60, exit=True)  # of a thread that waits for itself

steps = 0

def step_by_step(call, before):
    "Call, and do before(number) before each instruction, as a signal handler would."
    def trace(frame, event, _argument):
        global steps
        if frame.f_code.co_filename not in (module.__file__, threading.__file__):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            before(steps)
        return trace
    global steps
    steps = 0
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)

def in_thread(lost):
    assert lost.wait()

def in_task(lost):
    asyncio.run(lost.wait_async())

for wait in in_thread, in_task:
    lost, blocked = module.Lost(), []
    threading.Timer(0.3, lambda: (blocked.append(steps), lost.fire())).start()
    step_by_step(lambda: wait(lost), lambda number: None)
    for step in range(1, blocked[0] + 1):
        lost = module.Lost()
        step_by_step(lambda: wait(lost), lambda number: number == step and lost.fire())
    print(wait.__name__, blocked[0] > 20)
"""


def test_a_signal_handler_may_set_it_at_any_step_of_a_wait() -> None:
    assert run_python(HANDLER).stdout == "in_thread True\nin_task True\n"


def test_threads_wait_for_it() -> None:
    lost = Lost()
    assert not lost.wait(0)
    told: list[bool] = []
    threads = [threading.Thread(target=lambda: told.append(lost.wait(10))) for _turn in range(3)]
    for thread in threads:
        thread.start()
    lost.fire()
    for thread in threads:
        thread.join(10)
    assert told == [True] * 3
    assert lost.wait(0)


def test_tasks_on_several_loops_wait_for_it() -> None:
    lost = Lost()
    waiting = threading.Barrier(4)
    told: list[int] = []

    async def wait(number: int) -> None:
        tasks = [asyncio.ensure_future(lost.wait_async()), asyncio.ensure_future(_plain(lost))]
        await asyncio.sleep(0)  # they run up to their wait
        await asyncio.to_thread(waiting.wait, 10)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        told.append(number)

    async def _plain(lost: Lost) -> None:
        await lost

    threads = [threading.Thread(target=lambda n=n: asyncio.run(wait(n))) for n in range(3)]
    for thread in threads:
        thread.start()
    waiting.wait(10)
    lost.fire()
    for thread in threads:
        thread.join(10)
    assert sorted(told) == [0, 1, 2]
    assert not lost._waiting


def test_a_wait_that_was_given_up_leaves_nothing_and_harms_nobody() -> None:
    lost = Lost()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lost.wait_async(), 0.01)
        assert not lost._waiting
        task = asyncio.ensure_future(lost.wait_async())
        await asyncio.sleep(0)
        assert lost._waiting
        threading.Thread(target=lost.fire).start()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lost  # at once, for it is set

    asyncio.run(give_up())
    assert not lost._waiting


def test_a_loop_that_was_closed_in_the_middle_keeps_nobody_else_waiting() -> None:
    lost = Lost()
    loop = asyncio.new_event_loop()
    task = loop.create_task(lost.wait_async())
    loop.run_until_complete(asyncio.sleep(0))
    assert lost._waiting
    loop.close()
    lost.fire()
    assert lost.wait(0)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # we know


# --- the timer ------------------------------------------------------------------------------


@pytest.fixture
def timer() -> Iterator[Timer]:
    made = Timer(Boottime.here())
    yield made
    made.close()


def test_a_timer_rings_at_its_moment_and_at_once_if_that_has_passed(timer: Timer) -> None:
    clock = Boottime.here()
    at_ns = clock.now_ns() + 30_000_000
    timer.set(at_ns)
    timer.wait()
    assert at_ns <= clock.now_ns()
    for passed_ns in (at_ns, 0, -5):
        timer.set(passed_ns)
        timer.wait()


def test_a_timer_rings_at_the_moment_set_last_whoever_waits_already(timer: Timer) -> None:
    clock = Boottime.here()
    rung = threading.Event()

    def wait() -> None:
        timer.wait()
        rung.set()

    timer.set(clock.now_ns() + 3600 * SECOND)
    waits = threading.Thread(target=wait)
    waits.start()
    timer.set(clock.now_ns() + 20_000_000)
    timer.clear()
    assert not rung.wait(0.1)
    timer.set(clock.now_ns())
    assert rung.wait(10)
    waits.join()


# --- an owner's own ---------------------------------------------------------------------------


def test_it_is_told_before_the_deadline_and_hands_over_after(path: Path) -> None:
    a = join(path, ttl_s=1.5)  # 0.3 s are left to look, on a machine that stalls
    with guard_held(path):
        assert a.lost.wait(10)
        assert Boottime.here().now_ns() < stored(path).deadline_ns
        assert not a.is_owner
        assert a.lost_reason.startswith("it was not renewed in time: ")
    assert a.release()
    with join(path, ttl_s=TTL_S) as b:
        assert b.epoch == 2
    assert a.lost.is_set()


def test_it_is_told_on_its_event_loop(path: Path) -> None:
    async def run() -> None:
        a = join(path, ttl_s=TTL_S)
        a.cancel()
        assert a.is_owner, "not renewed, but not over yet"
        await asyncio.wait_for(a.lost.wait_async(), 10)
        assert not a.is_owner
        assert a.lost_reason == "it was not renewed in time: renewing was cancelled"

    asyncio.run(run())


def test_without_trouble_it_is_never_told(path: Path) -> None:
    with join(path, ttl_s=1.0, renew_interval_s=0.05) as a, join(path, ttl_s=TTL_S) as b:
        assert not a.lost.wait(1.2)
        assert a.is_owner
        assert not b.lost.is_set()
    assert not a.lost.wait(1.0)
    assert a.lost_reason == ""


def test_a_renewal_that_failed_is_tried_again_before_belief_ends(path: Path) -> None:
    with join(path, ttl_s=1.0) as a:
        first = stored(path).deadline_ns
        with guard_held(path):  # over the moment of the renewal
            assert not a.lost.wait(0.5)
        eventually(lambda: stored(path).deadline_ns > first)
        assert a.is_owner
        assert not a.lost.is_set()


def test_one_that_was_superseded_learns_it_at_its_next_renewal(path: Path) -> None:
    with join(path, ttl_s=10, renew_interval_s=0.05) as a:
        with guard_held(path):
            change(path, epoch=5, instance_id="another")
        assert a.lost.wait(10)
        assert "superseded by epoch 5" in a.lost_reason
        with pytest.raises(LeaseLost):
            a.fenced().__enter__()


def test_a_release_at_the_very_end_of_belief_tells_it_before_or_never(path: Path) -> None:
    for turn in range(12):
        a = join(path, ttl_s=0.1)
        a.cancel()
        assert a._tenure is not None
        ends_ns = a._tenure.belief.lease.belief_ends_ns + (turn - 6) * 50_000
        clock = Boottime.here()
        while clock.now_ns() < ends_ns:
            pass
        a.release()
        told = a.lost.is_set()
        time.sleep(0.002)
        assert a.lost.is_set() == told


def test_a_watchdog_that_fails_ends_the_belief(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_timer: Timer) -> None:
        raise OSError(9, "Bad file descriptor")

    hooked: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", hooked.append)
    monkeypatch.setattr(workers, "_idle", [])
    monkeypatch.setattr(Timer, "wait", fails)
    monkeypatch.setattr(workers, "start_new_thread", held := Held())
    with join(path, ttl_s=60) as a:
        held.start()
        assert a.lost.wait(10)
        assert "watchdog failed" in a.lost_reason
        eventually(lambda: len(hooked) == 2)


class Held:
    """Starts threads when it is told to."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def __call__(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._calls.append((call, arguments))

    def start(self) -> None:
        for call, arguments in self._calls:
            _thread.start_new_thread(call, arguments)
