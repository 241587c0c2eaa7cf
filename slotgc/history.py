"""What the repositories in a worktree hold that neither its files nor trunk do: commits, stashes.

A worktree is a git repository of its own and a Fossil check-out. Both are read without their
programs, without writing a byte, and without trust in what they contain.
"""

from __future__ import annotations

import os
import stat

from foundation.atomic import read_bounded
from foundation.record import Record
from slotgc import artifact, treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_REF_LIMIT = 4096
_PACKED_LIMIT = 64 << 20
_MOST_REFS = 100_000
HAS_STORED = "its git has stored something since: staged, or committed and undone"
HAS_COMMITS = "its git has commits or stashes of its own"

_DIRECTORIES = frozenset(
    ("bones", "branches", "hooks", "info", "logs", "objects", "refs", "worktrees")
)
"""Of a repository: what else there is may hold contents of its own."""

_STEPS = 1_000_000  # of SQLite's machine: a database may hold a view that never ends
_STEPS_EACH = 1000


def git_refs(worktree: str) -> tuple[str, dict[str, str]]:
    """Return the content of HEAD and of every reference of the repository in *worktree*.

    ``("", {})`` if there is none. Source: gitrepository-layout(5).

    Raises:
        OSError: something of it cannot be read.
        ValueError: it is not as git writes it, or keeps its references in another form.
    """
    git = f"{worktree}/.git"
    try:
        mode = os.lstat(git).st_mode
    except FileNotFoundError:
        return "", {}
    if not stat.S_ISDIR(mode):
        raise ValueError(f"{git} is not a directory")
    for name in ("reftable", "commondir"):
        if os.path.lexists(f"{git}/{name}"):
            raise ValueError(f"{git}/{name} says that its references are elsewhere")
    try:
        head = _text(f"{git}/HEAD", _REF_LIMIT)
    except FileNotFoundError:
        head = ""
    refs = dict(_packed(git))
    for name in _loose(git):
        refs[name] = _text(f"{git}/{name}", _REF_LIMIT)
    if len(refs) > _MOST_REFS:
        raise ValueError(f"{git} has more than {_MOST_REFS} references")
    return head, refs


def _text(path: str, limit: int) -> str:
    return read_bounded(path, limit).decode("utf-8", "backslashreplace").strip()


def _packed(git: str) -> Iterator[tuple[str, str]]:
    """Yield name and hash of each line of ``packed-refs``; comments and peeled tags are none."""
    try:
        lines = _text(f"{git}/packed-refs", _PACKED_LIMIT).splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        if line[:1] not in ("#", "^", ""):
            to, _space, name = line.partition(" ")
            yield name, to


def _loose(git: str) -> Iterator[str]:
    """Yield the names of the files below ``refs/``, and the HEADs of linked worktrees."""
    pending = ["refs"]
    seen = 0
    while pending:
        below = pending.pop()
        try:
            names = os.listdir(f"{git}/{below}")
        except FileNotFoundError:
            continue
        seen += len(names)
        if seen > _MOST_REFS:
            raise ValueError(f"{git}/refs holds more than {_MOST_REFS} names")
        for name in names:
            path = f"{below}/{name}"
            if stat.S_ISDIR(os.lstat(f"{git}/{path}").st_mode):
                pending.append(path)
            elif not name.endswith(".lock"):
                yield path
    try:
        linked = os.listdir(f"{git}/worktrees")
    except FileNotFoundError:
        return
    for name in linked:
        yield f"worktrees/{name}/HEAD"


class OwnGit(Record):
    """What a worktree's own git holds besides its files."""

    unsaved: str
    """What of it is saved nowhere else, in words, "" if nothing is."""
    commits: bool
    """It has commits that we do not know for ours."""


def own_git(worktree: str, head: str, refs: dict[str, str], since_ns: int, trunk: Trunk) -> OwnGit:
    """Return what *worktree*'s own git holds: commits and stashes, and what was staged.

    Unsaved are those with contents that *trunk* does not hold. *head* and *refs*: what
    :func:`git_refs` said when all was saved, at *since_ns* (nanoseconds since the epoch).
    """
    try:
        head_now, refs_now = git_refs(worktree)
        stored = _has_stored(f"{worktree}/.git/objects", since_ns)
    except (OSError, ValueError) as error:
        return OwnGit(unsaved=f"its git repository cannot be judged: {error}", commits=False)
    moved = {name: to for name, to in refs_now.items() if refs.get(name) != to}
    if head_now not in ("", head):
        moved = {"HEAD": head_now, **moved}
    if not (moved or stored):
        return OwnGit(unsaved="", commits=False)
    saved = _saved(f"{worktree}/.git", {*refs.values()}, {*refs_now.values()}, trunk)
    if saved is not None:
        moved = {name: to for name, to in moved.items() if not _is_saved(name, to, saved.commits)}
        stored = False
    if not moved:
        return OwnGit(unsaved=HAS_STORED * stored, commits=saved is not None and saved.others)
    first, *others = sorted(moved, key=lambda name: (name != "HEAD", name))
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""  # noqa: PLR2004
    names = ", ".join(treepath.show(os.fsencode(name)) for name in [first, *others[:2]])
    return OwnGit(unsaved=f"{HAS_COMMITS}: {names}{more}", commits=True)


def _is_saved(name: str, to: str, saved: set[str]) -> bool:
    """Tell whether nothing is lost with the reference *name*, which says *to*.

    Another reference is judged by itself. A stash was put aside on purpose, and a linked worktree
    has files elsewhere that are nothing without this repository.
    """
    kept = name == "refs/stash" or name.startswith("worktrees/")
    return not kept and (to in saved or to.startswith("ref: "))


class _Saved(Record):
    """Commits of a repository whose contents trunk has."""

    commits: set[str]
    """Of which nothing is lost, whoever names them."""
    others: bool
    """There are such as are neither known nor marked as ours."""


def _saved(git: str, known: set[str], now: set[str], trunk: Trunk) -> _Saved | None:
    """Return the commits of which nothing is lost with the repository; None: contents would be.

    Those that were *known*, what they and ours were made on, and those that have the files of one
    of them: that of a commit which no reference of *now* names is what it contains, no more.
    """
    from slotgc import gitobjects  # noqa: PLC0415 - loads OpenSSL, and few agents use git

    names = [one for one in (*known, *now) if artifact.is_name(one)]
    digits = max(map(len, names), default=artifact.SHA1_DIGITS)
    blobs: set[str] = set()
    others = False
    trees: set[str] = set()
    commits: dict[str, str] = {}
    below: set[str] = set()
    try:
        with os.scandir(git) as entries:
            for one in entries:
                if one.is_symlink() or (one.is_dir() and one.name not in _DIRECTORIES):
                    return None  # of a submodule, a rebase that is under way
        for kind, name, content, is_ours in gitobjects.stored(f"{git}/objects", digits):
            if kind == gitobjects.COMMIT:
                commits[name] = gitobjects.root_tree(content)
                if is_ours or name in known:
                    trees.add(commits[name])
                    below |= gitobjects.parents(content)
                else:
                    others = True
            elif kind == gitobjects.TAG:
                return None  # its message stands nowhere else
            elif kind == gitobjects.BLOB and content and not is_ours:
                blobs.add(artifact.of_bytes(content))
    except (OSError, ValueError):
        return None
    if not trunk.holds(blobs):
        return None
    alike = {name for name, tree in commits.items() if tree in trees}
    return _Saved(commits=known | alike | (below - commits.keys()), others=others)


def _has_stored(objects: str, since_ns: int) -> bool:
    """Tell whether git has put an object there after *since_ns*, alone or in a pack.

    A younger pack may be of old objects; but what was undone, and packed by then, is in no other
    place. A doubt counts as work.

    Raises:
        OSError: it cannot be read.
    """
    try:
        names = os.listdir(objects)
        directories = [name for name in names if name == "pack" or len(name) == 2]  # noqa: PLR2004
    except FileNotFoundError:
        return False
    seen = 0
    for directory in directories:
        for name in os.listdir(f"{objects}/{directory}"):
            seen += 1
            path = f"{objects}/{directory}/{name}"
            if seen > _MOST_REFS or os.lstat(path).st_mtime_ns > since_ns:
                return True
    return False


def unsaved_stash(worktree: str) -> str:
    """Return why the stash of *worktree*'s Fossil check-out may hold work, "" if it holds none."""
    for name in treepath.CHECKOUT_FILES:
        shown = name.decode()
        path = f"{worktree}/{shown}"
        try:
            for journal in (f"{path}-journal", f"{path}-wal"):
                if os.path.lexists(journal) and os.lstat(journal).st_size:
                    return f"{shown} was being written when its writer was killed"
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{shown} cannot be judged: {error}"
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return f"{shown} is no file"
            found = not _unanswered(fd, "stash", "SELECT ? FROM stash LIMIT 1", [""])
        except OSError as error:
            return f"{shown} cannot be judged: {error}"
        finally:
            os.close(fd)
        if found:
            return f"{shown} has a stash"
    return ""


class Trunk:
    """What a Fossil repository file is known to hold, for who asks of many slots.

    They have nearly all of it in common, and a pass takes seconds: not for longer.
    """

    def __init__(self, repository: str) -> None:
        """Name the file; nothing is asked yet."""
        self._repository = repository
        self._file = (0, 0)
        self._known: set[str] = set()

    def holds(self, names: Collection[str]) -> bool:
        """Tell as :func:`trunk_holds` does."""
        try:
            status = os.lstat(self._repository)
        except OSError:
            return False
        file = status.st_dev, status.st_ino
        if file != self._file:  # another has its place: nothing is known of that one
            self._file, self._known = file, set()
        new = set(names) - self._known
        if new and not trunk_holds(self._repository, new):
            return False
        self._known |= new
        return True


def trunk_holds(repository: str, names: Collection[str]) -> bool:
    """Tell whether the Fossil repository file *repository* holds every artifact of *names*.

    False where that cannot be known. Nothing is written, not even the files that a reader of a
    write-ahead log leaves.
    """
    try:
        fd = os.open(repository, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        # They are in the file itself, or the newest still in the log of a hub that runs.
        query = "SELECT 1 FROM blob WHERE uuid = ? AND size >= 0"
        missing = list(names)
        for options in ("immutable=1", "mode=ro&readonly_shm=1"):
            try:
                missing = _unanswered(fd, "blob", query, missing, options)
            except OSError:
                continue
            if not missing:
                return True
        return False
    finally:
        os.close(fd)


def _unanswered(
    fd: int, table: str, query: str, values: list[str], options: str = "immutable=1"
) -> list[str]:
    """Return those *values* for which *query* of the database behind *fd* gives no row.

    All of them if there is no *table*.

    Raises:
        OSError: it is no database, is damaged, takes too long, or holds a program for a table.
    """
    import sqlite3  # noqa: PLC0415 - 5 ms, and few slots have a check-out

    database = None
    try:
        database = sqlite3.connect(
            f"file:/proc/self/fd/{fd}?mode=ro&{options}", uri=True, timeout=1
        )
        database.set_progress_handler(lambda: 1, _STEPS + _STEPS_EACH * len(values))
        # A view may call what takes hours in one step of the machine, as instr() of two big blobs.
        allowed = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
        database.set_authorizer(
            lambda action, _table, _column, _database, view: (
                sqlite3.SQLITE_OK if action in allowed and view is None else sqlite3.SQLITE_DENY
            )
        )
        schema = "SELECT 1 FROM sqlite_master WHERE name = ?"
        if database.execute(schema, (table,)).fetchone() is None:
            return values
        return [one for one in values if database.execute(query, (one,)).fetchone() is None]
    except sqlite3.Error as error:
        raise OSError(f"SQLite: {error}") from None
    finally:
        if database is not None:
            database.close()
