"""Removing a directory with all that is in it, and nothing else."""

from __future__ import annotations

import os
import stat

from foundation.failpoint import hit

_DEEPEST = 100
"""Levels that are descended into: each holds a descriptor and a Python frame."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_tree(path: str) -> None:
    """Remove the directory *path*; no link in it is followed, no other file system entered.

    Directories of our own that cannot be read or written are made so first. What vanishes
    meanwhile is taken for removed. However deep it is: what is too deep is moved up.

    Raises:
        OSError: something in it cannot be removed; as much as can is.
    """
    opened = _open(path, None)
    if opened is None:
        return
    top, device = opened
    failures: list[OSError] = []
    try:
        moved = True
        while moved and not failures:
            moved = _empty(top, top, device, 0, failures)
    finally:
        os.close(top)
    if failures:
        raise failures[0]
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _open(name: bytes | str, parent: int | None) -> tuple[int, int] | None:
    """Return a descriptor of the directory *name* that may be changed, and its device.

    None if it is gone.
    """
    try:
        try:
            fd = os.open(name, _OPEN, dir_fd=parent)
        except PermissionError:
            # By way of a descriptor that needs no permission, and that cannot be a link.
            handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)
                fd = os.open(".", _OPEN, dir_fd=handle)
            finally:
                os.close(handle)
    except FileNotFoundError:
        return None
    status = os.fstat(fd)
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        try:
            os.fchmod(fd, stat.S_IRWXU)
        except PermissionError:
            pass  # not ours; removing from it may fail, and says so
    return fd, status.st_dev


def _empty(top: int, fd: int, device: int, depth: int, failures: list[OSError]) -> bool:
    """Remove what is in the directory *fd*; return whether something was moved up to *top*."""
    moved = False
    with os.scandir(fd) as listing:
        met = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
    for name, is_directory in met:
        try:
            if not is_directory:
                os.unlink(name, dir_fd=fd)
                hit("gc.removing")
                continue
            opened = _open(name, fd)
            if opened is None:
                continue
            below, on = opened
            try:
                if on != device:
                    raise OSError(f"{name} is another file system")
                if depth == _DEEPEST:
                    inode = os.fstat(below).st_ino
                    os.rename(name, f"deep-{inode}", src_dir_fd=fd, dst_dir_fd=top)
                    moved = True
                    continue
                moved |= _empty(top, below, device, depth + 1, failures)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            continue
        except OSError as error:
            failures.append(error)
    return moved
