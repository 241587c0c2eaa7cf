"""Rescues: what cleaning up has saved, ``.bones/rescue/<slot>-<utc>/``.

A rescue is the slot's own directory, renamed: nothing is copied, so nothing can be lost, however
big it is and whoever has a file of it open. Then it is finished, in three steps that may be
killed between any two:

1. ``rescue.json`` says what the work is, with ``state`` ``thinning``;
2. files that equal the base are removed, each after its whole content was read, but only if the
   base is on this workspace's trunk; caches go too;
3. ``rescue.json`` again, with ``state`` ``done``.

The record comes before the thinning: after it nobody could tell a file that the agent has deleted
from one that was thinned out. Where the base is not on trunk nothing is thinned.
"""

from __future__ import annotations

import os
import stat

from foundation.errors import Corrupt
from foundation.failpoint import hit
from foundation.record import Record
from foundation.workspace import Workspace
from slotgc import account as account_of
from slotgc import base, history, passage, treepath, work
from slotgc.account import Account
from slotgc.use import in_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slotgc.base import Base
    from slotgc.work import Change

UNFINISHED, DAMAGED = "unfinished", "damaged"


class Rescue(Record):
    """One rescue in a listing.

    ``state`` is ``done``, ``unfinished`` (a pass was killed; the next one finishes it) or
    ``damaged`` (``reason`` says how; its files are where they were). ``added``, ``changed`` and
    ``deleted`` count files; ``checkin`` is the base's ("": not known); ``path`` the directory.
    """

    name: str
    slot: str
    made_at: str
    state: str
    reason: str
    path: str
    checkin: str = ""
    added: int = 0
    changed: int = 0
    deleted: int = 0


def list_rescues(workspace_dir: str | os.PathLike[str]) -> list[Rescue]:
    """Return the rescues of *workspace_dir*, the oldest first. One that is bad says so."""
    workspace = Workspace(os.path.abspath(workspace_dir))
    try:
        names = os.listdir(workspace.rescue)
    except (FileNotFoundError, NotADirectoryError):
        return []
    shown = [
        _listed(workspace, name)
        for name in names
        if not name.startswith(".") or name.startswith(passage.JUDGING)
    ]
    return sorted(shown, key=lambda rescue: (rescue.made_at, rescue.name))


def _listed(workspace: Workspace, name: str) -> Rescue:
    slot, made_at = passage.parse_name(name)
    path = f"{workspace.rescue}/{name}"
    rescue = Rescue(
        name=name,
        slot=slot,
        made_at=made_at,
        state=UNFINISHED,
        reason="the pass that moved it here was killed; `hub gc` finishes it",
        path=path,
    )
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return rescue.replace(state=DAMAGED, reason="it is not a directory")
        account = account_of.read(path)
    except (OSError, Corrupt) as error:
        return rescue.replace(state=DAMAGED, reason=str(error))
    if account is None:
        return rescue
    return rescue.replace(
        slot=account.slot,
        made_at=account.made_at,
        state=account.state if account.state == account_of.DONE else UNFINISHED,
        reason=account.reason,
        checkin=account.checkin,
        added=account.count(work.ADDED, work.SAME),
        changed=account.count(work.CHANGED, work.MODE),
        deleted=account.count(work.DELETED),
    )


def unfinished(workspace: Workspace) -> list[str]:
    """Return the names of the rescues that a killed pass has not finished.

    Raises:
        OSError: the directory cannot be listed.
    """
    names = [name for name in sorted(os.listdir(workspace.rescue)) if not name.startswith(".")]
    return [name for name in names if _listed(workspace, name).state == UNFINISHED]


def finish(workspace: Workspace, name: str) -> Account:
    """Make the directory *name* a whole rescue, from whatever step it stands at.

    The caller has claimed it (:func:`slotgc.passage.claim`).

    Raises:
        Corrupt: its record is damaged; nothing is touched.
        OSError: it cannot be finished now; nothing is lost, and the same call goes on.
    """
    place = f"{workspace.rescue}/{name}"
    account = account_of.read(place)
    if account is not None and account.state == account_of.DONE:
        return account
    if not passage.is_place(workspace):
        raise OSError(f"{workspace.rescue} is not a directory of our own")
    if account is None:
        account = _give_account(workspace, name)
        account_of.write(place, account)
        hit("gc.recorded")
    if account.state == account_of.THINNING:
        user = in_use(place)
        if user:
            raise OSError(user)
        changes = {change.path: change for change in account.changes}
        changes.update((change.path, change) for change in _thin(workspace, place, account))
        hit("gc.thinned")
        account = account.replace(
            state=account_of.DONE,
            changes=tuple(sorted(changes.values(), key=lambda change: change.path)),
        )
        account_of.write(place, account)
        hit("gc.finished")
    return account


def _give_account(workspace: Workspace, name: str) -> Account:
    place = f"{workspace.rescue}/{name}"
    found = work.judge(workspace, place)
    if found.doubts and _open_up(f"{place}/wt"):
        found = work.judge(workspace, place)
    slot, made_at = passage.parse_name(name)
    known = read_base(place)
    thin = found.on_trunk and not found.doubts
    return Account(
        slot=slot,
        made_at=made_at,
        checkin="" if known is None else known.checkin,
        state=account_of.THINNING if thin else account_of.DONE,
        reason=found.describe(),
        apart=found.apart,
        changes=_named(f"{place}/wt", found.changes),
    )


def _open_up(worktree: str) -> bool:
    """Let ourselves into the directories of our own that are closed; tell if there were any."""
    opened = False
    pending = [os.fsencode(worktree)]
    while pending:
        path = pending.pop()
        try:
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                continue
            if status.st_mode & stat.S_IRWXU != stat.S_IRWXU and status.st_uid == os.geteuid():
                os.chmod(path, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
                opened = True
            with os.scandir(path) as entries:
                pending += [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # another user's, or too deep for a path; it stays a doubt
    return opened


def _named(worktree: str, changes: tuple[Change, ...]) -> tuple[Change, ...]:
    """Return *changes* with their hashes; files of our own that are closed are made readable.

    The record holds the mode that they had.
    """
    named = work.name_contents(worktree, changes)
    for change in named:
        if change.hash == "" and change.kind in (base.FILE, base.EXEC):
            path = os.fsencode(worktree) + b"/" + change.path
            try:
                os.chmod(path, change.mode | stat.S_IRUSR)
            except OSError:
                pass  # another user's: it is kept, and who restores it hears of it
    again = {c.path: c for c in work.name_contents(worktree, tuple(c for c in named if not c.hash))}
    return tuple(again.get(change.path, change) for change in named)


def _thin(workspace: Workspace, place: str, account: Account) -> list[Change]:
    """Remove what is no work; return what turned out to be some after all."""
    known = read_base(place)
    if known is None:
        return []
    on_trunk = history.trunk_holds(workspace.repository, known.artifacts())
    deleted = {change.path for change in account.changes if change.change == work.DELETED}
    kept = {change.path for change in account.changes} - deleted
    walk = work.Walk(f"{place}/wt", known.files)
    late = []
    for path, status, row, cached in walk.entries():
        if path in kept:
            continue
        kind = base.kind_of(status.st_mode)
        change = ""
        if row is None:
            change = work.ADDED if kind and not cached else ""
        elif kind and not (kind == row[0] and work.has_content(walk.top, path, kind, row)):
            change = work.CHANGED
        elif kind and (path in deleted or not on_trunk):
            change = work.SAME
        if change:
            late.append(work.as_is(path, change, status))
            continue
        try:
            os.unlink(walk.top + b"/" + path)
        except OSError:
            continue  # in a directory that is read-only: it stays, a little more than needed
        hit("gc.thinning")
    _drop_empty(walk.top)
    return list(_named(f"{place}/wt", tuple(late)))


def _drop_empty(top: bytes) -> None:
    """Remove the empty directories below *top*, but for git's, which are nothing without them."""
    for path, _directories, _files in os.walk(top, topdown=False):
        if path == top or treepath.GIT in path[len(top) :].split(b"/"):
            continue
        try:
            os.rmdir(path)
        except OSError:
            continue  # not empty, most of them


def read_base(place: str) -> Base | None:
    """Return the base of the rescue in the directory *place*, None without a sound one."""
    try:
        return base.read(f"{place}/{base.NAME}")
    except Corrupt:
        return None
