"""A slot's worktree with the git repository that we write, and an agent that uses the real git."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.gitrepo.index import Stamp
from swarm.gitrepo.repo import File, GitRepo
from tests.hub import gitrepo as users

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarm.gitrepo.repo import Recorded

FILE, EXECUTABLE, LINK = users.FILE, users.EXECUTABLE, users.LINK
_KINDS = {FILE: "file", EXECUTABLE: "exec", LINK: "link"}
Tree = users.Tree


class Slot:
    """A worktree below the user's repository; ``base`` is what was recorded last."""

    def __init__(self, user: users.GitRepo, name: str = "auth") -> None:
        self.user = user
        self.name = name
        self.wt = user.root / ".bones/swarm" / name / "wt"
        self.top = os.fsencode(self.wt)
        self.base: Tree = {}
        self.records = 0
        self._hash = hashlib.sha1
        self.wt.mkdir(parents=True)

    # --- the worktree ---

    def write(self, path: bytes, content: bytes, mode: bytes = FILE) -> None:
        """Put a file there, whatever stood there or in its way."""
        self.remove(path)
        full = os.path.join(self.top, path)
        parent = os.path.dirname(full)
        while not os.path.isdir(parent) or os.path.islink(parent):
            if os.path.lexists(parent):
                os.unlink(parent)
                break
            parent = os.path.dirname(parent)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if mode == LINK:
            os.symlink(content, full)
            return
        with open(full, "wb") as file:
            file.write(content)
        os.chmod(full, 0o755 if mode == EXECUTABLE else 0o644)

    def edit(self, path: bytes, content: bytes) -> None:
        """Write into the file that is there."""
        with open(os.path.join(self.top, path), "wb") as file:
            file.write(content)

    def remove(self, path: bytes) -> None:
        full = os.path.join(self.top, path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        elif os.path.lexists(full):
            os.unlink(full)
            parent = os.path.dirname(full)
            while parent != self.top and not os.listdir(parent):
                os.rmdir(parent)
                parent = os.path.dirname(parent)

    def tree(self) -> Tree:
        """Return all that is in the worktree but its repository."""
        found: Tree = {}
        for directory, below, names in os.walk(self.top):
            if directory == self.top:
                below.remove(b".git") if b".git" in below else None
            links = [one for one in below if os.path.islink(os.path.join(directory, one))]
            for name in names + links:
                full = os.path.join(directory, name)
                found[os.path.relpath(full, self.top)] = _read(full)
        return found

    def stamps(self, paths: Mapping[bytes, object] | None = None) -> dict[bytes, Stamp]:
        seen_ns = time.time_ns()
        found = {}
        for path in self.tree() if paths is None else paths:
            status = os.lstat(os.path.join(self.top, path))
            found[path] = Stamp(
                status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, seen_ns
            )
        return found

    # --- our side ---

    def make(self, head: str, *, object_format: str = "sha1") -> GitRepo:
        """Make the repository for what is in the worktree, at the user's commit *head*."""
        head = self.user.git("rev-parse", head).decode() if head else ""
        entries = []
        listed = self.user.git("ls-tree", "-r", "-z", head) if head else b""
        for row in listed.split(b"\0")[:-1]:
            meta, _tab, path = row.partition(b"\t")
            mode, _type, oid = meta.split(b" ")
            entries.append((mode, oid, path))
        self.base = self.tree()
        self._hash = hashlib.sha256 if object_format == "sha256" else hashlib.sha1
        return GitRepo.make(
            str(self.wt),
            self.name,
            user_git=str(self.user.root / ".git"),
            object_format=object_format,
            head=head,
            entries=entries,
            stamps=self.stamps(),
        )

    def check_out(self, tree: Tree, **options: str) -> GitRepo:
        """Commit *tree* as the user, put it into the worktree, make the repository."""
        head = self.user.commit_tree(tree, check_out=False)
        for path, (mode, content) in tree.items():
            self.write(path, content, mode)
        return self.make(head, **options)

    def changes(self) -> dict[bytes, File | None]:
        """Return what differs from the base, as a leaf would find it."""
        now = self.tree()
        changed: dict[bytes, File | None] = {
            path: File(_KINDS[mode], content, self.stamps({path: None})[path])
            for path, (mode, content) in now.items()
            if self.base.get(path) != (mode, content)
        }
        return changed | dict.fromkeys(path for path in self.base if path not in now)

    def record(self, repo: GitRepo, message: str = "", **options: str | float) -> Recorded:
        """Record all that has changed."""
        self.records += 1
        changes = self.changes()
        self.base = self.tree()
        return repo.record(
            changes,
            message or f"record {self.records}",
            time_s=1_700_000_000 + self.records,
            **options,  # type: ignore[arg-type] # wait_s and mark
        )

    # --- the agent's side ---

    @property
    def env(self) -> dict[str, str]:
        return self.user.env

    def run(self, *args: str | bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", *args], cwd=self.wt, env=self.env, capture_output=True, check=False
        )

    def git(self, *args: str | bytes) -> bytes:
        done = self.run(*args)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    def status(self) -> bytes:
        return self.git("status", "--porcelain")

    def head(self) -> str:
        return self.git("rev-parse", "HEAD").decode().strip()

    # --- what must hold ---

    def assert_true(self) -> None:
        """Git says of the worktree what is: nothing differs from the base."""
        assert self.status() == b""
        expected = self.expected()
        assert _listed(self.git("ls-tree", "-r", "-z", "--full-tree", "HEAD"), 2) == expected
        assert _listed(self.git("ls-files", "-s", "-z"), 1) == expected

    def assert_sound(self) -> None:
        """Git finds no fault with the repository."""
        done = self.run("fsck", "--strict", "--no-dangling")
        said = [
            one for one in done.stderr.splitlines() if not one.startswith(b"notice: HEAD points")
        ]
        assert (done.returncode, done.stdout, said) == (0, b"", [])

    def expected(self) -> dict[bytes, tuple[bytes, bytes]]:
        return {
            path: (mode, self._hash(b"blob %d\0%s" % (len(content), content)).hexdigest().encode())
            for path, (mode, content) in self.base.items()
        }


def _read(path: bytes) -> tuple[bytes, bytes]:
    if os.path.islink(path):
        return LINK, os.readlink(path)
    with open(path, "rb") as file:
        return EXECUTABLE if os.fstat(file.fileno()).st_mode & 0o100 else FILE, file.read()


def _listed(rows: bytes, oid_at: int) -> dict[bytes, tuple[bytes, bytes]]:
    found = {}
    for row in rows.split(b"\0")[:-1]:
        meta, _tab, path = row.partition(b"\t")
        fields = meta.split(b" ")
        found[path] = fields[0], fields[oid_at]
    return found


def user_repository(place: Path, **options: tuple[str, ...]) -> users.GitRepo:
    return users.GitRepo(place / "user", **options)
