"""The guard of a lease: a file beside the record under whose lock alone the record changes.

It is never removed, and the kernel frees its lock: nobody breaks it, so nobody breaks into it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from foundation.errors import Corrupt, LeaseLost, Unavailable
from owner import private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

WAIT_S = 5.0
"""How long an operation waits for others to leave the guard; they take well below 1 ms."""

_RETRY_FROM_S, _RETRY_TO_S = 0.0002, 0.005


class Guard:
    """The guard of the record at *path*, held while this is entered."""

    def __init__(self, path: str, *, timeout_s: float = WAIT_S) -> None:
        """Name it; entering waits up to *timeout_s* for whoever is inside."""
        self.path = f"{path}.lock"
        self.fd = -1
        self._timeout_s = timeout_s
        self._process = (0, 0)

    def __enter__(self) -> Self:
        """Wait for the guard and hold it.

        Raises:
            Unavailable: somebody stayed inside (``guard-busy``).
            Corrupt: something that is no file stands in its place.
            OSError: it cannot be opened, or the file system has no locks.
        """
        deadline_s = time.monotonic() + self._timeout_s
        pause_s = _RETRY_FROM_S
        try:
            while not self._try():
                if time.monotonic() >= deadline_s:
                    raise _busy(self.path, self._timeout_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_TO_S)
            self._process = private.process()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Let others in."""
        if self._process != private.process():
            return  # a forked child: it has closed the descriptor, and the lock is its parent's
        # Not by closing alone: a program that another thread starts has a copy until its exec.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        self._close()

    def check_held(self) -> None:
        """Make sure that this process holds it: a forked child does not.

        Raises:
            LeaseLost: it is a child of the one that does.
        """
        if self._process != private.process():
            raise LeaseLost("this is a forked child of the owner", reason="not-owner")

    def _try(self) -> bool:
        self.fd = private.opened(self._open)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_named():
                return True
        except BlockingIOError:
            pass
        self._close()
        return False

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _no_file(self.path) from None
            raise
        self._opened = os.fstat(fd)
        if not stat.S_ISREG(self._opened.st_mode):
            os.close(fd)
            raise _no_file(self.path)
        return fd

    def _is_named(self) -> bool:
        """Tell whether what we hold is still what others will find under the name."""
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(self._opened, named)

    def _close(self) -> None:
        if self.fd >= 0:
            private.close(self.fd)
            self.fd = -1


def _no_file(path: str) -> Corrupt:
    return Corrupt(
        f"{path} should be a lease's guard but is no regular file: stop whoever uses the lease, "
        "then remove it",
        reason="guard-corrupt",
    )


def _busy(path: str, waited_s: float) -> Unavailable:
    pid = holder_of(path)
    if pid == os.getpid():
        who = "this very process (is one fenced block inside another?)"
    elif pid:
        who = f"pid {pid}: if it is stopped, `kill -CONT {pid}` or end it"
    else:
        who = "a process that cannot be seen from here"
    return Unavailable(
        f"{path} was held by another for {waited_s:.3g} s, by {who}", reason="guard-busy"
    )


def holder_of(path: str) -> int:
    """Return the pid that has *path* flocked, 0 if none is seen. Source: proc_locks(5)."""
    try:
        inode = os.stat(path).st_ino
        with open("/proc/locks", "rb") as file:
            rows = [line.split() for line in file]
    except OSError:
        return 0
    for row in rows:
        # N: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END; the device is not compared,
        # for btrfs and overlayfs name another one here than stat does
        if row[1] == b"FLOCK" and int(row[5].rpartition(b":")[2]) == inode:
            return max(0, int(row[4]))
    return 0
