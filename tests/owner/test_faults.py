"""Processes that are killed, frozen, starved or elsewhere: never two owners, and never none."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.process import boot_id
from owner import FOLLOWER, OWNER, join, store
from owner import inspect as inspect_lease
from tests.owner.files import guard_held, guard_of, stored, syncs_told
from tests.owner.instances import Instance
from tests.support import CODE, eventually, run_python

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.faults]

TTL_S = 0.4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot.owner"


def can(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


PID_NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--kill-child", "--mount-proc"]
TIME_NAMESPACE = ["unshare", "--user", "--map-root-user", "--time", "--boottime"]
MOUNT_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


# --- killed ---------------------------------------------------------------------------------


def test_a_killed_owner_is_taken_over_at_once(path: Path) -> None:
    for turn in range(1, 4):
        with Instance(path) as a:
            assert a.become(3600) == (OWNER, turn)
            assert join(path, ttl_s=3600).role == FOLLOWER
            a.kill()  # a zombie is dead, too
            with join(path, ttl_s=3600) as b:
                assert (b.role, b.epoch) == (OWNER, turn + 1)
        guard_of(path).write_bytes(b"")  # the record alone knows it as well
        path.write_bytes(
            path.read_bytes().replace(b'"epoch":%d' % (turn + 1), b'"epoch":%d' % turn)
        )


STEPS = {"guarded", "copied", "reserved", "written", "recorded"}


def test_every_step_at_which_one_can_be_killed_is_known() -> None:
    source = Path(store.__file__).read_text()
    assert set(re.findall(r"hit\(f\"owner\.\{self\._act\}\.(\w+)\"\)", source)) == STEPS


@pytest.mark.parametrize("act", ["acquire", "renew", "release", "fence"])
@pytest.mark.parametrize("step", [*sorted(STEPS), "copied@2"])
def test_killed_at_any_step_the_next_becomes_owner_at_once(path: Path, act: str, step: str) -> None:
    point = f"owner.{act}.{step}"
    if point == "owner.release.copied@2":
        pytest.skip("a release writes once")
    if step == "reserved" and act != "acquire":
        pytest.skip("only an acquisition is synced")
    join(path, ttl_s=10).release()
    with Instance(path, HUB_FAILPOINT=point) as a:
        if act == "fence":
            a.tell("become(3600, renew_interval_s=0.001) and fence_on()")
        elif act == "release":
            a.tell("become(3600) and o.release()")
        else:
            a.tell("become(10, renew_interval_s=0.05) and o.lost.wait(30)")
        assert a.wait() == -9
    with join(path, ttl_s=10) as b:
        assert b.role == OWNER
        assert b.epoch >= (2 if point == "owner.acquire.guarded" else 3)
        assert sorted(os.listdir(path.parent)) == ["slot.owner", "slot.owner.lock"]
        assert join(path, ttl_s=10).role == FOLLOWER
    assert inspect_lease(path) is None


def synced_by(path: Path, act: Callable[[], object]) -> list[str]:
    """Return what *act* syncs, in order."""
    synced: list[str] = []
    with syncs_told(synced.append):
        act()
    return [{str(path.parent): "name", str(guard_of(path)): "content"}[one] for one in synced]


@pytest.mark.parametrize("step", ["guarded", "copied", "reserved", "copied@2", "written"])
@pytest.mark.parametrize("guard", ["new", "removed"])
def test_killed_before_the_guards_name_was_synced_or_after_it_is_synced_by_the_next(
    path: Path, guard: str, step: str
) -> None:
    def become() -> None:
        with join(path, ttl_s=10) as a:
            assert a.role == OWNER

    if guard == "removed":
        become()
        guard_of(path).unlink()
    with Instance(path, HUB_FAILPOINT=f"owner.acquire.{step}") as a:
        a.tell("become(10)")
        assert a.wait() == -9
    assert synced_by(path, become) == ["content", "name"]
    assert synced_by(path, become) == ["content"]


def test_the_name_of_a_guard_that_its_owner_makes_anew_is_synced_before_it_looks_old(
    path: Path,
) -> None:
    a = join(path, ttl_s=10)
    guard_of(path).unlink()
    assert synced_by(path, a.release) == ["name"], "as by a renewal"
    assert synced_by(path, join(path, ttl_s=10).release) == []


# --- frozen ---------------------------------------------------------------------------------


def test_frozen_beyond_its_ttl_it_thaws_as_nobody(path: Path) -> None:
    with Instance(path) as a, Instance(path) as b:
        assert a.become(TTL_S) == (OWNER, 1)
        with guard_held(path):  # not in a renewal: nobody would get past that
            a.freeze()
        assert b.ask(f"take_over({TTL_S})") > 0
        a.thaw()
        # Its first look at anything after the thaw already knows.
        assert a.ask("o.is_owner, o.lost.wait(10), o.lost.is_set()") == (False, True, True)
        assert b.ask("o.is_owner, o.epoch") == (True, 2)
        assert a.become(TTL_S) == (FOLLOWER, 2)


STALE = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from foundation.errors import HubError
from owner import join
path, ends_s = sys.argv[2], float(sys.argv[3])
while time.monotonic() < ends_s:
    try:
        with join(path, ttl_s=0.1) as me:
            turns = 0
            while me.is_owner and turns < 200 and time.monotonic() < ends_s:
                turns += 1
                with me.fenced() as epoch:
                    fd = os.open(path + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    os.write(fd, b"%d %d\\n" % (epoch, os.getpid()))
                    os.close(fd)
            if me.role == "follower":
                time.sleep(0.002)
    except HubError:
        time.sleep(0.002)
"""


@pytest.mark.slow
def test_a_resource_behind_the_fence_sees_no_stale_write(path: Path) -> None:
    """Three that are stopped at random: every write is of the newest epoch there was."""
    import time  # noqa: PLC0415

    chance = random.Random(4)
    ends_s = time.monotonic() + 2.5
    workers = [
        subprocess.Popen([sys.executable, "-c", STALE, CODE, path, str(ends_s)]) for _turn in "abc"
    ]
    try:
        while time.monotonic() < ends_s:
            worker = chance.choice(workers)
            os.kill(worker.pid, 19)
            time.sleep(chance.uniform(0, 0.25))
            os.kill(worker.pid, 18)
            time.sleep(chance.uniform(0, 0.05))
        assert [worker.wait(20) for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    lines = Path(f"{path}.log").read_text().splitlines()
    writes = [tuple(map(int, line.split())) for line in lines]
    epochs = [epoch for epoch, _pid in writes]
    assert epochs == sorted(epochs), "a stale write"
    writers = {epoch: {pid for other, pid in writes if other == epoch} for epoch in set(epochs)}
    assert all(len(pids) == 1 for pids in writers.values()), "two owners of one epoch"
    assert len({pid for _epoch, pid in writes}) > 1, "nobody was ever taken over"


# --- starved --------------------------------------------------------------------------------


def test_an_owner_without_descriptors_is_told_before_its_deadline(path: Path) -> None:
    with Instance(path) as a:
        assert a.become(TTL_S) == (OWNER, 1)
        a.ask("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))")
        assert a.ask("o.lost.wait(10), o.is_owner") == (True, False)
        assert a.ask("o.lost_reason").endswith("cannot be told or recorded now")
        assert "Too many open files" in a.ask("o.lost_reason")
        assert a.ask("o.release()") is False
        a.ask("resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))")
        assert a.ask("o.release()") is True
    with join(path, ttl_s=10) as b:
        assert b.epoch == 2


def test_descriptors_that_come_back_in_time_save_the_lease(path: Path) -> None:
    with Instance(path) as a:
        assert a.become(10, renew_interval_s=0.05) == (OWNER, 1)
        a.ask("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))")
        eventually(lambda: "Too many" in a.ask("o._tenure.belief.trouble"))
        a.ask("resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))")
        first = stored(path).deadline_ns
        eventually(lambda: stored(path).deadline_ns > first)
        assert a.ask("o.is_owner, o.lost.is_set()") == (True, False)


@pytest.mark.parametrize("asks", ["the record", "the guard"])
def test_a_challenger_without_descriptors_steals_nothing(path: Path, asks: str) -> None:
    """With any number of descriptors left: each call that needs one fails once."""
    with join(path, ttl_s=3600) as a, Instance(path) as b:
        assert b.ask("join(path + '.other', ttl_s=10).release()")  # what is learned once
        if asks == "the guard":
            path.unlink()
        outcomes = []
        for left in range(12):
            b.ask(f"resource.setrlimit(resource.RLIMIT_NOFILE, ({3 + left}, 4096))")
            outcomes.append(b.ask("attempt(lambda: become(3600))"))
        failed = {("Unavailable", "lease-io"), ("Unavailable", "clock")}
        assert set(outcomes) <= {(FOLLOWER, 1), *failed}
        assert outcomes[0] in failed
        assert outcomes[-1] == (FOLLOWER, 1)
        assert a.is_owner


FULL = r"""
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
place = sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", place], check=True)
from foundation.errors import Unavailable
from owner import join, inspect
path = place + "/slot.owner"
a = join(path, ttl_s=0.6)
filler = os.open(place + "/filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, b"x" * 4096)
except OSError as error:
    assert error.errno == 28
assert a.lost.wait(10)
assert "No space left on device" in a.lost_reason, a.lost_reason
assert not a.is_owner
assert a.release() is False
while inspect(path):
    pass
for turn in range(3):
    try:
        join(path, ttl_s=3600)
    except Unavailable as error:
        assert "No space" in str(error)
    else:
        raise AssertionError("an owner that could not record it")
os.truncate(place + "/filler", 0)
b = join(path, ttl_s=0.6)
assert b.role == "owner" and b.epoch > 1, b
b.release()
print("right")
"""


@pytest.mark.skipif(not can(*MOUNT_NAMESPACE, "true"), reason="no unprivileged mounts here")
def test_on_a_full_disk_nobody_is_owner_without_a_record_of_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MOUNT_NAMESPACE, sys.executable, "-c", FULL, CODE, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_an_owner_that_may_not_write_is_told_and_its_release_says_so(path: Path) -> None:
    with Instance(path) as a:
        assert a.become(TTL_S) == (OWNER, 1)
        a.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))")
        assert a.ask("o.lost.wait(10), o.is_owner, o.release()") == (True, False, False)
        assert "File too large" in a.ask("o.lost_reason")
    with join(path, ttl_s=10) as b:
        assert b.epoch == 2


# --- elsewhere ------------------------------------------------------------------------------


@pytest.mark.skipif(not can(*PID_NAMESPACE, "true"), reason="no unprivileged pid namespaces here")
def test_an_owner_in_another_pid_namespace_lives_until_its_deadline(path: Path) -> None:
    with Instance(path, *PID_NAMESPACE) as a:
        assert a.become(2.0) == (OWNER, 1)
        b = join(path, ttl_s=10)
        assert (b.role, b.epoch) == (FOLLOWER, 1)
        assert a.ask("o.is_owner") is True
    deadline_ns = stored(path).deadline_ns  # it is dead, and nobody here can know that
    assert join(path, ttl_s=10).role == FOLLOWER
    eventually(lambda: inspect_lease(path) is None)
    with join(path, ttl_s=10) as c:
        assert c.epoch == 2
        assert stored(path).deadline_ns > deadline_ns


FORK = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from owner import inspect, join
a = join(sys.argv[2], ttl_s=3600)
fence = a.fenced()
fence.__enter__()
if ctypes.CDLL(None).unshare(0x20000000):
    sys.exit("no second pid namespace")
child = os.fork()
if child == 0:
    fence.__exit__()
    print(os.getpid(), a.role, a.is_owner, a.release(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
fence.__exit__()
print(os.getpid(), a.role, a.is_owner, inspect(sys.argv[2]) == a.holder)
"""


@pytest.mark.skipif(not can(*PID_NAMESPACE, "true"), reason="no unprivileged pid namespaces here")
def test_a_forked_child_with_the_pid_of_its_parent_owns_nothing(path: Path) -> None:
    done = subprocess.run(
        [*PID_NAMESPACE, "--fork", sys.executable, "-c", FORK, CODE, path],
        capture_output=True,
        text=True,
        check=False,
    )
    told = "1 follower False True\n1 owner True True\n"
    assert (done.stdout, done.returncode) == (told, 0), done.stderr


@pytest.mark.skipif(not can(*TIME_NAMESPACE, "9", "true"), reason="no time namespaces here")
@pytest.mark.parametrize("shift_s", ["1000000", "-5"])
def test_an_owner_in_another_time_namespace_has_the_same_deadlines(
    path: Path, shift_s: str
) -> None:
    with Instance(path, *TIME_NAMESPACE, shift_s, "--kill-child") as a:
        assert a.become(60) == (OWNER, 1)
        with join(path, ttl_s=10) as b:
            assert b.role == FOLLOWER, "no death is read from another clock"
        assert a.ask("o.release()") is True
        with join(path, ttl_s=60) as c:
            assert c.epoch == 2
            assert a.become(60) == (FOLLOWER, 2)
        assert a.become(1.0, renew_interval_s=0.05) == (OWNER, 3)
        assert a.ask("o.lost.wait(1.2), o.is_owner") == (False, True)
        a.ask("o.cancel()")
        assert a.ask("o.lost.wait(10), o.is_owner") == (True, False)
        eventually(lambda: inspect_lease(path) is None)
        with join(path, ttl_s=60) as d:
            assert (d.role, d.epoch) == (OWNER, 4)


def test_who_has_unshared_its_clock_but_not_forked_is_refused(path: Path) -> None:
    done = run_python(
        "import ctypes, sys\n"
        "if ctypes.CDLL(None).unshare(0x10000000 | 0x80): sys.exit(9)\n"
        "from owner import join\n"
        "from foundation.errors import Unavailable\n"
        "try: join(sys.argv[1], ttl_s=10)\n"
        "except Unavailable as error: print(error.reason)\n",
        str(path),
        check=False,
    )
    if done.returncode == 9:
        pytest.skip("no unprivileged time namespaces here")
    assert done.stdout == "clock\n", done.stderr


def test_who_has_read_its_clock_keeps_it_whatever_its_children_will_have(path: Path) -> None:
    done = run_python(
        "import ctypes, sys\n"
        "from owner.boottime import Boottime\n"
        "before = Boottime.here()\n"
        "if ctypes.CDLL(None).unshare(0x10000000 | 0x80): sys.exit(9)\n"
        "from owner import join\n"
        "with open('/proc/self/timens_offsets', 'w') as file: file.write('boottime 1000 0')\n"
        "assert Boottime.here()._offset_ns == before._offset_ns\n"
        "print(join(sys.argv[1], ttl_s=10).is_owner)\n",
        str(path),
        check=False,
    )
    if done.returncode == 9:
        pytest.skip("no unprivileged time namespaces here")
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_of_another_users_lease_nothing_is_told_and_nothing_taken(tmp_path: Path) -> None:
    path = tmp_path / "slot.owner"
    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/tmp") and directory.owner() == "root" and directory != Path("/"):
            directory.chmod(0o755)
    program = (
        "import os, sys\n"
        "from foundation.errors import HubError\n"
        "from owner import inspect, join\n"
        "join(sys.argv[1] + '.other', ttl_s=10).release()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for call in (lambda: join(sys.argv[1], ttl_s=10), lambda: inspect(sys.argv[1])):\n"
        "    try: print(call())\n"
        "    except HubError as error: print(type(error).__name__, error.reason)\n"
    )
    with join(path, ttl_s=60) as a:
        assert run_python(program, str(path)).stdout == "Refused not-writable\n" * 2
        path.unlink()
        assert run_python(program, str(path)).stdout == "Refused not-writable\n" * 2
        assert a.is_owner
    path.write_bytes(path.read_bytes().replace(boot_id().encode(), b"another"))
    assert run_python(program, str(path)).stdout == "Refused not-writable\n" * 2


def test_many_at_once_have_one_owner(path: Path) -> None:
    instances = [Instance(path) for _turn in range(8)]
    try:
        for turn in range(1, 4):
            with guard_held(path):  # so that all of them get there
                for instance in instances:
                    instance.tell("become(3600)")
            roles = [instance.answer() for instance in instances]
            assert sorted(roles) == [(FOLLOWER, turn)] * 7 + [(OWNER, turn)]
            for instance in instances:
                instance.ask("o.release()")
    finally:
        for instance in instances:
            instance.__exit__()
