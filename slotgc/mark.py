"""The mark that our processes carry in their environment, and only they."""

from __future__ import annotations

import os

from foundation import procfs
from foundation.workspace import MARK, SLOT_MARK
from slotgc.mounts import namespace


def is_marked(pid: int, root: str | None) -> bool:
    """Tell whether *pid* is this user's and carries our mark for *root* (None: any workspace).

    The caller has a pidfd of it; the answer is about that process only if it lives afterwards.
    """
    roots = _values(pid, MARK)
    return any(roots) if root is None else root in roots and sees(pid, root) is True


def sees(pid: int, root: str) -> bool | None:
    """Tell whether the directory *root* is to *pid* the one that it is to us.

    In a container it may be another, and a mark that names it is then of another workspace. None
    if that cannot be known, as in a sandbox that has no such directory.
    """
    if namespace(pid) == namespace():
        return True
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/root{root}"), os.stat(root))
    except OSError:
        return None


def is_marked_as_leaf(pid: int, root: str, slot: str) -> bool:
    """Tell whether *pid* may be the leaf of *slot*: marked for *root*, and for no other slot."""
    return is_marked(pid, root) and _values(pid, SLOT_MARK) in ([], [slot])


def _values(pid: int, name: str) -> list[str]:
    """Return the values of the variable *name* that *pid* was executed with, if it is ours."""
    if procfs.owner_of(pid) != os.geteuid():
        return []
    prefix = os.fsencode(f"{name}=")
    environment = procfs.environment(pid) or []
    return [os.fsdecode(line[len(prefix) :]) for line in environment if line.startswith(prefix)]
