"""Putting files into a worktree and taking them out, beside an agent that works in it.

A file appears in one rename, and only where there still is what was judged before; whatever else
is there stays. No link is followed: nothing outside of the worktree is ever touched.
"""

from __future__ import annotations

import os
import stat

from foundation.atomic import write_all
from foundation.errors import Unavailable
from foundation.failpoint import hit
from slotgc import artifact, base, treepath
from slotgc.beneath import INTO, BlockedError, enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from slotgc.base import Row

_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_MOST_OPEN = 128

EXECUTABLE, PLAIN = 0o777, 0o666
"""Permissions of what is made, less the umask."""


class Judged:
    """What was found at a path, to be compared with what is there when it is replaced."""

    def __init__(self, status: os.stat_result | None, name: str, seen_ns: int) -> None:
        """Status (None: nothing was there), the content's name, and when it was looked at."""
        self.status = status
        self.name = name
        self._settled = status is None or base.was_settled(status.st_ctime_ns, seen_ns)

    def holds(self, last: bytes, parent: int) -> bool:
        """Tell whether *last* in the directory *parent* is as it was found."""
        try:
            now = os.lstat(last, dir_fd=parent)
        except FileNotFoundError:
            return self.status is None
        was = self.status
        if was is None or (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (
            was.st_ino,
            was.st_size,
            was.st_mtime_ns,
            was.st_ctime_ns,
        ):
            return False
        if self._settled:
            return True
        kind = base.kind_of(now.st_mode)  # it was so young that its times prove nothing
        return artifact.of_entry(last, kind, self.name, dir_fd=parent) == self.name


class Placer:
    """Changes one worktree. *scratch* is a directory on the same file system, ours alone."""

    def __init__(self, worktree: str, scratch: str) -> None:
        """Open both; the scratch directory is made if need be."""
        self._tree = os.open(worktree, INTO)
        try:
            os.makedirs(scratch, 0o700, exist_ok=True)
            self._scratch = os.open(scratch, INTO)
        except BaseException:
            os.close(self._tree)
            raise
        self._scratch_path = scratch

    def close(self) -> None:
        """Close both, and remove the scratch directory if it is empty."""
        os.close(self._tree)
        os.close(self._scratch)
        try:
            os.rmdir(self._scratch_path)
        except OSError:
            pass  # what a killed one left; the next opening of the slot removes it

    def write(self, path: bytes, kind: str, content: bytes, judged: Judged) -> Row:
        """Put a file at *path* where *judged* was found; return its row, but for the time seen.

        Raises:
            Unavailable: something else is there now (``changed-meanwhile``).
            OSError: it cannot be written.
        """
        temporary = b"incoming"
        try:
            os.unlink(temporary, dir_fd=self._scratch)
        except FileNotFoundError:
            pass
        if kind == base.LINK:
            os.symlink(content, temporary, dir_fd=self._scratch)
        else:
            mode = EXECUTABLE if kind == base.EXEC else PLAIN
            fd = os.open(temporary, _MAKE, mode, dir_fd=self._scratch)
            try:
                write_all(fd, content)
            finally:
                os.close(fd)
        hit("place.written")
        parent, last = self._make_parent(path)
        try:
            if not judged.holds(last, parent):
                raise _changed(path)
            if judged.status is None:
                try:  # unlike a rename it fails if somebody was faster
                    os.link(
                        temporary,
                        last,
                        src_dir_fd=self._scratch,
                        dst_dir_fd=parent,
                        follow_symlinks=False,
                    )
                except FileExistsError:
                    raise _changed(path) from None
                os.unlink(temporary, dir_fd=self._scratch)
            else:
                os.rename(temporary, last, src_dir_fd=self._scratch, dst_dir_fd=parent)
            status = os.lstat(last, dir_fd=parent)
        finally:
            os.close(parent)
        hit("place.renamed")
        stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return (kind, status.st_size, artifact.of_bytes(content), *stamps)

    def delete(self, path: bytes, judged: Judged) -> None:
        """Remove the file *path*, and directories that this leaves empty.

        Raises:
            Unavailable: it is not what was judged any more (``changed-meanwhile``).
            OSError: it cannot be removed.
        """
        try:
            parent, last = enter(self._tree, path)
        except (FileNotFoundError, BlockedError):
            return
        try:
            if not judged.holds(last, parent):
                raise _changed(path)
            if judged.status is not None:
                os.unlink(last, dir_fd=parent)
        finally:
            os.close(parent)
        hit("place.deleted")
        self._drop_empty_above(path)

    def set_kind(self, path: bytes, kind: str, judged: Judged) -> Row:
        """Make the file at *path*, whose content is right, executable or not; return its row.

        Raises:
            Unavailable: it is not what was judged any more (``changed-meanwhile``).
            OSError: it cannot be changed.
        """
        parent, last = enter(self._tree, path)
        try:
            if not judged.holds(last, parent):
                raise _changed(path)
            fd = artifact.open_regular(last, dir_fd=parent)
            try:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                # Who may read it may run it, as far as the umask would have had it.
                os.fchmod(fd, mode | (mode & 0o444) >> 2 if kind == base.EXEC else mode & ~0o111)
                status = os.fstat(fd)
            finally:
                os.close(fd)
        finally:
            os.close(parent)
        stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return (kind, status.st_size, judged.name, *stamps)

    def _make_parent(self, path: bytes) -> tuple[int, bytes]:
        *names, last = path.split(b"/")
        fd = os.dup(self._tree)
        for name in names:
            try:
                try:
                    below = os.open(name, INTO, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(name, EXECUTABLE, dir_fd=fd)
                    below = os.open(name, INTO, dir_fd=fd)
                except NotADirectoryError:
                    raise _changed(path) from None
            finally:
                os.close(fd)
            fd = below
        try:
            # An empty directory is in nobody's way.
            if stat.S_ISDIR(os.lstat(last, dir_fd=fd).st_mode):
                _drop_empty(last, fd)
        except FileNotFoundError:
            pass
        except OSError:
            os.close(fd)
            raise _changed(path) from None
        return fd, last

    def _drop_empty_above(self, path: bytes) -> None:
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            try:
                parent, last = enter(self._tree, path)
            except OSError:
                continue
            try:
                os.rmdir(last, dir_fd=parent)
            except OSError:
                return
            finally:
                os.close(parent)


def _drop_empty(name: bytes, parent: int) -> None:
    """Remove the directory *name*, in which there are none but empty directories.

    Raises:
        OSError: there is something else in it.
    """
    fd = os.open(name, INTO, dir_fd=parent)
    try:
        for below in os.listdir(fd):
            _drop_empty(os.fsencode(below), fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _changed(path: bytes) -> Unavailable:
    return Unavailable(
        f"{treepath.show(path)} was changed while the worktree was being updated: update again",
        reason="changed-meanwhile",
    )


class Planter:
    """Makes files in a directory that nobody else knows yet, by names in open directories."""

    def __init__(self, worktree: str) -> None:
        """Open the directory *worktree*."""
        self._top = os.fsencode(worktree)
        self._directories: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._forget()

    def plant(self, path: bytes, kind: str, content: bytes, mtime_ns: int) -> os.stat_result:
        """Make the file *path*, of that time; return its status.

        Raises:
            OSError: it cannot be made, or is there already.
        """
        below, _slash, name = path.rpartition(b"/")
        parent = self._directories.get(below)
        if parent is None:
            parent = self._open(below)
        times = (mtime_ns, mtime_ns)
        if kind == base.LINK:
            os.symlink(content, name, dir_fd=parent)
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
            return os.lstat(name, dir_fd=parent)
        mode = EXECUTABLE if kind == base.EXEC else PLAIN
        fd = os.open(name, _MAKE, mode, dir_fd=parent)
        try:
            write_all(fd, content)
            os.utime(fd, ns=times)
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _open(self, below: bytes) -> int:
        if len(self._directories) >= _MOST_OPEN:
            self._forget()
        full = self._top + b"/" + below
        try:
            fd = os.open(full, INTO)
        except FileNotFoundError:
            os.makedirs(full, exist_ok=True)
            fd = os.open(full, INTO)
        self._directories[below] = fd
        return fd

    def _forget(self) -> None:
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()


def unplant(top: bytes, path: bytes) -> None:
    """Remove the file *path* below *top*, a directory that nobody else knows yet."""
    full = top + b"/" + path
    os.unlink(full)
    while len(full := os.path.dirname(full)) > len(top):
        try:
            os.rmdir(full)
        except OSError:
            return
