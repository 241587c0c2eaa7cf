"""Slots: an agent's worktree, its leaf, and the way of its commits to trunk.

    import swarm

    slot = swarm.join(None, "auth", task="log in by key")
    ...  # edit files in slot.worktree
    slot.commit("Add a key type")
    slot.close()

Nothing is imported before it is asked for. :mod:`swarm.aio` has the same for asyncio.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.commits import Conflicted
    from swarm.following import events
    from swarm.slot import CheckIn, Closed, Slot, Update, join

__all__ = ["CheckIn", "Closed", "Conflicted", "Slot", "Update", "events", "join"]

_MODULES = {
    "CheckIn": "swarm.slot",
    "Closed": "swarm.slot",
    "Conflicted": "hub.commits",
    "Slot": "swarm.slot",
    "Update": "swarm.slot",
    "events": "swarm.following",
    "join": "swarm.slot",
}


def __getattr__(name: str) -> object:
    """Return the public name *name*, loaded now."""
    if name not in _MODULES:
        raise AttributeError(f"module 'swarm' has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, those that nobody has asked for yet among them."""
    return __all__
