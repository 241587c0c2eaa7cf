"""A slot whose agent works with git as well: what it has landed is not kept a second time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import swarm
from slotgc.rescue import list_rescues
from swarm import render
from tests.support import git

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarm.slot import Closed, Slot
    from tests.support import Hub

pytestmark = pytest.mark.real


def put(slot: Slot, path: str, text: str) -> None:
    where = Path(slot.worktree) / path
    where.parent.mkdir(exist_ok=True)
    where.write_text(text)


def committed(slot: Slot, message: str, *more: str) -> None:
    git(Path(slot.worktree), "add", ".")
    git(Path(slot.worktree), "commit", "-q", "-m", message, *more)


def staged(slot: Slot) -> None:
    put(slot, "src/staged", "staged\n")
    git(Path(slot.worktree), "add", ".")
    slot.commit("landed")


def committed_first(slot: Slot) -> None:
    put(slot, "first", "first\n")
    committed(slot, "in git")
    slot.commit("landed")


def committed_in_steps(slot: Slot) -> None:
    for turn in range(2):
        for name in ("one", "two", "src/three"):
            put(slot, name, f"{slot.name} {turn} {name}\n")
            committed(slot, name)
        slot.commit(f"landed {turn}")
        put(slot, f"plain {turn}", f"{slot.name} {turn} without git\n")
        slot.commit("landed plainly")


def committed_to_a_branch(slot: Slot) -> None:
    git(Path(slot.worktree), "checkout", "-q", "-b", "feature")
    put(slot, "feature", "feature\n")
    committed(slot, "in git")
    slot.commit("landed")


def stashed(slot: Slot) -> None:
    put(slot, "README", "stashed\n")
    git(Path(slot.worktree), "stash", "-q")
    git(Path(slot.worktree), "stash", "pop", "-q")
    slot.commit("landed")


def committed_after(slot: Slot) -> None:
    put(slot, "after", "after\n")
    slot.commit("landed")
    committed(slot, "in git, of all that is there", "--allow-empty")


WAYS = [
    staged,
    committed_first,
    committed_in_steps,
    committed_to_a_branch,
    stashed,
    committed_after,
]


def in_between(slot: Slot) -> None:
    for text in ("first\n", "second\n"):
        put(slot, "file", f"{slot.name} {text}")
        committed(slot, text)
    slot.commit("landed")


def staged_and_lost(slot: Slot) -> None:
    put(slot, "lost", "lost\n")
    git(Path(slot.worktree), "add", ".")
    os.unlink(f"{slot.worktree}/lost")
    put(slot, "kept", "kept\n")
    slot.commit("landed")


def stash_left(slot: Slot) -> None:
    put(slot, "README", "put aside\n")
    git(Path(slot.worktree), "stash", "-q")
    put(slot, "kept too", "kept\n")
    slot.commit("landed")


LOSSES = [in_between, staged_and_lost, stash_left]


def closed(hub: Hub, way: Callable[[Slot], None]) -> Closed:
    slot = swarm.join(hub.root, way.__name__.replace("_", "-"))
    way(slot)
    return slot.close()


def test_what_was_staged_or_committed_to_git_and_landed_is_not_rescued(swarm_hub: Hub) -> None:
    ends = {way.__name__: closed(swarm_hub, way) for way in WAYS}
    assert {name: one.outcome for name, one in ends.items()} == dict.fromkeys(ends, "removed")
    assert [name for name, one in ends.items() if not one.history] == ["staged"]
    shown = render.closed(ends["committed_first"], as_json=False).stderr
    assert shown.endswith("closed (success) and removed, with its git history\n")


def test_what_git_has_and_trunk_has_not_is_rescued(swarm_hub: Hub) -> None:
    ends = {way.__name__: closed(swarm_hub, way) for way in LOSSES}
    assert {name: one.outcome for name, one in ends.items()} == dict.fromkeys(ends, "rescued")
    for one in list_rescues(swarm_hub.root):
        assert (one.added, one.changed, one.deleted) == (0, 0, 0)
        assert one.reason.startswith("its git has ")
    assert all(one.history for one in ends.values())
    shown = render.closed(ends["in_between"], as_json=False).stderr
    assert "; its git history is kept: `bones swarm rescue restore in-between-" in shown
