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
    top = _open(path, None)
    if top is None:
        return
    failures: list[OSError] = []
    try:
        device = os.fstat(top).st_dev
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


def _open(name: bytes | str, parent: int | None) -> int | None:
    """Return a descriptor of the directory *name* that may be changed, None if it is gone."""
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
    if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        try:
            os.fchmod(fd, stat.S_IRWXU)
        except PermissionError:
            pass  # not ours; removing from it may fail, and says so
    return fd


def _empty(top: int, fd: int, device: int, depth: int, failures: list[OSError]) -> bool:
    """Remove what is in the directory *fd*; return whether something was moved up to *top*."""
    moved = False
    # os.scandir(fd) shares the position of fd with every later one.
    for name in os.listdir(fd):
        try:
            try:
                os.unlink(name, dir_fd=fd)
            except (IsADirectoryError, PermissionError):
                status = os.lstat(name, dir_fd=fd)
                if not stat.S_ISDIR(status.st_mode):
                    raise
            else:
                hit("gc.removing")
                continue
            if status.st_dev != device:
                raise OSError(f"{name} is another file system")
            below = _open(name, fd)
            if below is None:
                continue
            try:
                if depth == _DEEPEST:
                    os.rename(name, f"deep-{status.st_ino}", src_dir_fd=fd, dst_dir_fd=top)
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
