"""An update that stops halfway: what it has brought of others' is no work of the slot's."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError
from hub.trunk import merge
from tests.slotgc.worktrees import Node, tree_of
from tests.swarm.benches import Bench, Edits, assert_clean, edit, git, without_git
from tests.swarm.test_worktree_kills import run, update

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.faults

LINES = b"".join(b"%d\n" % number for number in range(20))
BEFORE = {
    b"both": Node(LINES),
    b"gone": Node(b"g\n"),
    b"moded": Node(LINES),
    b"README": Node(b"hello\n"),
    b"text": Node(LINES),
    b"tool": Node(b"t\n"),
    b"z": Node(b"a file\n"),
}
THEIRS: Edits = {
    b"both": Node(b"theirs\n" + LINES),
    b"gone": None,
    b"moded": Node(b"theirs\n" + LINES),
    b"new/x": Node(b"x\n"),
    b"README": Node(b"theirs\n"),
    b"text": Node(b"theirs\n" + LINES),
    b"tool": Node(b"t\n", 0o755),
    b"z": None,
}
OWN = {
    b"both": Node(b"mine\n" + LINES),
    b"moded": Node(LINES, 0o755),
    b"src/a.py": Node(b"mine\n"),
    b"text": Node(LINES + b"mine\n"),
}


@pytest.fixture
def bench(seeded: Path) -> Iterator[Bench]:
    made = Bench(seeded)
    made.elsewhere({**BEFORE})
    assert made.tree.changes() == ()
    edit(made.wt, {**OWN})
    yield made
    made.close()


def others_land(bench: Bench) -> None:
    bench.elsewhere(dict(THEIRS))
    bench.elsewhere({b"z/in": Node(b"a directory\n")})


def others_take_it_back(bench: Bench) -> None:
    bench.elsewhere({b"z/in": None, b"new/x": None})
    bench.elsewhere({**BEFORE})


def changed(answer: str) -> set[bytes]:
    """Return the paths in what ``git status --porcelain`` or ``fossil changes`` says."""
    return {os.fsencode(path) for path in answer.split()[1::2]}


def assert_only_own(bench: Bench) -> None:
    """Have no change be one of others', and the worktree be as trunk, but for the slot's own."""
    changes = bench.tree.changes()
    assert {one.path for one in changes} == OWN.keys()
    for one in changes:
        if one.path in (b"text", b"moded"):
            mine = (bench.wt / os.fsdecode(one.path)).read_bytes()
            lands = merge.merge(bench.content(one.base_hash), mine, LINES)
            assert lands == OWN[one.path].content
    assert changed(git(bench, "status", "--porcelain")) == OWN.keys()
    assert changed(bench.fossil("changes")) == OWN.keys()
    bench.tree.update(markers=True)
    edit(bench.wt, {b"both": OWN[b"both"]})
    assert without_git(tree_of(bench.wt)) == bench.tip_tree() | OWN
    assert {one.path for one in bench.tree.changes()} == OWN.keys()
    assert not (bench.slot / "wt.new").exists()


class Failing:
    """A disk that is full at the step *at* of an update, the first is 0."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.steps: list[str] = []

    def hit(self, point: str) -> None:
        self.steps.append(point)
        if len(self.steps) == self._at + 1:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_an_update_that_fails_at_any_step_makes_nothing_of_others_the_slot_s_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []
    while True:
        failing = Failing(len(failed))
        others_land(bench)
        with monkeypatch.context() as patched:
            patched.setattr("swarm.worktree.placing.hit", failing.hit)
            patched.setattr("swarm.worktree.worktree.hit", failing.hit)
            try:
                bench.tree.update(markers=True)
                break
            except HubError:
                failed.append(failing.steps[failing._at])
        others_take_it_back(bench)
        assert_only_own(bench)
    assert failed.count("place.renamed") > 5
    assert {"place.deleted", "place.written", "update.written", "update.based"} <= {*failed}


@pytest.mark.parametrize(
    "point",
    [
        "place.deleted@2",
        "place.written@3",
        *(f"place.renamed@{turn}" for turn in range(1, 7)),
        "update.written",
        "update.based",
        "update.checkout",
    ],
)
def test_an_update_killed_at_any_step_makes_nothing_of_others_the_slot_s_own(
    bench: Bench, point: str
) -> None:
    others_land(bench)
    assert run(bench, point, update) == -9
    others_take_it_back(bench)
    assert run(bench, "update.noted", update) == -9
    assert_only_own(bench)


def test_what_an_agent_changes_of_what_was_brought_stays_his(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    others_land(bench)

    def change_at_once(point: str) -> None:
        if point == "place.renamed" and (bench.wt / "new/x").exists():
            edit(bench.wt, {b"README": Node(b"theirs\nand mine\n"), b"new/x": Node(b"mine\n")})
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("swarm.worktree.placing.hit", change_at_once)
        with pytest.raises(HubError, match="new/x: No space left on device"):
            bench.tree.update(markers=True)
    (readme,) = (one for one in bench.tree.changes() if one.path == b"README")
    assert bench.content(readme.base_hash) == b"theirs\n"
    assert (bench.wt / "README").read_bytes() == b"theirs\nand mine\n"


def test_no_commit_is_made_of_what_could_not_be_written_down(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.elsewhere({b"README": Node(b"theirs\n"), b"gone": None})

    def full(*_what: object, **_how: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("swarm.worktree.ledger.write_all", full)
        patched.setattr("slotgc.base.atomic.write_file", full)
        with pytest.raises(HubError, match="No space left"):
            bench.tree.update()
    with monkeypatch.context() as patched:
        failing = Failing(0)
        patched.setattr("swarm.worktree.worktree.hit", failing.hit)
        patched.setattr("swarm.worktree.placing.hit", failing.hit)
        patched.setattr("swarm.worktree.ledger.write_all", full)
        with pytest.raises(HubError, match="cannot be written down"):
            bench.propose()
    bench.reopen()
    bench.elsewhere({path: BEFORE[path] for path in (b"README", b"gone")})
    assert_only_own(bench)


def test_what_trunk_merged_into_a_commit_of_a_killed_leaf_is_not_the_slot_s_own(
    bench: Bench,
) -> None:
    bench.elsewhere({b"text": Node(b"theirs\n" + LINES)})
    proposal = bench.propose(b"text")
    landed = bench.land(proposal, {b"text": Node(b"theirs\n" + LINES + b"mine\n")})
    assert run(bench, "place.renamed", lambda tree: tree.landed(proposal, landed)) == -9
    bench.elsewhere({b"text": Node(LINES + b"mine\n")}, message="theirs is taken back")
    bench.tree.landed(proposal, landed)
    assert b"text" not in {one.path for one in bench.tree.changes()}
    bench.tree.update()
    assert (bench.wt / "text").read_bytes() == LINES + b"mine\n"
    edit(bench.wt, {path: BEFORE[path] for path in (b"both", b"moded")})
    edit(bench.wt, {b"src/a.py": bench.tip_tree()[b"src/a.py"]})
    assert_clean(bench)
