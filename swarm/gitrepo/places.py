"""The directories of a slot's repository, and git's locks in them.

Never opened through a link: an agent may have replaced its ``.git`` by a link to the user's, and
nothing of ours may be written there.

Nothing is made or removed but objects. On a file system without a journal each inode removed makes
the next ones dearer for a minute (ext4 looks at each before it dares to reuse one): at a hundred
commits a second, by a millisecond.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from typing import NamedTuple

from foundation.errors import Corrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = "bones"
"""In ``.git``: what we keep there, of no meaning to git."""
LOCK = f"{OURS}/lock"
"""An empty file. Every lock of ours is a second name of it, so that one left by a process that was
killed is known from one of git's, and taking it makes no inode."""

_F_SETSIG = 10  # fcntl(2)
_SIGURG = 23
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Places(NamedTuple):
    """Descriptors of directories of one repository."""

    git: int
    pack: int
    heads: int


@contextmanager
def opened(worktree: str) -> Iterator[Places]:
    """Open the repository in *worktree* for the body of the ``with``.

    Raises:
        Corrupt: it is not there, or is not the one that we made (``git-gone``).
    """
    fds: list[int] = []
    try:
        try:
            git = _open(f"{worktree}/.git", fds)
            objects = _open("objects", fds, git)
            refs = _open("refs", fds, git)
            places = Places(git, _open("pack", fds, objects), _open("heads", fds, refs))
            os.stat(OURS, dir_fd=git)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Corrupt(
                f"{worktree}/.git is not the repository that was made there "
                f"({error.strerror}: {error.filename}): it must be made anew",
                reason="git-gone",
            ) from None
        yield places
    finally:
        for fd in fds:
            os.close(fd)


class Doors:
    """The directories of one repository, which stay open between two uses, in a ``with`` each.

    At each use they are compared with what their names lead to, and opened anew if they differ.
    """

    def __init__(self, worktree: str) -> None:
        """Open nothing yet."""
        self._worktree = worktree
        self._path = f"{worktree}/.git"
        self._places: Places | None = None
        self._known: tuple[int, ...] = ()

    def __enter__(self) -> Places:
        """Return the directories.

        Raises: as :func:`opened`.
        """
        places = self._places
        if places is None or not self._known or self._found(places) != self._known:
            self.close()
            with opened(self._worktree) as at:
                places = self._places = Places(*map(_kept, at))
            self._known = self._found(places)
        return places

    def __exit__(self, *_exc: object) -> None:
        """Leave them open."""

    def __del__(self) -> None:
        """Close them."""
        self.close()

    def close(self) -> None:
        """Close them; the next use opens them."""
        places, self._places = self._places, None
        if places is not None:
            for fd in places:
                os.close(fd)

    def _found(self, places: Places) -> tuple[int, ...]:
        """Return what tells the directories that the names lead to from all others."""
        try:
            os.stat(OURS, dir_fd=places.git)
            git = os.lstat(self._path)
            pack = os.stat("objects/pack", dir_fd=places.git)
            heads = os.stat("refs/heads", dir_fd=places.git)
        except OSError:
            return ()
        return git.st_ino, pack.st_ino, heads.st_ino, git.st_dev, pack.st_dev, heads.st_dev


def _kept(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


def _open(path: str, fds: list[int], dir_fd: int | None = None) -> int:
    fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    fds.append(fd)
    return fd


def try_lock(git: int, name: str) -> bool:
    """Take git's lock *name* (``index.lock``), as seen from ``.git``; False if another has it.

    Who takes it lets go of it.
    """
    try:
        os.link(LOCK, name, src_dir_fd=git, dst_dir_fd=git)
    except FileExistsError:
        if not clear_lock(git, name):
            return False
        os.link(LOCK, name, src_dir_fd=git, dst_dir_fd=git)
    return True


def let_go(git: int, name: str) -> None:
    """Let go of a lock that was taken; an agent may have removed it, as agents do."""
    try:
        os.unlink(name, dir_fd=git)
    except FileNotFoundError:
        pass


def clear_lock(git: int, name: str) -> bool:
    """Remove a lock of ours that a killed process has left; False if there is one of git's."""
    try:
        there = os.stat(name, dir_fd=git, follow_symlinks=False)
    except FileNotFoundError:
        return True
    ours = os.stat(LOCK, dir_fd=git)
    if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
        return False
    os.unlink(name, dir_fd=git)
    return True


def open_spare(name: str, git: int) -> tuple[int, os.stat_result | None]:
    """Return a descriptor to write our file *name* (as seen from ``.git``), and what it is.

    The file that is there unless somebody may see it change: a git that has it open, or mapped, a
    second name of it. Then, or if there is none, a new one (None).
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=git)
    except FileNotFoundError:
        pass
    except OSError:  # a link, or not ours to write
        os.unlink(name, dir_fd=git)
    else:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and _is_unread(fd):
            return fd, found
        os.close(fd)
        os.unlink(name, dir_fd=git)
    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=git), None


def write_at(fd: int, content: bytes, at: int) -> int:
    """Write all of *content* where *at* is; return where it ends."""
    end = at + len(content)
    at += os.pwrite(fd, content, at)
    while at < end:
        at += os.pwrite(fd, content[at - end :], at)
    return end


def cut(fd: int, size: int, was: os.stat_result | None) -> None:
    """Cut a file that was *was* down to *size*; to know is cheaper than to cut nothing off."""
    if was is not None and was.st_size > size:
        os.ftruncate(fd, size)


def _is_unread(fd: int) -> bool:
    """Tell whether nobody else has the file behind *fd* open, or mapped.

    The kernel grants a write lease for no other file. Given back at once: who opens it later does
    so by the name of the spare. A break in between sends a signal, which is to be a harmless one.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, _SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # somebody has, or this file system has no leases
        return False
    return True


def read_small(name: str, dir_fd: int) -> bytes:
    """Return the content of a file of at most 4 KiB, b"" if there is none."""
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd
        )
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
