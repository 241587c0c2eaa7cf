"""Which slot a verb means: the one named, else the one around here, else the agent's own."""

from __future__ import annotations

import os

from foundation.errors import Refused, Usage
from foundation.workspace import MARK, SLOT_MARK, Workspace
from hub.verbs import root_or_default
from swarm.slot import Slot, slot_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def workspace_of(root: str | None) -> Workspace:
    """Return the workspace around *root*, HUB_ROOT or here, else that of the agent we run in.

    Raises:
        Refused: there is none.
    """
    named = root_or_default(root)
    try:
        return Workspace.find(named)
    except Refused:
        marked = os.environ.get(MARK)
        if named or not marked:
            raise
        return Workspace.find(marked)


def slot_of(root: str | None, name: str | None) -> Slot:
    """Return the slot *name*, else that of the current directory, else that in BONES_SLOT.

    Raises:
        Usage: neither is a slot of that workspace (``which-slot``).
        Refused: there is no such slot, or no workspace.
    """
    if name:
        return Slot.open(workspace_of(root).root, name)
    found = _here(root)
    if found is None:
        raise _which(workspace_of(root))
    return Slot.open(*found)


def named_or_here(root: str | None, name: str | None) -> Slot | None:
    """Return the slot as :func:`slot_of` does, None where none is meant.

    Raises:
        Refused: there is no slot of that name, or no workspace.
    """
    if name:
        return slot_of(root, name)
    found = _here(root)
    return None if found is None else Slot.open(*found)


def _here(root: str | None) -> tuple[str, str] | None:
    """Return root and name of the slot around here, else of the one whose agent we are."""
    named = root_or_default(root)
    wanted = None if named is None else os.path.realpath(Workspace.find(named).root)
    for found in (slot_at(), _marked()):
        if found is not None and wanted in (None, os.path.realpath(found[0])):
            return found
    return None


def _marked() -> tuple[str, str] | None:
    root, slot = os.environ.get(MARK), os.environ.get(SLOT_MARK)
    return (root, slot) if root and slot else None


def _which(workspace: Workspace) -> Usage:
    from slotgc.leaf import look_all  # noqa: PLC0415 - only for a mistake

    try:
        names = [leaf.name for leaf in look_all(workspace)]
    except OSError:
        names = []
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")  # noqa: PLR2004
    there = f"there are {shown}" if names else f"{workspace.root} has none yet"
    return Usage(
        f"which slot? name it with --slot, or be in its worktree ({there})", reason="which-slot"
    )


def paths_in(slot: Slot, names: Iterable[str]) -> list[bytes] | None:
    """Return the file arguments *names* as paths of *slot*'s worktree, None for no arguments.

    They are relative to the current directory if that is in the worktree, else to its top.

    Raises:
        Refused: one lies outside (``not-in-slot``).
    """
    found = [os.fsencode(name) for name in names]
    if not found:
        return None
    here = slot_at()
    below = os.fsencode(slot.worktree)
    if here is not None and here[1] == slot.name:
        below = os.getcwdb()
        top = os.path.realpath(os.fsencode(slot.worktree))
        if below != top and not below.startswith(top + b"/"):
            below = os.fsencode(slot.worktree)
    return [slot.path_of(os.path.join(below, name)) for name in found]
