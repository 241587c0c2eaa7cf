"""A plain tree that follows trunk's, for the gate's command to run in.

It moves from one check-in to the next by what differs, and takes back what the command did to files
of the check-in; what the command made besides, such as its caches, stays. No link is followed on
the way to a file, so whatever the command leaves, nothing outside of the tree is touched.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from foundation.atomic import read_bounded, write_all, write_file
from foundation.failpoint import hit
from foundation.process import boot_id
from slotgc import artifact, base, beneath
from slotgc.base import Base
from slotgc.removal import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hub.trees import Entry

_LIMIT_BYTES = 1 << 30
_IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP)


class GateTree:
    """The tree in ``DIRECTORY/tree``; ``DIRECTORY/paths`` names every file that ever was its own.

    A path is written there before its file is: killed at any moment, the next process knows what
    may be left of which check-in, and reads what it finds before it trusts it.
    """

    def __init__(self, directory: str) -> None:
        """Name the *directory*, ours alone; nothing is made or read yet."""
        self.path = f"{directory}/tree"
        self._directory = directory
        self._top = os.fsencode(self.path)
        self._known: Base | None = None
        self._paths: set[bytes] = set()
        """Those in the file ``paths``."""

    def move(self, files: Mapping[bytes, Entry], content: Callable[[str], bytes]) -> None:
        """Make the tree hold *files*; what they contain is read by hash from *content*.

        Raises:
            OSError: it cannot be made, and may be half of it: move again, or :meth:`wipe`.
        """
        known = self._known or self._open()
        self._known = None  # until this is over
        os.close(os.open(self._top, beneath.INTO))  # a directory, and no link to one
        for path in [path for path in self._paths if path not in files]:
            self._remove(path)
        hit("gate.removed")
        self._free_directories(files)
        rows: dict[bytes, base.Row] = {}
        missing = []
        for path, entry in files.items():
            row = self._row_as_is(path, entry, known)
            if row is None:
                missing.append(path)
            else:
                rows[path] = row
        self._note(missing)
        hit("gate.noted")
        for path in missing:
            rows[path] = self._write(path, files[path], content)
            hit("gate.written")
        self._known = Base(checkin="", indexed_ns=time.time_ns(), files=rows)

    def wipe(self) -> None:
        """Remove all of it, caches too.

        Raises:
            OSError: something in it cannot be removed.
        """
        self._known = None
        remove_tree(self._directory)

    # --- what is there ---------------------------------------------------------------------

    def _open(self) -> Base:
        """Learn what may be there; after a crash of the machine that is nobody's knowledge."""
        boot = boot_id().encode()
        try:
            noted = read_bounded(f"{self._directory}/paths", _LIMIT_BYTES).split(b"\0")
        except FileNotFoundError:
            noted = [b""]
        if noted[0] != boot:
            self.wipe()
            noted = []
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        # The last one may be cut short: its file was not written then.
        self._paths = {path for path in noted[1:-1] if os.path.lexists(self._at(path))}
        entries = b"".join(path + b"\0" for path in sorted(self._paths))
        write_file(f"{self._directory}/paths", boot + b"\0" + entries, durable=False)
        return Base(checkin="", indexed_ns=0, files={})

    def _note(self, paths: Iterable[bytes]) -> None:
        new = [path for path in paths if path not in self._paths]
        fd = os.open(f"{self._directory}/paths", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            write_all(fd, b"".join(path + b"\0" for path in new))
        finally:
            os.close(fd)
        self._paths.update(new)

    def _free_directories(self, files: Mapping[bytes, Entry]) -> None:
        """Remove whatever stands where a directory must be: a file, or a link to another one."""
        needed: set[bytes] = set()
        for path in files:
            above = path.rpartition(b"/")[0]
            while above and above not in needed:
                needed.add(above)
                above = above.rpartition(b"/")[0]
        for directory in sorted(needed):  # so that no link above one is followed
            status = self._status(directory)
            if status is not None and not stat.S_ISDIR(status.st_mode):
                os.unlink(self._at(directory))

    def _row_as_is(self, path: bytes, entry: Entry, known: Base) -> base.Row | None:
        """Return the row of what is there, None if that is not *entry*."""
        status = self._status(path)
        if status is None or base.kind_of(status.st_mode) != entry.kind:
            return None
        row = known.files.get(path)
        if row is not None:
            if row[2] != entry.hash:
                return None
            if known.trusts(row, status):
                return row
        try:
            found = artifact.of_entry(self._at(path), entry.kind, entry.hash)
        except OSError:
            return None  # it may not be read any more, or is another by now
        return _row(entry, status) if found == entry.hash else None

    def _status(self, path: bytes) -> os.stat_result | None:
        try:
            return os.lstat(self._at(path))
        except FileNotFoundError:
            return None

    def _at(self, path: bytes) -> bytes:
        return self._top + b"/" + path

    # --- changing it -----------------------------------------------------------------------

    def _remove(self, path: bytes) -> None:
        """Remove the file at *path* and the directories that become empty."""
        tree = os.open(self._top, beneath.INTO)
        try:
            directory, name = beneath.enter(tree, path)
        except (FileNotFoundError, beneath.BlockedError):
            return  # the command was here before us
        finally:
            os.close(tree)
        try:
            os.unlink(name, dir_fd=directory)
            while path := path.rpartition(b"/")[0]:
                os.rmdir(self._at(path))
        except OSError as error:
            # Gone already; or a directory, of the command's own files or of others of ours.
            if error.errno not in (errno.ENOENT, errno.EISDIR, errno.ENOTEMPTY):
                raise
        finally:
            os.close(directory)

    def _write(self, path: bytes, entry: Entry, content: Callable[[str], bytes]) -> base.Row:
        directory, name = self._into(path)
        try:
            try:
                os.unlink(name, dir_fd=directory)  # never into what may have another name
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                remove_tree(os.fsdecode(self._at(path)))
            if entry.kind == base.LINK:
                os.symlink(content(entry.hash), name, dir_fd=directory)
                return _row(entry, os.lstat(name, dir_fd=directory))
            fd = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, dir_fd=directory
            )
            try:
                write_all(fd, content(entry.hash))
                os.fchmod(fd, 0o755 if entry.kind == base.EXEC else 0o644)
                return _row(entry, os.fstat(fd))
            finally:
                os.close(fd)
        finally:
            os.close(directory)

    def _into(self, path: bytes) -> tuple[int, bytes]:
        """Return a descriptor of the directory that *path* is in, made if need be, and its name."""
        *names, last = path.split(b"/")
        fd = os.open(self._top, beneath.INTO)
        for name in names:
            try:
                try:
                    below = os.open(name, beneath.INTO, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(name, 0o755, dir_fd=fd)
                    below = os.open(name, beneath.INTO, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd, last


def _row(entry: Entry, status: os.stat_result) -> base.Row:
    stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return (entry.kind, status.st_size, entry.hash, *stamps)
