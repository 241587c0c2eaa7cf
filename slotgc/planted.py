"""``planted.json``: until when nobody but us can have had a hand in a slot's worktree.

What is as it was planted need not be read to be known. A file's ctime is set by the kernel at
every change and can be chosen by nobody. So a file that still has the size, times and inode that
it was planted with, all from before the worktree was handed over, has not been changed since: no
mapping of it was older, and the first write through a new one moves the ctime. That does not hold
for a file that was committed later: who had it mapped by then may have written on without moving a
stamp. Those, and whatever does not match in every stamp, are for the caller to read. So is
everything:

- where a write through a mapping may move no time stamp at all: on tmpfs a page that was read
  first can be written at once; of file systems in user space and over a network nothing is known;
- after another boot: a power cut may have kept a write and lost its stamp;
- without this file, or with one of another directory.

Names are another matter: a directory's stamps are in no record, so each is listed. A clock that was
set back is none: the stamps must be the same, not merely old.

One JSON object beside the worktree: ``{"schema": 1, "until_ns": nanoseconds since the epoch,
"inode": the worktree's, "boot": the kernel's id of this boot}``.
"""

from __future__ import annotations

import os
import stat
import time

from foundation import atomic, codec
from foundation.filesystem import kind_of
from foundation.process import boot_id
from foundation.record import Record
from slotgc.base import was_settled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slotgc.base import Row

NAME = "planted.json"
SCHEMA = 1
_LIMIT_BYTES = 4096

FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})
"""Those that are told of the first write to a mapped page, and move the ctime then."""


class Planted(Record):
    """What may be taken for untouched."""

    until_ns: int
    """What has a ctime clearly before this was last changed by who planted it."""

    def is_untouched(self, row: Row, status: os.stat_result) -> bool:
        """Tell whether the file of *status* is the one that *row* was made of, never changed."""
        _kind, size, _hash, mtime_ns, ctime_ns, inode = row
        return (
            status.st_ctime_ns == ctime_ns
            and status.st_mtime_ns == mtime_ns
            and status.st_size == size
            and status.st_ino == inode
            and was_settled(ctime_ns, self.until_ns)
        )


def note(slot: str, worktree: str) -> None:
    """Note in the directory *slot* that *worktree* is planted up to now, known to nobody yet.

    Raises:
        OSError: it cannot be written.
    """
    inode = os.lstat(worktree).st_ino
    value = {"schema": SCHEMA, "until_ns": time.time_ns(), "inode": inode, "boot": boot_id()}
    atomic.write_file(f"{slot}/{NAME}", codec.dumps(value).encode() + b"\n", durable=False)


def read(slot: str) -> Planted | None:
    """Return what the directory *slot* notes of its worktree ``wt``, None if nothing is proved."""
    path = f"{slot}/{NAME}"
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        value = codec.loads_object(atomic.read_bounded(path, _LIMIT_BYTES))
        worktree = os.lstat(f"{slot}/wt")
        until_ns = value.get("until_ns")
        if (
            value.get("schema") == SCHEMA
            and type(until_ns) is int
            and value.get("inode") == worktree.st_ino
            and value.get("boot") == boot_id()
            and kind_of(f"{slot}/wt") in FILE_SYSTEMS
        ):
            return Planted(until_ns=until_ns)
    except (OSError, ValueError):
        pass
    return None
