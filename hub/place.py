"""Whether a hub can live in a workspace: each reason against it has a name and a way out."""

from __future__ import annotations

import errno
import os

from foundation import filesystem
from foundation.errors import HubError, Refused
from hub.contact import foreign

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

LEAST_FREE_BYTES = 16 * 1024 * 1024
"""Less than this and JetStream or SQLite would fail within minutes."""


def check(workspace: Workspace) -> None:
    """Refuse a place in which a hub cannot be trusted. Read-only.

    Raises:
        Refused: ``network-filesystem``, ``state-foreign``, ``state-not-writable`` or
            ``disk-full``.
    """
    kind = filesystem.kind_of(workspace.root)
    if kind in filesystem.NETWORK:
        raise Refused(
            f"{workspace.root} is on a network file system ({kind}), where locks and crash "
            "safety cannot be relied on: clone the repository to a local disk",
            reason="network-filesystem",
        )
    _check_owner(workspace)
    place = workspace.state if os.path.isdir(workspace.state) else workspace.root
    if os.path.lexists(workspace.state) and (
        os.path.islink(workspace.state) or not os.path.isdir(workspace.state)
    ):
        raise Refused(
            f"{workspace.state} is not a directory of our own: move it away",
            reason="state-not-writable",
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise Refused(
            f"{place} cannot be written by you: `chmod u+wx {place}`, or mount it writable",
            reason="state-not-writable",
        )
    free = free_bytes(place)
    if free < LEAST_FREE_BYTES:
        raise disk_full(place, free)


def free_bytes(path: str) -> int:
    """Return how much may still be written to the disk that holds *path*."""
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def _check_owner(workspace: Workspace) -> None:
    me = os.geteuid()
    try:
        owner = os.stat(workspace.state).st_uid
    except FileNotFoundError:
        owner = os.stat(workspace.root).st_uid
        # Another user may be given a repository to work in (git has its own opinion, which
        # seeding asks for); root in somebody's repository leaves files that its owner cannot
        # remove, so only a root that came without sudo, as in a container, may.
        if me != 0 or "SUDO_UID" not in os.environ:
            return
    if owner != me:
        raise foreign(workspace, owner)


def disk_full(place: str, free: int | None = None) -> Refused:
    """Return the error for a disk without room."""
    left = "" if free is None else f" ({free // 1024} KiB free)"
    return Refused(
        f"the disk that holds {place} is full{left}: free at least "
        f"{LEAST_FREE_BYTES // 1024 // 1024} MiB and start again",
        reason="disk-full",
    )


def explain(error: OSError, place: str) -> HubError:
    """Return what *error*, met while working in *place*, means for the user."""
    where = error.filename if isinstance(error.filename, str) else place
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(where)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused(f"{where} cannot be written: {error.strerror}", reason="state-not-writable")
    return HubError(f"{where}: {error.strerror or error}", reason="system")


def no_sockets(error: OSError, workspace: Workspace) -> HubError:
    """Return what a failed bind of ``hub.sock`` means."""
    if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENXIO, errno.EINVAL):
        kind = filesystem.kind_of(workspace.state)
        return Refused(
            f"the file system of {workspace.root} ({kind}) has no Unix sockets: clone the "
            "repository to a native file system",
            reason="no-sockets",
        )
    return explain(error, workspace.socket)
