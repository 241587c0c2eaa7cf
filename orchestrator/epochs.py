"""Numbers that only grow, one for each life of a holder: trunk revokes what has a lower one."""

from __future__ import annotations

import fcntl
import os
import time

_NAME = ".epoch"
"""No cluster can be called so."""
_DIGITS = 20


def next_epoch(directory: str) -> int:
    """Return a number greater than every one that was taken in *directory*, which is there.

    It is also the time in milliseconds, unless the clock was set back: a directory that was
    deleted and made anew goes on from there, while trunk remembers what the former one has taken.

    Raises:
        OSError: *directory* cannot be written.
    """
    path = f"{directory}/{_NAME}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # for this moment only
        taken = os.pread(file, _DIGITS, 0).strip()
        last = int(taken) if taken.isdigit() else 0
        epoch = max(last + 1, time.time_ns() // 1_000_000)
        os.pwrite(file, b"%*d" % (_DIGITS, epoch), 0)
    finally:
        os.close(file)
    return epoch
