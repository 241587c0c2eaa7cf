"""The lives of a child and of the hub, as tables. Pure: no clock, no process."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    ChildPhase = Literal["down", "starting", "ready", "waiting", "draining", "failed"]
    ChildEvent = Literal["spawned", "probed", "exited", "delayed", "gave-up", "stop"]
    HubPhase = Literal["starting", "ready", "draining"]
    HubEvent = Literal["all-ready", "stop"]

CHILD: dict[tuple[ChildPhase, ChildEvent], ChildPhase] = {
    ("down", "spawned"): "starting",
    ("down", "delayed"): "waiting",
    ("down", "gave-up"): "failed",
    ("down", "stop"): "down",
    ("starting", "probed"): "ready",
    ("starting", "exited"): "down",
    ("starting", "stop"): "draining",
    ("ready", "exited"): "down",
    ("ready", "stop"): "draining",
    ("waiting", "spawned"): "starting",
    ("waiting", "exited"): "down",  # it could not even be executed
    ("waiting", "stop"): "down",
    ("draining", "exited"): "down",
    ("draining", "stop"): "draining",
    ("failed", "spawned"): "starting",
    ("failed", "stop"): "down",
}
"""``failed`` is left only by a person's `hub start` (spawned) or by stopping."""

HUB: dict[tuple[HubPhase, HubEvent], HubPhase] = {
    ("starting", "all-ready"): "ready",
    ("starting", "stop"): "draining",
    ("ready", "stop"): "draining",
    ("draining", "stop"): "draining",
}


def child_step(phase: ChildPhase, event: ChildEvent) -> ChildPhase:
    """Return the child's next phase; a pair absent from CHILD is a bug, not a condition."""
    assert (phase, event) in CHILD, f"{event} while {phase}"
    return CHILD[phase, event]


def hub_step(phase: HubPhase, event: HubEvent) -> HubPhase:
    """Return the hub's next phase; a pair absent from HUB is a bug, not a condition."""
    assert (phase, event) in HUB, f"{event} while {phase}"
    return HUB[phase, event]
