"""Files that are whole or absent, whatever is killed when."""

from __future__ import annotations

import _thread
import os
import stat


def write_file(path: str, content: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Put *content* at *path* in one step: readers see the old file or the new one.

    A temporary name beside it, then rename. With *durable* the content and the name survive
    a power cut (fsync of the file before the rename and of the directory after it); without,
    they survive any kill, which is enough for what a reboot makes meaningless anyway.
    """
    temporary = f"{path}.{_thread.get_native_id()}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        try:
            os.fchmod(fd, mode)  # the umask took from it
            write_all(fd, content)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path) or ".")


def write_all(fd: int, content: bytes | memoryview) -> None:
    """Write all of *content*; ``write`` alone may stop short."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: str) -> None:
    """Make the names in directory *path* survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str) -> bool:
    """Unlink *path*; return whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def read_bounded(path: str, limit: int) -> bytes:
    """Return the content of the regular file at *path*, at most *limit* bytes.

    Raises:
        OSError: it cannot be read, is not a regular file or is a symbolic link.
        ValueError: it is longer than *limit* bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file")
        content = b""
        while chunk := os.read(fd, limit + 1 - len(content)):
            content += chunk
            if len(content) > limit:
                raise ValueError(f"{path} is longer than {limit} bytes")
        return content
    finally:
        os.close(fd)
