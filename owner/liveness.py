"""Whether the process that holds a lease is dead, if that can be proved."""

from __future__ import annotations

import os

from foundation.process import UNKNOWN

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
        return identity.look()
    except OSError:  # out of descriptors: no proof of anything
        return UNKNOWN, None
