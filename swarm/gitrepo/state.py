"""What we remember of a slot's repository, in ``.git/bones/state``.

One block, written in place: it holds one state or the other, whoever is killed. A power cut may
lose it, with the objects; then the repository is made anew, for trunk has the work.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from foundation.errors import Corrupt
from swarm.gitrepo.places import OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = f"{OURS}/state"
_DOUBTFUL = f"{OURS}/doubtful"
_MAGIC = "bones git 1"
_BLOCK = 512
_LONGEST_MARK = 300
_NAMES = frozenset((0, 40, 64))
_DIGITS = frozenset("0123456789abcdef")


class State(NamedTuple):
    """Where our branch was when we last moved it."""

    commit: str
    """"" before the first."""
    tree: str
    """Of the worktree's base: of the last commit of ours."""
    mark: str
    """What the caller gave with that commit."""


def read(git: int) -> State:
    """Return what is remembered in the repository open as *git*.

    Raises:
        Corrupt: nothing (``git-state``).
        OSError: it cannot be read.
    """
    try:
        fd = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=git)
        try:
            magic, *fields = os.read(fd, _BLOCK).rstrip(b"\0").decode("ascii").split("\n")
        finally:
            os.close(fd)
        commit, tree, mark, _end = fields
        hashes = (commit, tree)
        if magic != _MAGIC or any(
            len(one) not in _NAMES or not _DIGITS.issuperset(one) for one in hashes
        ):
            raise ValueError("another form")
    except (FileNotFoundError, ValueError) as error:
        raise Corrupt(
            f"the state of a slot's git repository cannot be used ({error}): it must be made anew",
            reason="git-state",
        ) from None
    return State(commit, tree, mark)


def write(git: int, state: State) -> None:
    """Remember *state*, whose mark :func:`check_mark` has let pass."""
    text = "\n".join((_MAGIC, *state, "")).encode("ascii")
    assert len(text) <= _BLOCK, state
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_NAME, flags, 0o644, dir_fd=git)
    try:
        os.pwrite(fd, text.ljust(_BLOCK, b"\0"), 0)
    finally:
        os.close(fd)


def doubtful(git: int) -> frozenset[bytes]:
    """Return the paths that :func:`write_doubtful` has noted, none if it has not.

    Raises:
        OSError: they cannot be read.
    """
    try:
        fd = os.open(_DOUBTFUL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=git)
    except FileNotFoundError:
        return frozenset()
    with os.fdopen(fd, "rb") as file:
        return frozenset(file.read().split(b"\0")[:-1])


def write_doubtful(git: int, paths: Iterable[bytes]) -> None:
    """Note *paths* in a repository that is being made: see :mod:`swarm.worktree.doubt`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(_DOUBTFUL, flags, 0o644, dir_fd=git), "wb") as file:
        file.writelines(path + b"\0" for path in sorted(paths))


def check_mark(mark: str) -> None:
    """Let *mark* pass, if it can be remembered.

    Raises:
        ValueError: it is too long, or no line of ASCII.
    """
    if len(mark) > _LONGEST_MARK or not mark.isascii() or "\n" in mark or "\0" in mark:
        raise ValueError(f"{mark!r:.80} is no line of at most {_LONGEST_MARK} ASCII characters")
