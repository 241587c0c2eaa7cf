"""The file ``.git/index``: kept in memory, written beside it, exchanged with it under git's lock.

Two files take turns, so that no inode is made or removed, and of the one written only what
differs from two updates ago. One that a git is still reading (it maps the file) is not touched:
the kernel tells, by refusing a lease on it.
"""

from __future__ import annotations

import ctypes
import os
from itertools import accumulate
from operator import is_not

from foundation.failpoint import hit
from slotgc.base import TICK_NS
from swarm.gitrepo.index import Stamp, smudged, stamp_of
from swarm.gitrepo.places import OURS, cut, open_spare, write_at
from swarm.gitrepo.segments import Index, NeedsGit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarm.gitrepo.index import Owner
    from swarm.gitrepo.objects import Format
    from swarm.gitrepo.places import Places

LOCK = "index.lock"
_NAME = "index"
_SPARE = f"{OURS}/index"
_NS = 1_000_000_000
_COARSE_TICK_NS = 3 * _NS
_WORD = 0xFFFFFFFF
_LARGEST = 1 << 30
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None)

Known = tuple[int, int, int]
"""Inode, size, mtime_ns: by which a file is known to be the one that we wrote last."""


class Written:
    """A file that we have written: what it is known by, and the pieces that stand in it."""

    def __init__(self, known: Known, pieces: list[bytes]) -> None:
        self.known = known
        self.pieces = pieces


class IndexFile:
    """The index of one repository, whose only writer besides git we are."""

    def __init__(self, worktree: str, form: Format, resolve: Callable[[], None]) -> None:
        """Nothing is read yet. *resolve* has git write the index in a form that we understand."""
        self._top = worktree
        self._form = form
        self._resolve = resolve
        self._index: Index | None = None
        self._live: Written | None = None
        self._spare: Written | None = None
        self._base: Known | None = None
        """The file that :attr:`_index` was read from or written to."""
        self._young: dict[bytes, Stamp] = {}
        self._next: Written | None = None

    def prepare(
        self,
        at: Places,
        changes: Mapping[bytes, tuple[bytes, Stamp | None] | None],
        now_ns: int,
        *,
        alone: bool = False,
    ) -> None:
        """Write the index with *changes* beside the index; :meth:`place` puts it there.

        Each change is an entry and what it was made from; None: no entry. An entry that its file
        may no longer agree with is written so that git looks; with *alone* nobody but the caller
        has had the worktree since.

        Raises:
            NeedsGit, ValueError: the index is in no form that we, or git, can read.
            OSError: it cannot be read or written.
        """
        if self._next is not None:
            self._spare, self._next = self._next, None
        index = self._read(at)
        second_ns = now_ns // _NS * _NS
        young: dict[bytes, Stamp] = {}
        edits: dict[bytes, bytes | None] = {}
        for path, change in changes.items():
            self._young.pop(path, None)
            if change is None:
                edits[path] = None
                continue
            raw, stamp = change
            if stamp is not None and stamp.mtime_ns >= second_ns:
                young[path] = stamp
            elif stamp is None or not (alone or self._is_settled(path, stamp)):
                raw = smudged(raw)
            edits[path] = raw
        for path, stamp in self._young.items():
            if stamp.mtime_ns >= second_ns:
                young[path] = stamp
            elif not self._is_settled(path, stamp):
                found = index.get(path)
                if found is not None:
                    edits[path] = smudged(found)
        self._index = None  # whatever raises from here on: it is read anew
        index.update(edits)
        self._next = self._write(at, index.pieces(), second_ns)
        hit("gitrepo.index-written")
        self._index, self._young = index, young

    def warm(self, at: Places) -> None:
        """Read the index, for the next :meth:`prepare`.

        Raises: as :meth:`prepare`.
        """
        self._read(at)

    def restamp(self, at: Places, stamps: Mapping[bytes, Stamp], owner: Owner, now_ns: int) -> None:
        """Give the index of a copied worktree the stamps of the copies; nobody else has it yet.

        Raises:
            NeedsGit, ValueError, OSError: as :meth:`prepare`.
        """
        index = self._read(at)
        second_ns = now_ns // _NS * _NS
        self._index = None
        index.restamp(stamps, owner)
        self._next = self._write(at, index.pieces(), second_ns)
        self._index = index
        self._young = {path: one for path, one in stamps.items() if one.mtime_ns >= second_ns}
        self.place(at)

    def place(self, at: Places) -> bool:
        """Put there what was prepared, if anything was; index.lock is held.

        False: git has written the index since.
        """
        if self._next is None:
            return True
        if self._look(at) != self._base:
            self._index = self._next = None
            return False
        _exchange(at.git, _SPARE, _NAME)
        hit("gitrepo.index-placed")
        self._spare, self._live = self._live, self._next
        self._base, self._next = self._next.known, None
        return True

    def forget_prepared(self) -> None:
        """Place nothing of what was prepared before."""
        if self._next is not None:
            self._index = self._next = None

    def _look(self, at: Places) -> Known | None:
        try:
            found = os.stat(_NAME, dir_fd=at.git, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return _known(found)

    def _read(self, at: Places) -> Index:
        if self._index is not None and self._look(at) == self._base:
            return self._index
        try:
            return self._load(at)
        except NeedsGit:
            self._resolve()
            return self._load(at)

    def _load(self, at: Places) -> Index:
        try:
            fd = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at.git)
        except FileNotFoundError:  # to git: an index without entries
            self._base, self._young, self._live = None, {}, None
            self._index = Index(self._form)
            return self._index
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            content = file.read(_LARGEST)
        index = Index.parse(content, self._form, found.st_mtime_ns // _NS)
        self._base = _known(found)
        if self._live is None or self._live.known != self._base:
            self._live = None
        # What git wrote in the second of a file's change it compares, until the index is younger.
        self._young = {
            path: stamp
            for path, raw in index.recent.items()
            if (stamp := stamp_of(raw, found.st_mtime_ns)).size
        }
        self._index = index
        return index

    def _is_settled(self, path: bytes, stamp: Stamp) -> bool:
        """Tell whether the file at *path* is as it was, and a later change would show."""
        tick_ns = TICK_NS if stamp.ctime_ns % _NS else _COARSE_TICK_NS
        if stamp.ctime_ns >= stamp.seen_ns - tick_ns:
            return False
        try:
            found = os.lstat(os.fsencode(self._top) + b"/" + path)
        except OSError:
            return False
        return (
            found.st_mtime_ns == stamp.mtime_ns
            and found.st_ctime_ns == stamp.ctime_ns
            and found.st_size & _WORD == stamp.size & _WORD
            and found.st_ino & _WORD == stamp.inode & _WORD
        )

    def _write(self, at: Places, pieces: list[bytes], second_ns: int) -> Written:
        """Write the spare file: what differs in it, or all."""
        spare, self._spare = self._spare, None
        fd, was = open_spare(_SPARE, at.git)
        try:
            same = was is not None and spare is not None and spare.known == _known(was)
            before = spare.pieces if spare is not None and same else []
            cut(fd, _write_different(fd, before, pieces), was)
            # As old as this second's beginning: git compares whatever changed since.
            os.utime(fd, ns=(second_ns, second_ns))
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return Written(_known(found), pieces)


def _known(found: os.stat_result) -> Known:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _write_different(fd: int, before: list[bytes], pieces: list[bytes]) -> int:
    """Write *pieces* over *before*, but for those that stand there; return where they end."""
    differing = [turn for turn, differs in enumerate(map(is_not, before, pieces)) if differs]
    starts = list(accumulate(map(len, pieces), initial=0))
    replaced = len(before) == len(pieces) and all(
        len(before[turn]) == len(pieces[turn]) for turn in differing
    )
    if replaced:
        for turn in differing:
            write_at(fd, pieces[turn], starts[turn])
    else:  # from the first on all stands elsewhere
        first = differing[0] if differing else min(len(before), len(pieces))
        write_at(fd, b"".join(pieces[first:]), starts[first])
    return starts[-1]


def _exchange(git: int, spare: str, live: str) -> None:
    """Let two files change their names; where that cannot be, the first replaces the second."""
    try:
        rename = _libc.renameat2
    except AttributeError:
        pass
    else:
        if rename(git, spare.encode(), git, live.encode(), _RENAME_EXCHANGE) == 0:
            return
    os.rename(spare, live, src_dir_fd=git, dst_dir_fd=git)
