"""What is said to a guest's agent, and read of it, without a guest."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foundation.errors import Refused
from orchestrator.backends.qemu import console, shell
from orchestrator.backends.qemu.marks import Marks
from tests.orchestrator.vm import qemus

TOKEN = "0123456789abcdef"
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(
    before=st.binary(),
    output=st.binary() | st.sampled_from([b"", TOKEN.encode(), b"\n" + TOKEN.encode() + b"e"]),
    status=st.integers(0, 255),
    cuts=st.lists(st.integers(1, 7)),
)
def test_an_output_is_found_whatever_it_is_and_however_it_is_cut(
    before: bytes, output: bytes, status: int, cuts: list[int]
) -> None:
    stream = before + f"{TOKEN}b\n".encode() + output + f"{TOKEN}e {status}\nlater".encode()
    marks, found = Marks(TOKEN), b""
    for length in [*cuts, *([1] * len(stream))]:
        found += marks.feed(stream[:length])
        stream = stream[length:]
    assert (found, marks.status) == (output, status)


def test_output_is_not_held_back_without_need() -> None:
    marks = Marks(TOKEN)
    assert marks.feed(f"{TOKEN}b\nhello".encode()) == b"hello"
    assert marks.feed(b" you" + TOKEN[:3].encode()) == b" you"
    assert marks.feed(b"!") == TOKEN[:3].encode() + b"!"


def test_an_end_that_is_no_end_is_refused() -> None:
    marks = Marks(TOKEN)
    with pytest.raises(ValueError, match="no status"):
        marks.feed(f"{TOKEN}b\n{TOKEN}e what\n".encode())


@given(st.lists(words, min_size=1, max_size=20))
@example(["it's", 'a "b" $c `d` \\e', "\n", "\\\n'", "", "-n", "\udc80\udcff"])
def test_any_word_reaches_a_shell_as_it_is_on_one_line(texts: list[str]) -> None:
    line = b" ".join(map(shell.quoted, texts))
    assert b"\n" not in line
    script = b"printf '%s\\0' " + line
    busybox = asyncio.run(qemus.guest()).busybox
    done = subprocess.run([busybox, "sh"], input=script, capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(text) for text in texts]


def test_what_no_shell_can_take_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        shell.quoted("a\0b")
    with pytest.raises(ValueError, match="argv is empty"):
        shell.run(TOKEN, [], 0, {}, "")
    with pytest.raises(Refused, match="bytes of arguments"):
        shell.run(TOKEN, ["x" * 200_000], 0, {}, "")
    with pytest.raises(Refused, match="cannot be an environment variable"):
        shell.run(TOKEN, ["x"], 0, {"A B": ""}, "")


def test_a_console_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    line = b"x" * 99 + b"\n"
    log.write_bytes(line * (console.LARGEST // 100) + b"almost\n\x1b[31mthe end\r\n\n")
    console.cut(str(log))
    assert log.stat().st_size < console.LARGEST // 2
    assert log.read_bytes().startswith(line)
    assert console.last_lines(str(log), 2) == "almost\n[31mthe end"
    console.cut(str(tmp_path / "nope"))
    assert console.last_lines(str(tmp_path / "nope"), 2) == ""
