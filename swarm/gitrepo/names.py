"""Which names git can hold. Pure."""

from __future__ import annotations

from slotgc import treepath
from slotgc.base import LINK

_NO_NAMES = frozenset((b"", b".", b".."))
_GIT_NAMES = frozenset((b".git", b"git~1"))


def is_possible(path: bytes, kind: str | None = None) -> bool:
    """Tell whether git can hold *path*: nothing in it may be taken for a repository.

    Source: verify_path() in git's read-cache.c.
    """
    for name in path.split(b"/"):
        if name in _NO_NAMES or _plain(name) in _GIT_NAMES:
            return False
    return path not in treepath.BOOKKEEPING and not (
        kind == LINK and path.lower().endswith(b".gitmodules")
    )


def _plain(name: bytes) -> bytes:
    """Return what a file system of Windows makes of a name."""
    return name.partition(b":")[0].rstrip(b" .").lower()
