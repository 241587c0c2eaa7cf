"""The worktree's own git repository, kept as the base is.

It begins at the commit that trunk was seeded from, and gets a commit for each check-in of the slot
and for each update. Whatever is wrong with it stops nothing: the base is the truth, and this is
caught up, or made anew, when there is time.
"""

from __future__ import annotations

import os
import time
from calendar import timegm
from typing import NamedTuple

from foundation.atomic import read_bounded, write_file
from foundation.errors import Corrupt, HubError, Refused
from foundation.failpoint import hit
from hub.git import Git
from slotgc import history
from swarm.gitrepo import state
from swarm.gitrepo.index import Stamp
from swarm.gitrepo.objects import COMMIT, format_named
from swarm.gitrepo.places import OURS, opened
from swarm.gitrepo.reading import ObjectReader, quote
from swarm.gitrepo.repo import File, GitRepo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from foundation.workspace import Workspace
    from hub.git import Entry
    from hub.repository import CheckinRow, Repository
    from slotgc.base import Base, Row
    from swarm.gitrepo.objects import Format

REF = "refs/heads/trunk"
_SEED = "session base: "
_SHA256_DIGITS = 64
_MOST_STEPS = 8


class Mark(NamedTuple):
    """Up to where the repository has what the base has."""

    checkin: str
    """What was recorded last: a check-in of the slot, or one that it was updated to."""
    base: str
    """The check-in of the base then."""


class GitSide:
    """The repository of one worktree."""

    def __init__(self, worktree: str, name: str) -> None:
        """Use the repository of slot *name* in *worktree*, if there is one."""
        self._worktree = worktree
        self._name = name
        self._repo: GitRepo | None = None
        self.trouble = ""
        """Why it is not as it should be, in words."""
        self._open()

    @property
    def is_gone(self) -> bool:
        """Whether there is no repository that we could use."""
        return self._repo is None

    @property
    def mark(self) -> Mark:
        """What was recorded last."""
        first, _space, second = ("" if self._repo is None else self._repo.mark).partition(" ")
        return Mark(first, second)

    @property
    def waits(self) -> bool:
        """Whether something is still to be written: git had its locks."""
        return self._repo is not None and self._repo.waits

    def record(
        self,
        files: Mapping[bytes, File | None],
        message: str,
        *,
        mark: Mark,
        time_s: int,
        refs: Mapping[str, str],
    ) -> dict[str, str]:
        """Commit *files*, up to *mark*; return what becomes of *refs*, those that are known.

        Where somebody else has moved our branch, what is known stays: his commits are work.
        """
        if self._repo is None:
            return {}
        try:
            before = self._repo.head()
            done = self._repo.record(files, message, time_s=time_s, mark=" ".join(mark))
        except (HubError, OSError, ValueError) as error:
            self._fail(error)
            return {}
        return self._noted(before, done.commit, done.why, refs)

    def flush(self, refs: Mapping[str, str]) -> dict[str, str]:
        """Write what had to wait; return as :meth:`record` does."""
        if self._repo is None or not self._repo.waits:
            return {}
        try:
            before = self._repo.head()
            done = self._repo.flush()
        except (HubError, OSError, ValueError) as error:
            self._fail(error)
            return {}
        return self._noted(before, done.commit, done.why, refs)

    def is_there(self) -> bool:
        """Tell whether the repository is there and ours still."""
        git = f"{self._worktree}/.git"
        return (
            self._repo is not None
            and os.path.exists(f"{git}/HEAD")
            and os.path.exists(f"{git}/{OURS}/state")
        )

    def share(self, user_git: str) -> None:
        """Find the user's objects at *user_git*: the workspace may have been moved.

        Raises:
            OSError: it cannot be written.
        """
        path = f"{self._worktree}/.git/objects/info/alternates"
        objects = os.path.realpath(f"{user_git}/objects")
        wanted = quote(os.fsencode(objects)) + b"\n"
        try:
            if read_bounded(path, 1 << 16) == wanted:
                return
        except (FileNotFoundError, ValueError):
            pass
        write_file(path, wanted, mode=0o644, durable=False)
        self._open()

    def _noted(self, before: str, after: str, why: str, refs: Mapping[str, str]) -> dict[str, str]:
        self.trouble = why
        known = refs.get(REF, "")
        if after and (before == known or self._are_saved(after, known)):
            return {REF: after}
        return {}

    def left(self, refs: Mapping[str, str]) -> dict[str, str]:
        """Return what becomes of *refs* by what we recorded before we were killed."""
        known = refs.get(REF, "")
        try:
            with opened(self._worktree) as at:
                ours = state.read(at.git).commit
            moved = self._repo is not None and self._repo.head() == ours != known
        except (HubError, OSError):
            return {}
        return {REF: ours} if moved and self._are_saved(ours, known) else {}

    def _are_saved(self, ours: str, known: str) -> bool:
        """Tell whether all commits from *ours* back to *known* have the files of *ours*.

        So has one that the agent made of what it then committed: its files are on trunk.
        """
        try:
            reader = ObjectReader(f"{self._worktree}/.git/objects", form_of(ours))
            at, tree = ours, b""
            for _step in range(_MOST_STEPS):
                kind, content = reader.read(bytes.fromhex(at))
                lines = content.split(b"\n")
                if kind != COMMIT or (tree and lines[0] != tree):
                    return False
                tree = lines[0]
                at = lines[1].removeprefix(b"parent ").decode("ascii")
                if at == known:
                    return True
        except (HubError, OSError, ValueError, LookupError):
            pass
        return False

    def _open(self) -> None:
        try:
            self._repo = GitRepo(self._worktree, self._name)
        except (HubError, OSError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._repo = None
        self.trouble = str(error)


def form_of(name: str) -> Format:
    """Return the format of which *name* names an object."""
    return format_named("sha256" if len(name) == _SHA256_DIGITS else "sha1")


def make(
    workspace: Workspace,
    repository: Repository,
    worktree: str,
    name: str,
    *,
    at: CheckinRow,
    rows: Mapping[bytes, Row],
    seen_ns: int,
) -> None:
    """Make the repository of *worktree*, whose files are *rows* as seen at *seen_ns*.

    Raises:
        HubError: git cannot be asked, or has not what trunk was seeded from.
        OSError: it cannot be written.
    """
    git = Git(workspace, workspace.state)
    root = repository.root()
    head, entries = _seeded_from(git, repository, root)
    begun = repository.files(root.hash) if head else {}
    stamps = {
        path: stamp(row, seen_ns)
        for path, row in rows.items()
        if path in begun and tuple(begun[path]) == (row[0], row[2])
    }
    repo = GitRepo.make(
        worktree,
        name,
        user_git=workspace.git_dir(),
        object_format=_ask(git, "rev-parse", "--show-object-format"),
        head=head,
        entries=entries,
        stamps={path: one for path, one in stamps.items() if one is not None},
    )
    hit("git.made")
    changed = {path: row for path, row in rows.items() if path not in stamps}
    files = contents(repository, changed, (path for path in begun if path not in rows), seen_ns)
    repo.record(files, words(at), time_s=seconds(at.time), mark=f"{at.hash} {at.hash}")


def adopt(worktree: str, name: str, rows: Mapping[bytes, Row], seen_ns: int) -> None:
    """Make the copy of a template's repository in *worktree* that of slot *name*.

    Raises:
        HubError: the template has none.
        OSError: it cannot be written.
    """
    stamps = {path: stamp(row, seen_ns) for path, row in rows.items()}
    GitRepo.adopt(
        worktree, name, stamps={path: one for path, one in stamps.items() if one is not None}
    )


def references(worktree: str) -> tuple[str, dict[str, str]]:
    """Return HEAD and the references of the repository in *worktree*; none if it has none."""
    try:
        return history.git_refs(worktree)
    except (OSError, ValueError):
        return "", {}


def contents(
    repository: Repository, rows: Mapping[bytes, Row], removed: Iterable[bytes], seen_ns: int
) -> dict[bytes, File | None]:
    """Return *rows* and *removed* as a record takes them, with contents from trunk."""
    paths: dict[str, list[bytes]] = {}
    for path, row in rows.items():
        paths.setdefault(row[2], []).append(path)
    files: dict[bytes, File | None] = dict.fromkeys(removed)
    for name, content in repository.contents(paths):
        for path in paths[name]:
            row = rows[path]
            files[path] = File(row[0], content, stamp(row, seen_ns))
    return files


def stamp(row: Row, seen_ns: int) -> Stamp | None:
    """Return what git is told of a file, None if nothing is known of it."""
    _kind, size, _name, mtime_ns, ctime_ns, inode = row
    if not (mtime_ns and ctime_ns and inode):
        return None
    return Stamp(size, mtime_ns, ctime_ns, inode, seen_ns)


def missing(repository: Repository, mark: Mark, slot: str, known: Base) -> set[bytes]:
    """Return the paths where git, recorded up to *mark*, may not be as *known* is.

    What the slot has landed since, and what updates brought. More than needed is no harm.
    """
    try:
        since = repository.line(after=mark.checkin)
        begun = repository.checkin(mark.base).hash
    except HubError:
        since = repository.line()
        begun = since[0].hash
    paths = {path for path, _old, _new in repository.difference(begun, known.checkin)}
    for one in since:
        if one.user == slot:
            paths |= {path for path, _old, _new in repository.changes(one.hash)}
    return paths


def words(at: CheckinRow) -> str:
    """Return the message of the commit that brings *at* in."""
    return f"update to {at.hash[:10]}: {at.comment}"


def seconds(checkin_time: str) -> int:
    """Return a check-in's time in seconds since the epoch."""
    return timegm(time.strptime(checkin_time[:19], "%Y-%m-%dT%H:%M:%S"))


def _seeded_from(git: Git, repository: Repository, root: CheckinRow) -> tuple[str, list[Entry]]:
    """Return the commit that trunk began with and its files; ``("", [])`` if there is none."""
    comment = root.comment
    if not comment.startswith(_SEED):  # it was amended
        comment = repository.manifest(root.hash).comment
    digits = comment.removeprefix(_SEED).strip()
    if not comment.startswith(_SEED) or digits == "none":
        return "", []
    try:
        head = _ask(git, "rev-parse", "--verify", "--quiet", f"{digits}^{{commit}}")
        return head, list(git.tree(head))
    except Refused:
        raise
    except (HubError, Corrupt):
        return "", []  # it is not in git any more: begin with no history


def _ask(git: Git, *words: str) -> str:
    with git.run(*words) as tool:
        answer = tool.stdout.read()
        git.expect_success(tool)
    return answer.decode("ascii", "replace").strip()
