"""Slots whose leaf is dead, and those whose leaf lives. Standard library and foundation only.

``from slotgc import dead_slots, live_slots, prune_dead, kill``: each name brings its module along
when it is asked for, so that who only looks loads nothing that removes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slotgc.ending import kill
    from slotgc.pruning import PruneError, prune_dead
    from slotgc.slots import Slot, dead_slots, live_slots

__all__ = ["PruneError", "Slot", "dead_slots", "kill", "live_slots", "prune_dead"]

_MODULES = {
    "dead_slots": "slotgc.slots",
    "live_slots": "slotgc.slots",
    "Slot": "slotgc.slots",
    "kill": "slotgc.ending",
    "prune_dead": "slotgc.pruning",
    "PruneError": "slotgc.pruning",
}


def __getattr__(name: str) -> object:
    """Return the public name *name*, loaded now."""
    if name not in _MODULES:
        raise AttributeError(f"module 'slotgc' has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, those that nobody has asked for yet among them."""
    return __all__
