"""Fossil's name of a content: what a file is recognised by."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHA1_DIGITS = 40
SHA3_DIGITS = 64
_DIGITS = frozenset("0123456789abcdef")
_CHUNK = 1 << 20


def is_name(text: object) -> bool:
    """Tell whether *text* is a name: 40 (SHA1) or 64 (SHA3-256) lower-case hex digits."""
    return (
        isinstance(text, str)
        and len(text) in (SHA1_DIGITS, SHA3_DIGITS)
        and _DIGITS.issuperset(text)
    )


def of_bytes(content: bytes, like: str = "") -> str:
    """Return the name of *content*; by SHA1 if *like* is such a name, else by SHA3-256."""
    digest = _digest(like)
    digest.update(content)
    return str(digest.hexdigest())


def of_file(fd: int, like: str = "") -> str:
    """Return the name of what *fd* reads from here to its end; *like* as in :func:`of_bytes`."""
    digest = _digest(like)
    while chunk := os.read(fd, _CHUNK):
        digest.update(chunk)
    return str(digest.hexdigest())


def of_entry(path: bytes | str, kind: str, like: str = "", *, dir_fd: int | None = None) -> str:
    """Return the name of the content at *path*: of a link (*kind* ``link``) its target.

    Raises:
        OSError: it cannot be read, or is no longer what *kind* says.
    """
    if kind == "link":
        return of_bytes(os.readlink(os.fsencode(path), dir_fd=dir_fd), like)
    fd = open_regular(path, dir_fd=dir_fd)
    try:
        return of_file(fd, like)
    finally:
        os.close(fd)


def open_regular(path: bytes | str, *, dir_fd: int | None = None) -> int:
    """Return a descriptor that reads the regular file at *path*; no link, no pipe to wait for.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{os.fsdecode(path)} is not a regular file")
    return fd


def _digest(like: str) -> Any:
    import hashlib  # noqa: PLC0415 - loads OpenSSL, and most judgements need no content

    if len(like) == SHA1_DIGITS:
        return hashlib.sha1(usedforsecurity=False)
    return hashlib.sha3_256()
