"""Which slots are alive and which dead: a doubt counts as alive, junk is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.process import PID_MAX
from slotgc.slots import Slot, dead_slots, live_slots
from tests.slotgc.leaves import leaf, make_slot, process, sign
from tests.support import stranger


def test_without_slots_none_is_alive_and_none_dead(tmp_path: Path) -> None:
    assert (live_slots(tmp_path), dead_slots(tmp_path)) == ([], [])
    (tmp_path / ".bones").mkdir()
    (tmp_path / ".bones/swarm").write_text("a file")
    assert (live_slots(str(tmp_path)), dead_slots(str(tmp_path))) == ([], [])


def test_live_and_dead_slots_come_by_name(tmp_path: Path) -> None:
    with stranger() as one, stranger() as two:
        make_slot(tmp_path, "d", PID_MAX)
        make_slot(tmp_path, "b", one.pid)
        make_slot(tmp_path, "a", str(two.pid).encode())
        make_slot(tmp_path, "c", PID_MAX)
        make_slot(tmp_path, "being made")
        make_slot(tmp_path, "junk", b"junk")
        assert live_slots(tmp_path) == [Slot(name="a", pid=two.pid), Slot(name="b", pid=one.pid)]
        assert dead_slots(tmp_path) == ["c", "d"]
    assert live_slots(tmp_path) == []
    assert dead_slots(tmp_path) == ["a", "b", "c", "d"]


def test_a_slot_is_live_with_its_leaf_and_dead_after_it(tmp_path: Path) -> None:
    make_slot(tmp_path)
    with leaf(tmp_path) as running:
        assert live_slots(tmp_path) == [Slot(name="a", pid=running.pid)]
        assert dead_slots(tmp_path) == []
    assert live_slots(tmp_path) == []
    assert dead_slots(tmp_path) == ["a"]


def test_a_relative_path_and_a_link_lead_to_the_same_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    slot = make_slot(root)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)
    with process() as running:
        sign(slot, running.pid)
        found = [live_slots(path) for path in (root, tmp_path / "link", ".", "../link/.")]
        assert found == [[Slot(name="a", pid=running.pid)]] * 4
