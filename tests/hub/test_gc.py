"""`hub gc`, and the same of a hub that has just started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.slotgc.leaves import leaf
from tests.slotgc.worktrees import Node, make_slot, newest_checkin, plant
from tests.support import data_of, eventually

if TYPE_CHECKING:
    from tests.support import Hub

TREE = {b"a": Node(b"1\n"), b"sub/run": Node(b"#!/bin/sh\n", 0o755)}


@pytest.fixture
def slots(hub: Hub) -> Path:
    """Return the swarm of a workspace: a clean slot, one with unsaved work, and junk."""
    checkin = newest_checkin(hub.root)
    make_slot(hub.root, "clean", TREE, checkin=checkin)
    (make_slot(hub.root, "dirty", TREE, checkin=checkin) / "a").write_text("2\n")
    junk = make_slot(hub.root, "junk", TREE, checkin=checkin).parent
    (junk / "leaf.pid").write_text("no pid")
    return junk.parent


def test_gc_says_of_every_slot_what_becomes_of_it_and_why(hub: Hub, slots: Path) -> None:
    before = sorted(os.listdir(slots))
    shown = hub.run("gc", "--dry-run").stdout
    assert "remove  clean: pid 4194304 has ended; no unsaved work\n" in shown
    assert "rescue  dirty: pid 4194304 has ended; unsaved work: 1 changed\n" in shown
    assert "keep    junk: leaf.pid holds no pid\n" in shown
    assert sorted(os.listdir(slots)) == before
    told = data_of(hub.run("gc", "--dry-run", "--json").stdout)
    assert [one["action"] for one in told["plan"]] == ["remove", "rescue", "keep"]


def test_gc_removes_what_is_clean_and_rescues_what_is_not(hub: Hub, slots: Path) -> None:
    done = hub.run("gc")
    assert done.returncode == 0, done.stderr
    assert "removed  clean\n" in done.stdout
    assert "rescued  dirty: `bones swarm rescue restore dirty-" in done.stdout
    assert "junk" not in done.stdout
    assert os.listdir(slots) == ["junk"]
    again = hub.run("gc")
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "hub: nothing to clean up; 1 stays: `hub gc --dry-run` says why\n"


def test_no_name_of_a_slot_steers_the_terminal_or_the_shell(hub: Hub, slots: Path) -> None:
    make_slot(hub.root, "x\x1b[2J", TREE)
    plant(make_slot(hub.root, "x;reboot", TREE), {})
    assert "x\\x1b[2J" in hub.run("gc", "--dry-run").stdout
    done = hub.run("gc")
    assert "\x1b" not in done.stdout
    assert "`bones swarm rescue restore 'x;reboot-" in done.stdout
    assert os.listdir(slots) == ["junk"]


def test_what_cannot_be_cleaned_up_is_named_and_the_rest_goes(hub: Hub, slots: Path) -> None:
    rescue = slots.parent / "rescue"
    rescue.write_text("in the way")
    done = hub.run("gc", "--json")
    assert done.returncode == 1
    told = data_of(done.stdout)
    assert set(told["failed"]) == {"clean", "dirty"}
    assert "move it away" in told["failed"]["dirty"]
    rescue.unlink()
    assert hub.run("gc").returncode == 0


def test_gc_without_any_slot_says_so(hub: Hub) -> None:
    done = hub.run("gc", "--dry-run")
    assert done.returncode == 0
    assert "no slots" in done.stderr


@pytest.mark.real
def test_a_hub_that_starts_removes_clean_dead_slots_and_leaves_unsaved_work(
    hub: Hub, slots: Path
) -> None:
    (slots / "lives").mkdir(mode=0o700)
    with leaf(hub.root, "lives"):
        hub.start()
        eventually(lambda: hub.logged("slots-removed") != [])
        assert sorted(os.listdir(slots)) == ["dirty", "junk", "lives"]
        assert (slots / "dirty/wt/a").read_text() == "2\n"
        hub.wait_ready()
        told = data_of(hub.run("events", "--json").stdout)["events"]
        assert [e["data"]["slots"] for e in told if e["kind"] == "slots-removed"] == [["clean"]]
        hub.stop("--force")


@pytest.mark.real
@pytest.mark.faults
def test_a_hub_runs_whatever_becomes_of_the_cleaning_up(hub: Hub, slots: Path) -> None:
    (slots.parent / "rescue").write_text("in the way")
    hub.start()
    eventually(lambda: hub.logged("slot-not-removed") != [])
    assert hub.status()["state"] in ("running", "degraded")
    assert (slots / "clean/wt/a").exists()
    assert {error["slot"] for error in hub.logged("slot-not-removed")} == {"clean"}


@pytest.mark.real
@pytest.mark.faults
@pytest.mark.parametrize("point", ["gc.judged", "gc.renamed", "gc.judged-again", "gc.removed"])
def test_a_pass_that_is_killed_is_finished_by_the_next_start(
    hub: Hub, slots: Path, point: str
) -> None:
    hub.start(HUB_FAILPOINT=point)
    eventually(lambda: hub.logged("slots-not-collected") != [])
    assert hub.status()["info"] is not None
    hub.stop()
    hub.start()
    eventually(lambda: not (slots / "clean").exists() and not rescues(slots))
    assert (slots / "dirty/wt/a").read_text() == "2\n"


def rescues(slots: Path) -> list[str]:
    place = slots.parent / "rescue"
    return os.listdir(place) if place.exists() else []
