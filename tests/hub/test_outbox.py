"""The outbox: what the supervisor said is there, in order, whatever was torn or rotated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import codec
from hub.outbox import ROTATE_AT_BYTES, Entry, Outbox, read_after, read_id, sync
from tests.hub.bus_server import CODE

DATA = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers()),
    max_size=4,
)


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.seq for entry in entries]


@given(st.lists(st.tuples(st.text(max_size=10), DATA), max_size=20), st.integers(0, 25))
def test_what_was_appended_is_read_back_in_order(
    said: list[tuple[str, dict[str, Any]]], after: int
) -> None:
    with TemporaryDirectory() as directory:
        box = Outbox(directory, epoch=7)
        given_numbers = [box.append(kind, data) for kind, data in said]
        box.close()
        entries = read_after(directory, after)
        assert given_numbers == list(range(1, len(said) + 1))
        assert [(entry.kind, entry.data) for entry in entries] == said[after:]
        assert all(entry.epoch == 7 for entry in entries)


def test_a_line_holds_what_the_format_says(tmp_path: Path) -> None:
    Outbox(str(tmp_path), epoch=3).append("ready", {"pid": 1})
    line = codec.loads_object((tmp_path / "current").read_bytes())
    assert list(line) == ["seq", "epoch", "time", "kind", "data"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert (line["seq"], line["epoch"], line["kind"], line["data"]) == (1, 3, "ready", {"pid": 1})


def test_torn_at_any_byte_the_whole_lines_stay_and_no_number_is_given_twice(
    tmp_path: Path,
) -> None:
    box = Outbox(str(tmp_path / "whole"))
    for number in range(4):
        box.append("child-exited", {"number": number, "text": "é\n"})
    box.close()
    whole = (tmp_path / "whole" / "current").read_bytes()
    for length in range(len(whole) + 1):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / "id").write_text("abc\n")
        (directory / "current").write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        assert numbers(read_after(str(directory), 0)) == list(range(1, lines + 1))
        box = Outbox(str(directory))
        assert box.append("ready", {}) == lines + 1
        assert (box.id == "abc") == (lines > 0)
        box.close()
        assert numbers(read_after(str(directory), 0)) == list(range(1, lines + 2))


@given(st.binary(max_size=200), st.integers(0, 400))
def test_garbage_in_the_file_costs_only_what_it_covers(garbage: bytes, at: int) -> None:
    with TemporaryDirectory() as directory:
        box = Outbox(directory)
        for number in range(5):
            box.append("x", {"number": number})
        box.close()
        path = Path(directory, "current")
        content = path.read_bytes()
        path.write_bytes(content[:at] + garbage + content[at + len(garbage) :])
        untouched = {
            number + 1
            for number, line in enumerate(content.splitlines(keepends=True))
            if content.index(line) >= at + len(garbage) + 1 or content.index(line) + len(line) <= at
        }
        found = set(numbers(read_after(directory, 0)))
        if at + len(garbage) <= len(content) and b"\n" not in garbage:
            assert untouched - {n for n in untouched if n > 5} <= found | {_covered(content, at)}
        box = Outbox(directory)
        assert box.append("y", {}) > max(found, default=0)
        box.close()


def _covered(content: bytes, at: int) -> int:
    return content[:at].count(b"\n") + 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=60), st.integers(200, 2000))
def test_the_outbox_is_bounded_and_what_is_left_is_the_newest(sizes: list[int], limit: int) -> None:
    with TemporaryDirectory() as directory:
        box = Outbox(directory, rotate_at_bytes=limit)
        for number, size in enumerate(sizes):
            assert box.append("x", {"pad": "p" * size}) == number + 1
            assert sum(entry.stat().st_size for entry in os.scandir(directory)) <= 2 * limit + 17
        box.close()
        found = numbers(read_after(directory, 0))
        assert found == list(range(found[0], len(sizes) + 1))
        again = Outbox(directory, rotate_at_bytes=limit)
        assert again.append("x", {}) == len(sizes) + 1
        again.close()


def test_two_files_hold_half_a_mebibyte(tmp_path: Path) -> None:
    box = Outbox(str(tmp_path))
    for _ in range(10_000):
        box.append("child-exited", {"child": "nats", "pid": 12345, "status": -9, "uptime_s": 1.5})
    box.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["current", "id", "previous"]
    assert all(entry.stat().st_size <= ROTATE_AT_BYTES for entry in tmp_path.iterdir())


def test_a_message_larger_than_the_outbox_is_named_by_its_size(tmp_path: Path) -> None:
    box = Outbox(str(tmp_path), rotate_at_bytes=1000)
    assert box.append("failed", {"reason": "r" * 5000}) == 1
    (entry,) = box.read_after(0)
    assert entry.kind == "failed"
    assert entry.data["dropped_bytes"] > 5000
    box.close()


@pytest.mark.parametrize("step", ["before", "between", "after"])
def test_a_rotation_that_was_killed_loses_nothing(tmp_path: Path, step: str) -> None:
    box = Outbox(str(tmp_path))
    for _ in range(3):
        box.append("x", {})
    box.close()
    (tmp_path / "current.new").write_bytes(b"")
    if step != "before":
        os.rename(tmp_path / "current", tmp_path / "previous")
    if step == "after":
        os.rename(tmp_path / "current.new", tmp_path / "current")
    assert numbers(read_after(str(tmp_path), 0)) == [1, 2, 3]
    box = Outbox(str(tmp_path))
    assert box.append("x", {}) == 4
    box.close()
    assert numbers(read_after(str(tmp_path), 0)) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_reader_beside_the_appender_misses_nothing_that_was_not_given_up(
    tmp_path: Path,
) -> None:
    """Nothing within the newest file's worth of lines may be missing from any reading."""
    box = Outbox(str(tmp_path), rotate_at_bytes=4096)
    done = threading.Event()
    problems: list[str] = []

    def read() -> None:
        last = 0
        while not done.is_set():
            found = numbers(read_after(str(tmp_path), 0))
            if found and found != list(range(found[0], found[-1] + 1)):
                problems.append(f"holes in {found}")
            if found and found[-1] < last:
                problems.append(f"went back from {last} to {found[-1]}")
            last = found[-1] if found else last

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20_000):
        box.append("x", {"number": number})
    done.set()
    reader.join()
    box.close()
    assert not problems, problems[:3]


FULL = """
import resource, sys
sys.path.insert(0, {code!r})
from hub.outbox import Outbox
box = Outbox(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
kept = [box.append("x", {{"pad": "p" * 100}}) for _ in range(12)]
assert box.error, box.error
lost = box.lost
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
kept.append(box.append("y", {{}}))
print(lost, *kept)
"""


@pytest.mark.faults
def test_a_full_disk_costs_events_and_nothing_else(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FULL.format(code=str(CODE)), str(tmp_path)],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    lost, *kept = [int(number) for number in told]
    assert lost > 0
    assert kept.count(0) == lost
    assert kept[-1] == 13
    # The gap in the numbers is what was lost.
    assert numbers(read_after(str(tmp_path), 0)) == [number for number in kept if number]


@pytest.mark.parametrize("data", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}])
def test_what_is_not_json_never_reaches_the_supervisor(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    box = Outbox(str(tmp_path))
    assert box.append("x", data) == 0
    assert box.lost == 1
    assert box.append("x", {}) == 2
    box.close()


def test_a_numbering_that_starts_again_has_another_name(tmp_path: Path) -> None:
    box = Outbox(str(tmp_path))
    first = box.id
    box.append("x", {})
    box.close()
    box = Outbox(str(tmp_path))
    assert box.id == first == read_id(str(tmp_path))
    box.close()
    (tmp_path / "current").unlink()
    box = Outbox(str(tmp_path))
    assert box.id != first
    assert box.append("x", {}) == 1
    box.close()


def test_a_place_without_an_outbox_holds_no_events(tmp_path: Path) -> None:
    assert read_after(str(tmp_path), 0) == []
    assert read_id(str(tmp_path)) == ""
    sync(str(tmp_path))
