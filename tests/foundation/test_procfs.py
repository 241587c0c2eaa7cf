"""What /proc tells: the truth about a living process, nothing about nobody, no silence for want."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation import procfs
from foundation.process import PID_MAX
from tests.support import eventually, kill, run_python, stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

ME = os.getpid()


@contextmanager
def running(
    *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(argv, env=env, cwd=cwd)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_it_tells_of_this_very_process(tmp_path: Path) -> None:
    assert ME in set(procfs.pids())
    assert procfs.parent_of(ME) == os.getppid()
    assert procfs.owner_of(ME) == os.geteuid()
    assert procfs.directory_of(ME) == os.getcwd()
    with open(tmp_path / "file", "w") as file, socket.socket() as sock:
        opened = procfs.open_files(ME)
        assert file.name in opened
        assert f"socket:[{os.fstat(sock.fileno()).st_ino}]" in opened


def test_it_tells_how_a_process_was_executed_from_the_first_moment(tmp_path: Path) -> None:
    environment = {"A": "1", "EMPTY": "", "PATH": os.environ["PATH"]}
    for _turn in range(20):  # the kernel is often not done when its starter is
        with running("sleep", "1000", env=environment) as child:
            assert procfs.environment(child.pid) == [
                *(f"{name}={value}".encode() for name, value in environment.items()),
                b"",
            ]
        with running("sleep", "1000", cwd=tmp_path) as child:
            assert procfs.command_line(child.pid) == [b"sleep", b"1000"]
            assert procfs.directory_of(child.pid) == str(tmp_path)


def test_a_process_without_an_environment_has_an_empty_one() -> None:
    with running("/bin/sleep", "1000", env={}) as child:
        assert procfs.environment(child.pid) == [b""]


def test_what_was_removed_says_so(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with running("sleep", "1000", cwd=gone) as child:
        gone.rmdir()
        assert procfs.directory_of(child.pid) == f"{gone} (deleted)"
    with open(tmp_path / "file", "w") as file:
        os.unlink(file.name)
        assert f"{file.name} (deleted)" in procfs.open_files(ME)


def test_start_times_are_in_order() -> None:
    with stranger() as one:
        mine, theirs = procfs.start_ticks(ME), procfs.start_ticks(one.pid)
        assert mine is not None
        assert theirs is not None
        assert mine <= theirs


def test_of_nobody_there_is_nothing_to_tell() -> None:
    assert PID_MAX not in set(procfs.pids())
    for ask in (
        procfs.owner_of,
        procfs.parent_of,
        procfs.start_ticks,
        procfs.environment,
        procfs.command_line,
        procfs.directory_of,
    ):
        assert ask(PID_MAX) is None
    assert procfs.open_files(PID_MAX) == set()
    assert procfs.ancestors_of(PID_MAX) == []


def test_a_zombie_has_neither_words_nor_files() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    try:
        kill(child.pid)
        eventually(lambda: procfs.command_line(child.pid) == [])
        eventually(lambda: procfs.open_files(child.pid) == set())  # they go a moment later
        assert procfs.directory_of(child.pid) is None
        assert procfs.parent_of(child.pid) == ME
    finally:
        child.wait()


def test_ancestors_are_told_from_below() -> None:
    program = """
import os, subprocess, sys
from foundation import procfs
if len(sys.argv) == 1:
    subprocess.run([sys.executable, "-c", sys.orig_argv[2], str(os.getpid())], check=True)
else:
    above = procfs.ancestors_of(os.getpid())
    assert above[0] == os.getppid() == int(sys.argv[1])
    assert not {0, os.getpid()} & {*above}
    print(*above)
"""
    above = [int(word) for word in run_python(program).stdout.split()]
    assert above[1] == ME
    assert above[1:] == [ME, *procfs.ancestors_of(ME)]


def test_the_first_process_has_nobody_above_it() -> None:
    assert procfs.ancestors_of(1) == []


def test_a_name_with_parentheses_and_newlines_is_read_past() -> None:
    program = "import os; open('/proc/self/comm', 'wb').write(b') 1 (\\n 2'); print(os.getpid(), "
    program += "flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        assert procfs.parent_of(child.pid) == ME
        child.communicate(b"\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_of_what_this_user_may_not_look_at_there_is_no_answer() -> None:
    program = """
import os, sys
from foundation import procfs
pid = int(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(procfs.owner_of(pid), procfs.environment(pid), procfs.directory_of(pid))
print(procfs.open_files(pid))
"""
    with stranger() as one:
        assert run_python(program, str(one.pid)).stdout == "0 None None\nset()\n"


@pytest.mark.parametrize(
    "ask", ["environment", "command_line", "start_ticks", "parent_of", "open_files"]
)
def test_want_of_descriptors_is_not_taken_for_the_end_of_a_process(ask: str) -> None:
    program = """
import errno, os, resource, sys
from foundation import procfs
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
try:
    while True:
        os.dup(0)
except OSError:
    pass
try:
    print(getattr(procfs, sys.argv[1])(os.getppid()))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    assert run_python(program, ask).stdout == "EMFILE\n"


def test_an_identity_is_not_taken_for_gone_for_want_of_one_descriptor() -> None:
    program = """
import os, resource
from foundation.process import ALIVE, Identity
own = Identity.of(os.getppid())
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
said = []
while taken:
    try:
        said.append(own.state())
    except OSError:
        said.append("raised")
    os.close(taken.pop())
assert said[0] == "raised", said
assert set(said) == {"raised", ALIVE}, said
print(len(said) > 10)
"""
    assert run_python(program).stdout == "True\n"
