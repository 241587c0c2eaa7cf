"""Words for a person: a few names out of many, a size, how to start a hub."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_GIB = 2**30


def starting() -> str:
    """Return the command that starts a hub, as whoever reads this knows it.

    Who uses slots uses ``bones``; the program ``hub`` loads nothing of them.
    """
    return "bones up" if "swarm" in sys.modules else "hub start --detach"


def several(things: Sequence[str], most: int = 5) -> str:
    """Return *things* for a sentence, the first *most* of them by name."""
    shown = ", ".join(things[:most])
    return f"{shown} and {len(things) - most} more" if len(things) > most else shown


def size(size_bytes: int) -> str:
    """Return *size_bytes* in the unit that a person would choose: ``1.5 MiB``, ``78.5 GiB``."""
    if size_bytes >= _GIB:
        return f"{size_bytes / _GIB:.1f} GiB"
    return f"{size_bytes / 2**20:.1f} MiB"
