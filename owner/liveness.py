"""Whether the process that holds a lease is dead, if that can be proved."""

from __future__ import annotations

import os

from foundation.process import ALIVE, GONE, UNKNOWN, boot_id, has_exited, open_pidfd, pid_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.process import Identity


def of(identity: Identity) -> str:
    """Return ``gone``, ``alive`` or ``unknown``; a lease of one that is unknown runs to its end.

    Stricter than :meth:`Identity.state`, which asks /proc for the start time: that fails, too,
    for want of a descriptor, behind hidepid, or in another time namespace, and none of them is
    a death. Here only an unused pid, an exited process or another's inode are.
    """
    state, pidfd = look(identity)
    if pidfd is not None:
        os.close(pidfd)
    return state


def look(identity: Identity) -> tuple[str, int | None]:
    """Return what :func:`of` does, and a pidfd of the process unless it is gone.

    None instead of a pidfd: its end cannot be watched from here.
    """
    if identity.boot != boot_id():
        return GONE, None
    if identity.namespace != pid_namespace():
        return UNKNOWN, None
    try:
        pidfd = open_pidfd(identity.pid)
    except OSError:
        return UNKNOWN, None
    if pidfd is None:
        return GONE, None
    another = identity.inode and os.fstat(pidfd).st_ino != identity.inode
    if another or has_exited(pidfd):
        os.close(pidfd)
        return GONE, None
    return ALIVE if identity.inode else UNKNOWN, pidfd
