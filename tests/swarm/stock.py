"""A stock check-out of the trunk, by the real fossil: for tests of reading what it commits."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.slotgc.worktrees import Node, Tree, tree_of

if TYPE_CHECKING:
    from collections.abc import Mapping

FOSSIL = shutil.which("fossil") or str(Path(__file__).resolve().parents[2] / ".tools/bin/fossil")


class Checkout:
    """A check-out of *repository* in the directory *top*."""

    def __init__(self, repository: Path | str, top: Path) -> None:
        """Make it."""
        self.top = top
        top.mkdir(parents=True)
        self.fossil("open", "-f", str(repository))
        self.fossil("settings", "allow-symlinks", "on")

    def fossil(self, *words: str, **environment: str) -> str:
        """Run fossil in it and return what it prints."""
        done = subprocess.run(
            [FOSSIL, *words],
            cwd=self.top,
            capture_output=True,
            check=False,
            text=True,
            errors="surrogateescape",
            env={
                **os.environ,
                "USER": "hub",
                "HOME": str(self.top.parent),
                "FOSSIL_HOME": str(self.top.parent),
                **environment,
            },
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tree(self) -> Tree:
        """Return its files, without Fossil's own."""
        return {path: node for path, node in tree_of(self.top).items() if path != b".fslckout"}

    def commit(self, edits: Mapping[bytes, Node | None], message: str, user: str = "auth") -> str:
        """Make *edits* (None deletes), commit all, and return the check-in's hash."""
        tree: Tree = {path: node for path, node in edits.items() if node is not None}
        for path in edits:
            target = os.fsencode(self.top) + b"/" + path
            if os.path.lexists(target):
                os.unlink(target)
        for path, node in tree.items():
            target = os.fsencode(self.top) + b"/" + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if node.mode == 0:
                os.symlink(node.content, target)
            else:
                Path(os.fsdecode(target)).write_bytes(node.content)
                os.chmod(target, node.mode)
        self.fossil("addremove")
        return self.new_version("-m", message, "--user-override", user)

    def new_version(self, *words: str) -> str:
        """Run ``fossil commit`` with *words* and return the check-in's hash."""
        said = self.fossil("commit", "--hash", "--no-warnings", *words)
        return next(line.split()[1] for line in said.splitlines() if "New_Version:" in line)
