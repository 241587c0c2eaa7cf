"""Whether the process that holds a lease is dead, if that can be proved."""

from __future__ import annotations

import os

from foundation.process import GONE, UNKNOWN, boot_id, has_exited, open_pidfd, pid_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.process import Identity


def of(identity: Identity) -> str:
    """Return ``gone``, ``alive`` or ``unknown``; a lease of one that is unknown runs to its end."""
    state, pidfd = look(identity)
    if pidfd is not None:
        os.close(pidfd)
    return state


def look(identity: Identity) -> tuple[str, int | None]:
    """Return what :func:`of` does and, of a holder that is alive, a pidfd of it.

    None instead of a pidfd: its end cannot be watched from here.
    """
    try:
        state, pidfd = identity.look()
        # Without unique inodes somebody with that pid may still be it: a start time reads
        # otherwise in another time namespace.
        if state == GONE and not identity.inode and _is_used(identity):
            return UNKNOWN, None
    except OSError:  # out of descriptors: no proof of anything
        return UNKNOWN, None
    return state, pidfd


def _is_used(identity: Identity) -> bool:
    """Tell whether some process of this boot and namespace has the pid, and has not exited."""
    if identity.boot != boot_id() or identity.namespace != pid_namespace():
        return False
    pidfd = open_pidfd(identity.pid)
    if pidfd is None:
        return False
    try:
        return not has_exited(pidfd)
    finally:
        os.close(pidfd)
