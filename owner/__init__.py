"""Lease-based ownership: one owner per path, followers that know it, and a token that fences.

    from owner import join

    with join(".orchestrator/leases/auth.owner", ttl_s=10, endpoint=url) as me:
        if me.is_owner:
            with me.fenced() as epoch:  # nobody takes over while this runs
                write(epoch)

Nothing is imported before it is asked for. docs/library.md tells all of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from owner.holder import Holder as Holder
    from owner.joining import join as join
    from owner.ownership import Owner as Owner
    from owner.watching import Watch as Watch
    from owner.watching import inspect as inspect
    from owner.watching import watch as watch

OWNER = "owner"
"""The role of who holds the lease."""
FOLLOWER = "follower"
"""The role of who found it held."""
ENDPOINT_META_KEY = "endpoint"
"""Where in a lease's metadata the owner's endpoint stands."""

__all__ = [
    "ENDPOINT_META_KEY",
    "FOLLOWER",
    "OWNER",
    "Holder",
    "Owner",
    "Watch",
    "inspect",
    "join",
    "watch",
]

_MODULES = {
    "Holder": "holder",
    "Owner": "ownership",
    "join": "joining",
    "Watch": "watching",
    "inspect": "watching",
    "watch": "watching",
}


def __getattr__(name: str) -> Any:
    """Import the module that has *name* when it is asked for the first time."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'owner' has no attribute {name!r}")
    return getattr(__import__(f"owner.{module}", fromlist=[name]), name)


def __dir__() -> list[str]:
    """Return the public names, those that nobody has asked for yet among them."""
    return __all__
