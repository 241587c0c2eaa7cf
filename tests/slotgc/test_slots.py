"""Which slots are alive: a doubt counts as alive, junk does not."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from slotgc.slots import Slot, live_slots
from tests.support import eventually, stranger


def make(root: Path, name: str, content: bytes | None) -> Path:
    slot = root / ".bones/swarm" / name
    slot.mkdir(parents=True)
    if content is not None:
        (slot / "leaf.pid").write_bytes(content)
    return slot


def test_without_slots_none_is_alive(tmp_path: Path) -> None:
    assert live_slots(str(tmp_path)) == []
    (tmp_path / ".bones").mkdir()
    (tmp_path / ".bones/swarm").write_text("a file")
    assert live_slots(str(tmp_path)) == []


def test_live_slots_come_by_name(tmp_path: Path) -> None:
    with stranger() as one, stranger() as two:
        make(tmp_path, "b", f"{one.pid}\n".encode())
        make(tmp_path, "a", f"{two.pid}".encode())
        make(tmp_path, "c", None)
        assert live_slots(str(tmp_path)) == [
            Slot(name="a", pid=two.pid),
            Slot(name="b", pid=one.pid),
        ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"0",
        b"1",
        b"-1",
        b"4194305",
        b"2147483648",
        b"1e3",
        b"12 34",
        b"\xff",
        b"0x10",
        b"\xd9\xa3",
        b"9" * 100,
        b"\0",
        "²".encode(),
        b"+5",
        b"4194304",
    ],
)
def test_junk_is_not_alive(tmp_path: Path, content: bytes) -> None:
    make(tmp_path, "a", content)
    assert live_slots(str(tmp_path)) == []


def test_odd_files_are_not_alive(tmp_path: Path) -> None:
    slot = make(tmp_path, "a", None)
    os.mkfifo(slot / "leaf.pid")
    (make(tmp_path, "b", None) / "leaf.pid").mkdir()
    (make(tmp_path, "c", None) / "leaf.pid").symlink_to("/proc/self/stat")
    (tmp_path / ".bones/swarm/file").touch()
    assert live_slots(str(tmp_path)) == []


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    make(tmp_path, "a", f"{child.pid}\n".encode())
    eventually(lambda: live_slots(str(tmp_path)) == [])
    child.wait()
    assert live_slots(str(tmp_path)) == []


def test_a_thread_s_number_is_no_leaf(tmp_path: Path) -> None:
    gate, numbers = threading.Event(), [0]

    def run() -> None:
        numbers[0] = threading.get_native_id()
        gate.wait()

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: numbers[0] != 0)
    make(tmp_path, "a", str(numbers[0]).encode())
    try:
        assert live_slots(str(tmp_path)) == []
    finally:
        gate.set()
        thread.join()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may signal anybody")
def test_another_user_s_process_is_alive(tmp_path: Path) -> None:
    make(tmp_path, "a", b"2")
    assert live_slots(str(tmp_path)) == [Slot(name="a", pid=2)]
