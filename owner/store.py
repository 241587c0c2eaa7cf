"""A lease on disk: the record for everybody at its path, and the guard's copy of it.

The copy makes the record expendable. Whoever deletes, empties or restores the record changes
neither the epoch nor who may take over: a lease is free only if both say so.
"""

from __future__ import annotations

import errno
import os

from foundation.atomic import read_bounded, remove, sync_directory, write_all
from foundation.errors import Corrupt, HubError, Refused, Unavailable
from foundation.failpoint import hit
from foundation.process import boot_id
from owner import lease as rules
from owner import liveness
from owner.guard import WAIT_S, Guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from owner.lease import Lease

_NOT_OURS_TO_USE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def checked_path(path: str | os.PathLike[str]) -> str:
    """Return *path*, absolute.

    Raises:
        TypeError: it is no path, or one of bytes.
        ValueError: it names no file.
    """
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"path is {type(name).__name__}, not str")
    if not name or "\0" in name or name.endswith("/"):
        raise ValueError(f"path {name!r} names no file")
    return os.path.abspath(name)


def read_record(path: str) -> Lease | None:
    """Return the record at *path*, None if there is none. Takes no lock.

    Raises:
        Corrupt: what is there is no record.
        HubError: it cannot be read.
    """
    try:
        return rules.decode(read_bounded(path, rules.RECORD_LIMIT))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _corrupt(path, str(error)) from None
    except OSError as error:
        if error.errno in (None, errno.ELOOP, errno.ENXIO):  # a link, a directory, a socket
            raise _corrupt(path, "it is not a regular file") from None
        raise explain(error, path) from None


def read_copy(path: str) -> Lease | None:
    """Return the guard's copy of the record at *path*, None if it has none. Takes no lock.

    Raises:
        Corrupt: the guard holds something else, or was being written.
        HubError: it cannot be read.
    """
    try:
        fd = os.open(f"{path}.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return _copy_in(fd, f"{path}.lock")
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(error, path) from None


def read_record_beside(copy: Lease | None, path: str) -> Lease | None:
    """Return what :func:`read_record` does, given the guard's *copy*.

    A record that is none is nobody's if the copy is of another boot: it is not synced, so that
    is what a power cut leaves, and of that boot nobody lives.
    """
    try:
        return read_record(path)
    except Corrupt:
        if copy is None or copy.identity.boot == boot_id():
            raise
        return None


def standing(lease: Lease | None, now_ns: int) -> str:
    """Return whether *lease* is held, or why not, by what this machine knows now.

    Raises:
        Corrupt: no renewal can have made it.
    """
    if lease is None:
        return rules.NEVER_HELD
    if lease.deadline_ns == 0:  # whether its process lives need not be known
        return rules.RELEASED
    return verdict(lease, liveness.of(lease.identity), now_ns)


def verdict(lease: Lease, state: str, now_ns: int) -> str:
    """Return what :func:`standing` does; the holder's process is in *state*."""
    found = rules.judge(lease, now_ns=now_ns, boot=boot_id(), liveness=state)
    if found == rules.IMPOSSIBLE:
        beyond_s = (lease.deadline_ns - now_ns) / 1e9
        raise Corrupt(
            f"the lease of pid {lease.identity.pid} runs for another {beyond_s:.0f} s although its "
            f"ttl is {lease.ttl_ns / 1e9:g} s: stop that process, and it is free",
            reason="lease-corrupt",
        )
    return found


class Store:
    """The files of one lease, held under their guard while this is entered.

    The OSErrors of its methods come out as HubErrors.
    """

    def __init__(self, path: str, act: str, *, timeout_s: float = WAIT_S) -> None:
        """Name the record's *path* and the *act* (``acquire``, ``renew``, …), for failpoints."""
        self.path = path
        self._act = act
        self._guard = Guard(path, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        """Wait for the guard.

        Raises:
            Unavailable: somebody stayed inside for too long.
            HubError: the guard cannot be opened.
        """
        try:
            self._guard.__enter__()
        except OSError as error:
            raise explain(error, self._guard.path) from None
        hit(f"owner.{self._act}.guarded")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._guard.leave()

    def leave(self) -> None:
        """Let others in."""
        self._guard.leave()

    def copy(self) -> Lease | None:
        """Return the guard's copy, None before the first acquisition.

        Raises:
            Corrupt: it is none.
            HubError: it cannot be read.
        """
        self._guard.check_held()
        try:
            return _copy_in(self._guard.fd, self._guard.path)
        except OSError as error:
            raise explain(error, self._guard.path) from None

    def newest(self) -> Lease | None:
        """Return the latest acquisition: the guard's copy, or the record if the guard is new."""
        return self.copy() or read_record(self.path)

    def reserve(self, lease: Lease, *, is_named: bool) -> None:
        """Make the epoch of *lease* survive a power cut, before anybody sees it. Slow.

        Its deadline need not: no lease survives a boot. *is_named*: the record is of the very
        acquisition that the copy tells of, so the guard's name was synced before it came.

        Raises:
            HubError: it could not be written.
        """
        try:
            self._write_copy(lease)
            os.fdatasync(self._guard.fd)
            hit(f"owner.{self._act}.reserved")
            if not is_named:
                # After the content: a journal has just committed a new name with that, and nothing
                # is left to do. Who is killed before this leaves a copy without its record, and
                # the next comes here again. After a power cut before this the guard is there
                # with an epoch that nobody has seen, or is not there and as new as it was.
                sync_directory(os.path.dirname(self.path))
        except OSError as error:
            raise explain(error, self._guard.path) from None

    def write(self, lease: Lease) -> None:
        """Record *lease*: the copy first, so that it never knows less than the record.

        Raises:
            HubError: it could not be written.
        """
        self._guard.check_held()
        record = rules.encode(lease)
        try:
            if os.fstat(self._guard.fd).st_size == 0:
                # Somebody removed the guard under its owner. Its name before the copy: as soon as
                # that agrees with the record, nobody syncs the name any more.
                sync_directory(os.path.dirname(self.path))
            self._write_copy(lease, record)
            self._write_record(record)
        except OSError as error:
            raise explain(error, self.path) from None
        hit(f"owner.{self._act}.recorded")

    def withdraw(self, lease: Lease) -> None:
        """Have the copy say that *lease*, which could not be recorded, is nobody's."""
        try:
            self._write_copy(rules.release(lease))
        except OSError:
            pass  # it is free at its deadline, or at this process's end

    def _write_copy(self, lease: Lease, record: bytes | None = None) -> None:
        content = rules.encode_copy(lease, record)
        assert len(content) == rules.COPY_SIZE
        if os.pwrite(self._guard.fd, content, 0) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._guard.path)
        hit(f"owner.{self._act}.copied")

    def _write_record(self, content: bytes) -> None:
        # One name, not one a writer (as foundation.atomic has it): there is one writer, and what
        # a killed one left goes away instead of being gathered.
        temporary = f"{self.path}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(temporary, flags, 0o600)
        except FileExistsError:
            os.unlink(temporary)
            fd = os.open(temporary, flags, 0o600)
        try:
            try:
                write_all(fd, content)
            finally:
                os.close(fd)
            hit(f"owner.{self._act}.written")
            os.rename(temporary, self.path)
        except BaseException:
            remove(temporary)
            raise


def _copy_in(fd: int, path: str) -> Lease | None:
    content = os.pread(fd, rules.RECORD_LIMIT, 0).strip(b"\0 \n")
    try:
        return rules.decode(content) if content else None
    except ValueError as error:
        raise Corrupt(
            f"{path} is not the guard of a lease ({error}): stop whoever uses {path[:-5]}, then "
            "remove this file; the epoch goes on from the record, if that is whole",
            reason="guard-corrupt",
        ) from None


def _corrupt(path: str, why: str) -> Corrupt:
    return Corrupt(
        f"{path} is not a lease ({why}), so nobody knows who owns it. If it was one: stop whoever "
        f"uses it, then remove it alone; the epoch goes on from {path}.lock, if that is whole",
        reason="lease-corrupt",
    )


def explain(error: OSError, path: str) -> HubError:
    """Return what *error*, met at a lease's file *path*, means."""
    where = error.filename if isinstance(error.filename, str) else path
    words = f"{where}: {error.strerror or error}"
    if error.errno in _NOT_OURS_TO_USE:
        return Refused(f"{words}: a lease's owner must be able to write it", reason="not-writable")
    if error.errno in _NO_PLACE:
        return Refused(f"{words}: the directory of a lease must exist", reason="no-directory")
    if error.errno in _NO_LOCKS:
        return Refused(f"{words}: its file system has no locks", reason="no-locks")
    return Unavailable(
        f"{words}: who owns the lease cannot be told or recorded now", reason="lease-io"
    )
