"""What a forked child must not keep: descriptors, and the belief that it is its parent.

A child that held a guard would keep it locked after its parent's death.
"""

from __future__ import annotations

import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_open: set[int] = set()
_mutex = _thread.RLock()  # held over a fork: no descriptor is between its opening and its entry
_forks = 0


def process() -> tuple[int, int]:
    """Return what tells this process from those that it was forked from.

    Not its pid alone: the child of pid 1 in a pid namespace of its own has the same.
    """
    return os.getpid(), _forks


def opened(make: Callable[[], int]) -> int:
    """Return the descriptor that *make* opens; a child forked from now on closes it."""
    with _mutex:
        fd = make()
        _open.add(fd)
        return fd


def close(fd: int) -> None:
    """Close *fd*, which :func:`opened` returned."""
    with _mutex:
        _open.discard(fd)
        os.close(fd)


def _in_child() -> None:
    global _forks  # noqa: PLW0603 - a fork concerns all of the process
    _forks += 1
    try:
        for fd in _open:
            try:
                os.close(fd)
            except OSError:  # whoever forked has closed what he did not know
                pass
        _open.clear()
    finally:
        _mutex.release()


os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_in_child)
