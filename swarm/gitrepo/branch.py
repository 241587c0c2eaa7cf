"""Our branch of a slot's repository: what it names, moving it, and its log.

Source: gitrepository-layout(5), git-reflog(1).
"""

from __future__ import annotations

import os

from foundation.failpoint import hit
from swarm.gitrepo.places import read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swarm.gitrepo.places import Places

NAME = "trunk"
REF = f"refs/heads/{NAME}"
LOCK = f"{REF}.lock"
_HEAD = f"ref: {REF}".encode()
_DIGITS = frozenset(b"0123456789abcdef")


class NotABranch(Exception):
    """What stands where our branch should be names no commit."""


def is_checked_out(at: Places) -> bool:
    """Tell whether HEAD is on our branch."""
    return read_small("HEAD", at.git).strip() == _HEAD


def head(at: Places) -> str:
    """Return the commit that HEAD names, by a branch or itself; "" if none."""
    name = read_small("HEAD", at.git).strip()
    if name.startswith(b"ref: "):
        ref = name.removeprefix(b"ref: ")
        name = read_small(ref.decode("utf-8", "surrogateescape"), at.git).strip()
        if not name:
            return _packed(at, ref)
    return name.decode("ascii") if _is_name(name) else ""


def read(at: Places) -> str:
    """Return the commit that our branch names, "" if there is no such branch.

    Raises:
        NotABranch: it is a symbolic reference, or damaged.
    """
    try:
        content = read_small(NAME, at.heads).strip()
    except OSError as error:
        raise NotABranch(f"{REF}: {error.strerror}") from None
    if not content:
        if _stands(at):
            raise NotABranch(f"{REF} is no file with a commit's name")
        return _packed(at, REF.encode())
    if not _is_name(content):
        raise NotABranch(f"{REF} holds {content[:60]!r}")
    return content.decode("ascii")


def write(at: Places, commit: str) -> None:
    """Let our branch name *commit*; its lock is held.

    In place: 41 bytes in one write are there or not, whoever is killed, and no inode is made.
    """
    line = commit.encode() + b"\n"
    try:
        fd = os.open(NAME, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at.heads)
    except FileNotFoundError:  # git has packed it, or the agent has removed it
        _make(at, line)
        return
    try:
        os.pwrite(fd, line, 0)
    finally:
        os.close(fd)


def log(at: Places, old: str, new: str, who: str, message: str, *, head: bool) -> None:
    """Add a line to the log of our branch, and of HEAD; where a log was removed, none is made."""
    line = f"{old or '0' * len(new)} {new} {who}\t{message}\n".encode("utf-8", "replace")
    for name in (f"logs/{REF}", "logs/HEAD")[: 1 + head]:
        try:
            fd = os.open(
                name, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at.git
            )
        except OSError:
            continue
        try:
            os.write(fd, line)
        finally:
            os.close(fd)


def _make(at: Places, line: bytes) -> None:
    temporary = f"{NAME}.new.lock"  # git takes nothing of this name for a branch
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644, dir_fd=at.heads)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
    hit("gitrepo.branch-new")
    os.rename(temporary, NAME, src_dir_fd=at.heads, dst_dir_fd=at.heads)


def _stands(at: Places) -> bool:
    try:
        os.stat(NAME, dir_fd=at.heads, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_name(content: bytes) -> bool:
    return len(content) in (40, 64) and _DIGITS.issuperset(content)


def _packed(at: Places, wanted: bytes) -> str:
    try:
        fd = os.open("packed-refs", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at.git)
    except FileNotFoundError:
        return ""
    with os.fdopen(fd, "rb") as file:
        for line in file:
            name, _space, ref = line.strip().partition(b" ")
            if ref == wanted:
                return name.decode("ascii")
    return ""
