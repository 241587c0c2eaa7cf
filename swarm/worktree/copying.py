"""Copying a directory tree of ours, fast and safe, and learning on the way what was made.

No hard links: an editor that writes in place would write into every slot. One pass in Python beats
``cp -a`` (1.0 s against 1.3 s for 50,000 files, measured), since the copies need not be looked at
once more to be indexed.
"""

from __future__ import annotations

import os
import stat

from foundation.failpoint import hit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Seen = Callable[[bytes, os.stat_result, os.stat_result], None]
    """Path, what the file was, and what its copy is."""

_CHUNK = 1 << 30
_TELL_EVERY = 500


def copy_tree(source: str, target: str, seen: Seen) -> None:
    """Copy the directory *source* to *target*, which must not be there; *seen* is told each file.

    Files keep their content, permission bits and time, links what they say. *source* is ours
    alone: nobody changes it meanwhile.

    Raises:
        OSError: something cannot be read or written, or is neither file, link nor directory.
    """
    top, to = os.fsencode(source), os.fsencode(target)
    os.mkdir(to, stat.S_IMODE(os.lstat(top).st_mode))
    for number, (path, entry) in enumerate(_entries(top, to)):
        copy = to + b"/" + path
        if entry.is_symlink():
            was = os.lstat(entry.path)
            os.symlink(os.readlink(entry.path), copy)
            os.utime(copy, ns=(was.st_mtime_ns, was.st_mtime_ns), follow_symlinks=False)
            seen(path, was, os.lstat(copy))
        else:
            was, now = _copy_file(entry.path, copy)
            seen(path, was, now)
        if number % _TELL_EVERY == 0:
            hit("copy.file")


def _entries(top: bytes, to: bytes) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """Yield what is no directory below *top*; directories are made below *to* on the way."""
    pending = [b""]
    while pending:
        below = pending.pop()
        with os.scandir(top + b"/" + below) as entries:
            for entry in entries:
                path = below + entry.name
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(to + b"/" + path, stat.S_IMODE(os.lstat(entry.path).st_mode))
                    pending.append(path + b"/")
                else:
                    yield path, entry


def _copy_file(source: bytes, target: bytes) -> tuple[os.stat_result, os.stat_result]:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        was = os.fstat(reading)
        if not stat.S_ISREG(was.st_mode):
            raise OSError(f"{os.fsdecode(source)} is no file")
        mode = stat.S_IMODE(was.st_mode)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            left = was.st_size
            while left:
                copied = _transfer(reading, writing, min(left, _CHUNK))
                if not copied:
                    raise OSError(f"{os.fsdecode(source)} became shorter while it was copied")
                left -= copied
            os.utime(writing, ns=(was.st_mtime_ns, was.st_mtime_ns))
            now = os.fstat(writing)
            if stat.S_IMODE(now.st_mode) != mode:  # the umask took from it
                os.fchmod(writing, mode)
                now = os.fstat(writing)
            return was, now
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _transfer(reading: int, writing: int, count: int) -> int:
    """Copy up to *count* bytes inside the kernel; return how many."""
    try:
        return os.copy_file_range(reading, writing, count)
    except OSError:
        return os.sendfile(writing, reading, None, count)  # across file systems, or an old kernel
