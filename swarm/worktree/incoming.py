"""Bringing in what trunk merged into a commit: the agent's file gets the others' changes.

Only where it still is as it was proposed. Whatever else there is stays, and so does its base.
"""

from __future__ import annotations

import os

from foundation.errors import HubError
from slotgc import artifact, base
from slotgc.beneath import INTO, BlockedError, enter
from swarm.worktree.placing import Judged, Placer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hub.repository import Repository
    from slotgc.base import Row


def bring_in(
    merged: Sequence[tuple[bytes, str, str]],
    proposed: Mapping[bytes, Row],
    repository: Repository,
    worktree: str,
    scratch: str,
) -> dict[bytes, Row | None]:
    """Write the files *merged* (path, kind, hash); return their rows, None for what stayed.

    *proposed*: what was asked for, by path.
    """
    if not merged:
        return {}
    rows: dict[bytes, Row | None] = {path: None for path, _kind, _name in merged}
    try:
        placer = Placer(worktree, scratch)
    except OSError:
        return rows
    try:
        for path, kind, name in merged:
            judged = _judged(worktree, path, proposed.get(path))
            try:
                if judged is not None and kind:
                    rows[path] = placer.write(path, kind, repository.content(name), judged)
                elif judged is not None:
                    placer.delete(path, judged)
                elif kind:  # whoever brought it in before us may have been killed
                    rows[path] = _brought(worktree, path, kind, name, repository)
            except (OSError, HubError):
                # Somebody was faster, or the disk is full: it stays a change, if it is not done.
                rows[path] = _brought(worktree, path, kind, name, repository) if kind else None
    finally:
        placer.close()
    return rows


def _brought(
    worktree: str, path: bytes, kind: str, name: str, repository: Repository
) -> Row | None:
    """Return the row of *path* if that is *name* of *kind* already, None if it is not."""
    try:
        row = (kind, repository.size(name), name, 0, 0, 0)
    except HubError:
        return None
    return None if _judged(worktree, path, row) is None else row


def _judged(worktree: str, path: bytes, was: Row | None) -> Judged | None:
    """Return what is at *path* if it is *was* (None: nothing), None if it is not."""
    try:
        tree = os.open(worktree, INTO)
        try:
            parent, last = enter(tree, path)
        finally:
            os.close(tree)
    except (FileNotFoundError, BlockedError):
        return Judged(None, "", 0) if was is None else None
    except OSError:
        return None
    try:
        status = os.lstat(last, dir_fd=parent)
        kind = base.kind_of(status.st_mode)
        if was is None or kind != was[0] or status.st_size != was[1]:
            return None
        if artifact.of_entry(last, kind, dir_fd=parent) != was[2]:
            return None
        return Judged(status, was[2], 0)
    except FileNotFoundError:
        return Judged(None, "", 0) if was is None else None
    except OSError:
        return None
    finally:
        os.close(parent)
