"""The worktree's own git repository, kept as the base is.

It begins at the commit that trunk was seeded from, and gets a commit for each check-in of the slot
and for each update. Whatever is wrong with it stops nothing: the base is the truth, and this is
caught up, or made anew, when there is time.
"""

from __future__ import annotations

import os
import stat
from datetime import datetime
from typing import NamedTuple

from foundation.errors import Corrupt, HubError, Refused
from foundation.failpoint import hit
from hub.git import Git
from slotgc import history
from slotgc.beneath import enter
from swarm.gitrepo import state
from swarm.gitrepo.index import Stamp
from swarm.gitrepo.objects import COMMIT, format_named
from swarm.gitrepo.places import OURS, opened
from swarm.gitrepo.reading import ObjectReader, quote
from swarm.gitrepo.repo import File, GitRepo
from swarm.worktree.going_back import Back, since_common

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from foundation.workspace import Workspace
    from hub.git import Entry
    from hub.repository import CheckinRow, Repository
    from slotgc.base import Base, Row
    from swarm.gitrepo.objects import Format

REF = "refs/heads/trunk"
LOST = "the slot's git repository was lost, and made anew"
"""Why what it has cannot tell what was there before."""
_ALTERNATES = "alternates"
_LONGEST = 1 << 16
_SEED = "session base: "
_SHA256_DIGITS = 64
_MOST_STEPS = 8


class Mark(NamedTuple):
    """Up to where the repository has what the base has."""

    checkin: str
    """What was recorded last: a check-in of the slot, or one that it was updated to."""
    base: str
    """The check-in of the base then."""


class GoneBack(NamedTuple):
    """Where the agent has taken HEAD."""

    ours: str
    """Our last commit."""
    now: str
    """Where HEAD is."""
    back: Back
    moved: bool
    """Since the last look."""
    is_ours: bool
    """HEAD is on our branch, at a commit of ours: none of the agent's is on it."""


class Untold(NamedTuple):
    """Git cannot tell what HEAD has and has not of our last commit."""

    now: str
    """Where HEAD is, or what its file looks like; "" if that is not known either."""
    why: str
    """In words."""
    moved: bool
    """HEAD may be elsewhere than at the last look."""


class GitSide:
    """The repository of one worktree."""

    def __init__(self, worktree: str, name: str) -> None:
        """Use the repository of slot *name* in *worktree*, if there is one."""
        self._worktree = worktree
        self._name = name
        self._repo: GitRepo | None = None
        self._damaged = False
        self._branch = f"{worktree}/.git/{REF}"
        self._tip: tuple[str, tuple[int, ...]] | None = None
        self._head_file: tuple[int, ...] = ()
        """HEAD as it was when it was on our branch."""
        self._seen = ""
        """Where HEAD was at the last look, if elsewhere than at our last commit."""
        self._untold = ""
        """Where HEAD was when git could not tell more."""
        self._back: tuple[str, str, Back] | None = None
        self.trouble = ""
        """Why it is not as it should be, in words."""
        self._open()

    def is_gone(self) -> bool:
        """Tell whether there is no repository of ours any more: it must be made anew.

        One that only cannot be used now is not gone.
        """
        if self._repo is None and not self._damaged:
            self._open()
        git = f"{self._worktree}/.git"
        try:
            return (
                self._damaged
                or not stat.S_ISDIR(os.lstat(git).st_mode)
                or not stat.S_ISREG(os.lstat(f"{git}/{OURS}/state").st_mode)
                or not os.path.lexists(f"{git}/HEAD")
            )
        except (FileNotFoundError, NotADirectoryError):
            return True

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
            before = self._head(self._repo)
            done = self._repo.record(files, message, time_s=time_s, mark=" ".join(mark))
        except (HubError, OSError, ValueError) as error:
            self._fail(error)
            return {}
        return self._noted(before, done.commit, done.why, refs)

    def warm(self) -> None:
        """Read ahead what the first :meth:`record` needs.

        Raises:
            HubError, OSError: it cannot be read.
        """
        if self._repo is not None:
            self._repo.warm()

    def flush(self, refs: Mapping[str, str]) -> dict[str, str]:
        """Write what had to wait; return as :meth:`record` does."""
        if self._repo is None or not self._repo.waits:
            return {}
        try:
            before = self._head(self._repo)
            done = self._repo.flush()
        except (HubError, OSError, ValueError) as error:
            self._fail(error)
            return {}
        return self._noted(before, done.commit, done.why, refs)

    def share(self, user_git: str) -> None:
        """Find the user's objects at *user_git*: the workspace may have been moved.

        Raises:
            HubError, OSError: it cannot be written.
        """
        objects = os.path.realpath(f"{user_git}/objects")
        wanted = quote(os.fsencode(objects)) + b"\n"
        with opened(self._worktree) as at:  # by no link: it might lead to the user's
            info, _name = enter(at.git, b"objects/info/.")
            try:
                if _content(_ALTERNATES, info) == wanted:
                    return
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                fd = os.open(f"{_ALTERNATES}.new", flags, 0o644, dir_fd=info)
                with os.fdopen(fd, "wb") as file:
                    file.write(wanted)
                os.rename(f"{_ALTERNATES}.new", _ALTERNATES, src_dir_fd=info, dst_dir_fd=info)
            finally:
                os.close(info)
        self._open()

    def gone_back(self) -> GoneBack | Untold | None:
        """Return what our last commit has and HEAD, moved elsewhere by the agent, has not.

        None where it has all of it, at the cost of two looks at a file; and where git has lost our
        last commit: then it is gone (:meth:`is_gone`).

        Raises:
            OSError: it cannot be looked at.
        """
        repo = self._repo
        if repo is None:
            return None if self._damaged else Untold("", self.trouble, moved=True)
        head_file, branch_file = _stamp_of(f"{self._worktree}/.git/HEAD"), _stamp_of(self._branch)
        if head_file == self._head_file and self._tip == (repo.commit, branch_file):
            return None
        now = ""
        try:
            now, on_ours = repo.where()
            if on_ours:
                self._head_file = head_file
            if repo.commit in ("", now):
                self._seen = self._untold = ""
                if on_ours and now:
                    self._tip = now, branch_file
                return None
            if not now:
                return self._cannot_tell(repo, repr(head_file), "HEAD names no commit")
            back = self._since_common(repo.commit, now)
        except (HubError, OSError, ValueError) as error:
            return self._cannot_tell(repo, now, str(error))
        self._untold = ""
        moved = now != self._seen
        if not back.files:
            self._seen = now
            return None
        return GoneBack(
            ours=repo.commit,
            now=now,
            back=back,
            moved=moved,
            is_ours=on_ours and back.commit == now,
        )

    def _cannot_tell(self, repo: GitRepo, now: str, why: str) -> Untold | None:
        self.trouble = why
        try:
            if repo.has_lost_ours():
                self._repo, self._damaged = None, True
                return None
        except Corrupt:
            pass  # so it is there, or nobody knows
        return Untold(now, why, moved=not now or now != self._untold)

    def _since_common(self, ours: str, now: str) -> Back:
        known = self._back
        if known is not None and known[:2] == (ours, now):
            return known[2]
        # Ours only goes on from itself: with the same commit it has the same in common.
        common = known[2].commit if known is not None and known[1] == now != known[0] else ""
        reader = ObjectReader(f"{self._worktree}/.git/objects", form_of(now))
        back = since_common(self._worktree, ours, now, reader, common=common)
        self._back = ours, now, back
        return back

    def followed(self, gone: GoneBack | Untold) -> None:
        """Note that all was done that follows from *gone*."""
        if isinstance(gone, Untold):
            self._untold = gone.now
        else:
            self._seen = gone.now

    @property
    def commit(self) -> str:
        """Our last commit, "" if that is not known."""
        return "" if self._repo is None else self._repo.commit

    def doubtful(self) -> frozenset[bytes]:
        """Return what was in doubt when the repository was made in place of another.

        Raises:
            HubError, OSError: it cannot be read.
        """
        return frozenset() if self._repo is None else self._repo.doubtful

    def _head(self, repo: GitRepo) -> str:
        """Return where our branch is; it is only read if somebody has written it since we did."""
        if self._tip is None or self._tip[1] != _stamp_of(self._branch):
            return repo.head()
        return self._tip[0]

    def _noted(self, before: str, after: str, why: str, refs: Mapping[str, str]) -> dict[str, str]:
        self.trouble = why
        self._tip = (after, _stamp_of(self._branch)) if after else None
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
        self._repo = None
        try:
            self._repo = GitRepo(self._worktree, self._name)
            self.trouble = ""
        except (HubError, OSError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Note that something went wrong; a damaged repository is not used any more."""
        self.trouble = str(error)
        if isinstance(error, Corrupt):
            self._repo, self._damaged = None, True


def _stamp_of(path: str) -> tuple[int, ...]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(name: str, directory: int) -> bytes:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return b""
    with os.fdopen(fd, "rb") as file:
        return file.read(_LONGEST)


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
    doubtful: Collection[bytes] = (),
) -> None:
    """Make the repository of *worktree*, whose files are *rows* as seen at *seen_ns*.

    *doubtful*: see :meth:`GitSide.doubtful`.

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
        doubtful=doubtful,
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
    paths: set[bytes] = set()
    if begun != known.checkin:
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
    return int(datetime.fromisoformat(f"{checkin_time[:19]}+00:00").timestamp())


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
