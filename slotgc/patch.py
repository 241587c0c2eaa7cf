"""The changes of a rescue as a patch onto one tree: first compared, then written.

A path of the tree may only hold what the base had there, or what the rescue has: that makes it
safe, and it makes a patch that was killed go on when it is repeated.
"""

from __future__ import annotations

import os
import stat

from foundation.atomic import write_all
from foundation.failpoint import hit
from foundation.workspace import SLOTS, STATE
from slotgc import artifact, base, treepath, work
from slotgc.beneath import INTO, BlockedError, content_name, enter, files_below, has, look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from slotgc.account import Account
    from slotgc.base import Base
    from slotgc.work import Change

_CHUNK = 1 << 20
_STATE = (STATE.encode(), SLOTS.encode())
"""A tree that has these is a workspace: no file of a rescue may become state of ours."""

_TEMPORARY = b".bones-restore-"


class Patch:
    """The changes of a rescue, against one tree; *source* and *tree* are descriptors of both."""

    written: list[bytes]
    deleted: list[bytes]
    unchanged: int
    """How many files were as rescued already."""

    def __init__(self, account: Account, known: Base | None, source: int | None, tree: int) -> None:
        """Take what is known of both sides; nothing is read yet."""
        self._tree = tree
        self._source = -1 if source is None else source
        self._rows = {} if known is None else known.files
        self._doomed = {c.path for c in account.changes if c.change == work.DELETED}
        self._wanted = {c.path: c for c in account.changes if c.change != work.DELETED}
        self._ready: set[bytes] = set()
        self._theirs: dict[bytes, bool] = {}
        self._closed: list[tuple[bytes, int]] = []
        self.written = []
        self.deleted = []
        self.unchanged = 0

    # --- compare ---------------------------------------------------------------------------

    def conflicts(self) -> list[str]:
        """Return what must not be overwritten or removed, for a person; nothing is touched."""
        found = [path for path in sorted(self._doomed) if not self._may_delete(path)]
        found += [path for path in sorted(self._wanted) if not self._may_write(path)]
        return [treepath.show(path) for path in dict.fromkeys(found)]

    def _may_delete(self, path: bytes) -> bool:
        try:
            status = look(self._tree, path)
        except BlockedError as error:
            return error.prefix in self._wanted  # a file of the rescue took the directory's place
        if status is None:
            return True
        if stat.S_ISDIR(status.st_mode):
            return any(wanted.startswith(path + b"/") for wanted in self._wanted)
        return self._is_as_base(path, status)

    def _may_write(self, path: bytes) -> bool:
        if self._is_in_a_repository(path):
            return False
        try:
            status = look(self._tree, path)
        except BlockedError as error:
            return error.prefix in self._doomed  # which is judged itself
        if status is None:
            return True
        if stat.S_ISDIR(status.st_mode):
            return all(below in self._doomed for below in files_below(self._tree, path))
        change = self._wanted[path]
        if has(self._tree, change, also_mode=True):
            self._ready.add(path)
            return True
        return has(self._tree, change) or self._is_as_base(path, status)

    def _is_in_a_repository(self, path: bytes) -> bool:
        """Tell whether *path* leads into state of ours, or of git, that the tree has of its own.

        A file of a rescue must not become a hook of somebody's repository.
        """
        names = path.split(b"/")
        for depth, name in enumerate(names, 1):
            if name == treepath.GIT or (depth == 1 and name in _STATE):
                prefix = b"/".join(names[:depth])
                if prefix not in self._theirs:
                    self._theirs[prefix] = self._holds_more(prefix)
                return self._theirs[prefix]
        return False

    def _holds_more(self, path: bytes) -> bool:
        """Tell whether the tree has at *path* what no restore can have put there."""
        try:
            status = look(self._tree, path)
        except BlockedError:
            return False  # which is judged where it is
        if status is None or not stat.S_ISDIR(status.st_mode):
            return False
        return any(
            below not in self._wanted and not below.rpartition(b"/")[2].startswith(_TEMPORARY)
            for below in files_below(self._tree, path)
        )

    def _is_as_base(self, path: bytes, status: os.stat_result) -> bool:
        row = self._rows.get(path)
        kind = base.kind_of(status.st_mode)
        return (
            row is not None
            and kind == row[0]
            and status.st_size == row[1]
            and content_name(self._tree, path, kind, row[2]) == row[2]
        )

    # --- write -----------------------------------------------------------------------------

    def apply(self) -> None:
        """Delete, write, and give directories their modes; the comparison has been made."""
        for path in sorted(self._doomed):
            self._refuse_if_changed(path, self._may_delete)
            self._delete(path)
        for path, change in sorted(self._wanted.items()):
            if path in self._ready:
                self.unchanged += 1
                continue
            self._refuse_if_changed(path, self._may_write)
            self._write(change)
            self.written.append(path)
            hit("restore.written")
        for path in self.deleted:
            self._drop_empty_above(path)
        for path, mode in reversed(self._closed):
            self._change_mode(path, mode)
            hit("restore.closed")

    def _refuse_if_changed(self, path: bytes, may: Callable[[bytes], bool]) -> None:
        """Look once more: the comparison of all files may be minutes old.

        Raises:
            OSError: somebody has changed what is there.
        """
        if not may(path):
            raise OSError(f"{treepath.show(path)} was changed meanwhile: merge it by hand")

    def _delete(self, path: bytes) -> None:
        try:
            parent, last = enter(self._tree, path)
        except (FileNotFoundError, BlockedError):
            return
        try:
            if not stat.S_ISDIR(os.lstat(last, dir_fd=parent).st_mode):
                os.unlink(last, dir_fd=parent)
                self.deleted.append(path)
                hit("restore.deleted")
        except FileNotFoundError:
            pass
        finally:
            os.close(parent)

    def _write(self, change: Change) -> None:
        """Put the file of *change* in its place, in one step."""
        parent = self._make_parent(change.path)
        last = change.path.rpartition(b"/")[2]
        # Of a fixed name: a killed restore's is taken over by the one that goes on.
        temporary = _TEMPORARY + artifact.of_bytes(change.path)[:16].encode()
        try:
            try:
                os.unlink(temporary, dir_fd=parent)
            except FileNotFoundError:
                pass
            source, name = enter(self._source, change.path)
            try:
                if change.kind == base.LINK:
                    os.symlink(os.readlink(name, dir_fd=source), temporary, dir_fd=parent)
                else:
                    self._copy(source, name, parent, temporary, change.mode)
            finally:
                os.close(source)
            hit("restore.copied")
            self._clear_way(change.path)
            os.rename(temporary, last, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            os.close(parent)

    def _copy(self, source: int, name: bytes, parent: int, temporary: bytes, mode: int) -> None:
        reading = artifact.open_regular(name, dir_fd=source)
        try:
            status = os.fstat(reading)
            # Somebody else's setuid program must not become ours.
            mode &= 0o7777 if status.st_uid == os.geteuid() else 0o777
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            writing = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                while chunk := os.read(reading, _CHUNK):
                    if chunk.count(0) == len(chunk):  # a hole stays one
                        os.lseek(writing, len(chunk), os.SEEK_CUR)
                    else:
                        write_all(writing, chunk)
                os.ftruncate(writing, os.lseek(writing, 0, os.SEEK_CUR))
                os.fchmod(writing, mode)
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _make_parent(self, path: bytes) -> int:
        """Return a descriptor of the directory of *path*, made as the rescue has it."""
        names = path.split(b"/")[:-1]
        fd = os.dup(self._tree)
        for depth, name in enumerate(names, 1):
            try:
                try:
                    below = os.open(name, INTO, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(name, 0o700, dir_fd=fd)
                    below = os.open(name, INTO, dir_fd=fd)
                    self._give_mode(below, b"/".join(names[:depth]))
            finally:
                os.close(fd)
            fd = below
        return fd

    def _give_mode(self, made: int, path: bytes) -> None:
        status = look(self._source, path)
        mode = 0o777 & (stat.S_IRWXU if status is None else status.st_mode)
        os.fchmod(made, mode | stat.S_IRWXU)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            self._closed.append((path, mode))

    def _clear_way(self, path: bytes) -> None:
        """Remove the directories, all empty by now, that stand where a file comes."""
        status = look(self._tree, path)
        if status is None or not stat.S_ISDIR(status.st_mode):
            return
        fd, _name = enter(self._tree, path + b"/.")
        try:
            names = [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)
        for name in names:
            self._clear_way(path + b"/" + name)
        parent, last = enter(self._tree, path)
        try:
            os.rmdir(last, dir_fd=parent)
        finally:
            os.close(parent)

    def _drop_empty_above(self, path: bytes) -> None:
        """Remove the directories that the removal of *path* has left empty."""
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

    def _change_mode(self, path: bytes, mode: int) -> None:
        fd, _name = enter(self._tree, path + b"/.")
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
