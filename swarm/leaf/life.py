"""The life of a leaf as a table. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Phase = Literal["joining", "ready", "hub-away", "closing", "lost", "gone", "ended"]
    LifeEvent = Literal["joined", "hub-lost", "hub-back", "close", "kept", "lost", "removed", "end"]

NEXT: dict[tuple[Phase, LifeEvent], Phase] = {
    ("joining", "joined"): "ready",
    ("joining", "hub-lost"): "joining",
    ("joining", "hub-back"): "joining",
    ("joining", "lost"): "lost",
    ("joining", "end"): "ended",
    ("ready", "hub-lost"): "hub-away",
    ("ready", "hub-back"): "ready",
    ("ready", "close"): "closing",
    ("ready", "lost"): "lost",
    ("ready", "removed"): "gone",
    ("ready", "end"): "ended",
    ("hub-away", "hub-back"): "ready",
    ("hub-away", "hub-lost"): "hub-away",
    ("hub-away", "close"): "closing",
    ("hub-away", "lost"): "lost",
    ("hub-away", "removed"): "gone",
    ("hub-away", "end"): "ended",
    # A close that is refused has changed nothing.
    ("closing", "kept"): "ready",
    ("closing", "hub-lost"): "closing",
    ("closing", "hub-back"): "closing",
    ("closing", "lost"): "lost",
    ("closing", "removed"): "gone",
    ("closing", "end"): "ended",
    ("lost", "hub-lost"): "lost",
    ("lost", "hub-back"): "lost",
    ("lost", "lost"): "lost",
    ("lost", "kept"): "lost",
    ("lost", "removed"): "lost",
    ("lost", "end"): "ended",
    ("gone", "hub-lost"): "gone",
    ("gone", "hub-back"): "gone",
    ("gone", "lost"): "gone",
    ("gone", "kept"): "gone",
    ("gone", "removed"): "gone",
    ("gone", "end"): "ended",
    ("ended", "hub-lost"): "ended",
    ("ended", "hub-back"): "ended",
    ("ended", "lost"): "ended",
    ("ended", "kept"): "ended",
    ("ended", "removed"): "ended",
    ("ended", "end"): "ended",
}
"""``lost``: another has the slot's lease, or nobody; ``gone``: the slot's directory is not there
any more. In both nothing is touched, published or committed, every verb is told so, and the leaf
ends."""

SERVING = frozenset({"ready", "hub-away"})


def step(phase: Phase, event: LifeEvent) -> Phase:
    """Return the next phase; a pair absent from NEXT is a bug, not a condition."""
    assert (phase, event) in NEXT, f"{event} while {phase}"
    return NEXT[phase, event]
