"""Logs keep every line whole, over rotations, full disks and readers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import logs
from hub.logs import KEPT, HubLog, LogFile, Pump, follow, tail
from hub.reactor import Reactor
from tests.support import CODE, eventually

LINES = st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=60)


def fresh(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("log") / "x.log")


def files_of(path: str) -> list[str]:
    """Return the files of the log, oldest first."""
    names = [f"{path}.{number}" for number in range(KEPT + 5, 0, -1)] + [path]
    return [name for name in names if os.path.exists(name)]


def everything(path: str) -> bytes:
    return b"".join(Path(name).read_bytes() for name in files_of(path))


@given(LINES, st.integers(1, 400))
def test_rotation_loses_tears_and_repeats_no_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], limit: int
) -> None:
    path = fresh(tmp_path_factory)
    log = LogFile(path, limit_bytes=limit)
    written = b""
    for line in lines:
        log.write(line + b"\n")
        written += line + b"\n"
    log.close()
    assert log.lost_bytes == 0
    kept = everything(path)
    assert written.endswith(kept), "what is kept is the end of what was written"
    assert kept == b"" or kept.endswith(b"\n")
    assert len(files_of(path)) <= KEPT + 1
    longest = max((len(line) + 1 for line in lines), default=0)
    for name in files_of(path):
        content = Path(name).read_bytes()
        assert len(content) <= max(limit, longest)
        assert content == b"" or content.endswith(b"\n")
    if len(written) <= limit:
        assert kept == written


@given(LINES, st.integers(1, 200), st.integers(0, 80))
def test_the_tail_is_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], limit: int, count: int
) -> None:
    path = fresh(tmp_path_factory)
    log = LogFile(path, limit_bytes=limit)
    for line in lines:
        log.write(line + b"\n")
    log.close()
    kept = everything(path).split(b"\n")[:-1]
    assert tail(path, count) == (kept[-count:] if count else [])


def test_the_tail_of_a_long_log_reads_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"".join(b"%07d\n" % number for number in range(100_000)))
    assert tail(str(path), 3) == [b"0099997", b"0099998", b"0099999"]
    assert len(tail(str(path), 20_000)) == 20_000
    assert tail(str(path), 5, start=8 * 99_999) == [b"0099999"]
    assert tail(str(path), 5, start=8 * 100_000) == []
    assert tail(str(path), 5, start=10**9) == []
    assert tail(str(tmp_path / "absent"), 5) == []


def test_a_log_that_somebody_deleted_is_made_anew_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    log = LogFile(str(path), limit_bytes=100)
    log.write(b"a" * 50 + b"\n")
    path.unlink()
    for letter in (b"b", b"c", b"d"):
        log.write(letter * 50 + b"\n")
    log.close()
    assert log.lost_bytes == 0
    assert path.read_bytes() == b"d" * 50 + b"\n"


def test_the_number_of_the_descriptor_stays(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "x.log"), limit_bytes=10)
    number, before = log.fileno(), len(os.listdir("/proc/self/fd"))
    for _turn in range(20):
        log.write(b"12345678\n")
    assert log.fileno() == number
    assert len(os.listdir("/proc/self/fd")) == before
    assert not os.get_inheritable(number)
    log.close()


def test_a_full_disk_loses_lines_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFile(str(tmp_path / "x.log"))
    log.write(b"before\n")

    def full(_fd: int, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as context:
        context.setattr(logs, "write_all", full)
        log.write(b"lost\n")
    log.write(b"after\n")
    assert log.lost_bytes == 5
    assert tail(str(tmp_path / "x.log"), 9) == [b"before", b"after"]
    log.close()


def test_a_write_that_stopped_short_does_not_join_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFile(str(tmp_path / "x.log"))

    def short(fd: int, content: bytes) -> None:
        os.write(fd, content[:3])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as context:
        context.setattr(logs, "write_all", short)
        log.write(b"torn line\n")
    log.write(b"whole\n")
    assert b"whole" in tail(str(tmp_path / "x.log"), 9)
    log.close()


def test_the_hub_s_own_log_is_json_a_line(tmp_path: Path) -> None:
    file = LogFile(str(tmp_path / "x.log"))
    HubLog(file).write("info", "event", text="a\nb\udcff", number=1)
    file.close()
    (line,) = tail(str(tmp_path / "x.log"), 9)
    entry = json.loads(line)
    assert (entry["level"], entry["event"], entry["text"]) == ("info", "event", "a\nb\udcff")
    assert entry["time"].endswith("Z")


# --- the pump ------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=20), st.booleans())
def test_the_pump_passes_every_line_on_however_it_arrives(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], finish_late: bool
) -> None:
    path = fresh(tmp_path_factory)
    reactor, log = Reactor(), LogFile(path)
    seen: list[bytes] = []
    read, write = os.pipe()
    pump = Pump(reactor, read, log, seen.append)
    for chunk in chunks:
        os.write(write, chunk)
        if not finish_late:
            reactor.call_later(0, reactor.stop)
            reactor.run()
            reactor.call_later(0.0, reactor.stop)
            reactor.run()
    os.close(write)
    pump.finish()
    reactor.close()
    log.close()
    sent = b"".join(chunks)
    whole = sent if not sent or sent.endswith(b"\n") else sent + b"\n"
    assert Path(path).read_bytes() == whole
    assert seen == whole.split(b"\n")[:-1]


def test_the_pump_s_longest_line_is_cut_not_kept(tmp_path: Path) -> None:
    reactor, log = Reactor(), LogFile(str(tmp_path / "x.log"))
    seen: list[bytes] = []
    read, write = os.pipe()
    pump = Pump(reactor, read, log, seen.append)
    gate = threading.Event()

    def talk() -> None:
        for _turn in range(64):
            os.write(write, b"x" * 16384)
        os.close(write)
        gate.set()

    thread = threading.Thread(target=talk)
    thread.start()
    eventually(lambda: _turn(reactor) and gate.is_set())
    thread.join()
    pump.finish()
    log.close()
    reactor.close()
    assert sum(len(line) for line in seen) == 64 * 16384
    assert max(len(line) for line in seen) <= 256 * 1024


def _turn(reactor: Reactor) -> bool:
    reactor.call_later(0.001, reactor.stop)
    reactor.run()
    return True


# --- following -----------------------------------------------------------------------------

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from hub.logs import LogFile
log = LogFile(sys.argv[2], limit_bytes=int(sys.argv[3]))
sys.stdin.readline()
for number in range(int(sys.argv[4])):
    log.write(b"%08d\\n" % number)
    if number % 1000 == 999:
        time.sleep(0.01)  # so that a reader on one loaded core is not rotated past
log.write(b"end\\n")
"""


class Follower:
    """Follows a log; every look returns all that was seen so far."""

    def __init__(self, path: str) -> None:
        self._looks = follow(path)
        self.seen: list[bytes] = []
        assert next(self._looks) == []

    def look(self) -> list[bytes]:
        self.seen += next(self._looks)
        return self.seen

    def close(self) -> None:
        self._looks.close()


def test_a_follower_sees_what_is_written_from_now_on(tmp_path: Path) -> None:
    path = str(tmp_path / "x.log")
    log = LogFile(path)
    log.write(b"before\n")
    reader = Follower(path)
    try:
        log.write(b"one\ntwo\n")
        assert reader.look() == [b"one", b"two"]
        os.write(log.fileno(), b"th")
        assert reader.look() == [b"one", b"two"]
        os.write(log.fileno(), b"ree\n")
        assert reader.look() == [b"one", b"two", b"three"]
    finally:
        reader.close()
        log.close()


def test_a_follower_may_come_before_the_log(tmp_path: Path) -> None:
    path = str(tmp_path / "x.log")
    reader = Follower(path)
    try:
        log = LogFile(path)
        log.write(b"one\n")
        assert reader.look() == [b"one"]
        log.close()
    finally:
        reader.close()


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_a_follower_misses_nothing_over_rotations_between_two_looks(
    tmp_path: Path, rotations: int
) -> None:
    path = str(tmp_path / "x.log")
    log = LogFile(path, limit_bytes=30)
    log.write(b"begin\n")
    reader = Follower(path)
    try:
        expected = []
        for number in range(rotations * 3):  # three lines of ten bytes fill a file
            log.write(b"line %04d\n" % number)
            expected.append(b"line %04d" % number)
        assert reader.look() == expected
    finally:
        reader.close()
        log.close()


@given(st.integers(20, 500), st.lists(st.integers(1, 8), max_size=12))
def test_a_follower_that_looks_often_enough_sees_every_line(
    tmp_path_factory: pytest.TempPathFactory, limit: int, bursts: list[int]
) -> None:
    path = fresh(tmp_path_factory)
    log = LogFile(path, limit_bytes=limit)
    reader = Follower(path)
    expected: list[bytes] = []
    try:
        for burst in bursts:
            for _turn in range(min(burst, limit // 10 * KEPT)):
                line = b"%06d" % len(expected)
                log.write(line + b"\n")
                expected.append(line)
            assert reader.look() == expected
    finally:
        reader.close()
        log.close()


def test_a_follower_beside_a_fast_writer_sees_whole_lines_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "x.log")
    LogFile(path).close()
    reader = Follower(path)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, CODE, path, str(100_000), "50000"], stdin=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        eventually(lambda: reader.look()[-1:] == [b"end"], 30)
    assert reader.seen == [*(b"%08d" % number for number in range(50_000)), b"end"]
    reader.close()
