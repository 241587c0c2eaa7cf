"""Which process has a member: holder.pid names it, and its open holder.lock proves it."""

from __future__ import annotations

import os

from foundation.errors import Unavailable
from foundation.process import holds_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.process import Identity
    from orchestrator.store import Store


def holder(store: Store, name: str) -> Identity | None:
    """Return the process that has member *name*, None if none has.

    A pidfile alone proves nothing: it may be of a copied workspace, or name what is no holder any
    more. One that is just being launched is not named yet; its socket answers.
    """
    identity = store.holder_of(name)
    if identity is None:
        return None
    pidfd = opened(store, name, identity)
    if pidfd is None:
        return None
    os.close(pidfd)
    return identity


def opened(store: Store, name: str, identity: Identity) -> int | None:
    """Return a pidfd of *identity*, for the caller to close, if it has *name*, else None."""
    pidfd = identity.open()
    if pidfd is None:
        return None
    if holds_open(identity.pid, os.path.realpath(store.place(name).lock)):
        return pidfd
    os.close(pidfd)
    return None


def silent(name: str, identity: Identity) -> Unavailable:
    """Return the error of a holder that lives and is not to be spoken to."""
    return Unavailable(
        f"process {identity.pid} has VM {name} and does not answer: "
        f"`bones vm down --force {name}` ends it with all its VMs",
        reason="no-answer",
    )
