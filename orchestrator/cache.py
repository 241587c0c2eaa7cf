"""The machine-wide cache of what VMs need; every part of it may be deleted at any time."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from foundation.atomic import remove
from foundation.errors import HubError
from foundation.lock import try_lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HALF_MADE = ".making-"
"""Names that begin so are of who makes something, or of who was killed doing it."""

_ASK_AGAIN_S = 0.05


def directory() -> str:
    """Return where it is: ``$XDG_CACHE_HOME/bones/vm``, else below ``~/.cache``; not made yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification: anything else is to be ignored
        base = os.path.expanduser("~/.cache")
    return f"{base}/bones/vm"


@asynccontextmanager
async def making(room: str, words: str, progress: Callable[[str], None]) -> AsyncIterator[str]:
    """Be the only one that makes something in directory *room*; yield a new directory in it.

    What is made there counts once it is renamed out of it. What is left is removed, as is what
    makers left that were killed. *progress* is told *words* if another maker is waited for.

    Raises:
        HubError: *room* cannot be written (``cache``).
    """
    mine = f"{room}/{HALF_MADE}{os.getpid()}"
    lock = await _alone(room, words, progress)
    try:
        try:
            _begin(room, mine)
        except OSError as error:
            raise _unwritable(room, error) from error
        yield mine
    finally:
        discard(mine)
        os.close(lock)


async def _alone(room: str, words: str, progress: Callable[[str], None]) -> int:
    told = False
    try:
        os.makedirs(room, mode=0o700, exist_ok=True)
        while (lock := try_lock(f"{room}/lock")) is None:
            if not told:
                progress(words)
                told = True
            await asyncio.sleep(_ASK_AGAIN_S)
    except OSError as error:
        raise _unwritable(room, error) from error
    return lock


def _begin(room: str, mine: str) -> None:
    for name in os.listdir(room):
        if name.startswith(HALF_MADE):
            discard(f"{room}/{name}")
    os.mkdir(mine, 0o700)


def _unwritable(room: str, error: OSError) -> HubError:
    return HubError(
        f"{room} cannot be written: {error}; XDG_CACHE_HOME may name another place", reason="cache"
    )


def has(path: str) -> bool:
    """Tell whether directory *path* has been made."""
    return os.path.isdir(path)


def use(path: str) -> None:
    """Note that *path* is in use: what was used last is kept longest."""
    try:
        os.utime(path)
    except OSError:
        return  # somebody else's, or gone: then it is found out next


def discard(path: str) -> None:
    """Remove a file or directory, if it is there; what cannot be removed stays."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove(path)
    except OSError:
        return


def keep_newest(room: str, number: int) -> None:
    """Remove all but the *number* directories in *room* that were used last."""
    made: list[tuple[float, str]] = []
    with os.scandir(room) as entries:
        made.extend(
            (entry.stat().st_mtime, entry.path)
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(HALF_MADE)
        )
    for _when, path in sorted(made, reverse=True)[number:]:
        discard(path)
