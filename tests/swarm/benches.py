"""A slot's worktree on a bench: a trunk, others who commit to it, and everybody who is asked."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.workspace import Workspace
from hub.commits import Landed, new_id
from hub.repository import Repository
from slotgc import work
from swarm.worktree import Worktree
from tests.slotgc.worktrees import Node, Tree
from tests.swarm.pushing import Pusher
from tests.swarm.stock import FOSSIL, Checkout

if TYPE_CHECKING:
    from hub.commits import Proposal
    from slotgc.work import Work

Edits = dict[bytes, Node | None]
"""What to make of files; None: delete."""


class Bench:
    """A workspace with a trunk, another check-out of it, and a slot's worktree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Workspace(str(root))
        self.workspace.make_bones()
        self.workspace.make_state()
        self.slot = Path(self.workspace.swarm) / "auth"
        self.slot.mkdir(mode=0o700, exist_ok=True)
        self.wt = self.slot / "wt"
        self._open: Worktree | None = None
        self._other: Checkout | None = None
        self._at_ms = 0

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
        """Take the worktree up as after a kill: nothing was closed but by the kernel."""
        if self._open is not None:
            self._open._rules.close()
        self._open = None
        return self.tree

    @property
    def other(self) -> Checkout:
        """Another check-out of trunk, by stock fossil, at its tip."""
        if self._other is None:
            self._other = Checkout(self.workspace.repository, self.root.parent / "other")
        self._other.fossil("update")
        return self._other

    def elsewhere(self, edits: Edits, user: str = "bob", message: str = "theirs") -> str:
        """Have somebody else commit *edits* to trunk; return the check-in."""
        pusher = Pusher(self.workspace.repository)
        self._at_ms = max(self._at_ms + 1, time.time_ns() // 1_000_000)
        pusher._at_ms = self._at_ms - 1000
        checkin = pusher.add(edits, message, user)
        pusher.push()
        return checkin

    def tip_tree(self) -> Tree:
        """Return the files of trunk's tip."""
        modes = {"file": 0o644, "exec": 0o755, "link": 0}
        with Repository(self.workspace.repository) as trunk:
            entries = trunk.files(trunk.tip().hash)
            return {
                path: Node(trunk.content(one.hash), modes[one.kind])
                for path, one in entries.items()
            }

    def land(self, proposal: Proposal, merged: Edits | None = None) -> Landed:
        """Put *proposal* on trunk, with *merged* for what is asked, and tell what landed."""
        edits: Edits = {}
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
        edits |= merged or {}
        with Repository(self.workspace.repository) as trunk:
            tree = trunk.files(trunk.tip().hash)
        edits = {path: node for path, node in edits.items() if node or path in tree}
        checkin = self.elsewhere(edits, proposal.slot, proposal.message)
        with Repository(self.workspace.repository) as trunk:
            row = trunk.checkin(checkin)
            tree = trunk.files(checkin)
        return Landed(
            checkin=row.hash,
            parent=row.parent,
            time=row.time,
            slot=proposal.slot,
            message=proposal.message,
            merged=tuple((path, *tree.get(path, ("", ""))) for path in merged or {}),
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
        """Return what a janitor, who is a process of his own, would say of the slot now.

        Here he would take our SQLite's locks away: closing a file drops all that a process has.
        """
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with os.fdopen(write, "wb") as answer:
                    answer.write(pickle.dumps(work.judge(self.workspace, str(self.slot))))
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            found: Work = pickle.loads(answer.read())
        os.waitpid(child, 0)
        return found

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


def edit(top: Path, edits: Edits) -> None:
    """Do *edits* to the files below *top*; None deletes."""
    for path, node in sorted(edits.items(), key=lambda item: item[1] is not None):
        target = os.fsencode(top) + b"/" + path
        if os.path.lexists(target) and not os.path.isdir(target):
            os.unlink(target)
        if node is None:
            while True:
                target = os.path.dirname(target)
                if target == os.fsencode(top) or os.listdir(target):
                    break
                os.rmdir(target)
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if node.mode == 0:
            os.symlink(node.content, target)
        else:
            Path(os.fsdecode(target)).write_bytes(node.content)
            os.chmod(target, node.mode)


def without_git(tree: Tree) -> Tree:
    return {path: node for path, node in tree.items() if not path.startswith((b".git/", b".fslck"))}


def git(bench: Bench, *words: str) -> str:
    """Run git in the worktree; return what it prints."""
    done = subprocess.run(
        ["git", *words], cwd=bench.wt, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_clean(bench: Bench, *, but: str = "") -> None:
    """Have everybody who is asked say that there is nothing to say, a janitor *but* this."""
    assert bench.tree.changes() == ()
    assert bench.fossil("changes") == ""
    assert bench.fossil("diff") == ""
    assert bench.fossil("extras") == ""
    status = git(bench, "status", "--porcelain")
    assert status == "", status
    assert git(bench, "diff", "HEAD") == ""
    assert bench.tree.checkin.startswith(bench.at())
    git(bench, "fsck", "--no-dangling")
    found = bench.work()
    assert found.describe() in ("", but), found.describe()
