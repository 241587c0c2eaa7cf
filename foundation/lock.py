"""Locks that the kernel frees when their holder dies."""

from __future__ import annotations

import fcntl
import os


def try_lock(path: str) -> int | None:
    """Return a descriptor that holds the lock file *path* alone, None if another holds it.

    flock(2): freed when the last descriptor of the open file is closed, by kill -9 too, and
    passed on to a child that inherits it. The file is never unlinked: a second inode under
    the same name would let two holders in.

    Raises:
        OSError: the file cannot be opened, or the file system has no locks.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd
