"""Where the workspace of a process is now: in its place, moved, trashed, deleted.

The process holds on to a directory or a file of it, which the kernel follows wherever it goes.
Only what is proved counts: a file system that is not mounted, a directory that may not be
entered, another mount namespace are ``unknown``.
"""

from __future__ import annotations

import os

from foundation.process import has_exited
from foundation.record import Record
from foundation.workspace import STATE, Workspace
from hub.hold import ABSENT, inode_of
from hub.roles import DELETED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from hub.census import Member
    from hub.hold import Inode

    Kind = Literal["there", "gone", "moved", "trashed", "replaced", "unknown"]

LEFT = ("gone", "moved", "trashed", "replaced")
"""What a process has lost its workspace by."""


class Whereabouts(Record):
    """Where the workspace of a process is."""

    kind: Kind
    """``replaced``: the workspace is there, but hub.lock is another file, so that a second hub
    may start; the first ends when it looks."""
    reason: str = ""
    """What was seen, with the paths."""


_THERE = Whereabouts(kind="there")


def find(member: Member) -> Whereabouts:
    """Return where the workspace of *member* is."""
    if not member.near:
        return _unknown("it runs in another pid or mount namespace (a container?)")
    if member.role == "other":
        return _by_name(member.root)
    try:
        link, inode = os.readlink(member.anchor), _inode_behind(member.anchor)
        lock = _inode_behind(member.lock) if member.lock else None
    except OSError as error:
        return _unknown(f"{member.anchor}: {error.strerror}")
    found = judge(link, inode, member.expected, inode_of)
    if member.role == "leaf" and found.kind in LEFT:
        # Only its slot may be gone, which is no reason to end it.
        named = _by_name(member.root)
        found = named if named.kind != "gone" else found
    if member.role == "hub" and found.kind == "there":
        path = f"{member.expected or link}/hub.lock"
        if inode_of(path) not in (lock, None):
            found = Whereabouts(kind="replaced", reason=f"{path} was removed or replaced")
    if has_exited(member.pidfd):
        return _unknown("it has just ended")  # and what was looked at may be somebody else's
    return found


def judge(
    link: str, inode: Inode, expected: str, look: Callable[[str], Inode | None]
) -> Whereabouts:
    """Judge a thing that a process holds: the kernel calls it *link*, and it is *inode*.

    *expected* is where it stood, "" if that is not known. *look* tells what a path is now:
    (0, 0) nothing, None that it cannot be seen. Pure.
    """
    if expected:
        seen = look(expected)
        if seen == inode:
            return _THERE
        if seen is None:
            return _unknown(f"{expected} cannot be looked at")
    for path in (link, link.removesuffix(DELETED)):  # a name may end like that, too
        seen = look(path)
        if seen is None:
            return _unknown(f"{path} cannot be looked at")
        if seen == inode:
            return _found(path, expected)
    if link.endswith(DELETED):
        return Whereabouts(kind="gone", reason=f"{link.removesuffix(DELETED)} was deleted")
    return _unknown(f"{link} is not to be seen from here (is it mounted?)")


def _found(path: str, expected: str) -> Whereabouts:
    """Judge a thing that is at *path*, which is not where it is *expected*."""
    if _is_in_trash(path):
        return Whereabouts(kind="trashed", reason=f"it is in the trash: {path}")
    if expected:
        return Whereabouts(kind="moved", reason=f"{expected} was moved to {path}")
    if os.path.basename(path) != STATE:
        return Whereabouts(kind="moved", reason=f"it was renamed to {path}")
    return _THERE


def _is_in_trash(path: str) -> bool:
    """Tell whether *path* is in a trash can.

    Source: FreeDesktop.org Trash specification: ``$XDG_DATA_HOME/Trash``, and ``.Trash`` or
    ``.Trash-UID`` at the top of a mounted file system.
    """
    data = os.environ.get("XDG_DATA_HOME", "")
    homes = ["/.local/share/Trash/"]
    if data.startswith("/"):
        homes.append(f"{os.path.realpath(data)}/Trash/")
    if any(home in f"{path}/" for home in homes):
        return True
    return any(name == ".Trash" or name.startswith(".Trash-") for name in path.split("/"))


def _by_name(root: str) -> Whereabouts:
    """Judge by its name a workspace that the process holds nothing of."""
    workspace = Workspace(root)
    seen = [inode_of(workspace.state), inode_of(workspace.bones)]
    if seen == [ABSENT, ABSENT]:
        return Whereabouts(kind="gone", reason=f"{workspace.state} is not there")
    return _THERE if None not in seen else _unknown(f"{workspace.state} cannot be looked at")


def _unknown(reason: str) -> Whereabouts:
    return Whereabouts(kind="unknown", reason=reason)


def _inode_behind(link: str) -> Inode:
    status = os.stat(link)
    return (status.st_dev, status.st_ino)
