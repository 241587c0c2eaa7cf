"""Which slots have a live leaf, and which a dead one."""

from __future__ import annotations

import os

from foundation.record import Record
from foundation.workspace import Workspace
from slotgc.leaf import DEAD, LIVE, UNKNOWN, look_all


class Slot(Record):
    """A slot with the pid of its leaf; 0 if a leaf.pid is there but could not be read."""

    name: str
    pid: int


def live_slots(workspace_dir: str | os.PathLike[str]) -> list[Slot]:
    """Return the slots of *workspace_dir* whose leaf lives, by name; a doubt counts as alive.

    A slot without a leaf.pid, or with junk in it, is not among them.

    Raises:
        OSError: the swarm directory is there but cannot be listed.
    """
    leaves = look_all(_workspace(workspace_dir))
    return [Slot(name=leaf.name, pid=leaf.pid) for leaf in leaves if leaf.state in (LIVE, UNKNOWN)]


def dead_slots(workspace_dir: str | os.PathLike[str]) -> list[str]:
    """Return the names of the slots of *workspace_dir* whose leaf has provably ended.

    A slot without a leaf.pid, or with junk in it, is not among them.

    Raises:
        OSError: the swarm directory is there but cannot be listed.
    """
    return [leaf.name for leaf in look_all(_workspace(workspace_dir)) if leaf.state == DEAD]


def _workspace(directory: str | os.PathLike[str]) -> Workspace:
    """Return the workspace whose root is *directory*, by the path that our mark has too."""
    return Workspace(os.path.realpath(directory))
