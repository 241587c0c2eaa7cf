"""The life of a member as a table. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from orchestrator.protocol import State

    Event = Literal["long", "prepared", "ready", "stop", "ended"]

NEXT: dict[tuple[State, Event], State] = {
    # "long": what is done once per machine takes its time.
    ("starting", "long"): "downloading",
    ("downloading", "long"): "downloading",
    ("starting", "prepared"): "starting",
    ("downloading", "prepared"): "starting",
    ("starting", "ready"): "running",
    ("starting", "stop"): "stopping",
    ("downloading", "stop"): "stopping",
    ("running", "stop"): "stopping",
    ("stopping", "stop"): "stopping",
    # What a cancelled boot still says.
    ("stopping", "long"): "stopping",
    ("stopping", "prepared"): "stopping",
    ("stopping", "ready"): "stopping",
    # Nobody asked it to: it could not be booted, or died.
    ("starting", "ended"): "error",
    ("downloading", "ended"): "error",
    ("running", "ended"): "error",
    ("stopping", "ended"): "stopped",
}
"""``stopped`` and ``error`` are the end: who boots again is another member."""


def step(state: State, event: Event) -> State:
    """Return the next state; a pair absent from NEXT is a bug, not a condition."""
    assert (state, event) in NEXT, f"{event} while {state}"
    return NEXT[state, event]
