"""What others see of a process that forked: its own words and marks."""

from __future__ import annotations

import ast

from tests.support import run_python

PROGRAM = """
import ctypes, os, signal, sys
from foundation import procfs
from foundation.title import set_title
words = [word.replace("LONG", "x" * 100_000) for word in sys.argv[1].split("|")]
marks = dict(pair.split("=") for pair in sys.argv[2].split("|"))
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    ok = set_title(words, marks)
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    os.write(write, b"%d %s" % (ok, getenv(b"KEPT") or b"none"))
    signal.pause()
said = os.read(read, 1000)
command, lines = procfs.command_line(pid), procfs.environment(pid)
comm = open(f"/proc/{pid}/comm").read().strip()
os.kill(pid, 9)
os.waitpid(pid, 0)
print(repr((command, lines, comm, said.decode())))
"""


def shown(
    words: str, marks: str, *, kept: str = "", slot: str = ""
) -> tuple[list[bytes], list[bytes], str, str]:
    """Have a fork show *words* and *marks*; return what it shows, and what C's getenv says."""
    done = run_python(PROGRAM, words, marks, KEPT=kept, BONES_SLOT=slot)
    values: tuple[list[bytes], list[bytes], str, str] = ast.literal_eval(done.stdout)
    return values


def test_a_fork_shows_its_own_words_and_marks_and_keeps_its_environment() -> None:
    command, lines, comm, said = shown("bones-leaf|alpha", "BONES_SLOT=alpha|NEW=1", kept="kept")
    assert [word for word in command if word] == [b"bones-leaf", b"alpha"]
    assert lines[:2] == [b"BONES_SLOT=alpha", b"NEW=1"]
    assert b"KEPT=kept" in lines
    assert comm == "bones-leaf"
    assert said == "1 kept"


def test_a_mark_replaces_the_parent_s() -> None:
    _command, lines, _comm, _said = shown("x", "BONES_SLOT=mine", slot="another")
    assert [line for line in lines if line.startswith(b"BONES_SLOT=")] == [b"BONES_SLOT=mine"]


def test_words_for_which_there_is_no_room_are_left_out() -> None:
    command, _lines, _comm, said = shown("short|LONG", "A=1", kept="kept")
    assert [word for word in command if word] == [b"short"]
    assert said == "1 kept"
