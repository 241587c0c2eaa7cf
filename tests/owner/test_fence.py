"""Acting as owner and being owner are one thing inside a fence, and two without one."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from foundation.errors import LeaseLost, Unavailable
from owner import FOLLOWER, OWNER, join, joining
from owner import inspect as inspect_lease
from tests.owner.files import change, descriptors, guard_held, stored
from tests.owner.instances import Instance
from tests.support import eventually, is_gone, run_python

if TYPE_CHECKING:
    from pathlib import Path

TTL_S = 0.4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot.owner"


def test_only_the_owner_gets_in_and_learns_its_epoch(path: Path) -> None:
    with join(path, ttl_s=10) as a:
        with a.fenced() as epoch:
            assert epoch == a.epoch == 1
        with pytest.raises(LeaseLost, match="not owned by this process") as error:
            join(path, ttl_s=10).fenced().__enter__()
        assert error.value.reason == "not-owner"
        assert error.value.exit_code == 100
    with pytest.raises(LeaseLost, match="released"):
        a.fenced().__enter__()


def test_a_body_that_fails_lets_go(path: Path) -> None:
    before = descriptors()
    with join(path, ttl_s=10) as a:
        with pytest.raises(ZeroDivisionError), a.fenced():
            raise ZeroDivisionError
        with a.fenced(timeout_s=0):
            pass
    eventually(lambda: descriptors() <= before)


def test_nobody_takes_over_while_the_body_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "WAIT_S", 0.05)
    a = join(path, ttl_s=TTL_S)
    with a.fenced():
        assert a.lost.wait(10)  # the body is longer than the lease
        eventually(lambda: inspect_lease(path) is None)
        with pytest.raises(Unavailable) as error:
            join(path, ttl_s=TTL_S)
        assert error.value.reason == "guard-busy"
    with join(path, ttl_s=TTL_S) as b:
        assert (b.role, b.epoch) == (OWNER, 2)


def test_a_fence_in_a_fence_says_so_instead_of_hanging(path: Path) -> None:
    with join(path, ttl_s=10) as a:
        with a.fenced(), pytest.raises(Unavailable, match="this very process") as error:
            a.fenced(timeout_s=0.02).__enter__()
        assert error.value.reason == "guard-busy"
        assert a.is_owner


def test_who_is_in_the_way_is_named(path: Path) -> None:
    with join(path, ttl_s=10) as a, Instance(path) as b:
        assert b.become() == (FOLLOWER, 1)
        b.ask("__import__('fcntl').flock(f := open(path + '.lock', 'a'), 2)")
        with pytest.raises(Unavailable, match=f"pid {b.pid}: if it is stopped, `kill -CONT"):
            a.fenced(timeout_s=0.02).__enter__()


def test_a_fence_waits_until_belief_ends_and_not_longer(path: Path) -> None:
    with join(path, ttl_s=TTL_S) as a, guard_held(path):
        with pytest.raises(LeaseLost, match="not renewed in time"):
            a.fenced(timeout_s=60).__enter__()
        assert a.lost.is_set()


def test_one_that_was_superseded_is_kept_out_and_told(path: Path) -> None:
    with join(path, ttl_s=3600) as a:
        change(path, epoch=5, instance_id="another")
        assert a.is_owner, "it has not looked yet"
        with pytest.raises(LeaseLost, match="superseded by epoch 5"):
            a.fenced().__enter__()
        assert a.lost.is_set()
        assert not a.is_owner


def test_fence_upon_fence_does_not_keep_the_lease_from_being_renewed(path: Path) -> None:
    with join(path, ttl_s=1.0, renew_interval_s=0.05) as a:
        first = stored(path).deadline_ns
        while stored(path).deadline_ns < first + 1e9:
            with a.fenced():  # no pause in which the renewal could get in
                pass
        assert a.is_owner


def test_threads_of_one_owner_take_turns(path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _turn in range(50):
            with a.fenced(timeout_s=30):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    with join(path, ttl_s=60) as a:
        threads = [threading.Thread(target=work) for _turn in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
    assert most == [1]


def test_to_look_and_then_to_act_is_not_safe_and_the_fence_is(path: Path) -> None:
    with Instance(path) as a, Instance(path) as b:
        assert a.become(TTL_S) == (OWNER, 1)
        assert a.ask("o.is_owner") is True  # it looked; and now, before it acts:
        a.freeze()
        b.ask("take_over(10) > 0")
        writes = [b.ask("o.epoch")]
        a.thaw()
        writes.append(a.ask("o.epoch"))  # it acts on what it had seen: a stale write
        assert writes == [2, 1]
        assert a.ask("attempt(o.fenced().__enter__)") == ("LeaseLost", "not-owner")
        assert a.ask("o.lost.wait(10), o.is_owner") == (True, False)
        assert b.ask("o.is_owner") is True


# --- forked children ------------------------------------------------------------------------

FORKS = """
import os, sys
from owner import join
from foundation.errors import LeaseLost
path, inside = sys.argv[1], sys.argv[2] == "inside"
a = join(path, ttl_s=60)
before = set(os.listdir("/proc/self/fd"))
fence = a.fenced()
if inside:
    fence.__enter__()
pid = os.fork()
if pid == 0:
    status = 1
    try:
        assert not a.is_owner and a.role == "follower"
        assert not a.lost.is_set()
        for call in (a.fenced().__enter__, fence.__enter__):
            try:
                call()
            except LeaseLost as error:
                assert error.reason == "not-owner", error
            else:
                raise AssertionError("a child got in")
        fence.__exit__(None, None, None)  # the parent's stays locked
        a.cancel()
        assert a.release()
        names = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                 if os.path.lexists(f"/proc/self/fd/{fd}")}
        assert not any("lock" in name or "timerfd" in name for name in names), names
        assert join(path, ttl_s=60).role == "follower"
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
if inside:
    import fcntl
    with open(path + ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            raise AssertionError("the child unlocked its parent's guard")
    fence.__exit__(None, None, None)
assert a.is_owner
with a.fenced():
    pass
assert a.release()
print("right")
"""


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_forked_child_is_not_the_owner_and_takes_nothing_from_it(path: Path, where: str) -> None:
    assert run_python(FORKS, str(path), where).stdout == "right\n"


OUTLIVES = """
import os, sys
from owner import join
a = join(sys.argv[1], ttl_s=60)
a.fenced().__enter__()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(write, b"x")
    os.close(1), os.close(2)
    import signal
    signal.pause()
os.read(read, 1)
print(pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.faults
def test_a_child_that_outlives_its_parent_keeps_no_guard(path: Path) -> None:
    done = run_python(OUTLIVES, str(path), check=False)
    child = int(done.stdout)
    try:
        assert done.returncode == -9
        assert not is_gone(child)
        with join(path, ttl_s=10) as b:
            assert (b.role, b.epoch) == (OWNER, 2)
    finally:
        os.kill(child, 9)
