"""Unsaved work: what a slot holds that is saved nowhere else. Read-only.

Everything in the worktree counts that its base does not have, files that git ignores among it:
results and notes are work too. What does not count is listed in one place each:
:data:`slotgc.treepath.BOOKKEEPING`, :func:`_is_cache`, and what holds no content (sockets,
pipes, devices, empty directories). A doubt counts as work.
"""

from __future__ import annotations

import os
import stat

from foundation.errors import Corrupt
from foundation.record import Record
from slotgc import artifact, base, history, planted, treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from foundation.workspace import Workspace
    from slotgc.base import Base, Row

    Trusts = Callable[[Row, os.stat_result], bool]

ADDED, CHANGED, DELETED, MODE, SAME = "added", "changed", "deleted", "mode", "same"
_WORDS = {
    CHANGED: "changed",
    MODE: "with another mode",
    ADDED: "added",
    DELETED: "deleted",
    SAME: "as in the base",
}
CHANGES = frozenset(_WORDS)

_CACHE_TAG = b"CACHEDIR.TAG"
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
_PYCACHE = b"__pycache__"

_OURS = frozenset(
    (
        "base.json",
        "base.log",
        "leaf.json",
        "leaf.lock",
        "leaf.log",
        "leaf.pid",
        "leaf.sock",
        "planted.json",
        "wt",
        "wt.new",
    )
)
"""What a slot's directory holds; ``wt.new`` is a worktree in the making."""

_UNFINISHED = ("base.json.", "leaf.json.", "leaf.pid.", "planted.json.", "rescue.json.")
_ROTATED = "leaf.log."


class Change(Record):
    """One file that is not as in the base.

    ``change`` is ``added``, ``changed`` (another content, or a link for a file), ``mode`` (only
    the exec bit), ``deleted``, or ``same`` where the base itself is saved nowhere. ``kind`` (file,
    exec, link), ``mode`` (all permission bits), ``size`` in bytes and ``hash`` are of the file as
    it is now; of a deleted one "" and 0. ``hash`` is "" until :func:`name_contents` has read it.
    """

    path: bytes
    change: str
    kind: str = ""
    mode: int = 0
    size: int = 0
    hash: str = ""


class Work(Record):
    """What a slot holds that is saved nowhere else."""

    changes: tuple[Change, ...] = ()
    doubts: tuple[str, ...] = ()
    """Why the changes are not all, or not to be believed, in words."""
    apart: tuple[str, ...] = ()
    """What is worth keeping beside the worktree's files, in words: commits, stashes, notes."""
    on_trunk: bool = False
    """The base is saved on trunk: what equals it need not be kept."""
    has_commits: bool = False
    """Its git has commits that we do not know for ours, whether they are worth keeping or not."""

    def is_history(self) -> bool:
        """Tell whether there is nothing but what git was told, all files are on trunk."""
        words = (history.HAS_COMMITS, history.HAS_STORED)
        files = self.changes or self.doubts or any(not w.startswith(words) for w in self.apart)
        return not files and bool(self.has_commits or self.apart)

    def exists(self) -> bool:
        """Tell whether there is any."""
        return bool(self.changes or self.doubts or self.apart)

    def describe(self) -> str:
        """Return it in words, such as ``2 changed, 1 added; .fslckout has a stash``."""
        counts = [
            f"{number} {words}"
            for change, words in _WORDS.items()
            if (number := sum(one.change == change for one in self.changes))
        ]
        words = [", ".join(counts)] if counts else []
        return "; ".join([*words, *self.doubts, *self.apart])


Entry = tuple[bytes, os.stat_result, "Row | None", bool]
"""What is no directory: its path, its status, the base's row of it, and whether it is in a cache
and the base does not know it. (A tuple: there are fifty thousand.)"""


class Walk:
    """One pass over a worktree: its entries, and afterwards what could not be seen."""

    def __init__(self, worktree: str, files: dict[bytes, Row]) -> None:
        """Name the worktree and the files that its base has."""
        self.top = os.fsencode(worktree)
        self.doubts: list[str] = []
        self._unseen: list[bytes] = []
        self._rows = dict(files)

    def missing(self) -> Iterator[bytes]:
        """Yield the base's files that were not met where everything was seen.

        One that somebody was just replacing may be among them, and be there again.
        """
        for path in self._rows:
            if not path.startswith(tuple(self._unseen)):
                yield path

    def entries(self) -> Iterator[Entry]:
        """Yield every entry. No link is followed, no other file system entered."""
        device = os.lstat(self.top).st_dev
        pending = [(b"", False)]
        while pending:
            below, cached = pending.pop()
            where = self.top + b"/" + below
            try:
                with os.scandir(where) as listing:
                    met = list(listing)
                if not cached and below:
                    cached = _is_cache(where, below, met)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it was there when the directory above it was read
            except OSError as error:
                self._doubt(below, f"cannot be read: {error.strerror}")
                continue
            for entry in met:
                path = below + entry.name
                try:
                    is_directory = entry.is_dir(follow_symlinks=False)
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # so was this
                except OSError as error:
                    self._doubt(path, f"cannot be looked at: {error.strerror}")
                    continue
                if is_directory:
                    if path == treepath.GIT:
                        continue
                    if status.st_dev != device:
                        self._doubt(path + b"/", "is another file system")
                        continue
                    pending.append((path + b"/", cached))
                    continue
                if not below and path in treepath.BOOKKEEPING:
                    continue
                row = self._rows.pop(path, None)
                yield path, status, row, cached and row is None

    def _doubt(self, below: bytes, why: str) -> None:
        self._unseen.append(below)
        self.doubts.append(f"{treepath.show(below.rstrip(b'/')) or 'the worktree'} {why}")


def _is_cache(where: bytes, below: bytes, met: list[os.DirEntry[bytes]]) -> bool:
    """Tell whether a directory is one that its program can make again.

    One tagged by the Cache Directory Tagging Specification, as those of pytest, mypy, uv and cargo
    are, or a ``__pycache__`` that holds nothing but bytecode.
    """
    if below.rstrip(b"/").rpartition(b"/")[2] == _PYCACHE:
        return all(e.name.endswith(b".pyc") and e.is_file(follow_symlinks=False) for e in met)
    if not any(entry.name == _CACHE_TAG for entry in met):
        return False
    try:
        fd = artifact.open_regular(where + _CACHE_TAG)
    except OSError:
        return False
    try:
        return os.read(fd, len(_CACHE_SIGNATURE)) == _CACHE_SIGNATURE
    finally:
        os.close(fd)


def judge(
    workspace: Workspace,
    slot: str,
    *,
    by_content: bool = False,
    trunk: history.Trunk | None = None,
) -> Work:
    """Return the unsaved work in the slot directory at the path *slot*.

    *by_content*: every file is read, whatever its status tells, but for what is provably as it
    was planted (:mod:`slotgc.planted`). What is written through a mapping may leave even the ctime
    alone. *trunk*: what is known of the workspace's, if anything is.

    Raises:
        OSError: the directory itself cannot be read.
    """
    apart = [
        f"{treepath.show(os.fsencode(name))} lies beside its worktree"
        for name in sorted(os.listdir(slot))
        if not _is_ours(name)
    ]
    worktree = f"{slot}/wt"
    try:
        if not stat.S_ISDIR(os.lstat(worktree).st_mode):
            return Work(doubts=("wt is not a directory",), apart=tuple(apart))
    except FileNotFoundError:
        return Work(apart=tuple(apart))
    doubts = []
    known: Base | None = None
    try:
        known = base.read(f"{slot}/{base.NAME}")
    except Corrupt as error:
        doubts.append(str(error))
    # By every file's name, not by the check-in's alone: who can write here can name any check-in.
    trunk = trunk or history.Trunk(workspace.repository)
    on_trunk = known is not None and trunk.holds(known.artifacts())
    trusts = _trusts_nothing if known is None else known.trusts
    if by_content:
        proof = planted.read(slot)
        trusts = _trusts_nothing if proof is None else proof.is_untouched
    changes, unseen = _compare(worktree, known, trusts, keep_same=not on_trunk)
    seen = base.Base(checkin="", indexed_ns=0, files={}) if known is None else known
    since_ns = seen.git_since_ns or seen.indexed_ns
    git = history.own_git(worktree, seen.git_head, seen.git_refs, since_ns, trunk)
    apart += [words for words in (git.unsaved, history.unsaved_stash(worktree)) if words]
    if known is None and not doubts and changes:
        doubts.append("it has no base.json to be judged by")
    elif known is not None and not on_trunk and changes:
        named = f"check-in {known.checkin[:10]}" if known.checkin else "no check-in"
        doubts.append(f"its base, {named}, is not all on this trunk")
    return Work(
        changes=tuple(changes),
        doubts=(*doubts, *unseen),
        apart=tuple(apart),
        on_trunk=on_trunk,
        has_commits=git.commits,
    )


def _is_ours(name: str) -> bool:
    """Tell whether we put *name* into a slot's directory."""
    unfinished = name.endswith(".tmp") and name.startswith(_UNFINISHED)
    rotated = name.startswith(_ROTATED) and name.removeprefix(_ROTATED).isdigit()
    return name in _OURS or unfinished or rotated


def _trusts_nothing(_row: Row, _status: os.stat_result) -> bool:
    return False


def _compare(
    worktree: str, known: Base | None, trusts: Trusts, *, keep_same: bool
) -> tuple[list[Change], list[str]]:
    """Return the changes in *worktree* against *known*, by path, and what could not be seen.

    *trusts* tells of which files the status is enough.
    """
    walk = Walk(worktree, {} if known is None else known.files)
    changes = []
    for entry in walk.entries():
        change = _change(walk.top, entry, trusts)
        if change == SAME and not keep_same:
            continue
        if change == DELETED:
            changes.append(Change(path=entry[0], change=change))
        elif change:
            changes.append(as_is(entry[0], change, entry[1]))
    changes += [Change(path=path, change=DELETED) for path in walk.missing()]
    changes.sort(key=lambda one: one.path)
    return changes, walk.doubts


def as_is(path: bytes, change: str, status: os.stat_result) -> Change:
    """Return *change* of the file at *path* with what *status* tells of it."""
    return Change(
        path=path,
        change=change,
        kind=base.kind_of(status.st_mode),
        mode=stat.S_IMODE(status.st_mode),
        size=status.st_size,
    )


def _change(top: bytes, entry: Entry, trusts: Trusts) -> str:
    """Return what has become of *entry*, "" if that is no work."""
    path, status, row, cached = entry
    kind = base.kind_of(status.st_mode)
    if row is None:
        return ADDED if kind and not cached else ""
    if not kind:
        return DELETED  # a socket or a pipe stands in its place
    if (kind == base.LINK) != (row[0] == base.LINK):
        return CHANGED
    if not trusts(row, status) and not has_content(top, path, kind, row):
        return CHANGED
    return SAME if kind == row[0] else MODE


def has_content(top: bytes, path: bytes, kind: str, row: Row) -> bool:
    """Tell by reading it whether the file at *path* below *top* has the content of *row*."""
    try:
        if os.lstat(top + b"/" + path).st_size != row[1]:
            return False
        return artifact.of_entry(top + b"/" + path, kind, row[2]) == row[2]
    except OSError:
        return False


def name_contents(worktree: str, changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """Return *changes* with the hash of each file, "" for one that cannot be read."""
    top = os.fsencode(worktree)
    named = []
    for one in changes:
        name = ""
        if one.change != DELETED:
            try:
                name = artifact.of_entry(top + b"/" + one.path, one.kind)
            except OSError:
                pass
        named.append(one.replace(hash=name))
    return tuple(named)
