"""Who a process is: the right one is recognised, a stranger never."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from foundation import process
from foundation.process import (
    ALIVE,
    GONE,
    UNKNOWN,
    Identity,
    has_exited,
    open_pidfd,
    send_signal,
    terminate,
    wait_exit,
)
from foundation.procfs import start_ticks
from tests.support import CODE, eventually, run_python, stranger

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    time.sleep(100)
"""


def own() -> Identity:
    identity = Identity.of(os.getpid())
    assert identity is not None
    return identity


def test_our_own_is_found_once_and_a_forked_child_has_another() -> None:
    mine = Identity.own()
    assert mine == own()
    assert Identity.own() is mine
    program = (
        "import os\n"
        "from foundation.process import Identity\n"
        "mine = Identity.own()\n"
        "if os.getuid() == 0:\n"
        "    os.seteuid(65534)\n"
        "    assert Identity.own() == Identity.of(os.getpid())\n"
        "    os.seteuid(0)\n"
        "if os.fork() == 0:\n"
        "    mine = Identity.own() == Identity.of(os.getpid()) and Identity.own() != mine\n"
        "    os._exit(0 if mine else 1)\n"
        "print(os.wait()[1])\n"
    )
    assert run_python(program).stdout == "0\n"


def pidfd_of(pid: int) -> int:
    pidfd = open_pidfd(pid)
    assert pidfd is not None
    return pidfd


def test_an_identity_survives_json_and_finds_its_process() -> None:
    from foundation import codec  # noqa: PLC0415

    with stranger() as one:
        before = Identity.of(one.pid)
        assert before is not None
        again = Identity.from_json(codec.loads(codec.dumps(before.as_dict())))
        assert again == before
        assert again.state() == ALIVE
        pidfd = again.open()
        assert pidfd is not None
        os.close(pidfd)
    assert before.state() == GONE
    assert before.open() is None


VALID = {"pid": 4242, "inode": 7, "start": 9, "boot": "b", "namespace": 11, "uid": 0}


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        1,
        "4242",
        1e3,
        [],
        [VALID],
        "",
        "self",
        b"4242",
        {},
        {"pid": 4242},
        {**VALID, "more": 1},
        {k: v for k, v in VALID.items() if k != "boot"},
        *(
            {**VALID, "pid": pid}
            for pid in (
                0,
                1,
                -1,
                -4242,
                process.PID_MAX + 1,
                2**31,
                2**64,
                4242.0,
                1e3,
                True,
                None,
                "4242",
                "self",
                [4242],
                float("nan"),
            )
        ),
        *(
            {**VALID, name: wrong}
            for name in ("inode", "start", "namespace", "uid")
            for wrong in (-1, 1.5, True, None, "1")
        ),
        {**VALID, "boot": None},
        {**VALID, "boot": 1},
        {**VALID, "boot": b"b"},
        dict(zip(VALID.values(), VALID, strict=True)),
    ],
)
def test_what_is_no_identity_is_refused(value: object) -> None:
    assert Identity.from_json(value) is None
    if not (isinstance(value, dict) and value.get("pid") == 1 and value["pid"] is not True):
        assert Identity.from_json(value, init=True) is None


def test_pid_1_has_an_identity_for_who_asks_for_it() -> None:
    first = {**VALID, "pid": 1}
    assert Identity.from_json(first) is None
    found = Identity.from_json(first, init=True)
    assert found is not None
    assert found.as_dict() == first


def test_an_identity_of_another_boot_is_of_a_dead_process() -> None:
    other = own().replace(boot="00000000-0000-0000-0000-000000000000")
    assert other.state() == GONE
    assert other.open() is None
    assert other.replace(namespace=1).state() == GONE


def test_one_of_another_namespace_cannot_be_judged() -> None:
    other = own().replace(namespace=1)
    assert other.state() == UNKNOWN
    assert other.open() is None


@pytest.mark.parametrize("change", [{"start": 1, "inode": 0}, {"inode": 1}])
def test_the_same_pid_is_not_the_same_process(change: dict[str, int]) -> None:
    if change["inode"] and own().inode == 0:
        pytest.skip("this kernel's pidfds share one inode")
    assert own().replace(**change).state() == GONE
    assert own().replace(**change).open() is None


def test_a_unique_inode_decides_alone() -> None:
    if own().inode == 0:
        pytest.skip("this kernel's pidfds share one inode")
    assert own().replace(start=1).state() == ALIVE  # as it reads in another time namespace


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen(["true"])
    pidfd = pidfd_of(child.pid)
    try:
        assert wait_exit(pidfd, 5)
        os.kill(child.pid, 0)  # it still answers
        assert has_exited(pidfd)
        assert Identity.of(child.pid) is None
        assert Identity.of_pidfd(child.pid, pidfd) is None
    finally:
        child.wait()
        os.close(pidfd)
    assert Identity.of(child.pid) is None
    assert open_pidfd(child.pid) is None


def test_a_process_that_became_a_zombie_is_recognised_as_gone() -> None:
    child = subprocess.Popen(["sleep", "100"])
    identity = Identity.of(child.pid)
    assert identity is not None
    child.kill()
    eventually(lambda: identity.state() == GONE)
    child.wait()


@pytest.mark.parametrize("pid", [0, -1, -42, 2**22 + 1, 2**31, 2**64])
def test_a_number_that_is_no_pid_opens_nothing(pid: int) -> None:
    assert open_pidfd(pid) is None
    assert Identity.of(pid) is None


def test_a_thread_is_no_process() -> None:
    gate, stop = threading.Event(), threading.Event()
    numbers: list[int] = []

    def run() -> None:
        numbers.append(threading.get_native_id())
        gate.set()
        stop.wait()

    thread = threading.Thread(target=run)
    thread.start()
    assert gate.wait(5)
    try:
        assert open_pidfd(numbers[0]) is None
        assert Identity.of(numbers[0]) is None
    finally:
        stop.set()
        thread.join()


def test_a_name_with_parentheses_and_newlines_does_not_confuse_the_start_time() -> None:
    program = r"""
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from foundation.procfs import start_ticks
before = start_ticks(int(Path("/proc/self/stat").read_text().split()[0]))
Path("/proc/self/comm").write_bytes(b") 1 (\n 2 3 4")
import os
assert start_ticks(os.getpid()) == before != None
print("same")
"""
    done = subprocess.run([sys.executable, "-c", program, CODE], capture_output=True, check=True)
    assert done.stdout == b"same\n"


def test_nobody_has_no_start_time() -> None:
    assert start_ticks(process.PID_MAX) is None


def test_the_obedient_end_at_once_the_stubborn_at_the_end_of_grace() -> None:
    child = subprocess.Popen(["sleep", "100"])
    pidfd = pidfd_of(child.pid)
    assert terminate(pidfd, grace_s=10)
    assert child.wait() == -15
    assert terminate(pidfd, grace_s=10)
    assert not send_signal(pidfd, 15)
    os.close(pidfd)

    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    pidfd = pidfd_of(child.pid)
    assert not wait_exit(pidfd, 0.0)
    assert terminate(pidfd, grace_s=0.05)
    assert child.wait() == -9
    os.close(pidfd)
    child.stdout.close()


REUSE = r"""
import os, sys, time
sys.path.insert(0, sys.argv[1])
from foundation.process import Identity, GONE, ALIVE, send_signal, wait_exit

def child():
    pid = os.fork()
    if pid == 0:
        time.sleep(100)
        os._exit(0)
    return pid

first = child()
identity = Identity.of(first)
pidfd = identity.open()
os.kill(first, 9)
os.waitpid(first, 0)
for attempt in range(100):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(first - 1))
    second = child()
    if second == first:
        break
    os.kill(second, 9)
    os.waitpid(second, 0)
else:
    sys.exit("no reuse")
now = Identity.of(second)
assert now.state() == ALIVE and now.pid == identity.pid, (now, identity)
assert now != identity
assert identity.state() == GONE, "the stranger was taken for the dead"
assert identity.open() is None
assert not send_signal(pidfd, 9), "the old descriptor reached the stranger"
assert now.state() == ALIVE
os.kill(second, 9)
os.waitpid(second, 0)
print("safe")
"""


def in_pid_namespace(*argv: str) -> list[str]:
    return ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", *argv]


def has_pid_namespaces() -> bool:
    return (
        subprocess.run(in_pid_namespace("true"), capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not has_pid_namespaces(), reason="no unprivileged pid namespaces here")
def test_a_stranger_with_the_same_pid_is_not_taken_for_the_dead() -> None:
    if own().inode == 0:
        pytest.skip("this kernel's pidfds share one inode: ticks alone may be equal")
    done = subprocess.run(
        in_pid_namespace(sys.executable, "-c", REUSE, str(CODE)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "safe\n"), done.stderr


@pytest.mark.skipif(not has_pid_namespaces(), reason="no unprivileged pid namespaces here")
def test_a_record_from_outside_a_namespace_is_unknown_inside() -> None:
    program = r"""
import json, sys
sys.path.insert(0, sys.argv[1])
from foundation.process import Identity
print(Identity.from_json(json.loads(sys.argv[2])).state())
"""
    from foundation import codec  # noqa: PLC0415

    done = subprocess.run(
        in_pid_namespace(sys.executable, "-c", program, str(CODE), codec.dumps(own().as_dict())),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "unknown\n"


def test_pidfds_of_one_process_share_an_inode_and_no_other_has_it() -> None:
    one, two = own(), own()
    assert one == two
    with stranger() as other:
        theirs: Any = Identity.of(other.pid)
        assert theirs is not None
        assert one.inode == 0 or theirs.inode != one.inode


def test_no_descriptor_is_left_by_any_of_it() -> None:
    own()
    before = len(os.listdir("/proc/self/fd"))
    for change in ({}, {"start": 1}, {"namespace": 1}, {"boot": "x"}, {"pid": 4194303}):
        own().replace(**change).state()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fork_in_another_pid_namespace_knows_that_it_is() -> None:
    program = """
import ctypes, os, sys
from foundation.process import ALIVE, GONE, Identity, UNKNOWN
mine = Identity.of(os.getpid())
assert mine.state() == ALIVE
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x20000000) != 0:  # CLONE_NEWUSER | CLONE_NEWPID
    print("not permitted")
    sys.exit()
pid = os.fork()
if pid == 0:
    os._exit(0 if mine.state() == UNKNOWN else 1)
print(os.waitpid(pid, 0)[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CODE,
        env={**os.environ, "PYTHONPATH": str(CODE)},
        check=True,
        capture_output=True,
        text=True,
    )
    if done.stdout == "not permitted\n":
        pytest.skip("pid namespaces are not permitted here")
    assert done.stdout == "0\n"
