"""A slot's worktree: made, proposed from, told what has landed, brought along."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.workspace import Workspace
from hub.commits import Landed, new_id
from hub.repository import Repository
from slotgc import work
from swarm.worktree import Worktree
from tests.slotgc.worktrees import Node, Tree, tree_of
from tests.swarm.stock import FOSSIL, Checkout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hub.commits import Proposal
    from slotgc.work import Work


class Bench:
    """A workspace with a trunk, another check-out of it, and a slot's worktree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Workspace(str(root))
        self.workspace.make_bones()
        self.workspace.make_state()
        self.slot = Path(self.workspace.swarm) / "auth"
        self.slot.mkdir(mode=0o700)
        self.wt = self.slot / "wt"
        self._open: Worktree | None = None
        self._other: Checkout | None = None

    @property
    def tree(self) -> Worktree:
        if self._open is None:
            self._open = Worktree.open(self.workspace, "auth")
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def reopen(self) -> Worktree:
        """Take the worktree up as after a kill: nothing was closed."""
        self._open = None
        return self.tree

    @property
    def other(self) -> Checkout:
        if self._other is None:
            self._other = Checkout(self.workspace.repository, self.root.parent / "other")
        return self._other

    def elsewhere(self, edits: Tree | dict[bytes, Node | None], message: str = "theirs") -> str:
        """Have somebody else commit *edits* to trunk; return the check-in."""
        self.other.fossil("update")
        return self.other.commit(dict(edits), message, "bob")

    def land(self, proposal: Proposal) -> Landed:
        """Put *proposal* on trunk as it is, by a stock commit, and tell what landed."""
        edits: dict[bytes, Node | None] = {}
        for one in proposal.changes:
            if not one.kind:
                edits[one.path] = None
                continue
            content = proposal.contents.get(one.hash)
            if content is None:
                spooled = Path(self.workspace.spool) / one.hash
                content = spooled.read_bytes() if spooled.exists() else self.content(one.hash)
            mode = {"file": 0o644, "exec": 0o755, "link": 0}[one.kind]
            edits[one.path] = Node(content, mode)
        self.other.fossil("update")
        checkin = self.other.commit(edits, proposal.message, proposal.slot)
        with Repository(self.workspace.repository) as trunk:
            row = trunk.checkin(checkin)
        return Landed(
            checkin=row.hash,
            parent=row.parent,
            time=row.time,
            slot=proposal.slot,
            message=proposal.message,
        )

    def content(self, name: str) -> bytes:
        with Repository(self.workspace.repository) as trunk:
            return trunk.content(name)

    def propose(self, *paths: bytes) -> Proposal:
        return self.tree.propose("mine", paths or None, id=new_id(), epoch=1)

    def commit(self, *paths: bytes) -> Landed:
        """Commit from the worktree, as a leaf does."""
        proposal = self.propose(*paths)
        landed = self.land(proposal)
        self.tree.landed(proposal, landed)
        return landed

    def work(self) -> Work:
        """Return what a janitor would say of the slot now."""
        return work.judge(self.workspace, str(self.slot))

    def fossil(self, *words: str) -> str:
        """Run stock fossil in the worktree; return what it prints."""
        done = subprocess.run(
            [FOSSIL, *words],
            cwd=self.wt,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "USER": "hub", "FOSSIL_HOME": str(self.root.parent)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def at(self) -> str:
        """Return the check-in at which stock fossil believes the worktree to be."""
        line = next(x for x in self.fossil("status").splitlines() if x.startswith("checkout:"))
        return line.split()[1]


@pytest.fixture
def bench(seeded: Path) -> Iterator[Bench]:
    made = Bench(seeded)
    yield made
    made.close()


def test_a_new_worktree_is_trunk_s_tip_and_stock_fossil_sees_nothing_to_say(bench: Bench) -> None:
    tip = bench.elsewhere({b"bin/run": Node(b"#!/bin/sh\n", 0o755), b"ln": Node(b"README", 0)})
    assert bench.tree.checkin == tip
    assert without_git(tree_of(bench.wt)) == bench.other.tree()
    assert bench.tree.changes() == ()
    assert bench.fossil("changes") == bench.fossil("diff") == bench.fossil("extras") == ""
    assert bench.tree.checkin.startswith(bench.at())
    bench.tree.settle()
    assert not bench.work().exists()


def without_git(tree: Tree) -> Tree:
    return {path: node for path, node in tree.items() if not path.startswith((b".git/", b".fslck"))}


def test_a_commit_of_one_file_leaves_everything_clean(bench: Bench) -> None:
    assert bench.tree.changes() == ()
    (bench.wt / "README").write_text("hellO\n")  # same size, same second
    landed = bench.commit(b"README")
    assert bench.tree.changes() == ()
    assert bench.tree.checkin == landed.checkin
    assert bench.fossil("changes") == ""
    assert landed.checkin.startswith(bench.at())
    assert not bench.work().exists()
    (bench.wt / "README").write_text("hellP\n")
    assert [one.path for one in bench.tree.changes()] == [b"README"]
    assert bench.fossil("changes").split() == ["EDITED", "README"]
    assert bench.work().describe() == "1 changed"
