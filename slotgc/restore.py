"""Bringing a rescue back: into a new directory, or as a patch onto a tree that is there.

First everything is compared, then everything is written: a path of the tree may only hold what
the base had there, or what the rescue has. Killed in between and repeated, it goes on; what is
already as it should be is left alone. The rescue itself stays as it is.
What may be written is :mod:`slotgc.patch`'s business; that nothing outside of the tree is,
:mod:`slotgc.beneath`'s.
"""

from __future__ import annotations

import os

from foundation.errors import Corrupt, HubError, Refused, Unavailable
from foundation.record import Record
from foundation.workspace import Workspace
from slotgc import passage, rescue, treepath, work
from slotgc.beneath import INTO, has
from slotgc.patch import Patch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slotgc.account import Account

_SHOWN = 20


class Restored(Record):
    """What a restore did: paths relative to ``to``, as bytes."""

    name: str
    to: str
    written: tuple[bytes, ...]
    deleted: tuple[bytes, ...]
    """Removed from the tree, or for a new directory: those that the work had deleted."""
    unchanged: int
    """How many files were as rescued already."""
    apart: tuple[str, ...]
    """What the rescue holds besides, and keeps: commits, stashes, notes; in words."""
    path: str
    """The rescue's own directory, which holds them."""


def restore(workspace_dir: str | os.PathLike[str], name: str, to: str | None = None) -> Restored:
    """Bring the rescue *name* of *workspace_dir* back, into *to* (``./NAME`` by default).

    Raises:
        Refused: there is no such rescue, *to* is no directory and cannot become one, or the tree
            has something of its own at a path; every one is named, and nothing was touched.
        Corrupt: the rescue is damaged; nothing was touched.
        Unavailable: another process is finishing it now.
        HubError: the file system said no; the same call goes on from there.
    """
    workspace = Workspace(os.path.abspath(workspace_dir))
    place = f"{workspace.rescue}/{name}"
    target = name if to is None else to
    if not name or name.startswith(".") or "/" in name or not os.path.isdir(place):
        raise Refused(
            f"{workspace.rescue} holds no rescue {name!r}: `bones swarm rescue ls` names them",
            reason="no-rescue",
        )
    if not target:
        raise Refused("'' names no directory: give --to one, or leave it out", reason="no-target")
    try:
        target = os.path.abspath(target)  # fails in a directory that was deleted
        _refuse_no_place(target)
        claimed = passage.claim(place)
        if claimed is None:
            raise Unavailable(f"{name} is being finished: try again", reason="rescue-busy")
        try:
            account = rescue.finish(workspace, name)
            return _restore(account, name, place, target)
        finally:
            os.close(claimed)
    except OSError as error:
        raise HubError(
            f"{name} is not wholly restored to {target}: {error}; the rescue is whole, and the "
            "same command goes on",
            reason="restore",
        ) from None


def _refuse_no_place(target: str) -> None:
    parent = os.path.dirname(target)
    if os.path.lexists(target):
        if not os.path.isdir(target):
            raise Refused(f"{target} is not a directory: name one with --to", reason="no-target")
    elif not os.path.isdir(parent):
        raise Refused(f"{parent} is not a directory: make it first", reason="no-target")


def _restore(account: Account, name: str, place: str, target: str) -> Restored:
    new = not os.path.lexists(target)
    if new:
        os.mkdir(target)
    tree = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    source: int | None = None
    try:
        source = _open_source(f"{place}/wt")
        _refuse_damage(account, name, source)
        patch = Patch(account, rescue.read_base(place), source, tree)
        conflicts = patch.conflicts()
        if conflicts:
            names = ", ".join(conflicts[:_SHOWN])
            more = f" and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
            raise Refused(
                f"{target} has something of its own at {names}{more}; nothing was touched: name a "
                "new directory with --to, and merge by hand",
                reason="conflict",
            )
        patch.apply()
        listed = tuple(one.path for one in account.changes if one.change == work.DELETED)
        return Restored(
            name=name,
            to=target,
            written=tuple(patch.written),
            deleted=listed if new else tuple(patch.deleted),
            unchanged=patch.unchanged,
            apart=account.apart,
            path=place,
        )
    except BaseException:
        if new:
            try:
                os.rmdir(target)
            except OSError:
                pass  # something has been written
        raise
    finally:
        os.close(tree)
        if source is not None:
            os.close(source)


def _open_source(path: str) -> int | None:
    """Return a descriptor of the rescued worktree, None if there is none."""
    try:
        return os.open(path, INTO)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _refuse_damage(account: Account, name: str, source: int | None) -> None:
    """Read every rescued file: what is damaged must be known before anything is written."""
    damaged = []
    for change in account.changes:
        if change.change == work.DELETED:
            continue
        try:
            if source is None or not change.hash or not has(source, change):
                damaged.append(treepath.show(change.path))
        except OSError:
            damaged.append(treepath.show(change.path))
    if damaged:
        raise Corrupt(
            f"{name} does not hold what was rescued, or it cannot be read, at "
            f"{', '.join(damaged[:_SHOWN])}; nothing was touched",
            reason="rescue",
        )
