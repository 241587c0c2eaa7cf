"""The guest's caller, run on this machine: it is a program like any other."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import HubError
from orchestrator.backends.qemu.caller import Caller
from orchestrator.image import caller, calls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GETPID = calls.Call(number=39, arguments=())


@contextmanager
def program(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Yield the program, which runs, and our end of its port."""
    path = place / caller.NAME
    path.write_bytes(caller.program())
    path.chmod(0o755)
    ours, theirs = socket.socketpair()
    with theirs, (place / "out").open("wb") as out:
        started = subprocess.Popen([str(path)], stdin=theirs.fileno(), stdout=out, stderr=out)
    try:
        with ours:
            ours.settimeout(20)
            yield started, ours
    finally:
        started.kill()
        started.wait()


def heard(ours: socket.socket, length: int) -> bytes:
    """Return the next *length* bytes."""
    found = b""
    while len(found) < length:
        data = ours.recv(length - len(found))
        assert data, "it ended"
        found += data
    return found


async def test_calls_are_made_in_order_and_each_has_its_result(tmp_path: Path) -> None:
    with program(tmp_path) as (started, ours):
        ours.setblocking(False)
        asked = await Caller.over(ours)
        path = str(tmp_path / "file")
        assert await asked.make([_GETPID, *calls.file(path, b"one"), _GETPID]) == [
            *(started.pid, calls.FIRST_FD, 3, 0, started.pid)
        ]
        await asked.make(calls.file(path, b" two", os.O_APPEND))
        assert await asked.read(path, 64) == b"one two"
        assert await asked.read(path, 5) == b"one t"
        assert await asked.read(str(tmp_path / "nope"), 5) == b""
        assert await asked.make(calls.terminate(0, started.pid)) == [0]
        assert await asked.make([]) == []
        asked.close()


async def test_a_call_that_must_not_fail_and_does_is_an_error_in_words(tmp_path: Path) -> None:
    with program(tmp_path) as (_started, ours):
        ours.setblocking(False)
        asked = await Caller.over(ours)
        with pytest.raises(HubError, match="cannot write /nope/x: No such file") as failed:
            await asked.make(calls.file("/nope/x", b""))
        assert failed.value.reason == "guest"
        (result,) = await asked.make(calls.unmount("/nope"))
        assert result < 0, "it may fail"
        assert not calls.is_in_use(result)
        assert calls.is_in_use(-errno.EBUSY)
        asked.close()


async def test_an_answer_that_nobody_waits_for_any_more_is_not_the_next_ones(
    tmp_path: Path,
) -> None:
    with program(tmp_path) as (started, ours):
        ours.setblocking(False)
        asked = await Caller.over(ours)
        os.kill(started.pid, signal.SIGSTOP)
        for number in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asked.make(calls.file(str(tmp_path / "file"), b"%d" % number))
        os.kill(started.pid, signal.SIGCONT)
        assert await asked.make([_GETPID]) == [started.pid]
        assert (tmp_path / "file").read_bytes() == b"2", "all were made"
        asked.close()


async def test_whoever_waits_is_told_that_the_caller_or_the_vm_has_ended(tmp_path: Path) -> None:
    with program(tmp_path) as (started, ours):
        ours.setblocking(False)
        asked = await Caller.over(ours)
        os.kill(started.pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(asked.make([]))
        await asyncio.sleep(0)
        while not waiting.done():
            asked.lost()
            await asyncio.sleep(0)
        assert isinstance(waiting.exception(), HubError)
        assert "caller was ended" in str(waiting.exception())
        started.kill()
        started.wait()
        with pytest.raises(HubError, match="the VM ended"):
            await asked.make([])
        asked.close()


@given(cuts=st.lists(st.integers(1, 200), max_size=20), size=st.integers(0, 60_000))
def test_a_message_is_understood_however_it_is_cut(
    cuts: list[int], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("caller")
    content = os.urandom(size)
    wanted = [(one.number, one.arguments) for one in calls.file(str(place / "file"), content)]
    message = caller.request(b"t" * 16, wanted)
    with program(place) as (_started, ours):
        rest = message
        for cut in cuts:
            ours.sendall(rest[:cut])
            rest = rest[cut:]
        ours.sendall(rest)
        answer = heard(ours, len(message))
        assert caller.results(answer) == [calls.FIRST_FD, size, 0]
        assert (place / "file").read_bytes() == content


@given(length=st.integers(0, 23) | st.integers(caller.LONGEST + 1, 2**32 - 1))
def test_what_cannot_be_a_message_ends_the_caller_and_init_starts_another(
    length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with program(tmp_path_factory.mktemp("caller")) as (started, ours):
        ours.sendall(caller.HEADER.pack(b"?" * 16, length, 0))
        assert started.wait(20) == 1


def test_a_message_that_is_too_long_is_refused() -> None:
    longest = caller.LONGEST - caller.HEADER.size - caller.CALL.size
    assert len(caller.request(b"t" * 16, [(1, (bytes(longest),))])) == caller.LONGEST
    with pytest.raises(ValueError, match="65544 bytes, 65536 at most"):
        caller.request(b"t" * 16, [(1, (bytes(longest + 1),))])
    with pytest.raises(ValueError, match="not 16 bytes"):
        caller.request(b"t", [])


def test_a_message_that_it_begins_with_is_carried_out_whatever_its_length(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    wanted = [
        *calls.directory(str(tmp_path / "made")),
        *calls.link(str(tmp_path / "link"), "made"),
        *calls.file(str(tmp_path / "made/file"), content),
        *calls.become("/bin/sh", "sh", "-c", "echo I am $0 $1; exit 7", "other", "one"),
    ]
    made = [(one.number, one.arguments) for one in wanted]
    path = tmp_path / "boot"
    path.write_bytes(caller.program(caller.unbounded(bytes(16), made)))
    path.chmod(0o755)
    done = subprocess.run([path], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (7, b"I am other one\n")
    assert (tmp_path / "link/file").read_bytes() == content


def test_who_cannot_become_another_ends(tmp_path: Path) -> None:
    made = [(one.number, one.arguments) for one in calls.become("/nope", "nope")]
    path = tmp_path / "boot"
    path.write_bytes(caller.program(caller.unbounded(bytes(16), made)))
    path.chmod(0o755)
    assert subprocess.run([path], check=False).returncode == 1
