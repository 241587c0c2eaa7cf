"""A slot's worktree: made, proposed from, told what has landed, brought along."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.slotgc.worktrees import Node, Tree, tree_of
from tests.swarm.benches import Bench, Edits, assert_clean, edit, without_git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def bench(seeded: Path) -> Iterator[Bench]:
    made = Bench(seeded)
    yield made
    made.close()


def test_a_new_worktree_is_trunk_s_tip_and_stock_fossil_sees_nothing_to_say(bench: Bench) -> None:
    tip = bench.elsewhere({b"bin/run": Node(b"#!/bin/sh\n", 0o755), b"ln": Node(b"README", 0)})
    assert bench.tree.checkin == tip
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()
    assert bench.tree.changes() == ()
    assert bench.fossil("changes") == bench.fossil("diff") == bench.fossil("extras") == ""
    assert bench.tree.checkin.startswith(bench.at())
    bench.tree.settle()
    assert not bench.work().exists()


def test_a_commit_of_one_file_leaves_everything_clean(bench: Bench) -> None:
    assert bench.tree.changes() == ()
    (bench.wt / "README").write_text("hellO\n")  # same size, same second
    landed = bench.commit(b"README")
    assert bench.tree.changes() == ()
    assert bench.tree.checkin == landed.checkin
    assert not bench.work().exists()
    (bench.wt / "README").write_text("hellP\n")
    assert [one.path for one in bench.tree.changes()] == [b"README"]
    assert landed.checkin.startswith(bench.at())
    assert bench.fossil("changes").split() == ["EDITED", "README"]
    assert bench.work().describe() == "1 changed"


KINDS: dict[str, Edits] = {
    "edit": {b"README": Node(b"edited\n")},
    "add": {b"new": Node(b"new\n")},
    "add deep": {b"x/y/z": Node(b"deep\n")},
    "delete": {b"README": None},
    "delete a directory": {b"src/a.py": None, b"src/b.py": None},
    "rename": {b"README": None, b"READ.me": Node(b"hello\n")},
    "mode": {b"README": Node(b"hello\n", 0o755)},
    "link": {b"link": Node(b"src/a.py", 0)},
    "file to link": {b"README": Node(b"src", 0)},
    "file to directory": {b"README": None, b"README/inside": Node(b"x\n")},
    "directory to file": {b"src/a.py": None, b"src/b.py": None, b"src": Node(b"file\n")},
    "empty": {b"empty": Node(b"")},
    "binary": {b"binary": Node(bytes(range(256)) * 40)},
    "odd names": {
        b"sp ace": Node(b"1"),
        b"n\nl": Node(b"2"),
        b'q"uo\\te': Node(b"3"),
        b"latin-\xe9": Node(b"4"),
        b"-dash": Node(b"5"),
        b"[glob]*": Node(b"6"),
        "ümläut".encode(): Node(b"7"),
    },
}


def test_after_a_commit_of_any_kind_fossil_and_git_see_nothing_to_say(bench: Bench) -> None:
    assert bench.tree.changes() == ()
    for kind, edits in KINDS.items():
        before = bench.tip_tree()
        edit(bench.wt, edits)
        proposal = bench.propose()
        assert {one.path for one in proposal.changes} == set(edits), kind
        landed = bench.land(proposal)
        bench.tree.landed(proposal, landed)
        assert bench.tree.checkin == landed.checkin
        assert_clean(bench)
        assert without_git(tree_of(bench.wt)) == bench.tip_tree()
        bench.elsewhere(undoing(before, edits))
        bench.tree.update()
    bench.reopen()
    assert_clean(bench)


def test_an_update_brings_whatever_others_did(bench: Bench) -> None:
    assert bench.tree.changes() == ()
    for kind, edits in KINDS.items():
        before = bench.tip_tree()
        tip = bench.elsewhere(edits, message=kind)
        done = bench.tree.update()
        assert (done.checkin, done.merged, done.conflicted) == (tip, (), ())
        assert done.files == len(edits)
        assert without_git(tree_of(bench.wt)) == bench.tip_tree()
        assert_clean(bench)
        bench.elsewhere(undoing(before, edits))
        bench.tree.update()
        assert without_git(tree_of(bench.wt)) == before
    bench.reopen()
    assert_clean(bench)


def undoing(before: Tree, edits: Edits) -> Edits:
    """Return what makes *before* again of what *edits* made of it."""
    return {path: before.get(path) for path in edits}
