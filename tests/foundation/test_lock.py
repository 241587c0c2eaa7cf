"""A lock has one holder and dies with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.lock import try_lock
from tests.support import CODE

HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from foundation.lock import try_lock
print(try_lock(sys.argv[2]) is not None, flush=True)
sys.stdin.read()
"""

CLAIMANT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from foundation.lock import try_lock
path, wins = sys.argv[2], 0
while wins < int(sys.argv[3]):
    fd = try_lock(path)
    if fd is None:
        continue
    os.mkdir(path + ".inside")  # fails if another is inside
    with open(path + ".count", "r+") as file:
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
    os.rmdir(path + ".inside")
    os.close(fd)
    wins += 1
"""


def test_a_second_holder_is_refused_also_in_the_same_process(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    fd = try_lock(path)
    assert fd is not None
    assert try_lock(path) is None
    os.close(os.open(path, os.O_RDONLY))  # closing another descriptor of it frees nothing
    assert try_lock(path) is None
    os.close(fd)
    again = try_lock(path)
    assert again is not None
    os.close(again)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.faults
def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, CODE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert try_lock(path) is None
        holder.kill()
        holder.wait()
        fd = try_lock(path)
        assert fd is not None
        os.close(fd)


def test_a_child_that_was_not_given_the_lock_does_not_hold_it(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    fd = try_lock(path)
    assert fd is not None
    with subprocess.Popen(["sleep", "100"], close_fds=False) as child:
        os.close(fd)
        again = try_lock(path)
        child.kill()
    assert again is not None
    os.close(again)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        try_lock(str(tmp_path / "lock"))
    assert not (tmp_path / "elsewhere").exists()


def test_eight_processes_are_never_inside_together(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    (tmp_path / "lock.count").write_text("0")
    claimants = [
        subprocess.Popen([sys.executable, "-c", CLAIMANT, CODE, path, "25"]) for _ in range(8)
    ]
    assert [claimant.wait() for claimant in claimants] == [0] * 8
    assert (tmp_path / "lock.count").read_text() == "200"
