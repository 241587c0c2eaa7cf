"""Reading what has changed: each file once, exactly as it was at one moment.

A content goes into the proposal itself while there is room, else into the spool. What trunk
has already travels not at all.
"""

from __future__ import annotations

import os
import stat
import time

from foundation.errors import Refused, Unavailable
from hub import spool
from hub.commits import INLINE_BYTES, LARGEST_BYTES, Change
from hub.wording import size as size_words
from slotgc import artifact, base, treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from slotgc.base import Base, Row
    from swarm.worktree.sight import Sight

_TRIES = 5
_AGAIN_S = 0.01
_CHUNK = 1 << 20
_UNASKED_BYTES = 16 * 1024
"""So much travels in any case: to ask whether trunk has it would cost more."""


class Reader:
    """One reading of the changes of a worktree."""

    def __init__(
        self, worktree: str, known: Base, spool_directory: str, has: Callable[[str], bool] | None
    ) -> None:
        """Read below *worktree*; *has* tells whether trunk has a content.

        Without *has* contents are named but not kept.
        """
        self._top = os.fsencode(worktree)
        self._known = known
        self._spool = spool_directory
        self._has = has
        self._room = INLINE_BYTES
        self.contents: dict[str, bytes] = {}
        self.spooled: dict[str, None] = {}
        self.same: dict[bytes, Row] = {}
        """Files that only looked changed, as they look now."""
        self.rows: dict[bytes, Row] = {}

    def changes(self, sight: Sight, *, named: bool) -> list[Change]:
        """Return what *sight* comes to, by path.

        A file that cannot be read is left out, unless it was *named*.

        Raises:
            Refused: a file is too large, or cannot be read (``too-large``, ``unreadable``).
            Unavailable: somebody writes to one all the time (``being-written``), or nobody can
                write to the spool (``spool``).
        """
        found = [self._gone(path) for path in sight.missing]
        for path in (*sight.known, *sight.new):
            try:
                change = self._there(path)
            except FileNotFoundError:
                if path not in self._known.files:
                    continue  # it has come and gone
                change = self._gone(path)
            except OSError as error:
                words = f"cannot be read: {error.strerror or error}"
                if named:
                    raise Refused(f"{treepath.show(path)} {words}", reason="unreadable") from None
                sight.skip(path, words)
                continue
            if change is not None:
                found.append(change)
        found.sort(key=lambda one: one.path)
        return found

    def _gone(self, path: bytes) -> Change:
        kind, _size, name = self._known.files[path][:3]
        return Change(path=path, kind="", hash="", base_kind=kind, base_hash=name)

    def _there(self, path: bytes) -> Change | None:
        was = self._known.files.get(path)
        row = self._read(path, was)
        if was is not None and (was[0], was[2]) == (row[0], row[2]):
            self.same[path] = row
            return None
        self.rows[path] = row
        return Change(
            path=path,
            kind=row[0],
            hash=row[2],
            base_kind="" if was is None else was[0],
            base_hash="" if was is None else was[2],
        )

    def _read(self, path: bytes, was: Row | None) -> Row:
        """Return the row of the file at *path*, whose content is kept unless it is that of *was*.

        Raises:
            OSError: it cannot be read, or is no file any more.
        """
        full = self._top + b"/" + path
        for turn in range(_TRIES):
            if turn:
                time.sleep(_AGAIN_S)
            before = os.lstat(full)
            kind = base.kind_of(before.st_mode)
            if kind == base.LINK:
                target = os.readlink(full)
                name = artifact.of_bytes(target)
                if _is_same(before, os.lstat(full)):
                    self._keep(name, target, was)
                    return _row(kind, name, before)
                continue
            if before.st_size > LARGEST_BYTES:
                raise Refused(
                    f"{treepath.show(path)} has {size_words(before.st_size)}; trunk takes "
                    f"{size_words(LARGEST_BYTES)} at most: leave it out (.gitignore)",
                    reason="too-large",
                )
            fd = artifact.open_regular(full)
            try:
                name = self._read_file(fd, before.st_size, was)
                if _is_same(before, os.fstat(fd)) and _is_same(before, os.lstat(full)):
                    return _row(kind, name, before)
            finally:
                os.close(fd)
        raise Unavailable(
            f"{treepath.show(path)} is being written: try again when its writer is done",
            reason="being-written",
        )

    def _read_file(self, fd: int, size: int, was: Row | None) -> str:
        """Return the name of what *fd* holds, having kept it if it is new."""
        if size <= self._room or self._has is None:
            if self._has is None:
                return artifact.of_file(fd)
            content = _all_of(fd, size)
            name = artifact.of_bytes(content)
            self._keep(name, content, was)
            return name

        def is_needed(name: str) -> bool:
            needed = self._needs(name, was)
            if needed:
                self.spooled[name] = None
            return needed

        return spool.take_in(self._spool, fd, is_needed)

    def _keep(self, name: str, content: bytes, was: Row | None) -> None:
        sent = INLINE_BYTES - self._room
        if self._needs(name, was, ask=sent + len(content) > _UNASKED_BYTES):
            self.contents[name] = content
            self._room -= len(content)

    def _needs(self, name: str, was: Row | None, *, ask: bool = True) -> bool:
        return (
            self._has is not None
            and (was is None or was[2] != name)
            and name not in self.contents
            and name not in self.spooled
            and not (ask and self._has(name))
        )


def _all_of(fd: int, size: int) -> bytes:
    """Return what *fd* holds; what grows beyond *size* meanwhile has another status."""
    content = os.read(fd, size + 1)
    while len(content) < size and (more := os.read(fd, _CHUNK)):
        content += more
    return content


def _row(kind: str, name: str, status: os.stat_result) -> Row:
    stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return (kind, status.st_size, name, *stamps)


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (
        one.st_ino == other.st_ino
        and one.st_size == other.st_size
        and one.st_mtime_ns == other.st_mtime_ns
        and one.st_ctime_ns == other.st_ctime_ns
        and stat.S_IFMT(one.st_mode) == stat.S_IFMT(other.st_mode)
    )
