"""Children that die with us, daemons that outlive us."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foundation import codec
from foundation.process import has_exited
from foundation.spawn import (
    SpawnedChild,
    capture,
    describe_exit,
    find_program,
    spawn_child,
    spawn_daemon,
    spawn_filter,
)
from tests.support import CODE, eventually, is_gone

LOOK = r"""
import json, os, signal, sys
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines()
              if ":\t" in line)
stat = open("/proc/self/stat").read().rpartition(")")[2].split()
print(json.dumps({
    "fds": {fd: to for fd, to in fds.items() if "/proc/" not in to},
    "cwd": os.getcwd(), "pid": os.getpid(), "pgid": os.getpgid(0), "sid": os.getsid(0),
    "blocked": int(status["SigBlk"], 16), "ignored": int(status["SigIgn"], 16),
    "tty": int(stat[4]), "environment": dict(os.environ), "parent": os.getppid(),
    "subreaper": 0,
}), flush=True)
"""


def bit(number: int) -> int:
    return 1 << (number - 1)


def environment() -> dict[str, str]:
    return dict(os.environ)


def look(tmp_path: Path, **files: int) -> dict[str, Any]:
    """Return what a spawned child sees of itself."""
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    child = spawn_child(
        [sys.executable, "-I", "-S", "-c", LOOK],
        env={"MARK": "here"},
        cwd=str(tmp_path),
        files={0: null, 1: write, 2: 2} | {int(n[2:]): fd for n, fd in files.items()},
    )
    os.close(write)
    os.close(null)
    with os.fdopen(read) as output:
        seen: dict[str, Any] = codec.loads_object(output.read())
    finish(child)
    return seen


def finish(child: SpawnedChild) -> int:
    _pid, status = os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    return os.waitstatus_to_exitcode(status)


def spawn(argv: list[str], cwd: str = "/", files: dict[int, int] | None = None) -> SpawnedChild:
    return spawn_child(argv, env=environment(), cwd=cwd, files=files or {})


def test_a_child_has_its_own_group_and_what_it_was_given(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert seen["pgid"] == seen["pid"]
    assert seen["sid"] == os.getsid(0)
    assert seen["cwd"] == str(tmp_path)
    assert seen["environment"] == {"MARK": "here", "LC_CTYPE": "C.UTF-8"} or seen[
        "environment"
    ] == {"MARK": "here"}
    assert seen["parent"] == os.getpid()


def test_signals_mean_what_they_mean_by_default_in_a_child(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    chld = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        seen = look(tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGCHLD, chld)
    # The child is a Python: it ignores SIGPIPE and SIGXFSZ by itself.
    python_s_own = bit(signal.SIGPIPE) | bit(signal.SIGXFSZ)
    assert seen["ignored"] & ~python_s_own == 0
    assert seen["blocked"] == 0


def test_a_broken_pipe_ends_a_child() -> None:
    read, write = os.pipe()
    child = spawn(["/bin/sh", "-c", "exec yes"], files={1: write})
    os.close(write)
    os.read(read, 1)
    os.close(read)
    assert finish(child) == -signal.SIGPIPE


def test_a_mask_of_ours_is_left_to_the_child_and_kept() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        child = spawn(["/bin/sh", "-c", "true"])
        assert finish(child) == 0
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_no_other_descriptor_reaches_a_child(tmp_path: Path) -> None:
    strays = [os.open("/dev/zero", os.O_RDONLY) for _turn in range(3)]
    taken = set(map(int, os.listdir("/proc/self/fd")))
    high = [os.dup2(strays[0], number) for number in {19, 20, 21, 64, 500} - taken]
    try:
        for fd in (*strays, *high):
            os.set_inheritable(fd, True)
        seen = look(tmp_path, fd7=strays[1])
    finally:
        for fd in (*strays, *high):
            os.close(fd)
    assert set(seen["fds"]) == {"0", "1", "2", "7"}, seen["fds"]
    assert seen["fds"]["7"] == "/dev/zero"


def test_files_may_trade_places() -> None:
    read, write = os.pipe()
    one, two = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    child = spawn(
        ["/bin/sh", "-c", f"readlink /proc/$$/fd/{one} /proc/$$/fd/{two}"],
        files={1: write, one: two, two: one},
    )
    os.close(write)
    with os.fdopen(read) as output:
        assert output.read() == "/dev/zero\n/dev/null\n"
    for fd in (one, two):
        os.close(fd)
    assert finish(child) == 0


@pytest.mark.parametrize(
    ("argv", "cwd", "number"),
    [
        (["/no/such/program"], "/", errno.ENOENT),
        (["/etc/passwd"], "/", errno.EACCES),
        (["/bin/true"], "/no/such/directory", errno.ENOENT),
        (["/"], "/", errno.EACCES),
    ],
)
def test_what_cannot_be_executed_is_told_by_its_errno(
    argv: list[str], cwd: str, number: int
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=argv[0]) as raised:
        spawn(argv, cwd)
    assert raised.value.errno == number
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_script_without_an_interpreter_line_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    script.chmod(0o755)
    with pytest.raises(OSError, match="script") as raised:
        spawn([str(script)])
    assert raised.value.errno == errno.ENOEXEC


def test_a_failure_is_told_whatever_numbers_the_files_have() -> None:
    for number in range(3, 20):
        with pytest.raises(FileNotFoundError):
            spawn(["/no/such/program"], files={number: 0})


def test_a_closed_descriptor_is_told() -> None:
    with pytest.raises(OSError, match=r".") as raised:
        spawn(["/bin/true"], files={1: 400})
    assert raised.value.errno == errno.EBADF


PARENT = r"""
import os, sys, time
sys.path.insert(0, sys.argv[1])
from foundation.spawn import spawn_child
child = spawn_child(["/bin/sleep", "1000"], env=dict(os.environ), cwd="/", files={})
print(child.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.faults
def test_a_child_dies_with_its_parent_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CODE], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not is_gone(child)
        pidfd = os.pidfd_open(child)
        parent.kill()
        eventually(lambda: has_exited(pidfd), 1.0)
        os.close(pidfd)


QUICK_PARENT = r"""
import os, sys
sys.path.insert(0, sys.argv[1])
import foundation.spawn as spawn
parent = os.getpid()
pid = os.fork()
if pid == 0:
    os.read(int(sys.argv[2]), 1)  # until the parent is dead
    spawn.die_with_parent(parent)
    os.write(1, b"outlived")
os._exit(0)
"""


def test_a_child_whose_parent_is_dead_already_ends_itself() -> None:
    gate_read, gate_write = os.pipe()
    done = subprocess.Popen(
        [sys.executable, "-c", QUICK_PARENT, CODE, str(gate_read)],
        stdout=subprocess.PIPE,
        pass_fds=(gate_read,),
    )
    assert done.wait() == 0
    os.close(gate_read)
    os.close(gate_write)
    assert done.stdout is not None
    assert done.stdout.read() == b""
    done.stdout.close()


STORM = r"""
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
from foundation.spawn import spawn_child
heard = []
read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
signal.set_wakeup_fd(write, warn_on_full_buffer=False)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda n, _frame: heard.append(n))
stop = threading.Event()
def storm():
    while not stop.is_set():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
thread = threading.Thread(target=storm)
thread.start()
ends = {}
for turn in range(100):
    child = spawn_child(["/bin/true"], env={}, cwd="/", files={})
    status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    os.close(child.pidfd)
    ends[status] = ends.get(status, 0) + 1
stop.set()
thread.join()
assert heard
print(ends)
"""


@pytest.mark.faults
def test_signals_during_the_fork_neither_get_lost_nor_reach_the_child() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STORM, CODE],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    assert done.stdout == "{0: 100}\n", done.stderr


def test_a_daemon_has_a_session_no_terminal_and_only_its_files(tmp_path: Path) -> None:
    program = r"""
import os, sys
sys.path.insert(0, sys.argv[1])
from foundation.spawn import spawn_daemon
out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
null = os.open("/dev/null", os.O_RDONLY)
os.open("/dev/zero", os.O_RDONLY)
pid = spawn_daemon([sys.executable, "-I", "-S", "-c", sys.argv[3]], env=dict(os.environ),
                   files={0: null, 1: out, 2: out, 5: null})
os.waitpid(pid, 0)
"""
    out = tmp_path / "out"
    master, slave = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", program, CODE, out, LOOK],
        check=True,
        stdin=slave,
        stdout=slave,
        start_new_session=True,
        cwd=tmp_path,
    )
    os.close(slave)
    os.close(master)
    seen = codec.loads_object(out.read_text())
    assert seen["sid"] == seen["pgid"] == seen["pid"]
    assert seen["tty"] == 0
    assert seen["fds"] == {"0": "/dev/null", "1": str(out), "2": str(out), "5": "/dev/null"}


def test_a_daemon_can_wait_for_its_children_though_its_starter_ignores_theirs(
    tmp_path: Path,
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    try:
        pid = spawn_daemon(
            [sys.executable, "-I", "-S", "-c", LOOK], env=environment(), files={1: out}
        )
        eventually(lambda: is_gone(pid))
    finally:
        signal.signal(signal.SIGCHLD, before)
        os.close(out)
    seen = codec.loads_object((tmp_path / "out").read_text())
    assert not seen["ignored"] & bit(signal.SIGCHLD)


def test_a_daemon_that_cannot_be_executed_is_told() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        spawn_daemon(["/no/such/program"], env={}, files={0: 0})
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_end_is_told_in_words() -> None:
    assert describe_exit(0) == "exited with status 0"
    assert describe_exit(-9) == "was killed by signal 9"


def test_output_is_captured_from_both_streams() -> None:
    assert capture(["/bin/sh", "-c", "echo a; echo b >&2; exit 3"], env={}) == (3, "a\nb\n")
    assert capture(["/bin/sh", "-c", "kill -9 $$"], env={}) == (-9, "")
    assert capture(["/bin/sh", "-c", r"printf '\377'"], env={}) == (0, "\ufffd")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        capture(["/no/such/program"], env={})
    assert len(os.listdir("/proc/self/fd")) == before


def test_programs_are_found_where_the_shell_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/tool").mkdir(parents=True)  # a directory is no program
    (tmp_path / "b").mkdir()
    (tmp_path / "b/tool").touch(0o644)  # nor is a file that cannot be executed
    (tmp_path / "c").mkdir()
    (tmp_path / "c/tool").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b::{tmp_path}/c")
    monkeypatch.chdir(tmp_path)
    assert find_program("tool") == f"{tmp_path}/c/tool"
    assert find_program("./c/tool") == f"{tmp_path}/c/tool"
    assert find_program("b/tool") is None
    assert find_program("absent") is None
    assert find_program("/bin/sh") == "/bin/sh"


def test_a_program_that_does_not_answer_is_given_up_and_killed(tmp_path: Path) -> None:
    script = tmp_path / "hangs"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    script.chmod(0o755)
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.3 s"):
        capture([str(script)], env={}, within_s=0.3)
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_filter_ends_with_its_input_and_has_nothing_else_of_ours() -> None:
    read, write = os.pipe()
    answer, output = os.pipe()
    ours = fcntl.fcntl(read, fcntl.F_DUPFD_CLOEXEC, 60)
    script = f"test -e /proc/$$/fd/{ours} && echo ours; cut -d' ' -f5 /proc/$$/stat; exec cat"
    child = spawn_filter(["/bin/sh", "-c", script], env=os.environ, files={0: read, 1: output})
    os.close(read)
    os.close(ours)
    os.close(output)
    with os.fdopen(answer) as told, os.fdopen(write, "w") as asked:
        assert told.readline() == f"{child.pid}\n"
        asked.write("a\n")
        asked.flush()
        assert told.readline() == "a\n"
        asked.close()
        assert told.readline() == ""
    assert finish(child) == 0
