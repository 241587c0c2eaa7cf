"""Reaching files below a directory's descriptor, name by name: no link is ever followed.

Whatever such a tree holds, nothing outside of it is read, written or removed.
"""

from __future__ import annotations

import errno
import os
import stat

from slotgc import artifact, base, treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from slotgc.work import Change

INTO = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
"""How a directory is opened that must not be a link."""


def has(tree: int, change: Change, *, also_mode: bool = False) -> bool:
    """Tell whether *tree* has at the path of *change* what *change* has."""
    found = look(tree, change.path)
    if found is None:
        return False
    kind = base.kind_of(found.st_mode)
    if (kind == base.LINK) != (change.kind == base.LINK) or found.st_size != change.size:
        return False
    if also_mode and kind != base.LINK and stat.S_IMODE(found.st_mode) != change.mode:
        return False
    return bool(kind) and content_name(tree, change.path, kind, change.hash) == change.hash


def content_name(tree: int, path: bytes, kind: str, like: str) -> str:
    """Return Fossil's name of the content at *path*; *like* as in :func:`artifact.of_bytes`."""
    parent, last = enter(tree, path)
    try:
        return artifact.of_entry(last, kind, like, dir_fd=parent)
    finally:
        os.close(parent)


class BlockedError(OSError):
    """On the way to a path there is something that is no directory."""

    def __init__(self, prefix: bytes) -> None:
        super().__init__(f"{treepath.show(prefix)} is no directory")
        self.prefix = prefix


def enter(tree: int, path: bytes) -> tuple[int, bytes]:
    """Return a descriptor of the directory that *path* is in, and its last name.

    Raises:
        FileNotFoundError: there is no such directory.
        BlockedError: there is a link, or a file.
    """
    *names, last = path.split(b"/")
    fd = os.dup(tree)
    for depth, name in enumerate(names, 1):
        try:
            below = os.open(name, INTO, dir_fd=fd)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise BlockedError(b"/".join(names[:depth])) from None
        finally:
            os.close(fd)
        fd = below
    return fd, last


def look(tree: int, path: bytes) -> os.stat_result | None:
    """Return the status of what is at *path*, None if nothing is."""
    try:
        parent, last = enter(tree, path)
    except FileNotFoundError:
        return None
    try:
        return os.lstat(last, dir_fd=parent)
    except FileNotFoundError:
        return None
    finally:
        os.close(parent)


def files_below(tree: int, path: bytes) -> Iterator[bytes]:
    """Yield what is no directory below the directory *path*."""
    pending = [path]
    while pending:
        where = pending.pop()
        fd, _dot = enter(tree, where + b"/.")
        try:
            for name in map(os.fsencode, os.listdir(fd)):
                if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    pending.append(where + b"/" + name)
                else:
                    yield where + b"/" + name
        finally:
            os.close(fd)
