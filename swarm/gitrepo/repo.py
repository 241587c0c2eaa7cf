"""The git repository of a slot's worktree: made once, and a commit for each check-in.

What a record does, so that a kill anywhere leaves a repository that git accepts:

1. a pack with the new blobs, trees and commits: nothing names them yet;
2. the new index beside the index;
3. the branch's lock, then index.lock: both only now, and for 50 us, for git does not wait for it;
4. the index is exchanged, the branch moved, the logs are written;
5. the state: until then the caller's *mark* is the former one, and recording the same again
   finds the commit there.

Where the agent's git holds a lock, the commit waits in memory for the next call.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from foundation.failpoint import hit
from foundation.spawn import find_program
from hub import git
from hub.tool import Tool
from slotgc.base import EXEC, FILE, LINK
from swarm.gitrepo import branch, index, making, state
from swarm.gitrepo.branch import NotABranch
from swarm.gitrepo.commits import Draft, Person
from swarm.gitrepo.index import Owner, Stamp
from swarm.gitrepo.indexfile import LOCK as INDEX_LOCK
from swarm.gitrepo.indexfile import IndexFile
from swarm.gitrepo.names import is_possible
from swarm.gitrepo.objects import BLOB, COMMIT, TREE, format_named
from swarm.gitrepo.packs import Packs
from swarm.gitrepo.places import Doors, clear_lock, let_go, opened, try_lock
from swarm.gitrepo.reading import ObjectReader
from swarm.gitrepo.segments import NeedsGit
from swarm.gitrepo.state import State
from swarm.gitrepo.trees import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from hub.git import Entry
    from swarm.gitrepo.objects import Format
    from swarm.gitrepo.places import Places

MODES = {FILE: 0o100644, EXEC: 0o100755, LINK: 0o120000}
_TYPE, _REGULAR = 0o170000, 0o100000
_RETRY_S = 0.001


class File(NamedTuple):
    """What a path has become: its kind as in a base, its content, what the file system says.

    Without a stamp git will look at the file itself.
    """

    kind: str
    content: bytes
    """Of a link: its target."""
    stamp: Stamp | None = None


class Recorded(NamedTuple):
    """What became of a record."""

    commit: str
    """Where our branch is now, "" if it could not be moved: the next record moves it."""
    why: str = ""
    """In words, why not all of it was done yet, "" if it was."""


def person(slot: str) -> Person:
    """Return how *slot* appears in git."""
    return Person(slot, f"{slot}@slot.invalid")


class GitRepo:
    """One repository. Used by one process at a time, the slot's leaf, and by one thread of it."""

    def __init__(self, worktree: str, name: str) -> None:
        """Use the repository in *worktree*, slot *name*'s.

        Raises:
            Corrupt: there is none of ours (``git-gone``, ``git-state``): make it anew.
        """
        self.worktree = worktree
        self.name = name
        self._doors = Doors(worktree)
        with self._doors as at:
            self._state = state.read(at.git)
            for lock in (INDEX_LOCK, branch.LOCK):
                clear_lock(at.git, lock)
        self._form = format_named("sha256" if len(self._state.tree) == 64 else "sha1")  # noqa: PLR2004
        self._objects = ObjectReader(f"{worktree}/.git/objects", self._form)
        self._packs = Packs(self._form)
        self._index = IndexFile(worktree, self._form, self._resolve_index)
        self._owner = _owner(worktree)
        self._tree: Tree | None = None
        self._drafts: list[Draft] = []
        self._edits: dict[bytes, tuple[bytes, Stamp | None] | None] = {}
        self._mark = self._state.mark
        self._stored: set[bytes] = set()
        """Commits of the drafts that are in a pack already."""

    @classmethod
    def make(
        cls,
        worktree: str,
        name: str,
        *,
        user_git: str,
        object_format: str,
        head: str,
        entries: Iterable[Entry],
        stamps: Mapping[bytes, Stamp],
        doubtful: Collection[bytes] = (),
    ) -> GitRepo:
        """Make a repository in *worktree*, whose files are those of commit *head* ("": none yet).

        *user_git*: the user's (``Workspace.git_dir()``), whose objects it shares. *entries*: the
        commit's files, as ``hub.git.Git.tree`` gives them. One without a stamp is not in the
        worktree (a submodule, what seeding left out), and git will not miss it. *doubtful*: paths
        to find again in :attr:`doubtful`. Whoever calls this has the worktree alone; killed, it may
        be called again.

        Raises:
            Refused: there is one (``git-exists``), or its format is unknown to us.
            Corrupt: the user's repository lacks the commit (``git-object``).
        """
        form = format_named(object_format)
        who = person(name)
        making.make(f"{worktree}/.git", user_git, form, head, who, exact=True)
        owner = _owner(worktree)
        rows: dict[bytes, tuple[bytes, Stamp | None] | None] = {}
        for mode, oid, path in entries:
            stamp = stamps.get(path)
            name_of_it = bytes.fromhex(oid.decode())
            raw = index.entry(path, _mode(mode), name_of_it, stamp, owner, absent=stamp is None)
            rows[path] = raw, stamp
        reader = ObjectReader(f"{worktree}/.git/objects", form)
        tree = _tree_of(reader, head) if head else form.name_of(TREE, b"").hex()
        with opened(worktree) as at:
            file = IndexFile(worktree, form, _never)
            file.prepare(at, rows, time.time_ns(), alone=True)
            file.place(at)
            if doubtful:
                state.write_doubtful(at.git, doubtful)
            state.write(at.git, State(head, tree, ""))
        making.finish(f"{worktree}/.git")
        return cls(worktree, name)

    @classmethod
    def adopt(
        cls, worktree: str, name: str, *, stamps: Mapping[bytes, Stamp] | None = None
    ) -> GitRepo:
        """Make the copy of a template's repository that of slot *name*.

        With *stamps* of the copied files the index becomes exact. Without, git will go by whole
        seconds and sizes, and may be deceived by what has both of another file.
        """
        repo = cls(worktree, name)
        if stamps is not None:
            with repo._doors as at:
                repo._index.restamp(at, stamps, repo._owner, time.time_ns())
        making.configure(
            f"{worktree}/.git",
            repo._form,
            person(name),
            exact=stamps is not None,
        )
        return repo

    @property
    def mark(self) -> str:
        """What was given with the last record that is all on disk."""
        return self._state.mark

    @property
    def commit(self) -> str:
        """The last commit of ours on our branch, "" before the first."""
        return self._state.commit

    @property
    def doubtful(self) -> frozenset[bytes]:
        """What was given when it was made.

        Raises:
            Corrupt: the repository is not there.
            OSError: it cannot be read.
        """
        with self._doors as at:
            return state.doubtful(at.git)

    def has_lost_ours(self) -> bool:
        """Tell whether git has forgotten our last commit, on which every next one builds.

        Raises:
            Corrupt: that cannot be told.
        """
        ours = self._state.commit
        return bool(ours) and not self._objects.has(bytes.fromhex(ours))

    def where(self) -> tuple[str, bool]:
        """Return the commit that HEAD is at ("": none), and whether by our branch.

        Raises:
            Corrupt: the repository is not there.
        """
        with self._doors as at:
            return branch.head(at), branch.is_checked_out(at)

    @property
    def waits(self) -> bool:
        """Something recorded is not in the repository yet: call :meth:`flush`."""
        return bool(self._drafts or self._edits)

    def head(self) -> str:
        """Return the commit that our branch is at, "" before the first.

        Raises:
            Corrupt: the repository is not there.
        """
        with self._doors as at:
            try:
                return branch.read(at)
            except NotABranch:
                return ""

    def record(
        self,
        changes: Mapping[bytes, File | None],
        message: str,
        *,
        time_s: int,
        author: Person | None = None,
        mark: str = "",
        wait_s: float = 0.02,
    ) -> Recorded:
        """Commit *changes* (None: the path is gone) to our branch; bring the index along.

        The commit's tree is that of our last one with *changes*: what the slot's base is now. Its
        parent is what our branch is at, so a commit that the agent made there stays. The index
        changes for these paths alone, and only if HEAD is on our branch. *time_s*: seconds since
        the epoch; with the rest the same, the same commit. *author*: the slot by default. *mark*:
        a line (ASCII, 300 at most) to find again in :attr:`mark`. Git's locks are waited for at
        most *wait_s*.

        Raises:
            Corrupt: the repository is not there or is damaged: it must be made anew.
            OSError: it cannot be written; the commit waits, as for a lock.
        """
        state.check_mark(mark)
        with self._doors as at:
            self._accept(changes, message, time_s, author or person(self.name))
            self._mark = mark
            return self._flush(at, wait_s)

    def warm(self) -> None:
        """Read now what the first record would have to.

        Raises:
            Corrupt, OSError: as :meth:`record`.
        """
        with self._doors as at:
            try:
                self._index.warm(at)
            except (NeedsGit, ValueError):
                pass  # the first record says so
        if self._tree is None:
            self._tree = self._load_tree()

    def flush(self, *, wait_s: float = 0.0) -> Recorded:
        """Do what is left of former records, if git's locks are free within *wait_s*.

        Raises:
            Corrupt, OSError: as :meth:`record`.
        """
        with self._doors as at:
            return self._flush(at, wait_s)

    def _accept(
        self,
        changes: Mapping[bytes, File | None],
        message: str,
        time_s: int,
        author: Person,
    ) -> None:
        """Take a commit in: its blobs and trees, what it does to the index, a draft of it."""
        entries: dict[bytes, tuple[bytes, bytes] | None] = {}
        edits: dict[bytes, tuple[bytes, Stamp | None] | None] = {}
        for path, file in changes.items():
            if not is_possible(path, None if file is None else file.kind):
                continue
            if file is None:
                entries[path] = edits[path] = None
                continue
            mode = MODES[file.kind]
            name = self._packs.add(BLOB, file.content)
            entries[path] = b"%o" % mode, name
            edits[path] = index.entry(path, mode, name, file.stamp, self._owner), file.stamp
        tree, self._tree = self._tree, None  # whatever raises midway: it is read anew
        if tree is None:
            tree = self._load_tree()
        self._drafts.append(Draft(tree.update(entries), author, time_s, message))
        self._tree = tree
        self._edits.update(edits)

    def _flush(self, at: Places, wait_s: float) -> Recorded:
        deadline_s = time.monotonic() + wait_s
        while True:
            done = self._try(at)
            if done.commit or not done.why or time.monotonic() >= deadline_s:
                return done
            time.sleep(_RETRY_S)

    def _try(self, at: Places) -> Recorded:
        """Try once to bring everything into the repository."""
        try:
            tip = branch.read(at)
        except NotABranch as error:
            return Recorded("", str(error))
        chain = self._chain(tip)
        for name, content in chain:
            if name not in self._stored:
                self._packs.add(COMMIT, content)
        self._packs.write(at)
        self._stored.update(name for name, _content in chain)
        new = chain[-1][0].hex() if chain else tip
        on_head = branch.is_checked_out(at)
        why = ""
        if on_head and self._edits:
            try:
                self._index.prepare(at, self._edits, time.time_ns())
            except (NeedsGit, ValueError) as error:
                why = f"the index cannot be read: {str(error) or 'in an unknown form'}"
        else:
            self._index.forget_prepared()
        if not try_lock(at.git, branch.LOCK):
            return Recorded("", f"git has {branch.LOCK}")
        try:
            hit("gitrepo.branch-locked")
            if not try_lock(at.git, INDEX_LOCK):
                return Recorded("", f"git has {INDEX_LOCK}")
            try:
                hit("gitrepo.index-locked")
                if branch.read(at) != tip or branch.is_checked_out(at) != on_head:
                    return Recorded("", "git has moved the branch")
                if not self._index.place(at):
                    return Recorded("", "git has written the index")
                if new != tip:
                    branch.write(at, new)
                    hit("gitrepo.branch-moved")
            finally:
                let_go(at.git, INDEX_LOCK)
        finally:
            let_go(at.git, branch.LOCK)
        hit("gitrepo.unlocked")
        self._log(at, tip, chain, head=on_head)
        return self._finish(at, new, why)

    def _chain(self, tip: str) -> list[tuple[bytes, bytes]]:
        """Return name and content of each commit to be, oldest first, none if all stand already.

        On *tip*, whosever it is; where the agent has removed our branch, on our last commit.

        Raises:
            Corrupt: the agent has reset our branch and had git forget what was there.
        """
        ours = self._state.commit
        if ours and tip != ours:  # nothing but its log keeps ours: is what we build on still there?
            self._objects.read(bytes.fromhex(ours))
        chain = _commits(self._form, self._drafts, ours)
        if tip and tip != ours:
            if chain and chain[-1][0].hex() == tip:  # we were killed before we could note it
                return []
            chain = _commits(self._form, self._drafts, tip)
        return chain

    def _log(self, at: Places, tip: str, chain: list[tuple[bytes, bytes]], *, head: bool) -> None:
        old = tip
        for (name, _content), draft in zip(chain, self._drafts, strict=False):
            first = "" if old else " (initial)"
            who = draft.author.at(draft.time_s)
            branch.log(at, old, name.hex(), who, f"commit{first}: {draft.subject}", head=head)
            old = name.hex()

    def _finish(self, at: Places, new: str, why: str) -> Recorded:
        """Note that all is done, but for the index if *why* says so."""
        if self._drafts:
            self._state = State(new, self._drafts[-1].tree.hex(), self._mark)
            state.write(at.git, self._state)
            hit("gitrepo.noted")
            self._packs.date_back(at)
            self._drafts.clear()
            self._stored.clear()
        if not why:
            self._edits.clear()
        return Recorded(new, why)

    def _load_tree(self) -> Tree:
        name = self._drafts[-1].tree if self._drafts else bytes.fromhex(self._state.tree)
        return Tree(name, self._read_tree, lambda content: self._packs.add(TREE, content))

    def _read_tree(self, name: bytes) -> bytes:
        content = self._packs.get(name)
        if content is not None:
            return content
        if name == self._form.name_of(TREE, b""):  # which git knows without storing it
            return b""
        return self._objects.read(name)[1]

    def _resolve_index(self) -> None:
        """Have git write the index without what refers to other files, or to trees."""
        program = find_program("git")
        if program is None:
            return
        argv = [program, "-c", "core.splitIndex=false", "-c", "index.sparse=false"]
        argv += ["update-index", "--no-split-index", "--force-write-index"]
        with Tool(argv, env=git.environment(), cwd=self.worktree) as tool:
            tool.stdout.read()
            tool.wait()  # what it could not do is seen when the index is read again


def _commits(form: Format, drafts: list[Draft], parent: str) -> list[tuple[bytes, bytes]]:
    chain = []
    for draft in drafts:
        content = draft.content(parent)
        name = form.name_of(COMMIT, content)
        parent = name.hex()
        chain.append((name, content))
    return chain


def _mode(text: bytes) -> int:
    """Return a file's mode as an index has it: git once wrote other permissions into trees."""
    mode = int(text, 8)
    if mode & _TYPE != _REGULAR:
        return mode
    return MODES[EXEC if mode & 0o100 else FILE]


def _owner(worktree: str) -> Owner:
    return Owner(os.lstat(worktree).st_dev, os.geteuid(), os.getegid())


def _tree_of(reader: ObjectReader, commit: str) -> str:
    """Return the name of the tree of a commit."""
    _kind, content = reader.read(bytes.fromhex(commit))
    return content.partition(b"\n")[0].removeprefix(b"tree ").decode("ascii")


def _never() -> None:
    """Resolve no index: this one we have written."""
