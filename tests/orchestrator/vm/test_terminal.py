"""``bones vm ssh``: a guest's terminal that is ours."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import control
from orchestrator.store import Options, Store
from orchestrator.terminal import Escape
from tests.orchestrator.vm.holders import end_holders
from tests.orchestrator.vm.test_vm_cli import PROGRAM, bones
from tests.support import CODE, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

_ANSWER_S = 30.0


def test_a_tilde_and_a_dot_at_the_beginning_of_a_line_lead_out() -> None:
    for typed in (b"~.", b"ls\r~.", b"~~\r~.", b"\n~.more"):
        assert Escape().feed(typed)[1], typed
    for typed in (b"a~.", b"~a.", b"~", b"~~.", b" ~.", b"ls ~."):
        assert not Escape().feed(typed)[1], typed
    escape = Escape()
    assert [escape.feed(b"~"), escape.feed(b".")] == [(b"", False), (b"", True)]


@given(st.lists(st.sampled_from([b"~", b"x", b"\r", b"\n", b"~x", b"x~."]), max_size=12))
def test_whatever_does_not_lead_out_is_typed_as_it_is(keys: list[bytes]) -> None:
    escape, out = Escape(), b""
    for key in [*keys, b"x"]:
        theirs, ended = escape.feed(key)
        out += theirs
        if ended:
            return
    assert out == b"".join(keys) + b"x"


class Screen:
    """A terminal with a program on it."""

    def __init__(self, root: Path, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        termios.tcsetwinsize(theirs, (30, 100))
        self.said = b""
        setsid = shutil.which("setsid")
        assert setsid is not None
        self.program = subprocess.Popen(
            [setsid, "-c", sys.executable, "-I", "-c", PROGRAM, str(CODE), *words],
            cwd=root,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
        )
        self._theirs = theirs

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, words: str) -> bytes:
        """Return what is said up to *words*, which are taken."""
        deadline_s = time.monotonic() + _ANSWER_S
        while words.encode() not in self.said:
            left_s = deadline_s - time.monotonic()
            assert select.select([self._ours], [], [], max(0.0, left_s))[0], self.said
            self.said += os.read(self._ours, 65536)
        found, _words, self.said = self.said.partition(words.encode())
        return found

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._ours, (rows, columns))

    def attributes(self) -> list[object]:
        return list(termios.tcgetattr(self._theirs))

    def close(self) -> int:
        status = self.program.wait(_ANSWER_S)
        os.close(self._ours)
        os.close(self._theirs)
        return status


@contextmanager
def running(root: Path) -> Iterator[Store]:
    """Yield the store of a workspace in which the VM web is up."""
    store = Store(root / ".orchestrator/vms")
    config = control.SpawnConfig(names=("web",), options=Options(disk_mb=0))
    try:
        with control.spawn(store, config):
            control.wait_members(store, ["web"], 120)
            yield store
    finally:
        end_holders(store)


@pytest.mark.vm
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_shell_in_a_guest_is_as_one_here(repo: Path) -> None:
    with running(repo) as store:
        screen = Screen(repo, "vm", "ssh", "web")
        screen.until("web:")
        screen.type("stty size; echo $TERM\r")
        screen.until("30 100\r\nxterm\r\n")
        screen.resize(41, 99)
        eventually(lambda: _sized(screen))
        screen.type("sleep 1000\r")
        eventually(lambda: b"sleep 1000" in control.execute(store, "web", ["ps"]).stdout)
        screen.type("\x03")
        screen.type("echo over=$((100 + 30))\r")
        screen.until("over=130\r\n")
        screen.type("exit 5\r")
        assert screen.program.wait(_ANSWER_S) == 5
        assert screen.attributes() == list(screen.before)
        assert screen.close() == 5

        left = [Screen(repo, "vm", "shell", "web", "--", "cat") for _ in range(2)]
        for one in left:
            one.type("heard\r")
            one.until("heard\r\nheard\r\n")
        refused = Screen(repo, "vm", "ssh", "web")
        refused.until("all terminals of web are in use")
        assert refused.close() != 0
        for one in left:
            one.type("\r~.")
            one.until("left")
            assert one.close() != 0
        eventually(lambda: b" cat\n" not in control.execute(store, "web", ["ps"]).stdout)

        script = bones(repo, "vm", "ssh", "web", stdin=b"hostname; exit 4\n")
        assert (script.returncode, script.stdout) == (4, b"web\n"), "there is no terminal"
        assert bones(repo, "vm", "ssh", "web", "--", "hostname").stdout == b"web\n"
        again = Screen(repo, "vm", "ssh", "web")
        again.until("web:")
        control.stop(store, "web")
        again.until("web ended")
        assert again.close() != 0
        assert again.program.returncode > 0


def _sized(screen: Screen) -> bool:
    screen.type("stty size\r")
    screen.until("stty size\r\n")
    return screen.until("\r\n") == b"41 99"
