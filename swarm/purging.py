"""Forgetting a workspace: its trunk, its events, its slots and rescues go, and so does every trace.

The steps, under hub.lock and swarm.lock, each of which may be the last before a kill:

1. ``.orchestrator`` is renamed to ``.bones/purged-<hex>``: one rename, and there is no trunk any
   more, nor half of one.
2. ``.bones`` is removed, swarm.lock and its ``.git``, by which `git clean` spares it, last.
3. Our lines go from git's ``info/exclude``, unless another worktree of the repository needs them.

Killed in between and repeated, it goes on. A hub that is started in between makes a new state.
"""

from __future__ import annotations

import errno
import os
import stat

from foundation.atomic import write_file
from foundation.errors import HubError, Refused, Unavailable
from foundation.failpoint import hit
from foundation.lock import try_lock
from foundation.record import Record
from foundation.workspace import SLOTS, STATE, Workspace
from hub.status import status_of
from hub.wording import several
from slotgc import pruning
from slotgc.hold import refuse_foreign, swarm_lock
from slotgc.leaf import look_all
from slotgc.removal import remove_tree
from slotgc.rescue import list_rescues
from slotgc.taking import is_dead
from slotgc.use import in_use, sightings
from swarm.applied import never_applied
from swarm.history import SHORT, open_repository, title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PURGED = "purged-"
"""How the name of a state begins that a purge has taken away."""

_EXCLUDED = (f"/{STATE}/".encode(), f"/{SLOTS}/".encode())
_COMMENT = b"# state of the hub and its slots"


class Loss(Record):
    """What a purge would remove for good."""

    root: str
    trunk: bool
    """Whether there is a trunk at all."""
    slots: tuple[str, ...]
    """Slots with unsaved work, each with what it is, in words."""
    rescues: tuple[str, ...]
    """Rescues by name."""
    unapplied: tuple[str, ...] = ()
    """Check-ins that were never applied to git, in words."""
    unfinished: bool = False
    """A killed purge has left something."""
    hidden: bool = False
    """Git's ``info/exclude`` has our lines."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of ours here."""
        return not (self.trunk or self.unfinished or self.hidden)


def look(workspace: Workspace) -> Loss:
    """Return what :func:`purge` would remove now; change nothing.

    Raises: as :func:`purge`, for the same reasons.
    """
    _refuse_alive(workspace)
    verdicts = pruning.plan(workspace.root)
    return Loss(
        root=workspace.root,
        trunk=os.path.lexists(workspace.state),
        slots=tuple(
            f"{one.name}: {one.reason}" for one in verdicts if one.action == pruning.RESCUE
        ),
        rescues=tuple(one.name for one in list_rescues(workspace.root)),
        unapplied=tuple(_unapplied(workspace)),
        unfinished=os.path.lexists(workspace.bones),
        hidden=_exclude(workspace) is not None,
    )


def _unapplied(workspace: Workspace) -> Iterator[str]:
    """Yield the check-ins that were never applied, in words; that they cannot be told is told."""
    if not os.path.exists(workspace.repository):
        return
    try:
        with open_repository(workspace.repository) as repository:
            for row in never_applied(workspace, repository):
                yield f"check-in {row.hash[:SHORT]} of {row.user}, not in git: {title(row)}"
    except HubError as error:
        yield f"check-ins that cannot be told: {error}"


def purge(workspace: Workspace) -> bool:
    """Remove all that is ours from *workspace*; return whether there was anything.

    Whoever calls this has shown a person what :func:`look` says.

    Raises:
        Refused: a hub or a leaf runs here, or may (``alive``); something works in a slot
            (``in-use``); the state is another user's (``state-foreign``).
        HubError: something could not be removed; the same call goes on.
    """
    _refuse_alive(workspace)
    try:
        there = [path for path in (workspace.state, workspace.bones) if os.path.lexists(path)]
        if there:
            _purge(workspace)
        return _show_to_git(workspace) or bool(there)
    except OSError as error:
        raise HubError(
            f"{error.filename or workspace.root}: {error.strerror}; `bones purge` again goes on",
            reason="purge",
        ) from None


def _purge(workspace: Workspace) -> None:
    workspace.make_bones()
    held = [swarm_lock(workspace)]
    try:
        if os.path.lexists(workspace.state):
            lock = try_lock(workspace.lock)
            if lock is None:
                raise _hub_lives(workspace, "it holds its lock")
            held.append(lock)
        _refuse_leaves(workspace)  # once more: nobody can make or revive one any longer
        hit("purge.locked")
        if os.path.lexists(workspace.state):
            os.rename(workspace.state, f"{workspace.bones}/{PURGED}{os.urandom(8).hex()}")
        hit("purge.taken")
        _empty(workspace)
    finally:
        for fd in held:
            os.close(fd)
    hit("purge.gone")


def _empty(workspace: Workspace) -> None:
    """Remove ``.bones``: swarm.lock, without which nobody makes a slot in it, after all else."""
    kept = (".git", os.path.basename(workspace.swarm_lock))
    for name in sorted(set(os.listdir(workspace.bones)).difference(kept)):
        _remove(f"{workspace.bones}/{name}")
        hit("purge.removed")
    os.unlink(workspace.swarm_lock)
    remove_tree(f"{workspace.bones}/.git")
    try:
        os.rmdir(workspace.bones)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        workspace.make_bones()  # a new hub's first slot was faster: what it needs is back


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        remove_tree(path)
    else:
        os.unlink(path)


def _refuse_alive(workspace: Workspace) -> None:
    """Refuse while anybody works here.

    Raises:
        Refused: a hub, a leaf or some process in a slot does, or may.
    """
    refuse_foreign(workspace)
    now = status_of(workspace)
    if now.state != "stopped":
        raise _hub_lives(workspace, now.state)
    _refuse_leaves(workspace)
    try:
        seen = sightings()
        users = [in_use(path, seen) for path in (workspace.swarm, workspace.rescue)]
    except OSError as error:
        raise Unavailable(f"it cannot be seen who works here: {error}", reason="in-use") from None
    for path, user in zip((workspace.swarm, workspace.rescue), users, strict=True):
        if user:
            raise Refused(f"{path} is in use: {user}; end it first", reason="in-use")


def _refuse_leaves(workspace: Workspace) -> None:
    alive = [f"{leaf.name} ({leaf.reason})" for leaf in look_all(workspace) if not is_dead(leaf)]
    if alive:
        raise Refused(
            f"slots are alive, or may be: {several(alive)}: `bones down` ends them and rescues "
            "their work",
            reason="alive",
        )


def _hub_lives(workspace: Workspace, how: str) -> Refused:
    return Refused(
        f"a hub runs in {workspace.root} ({how}): `bones down` ends it first", reason="alive"
    )


def _exclude(workspace: Workspace) -> list[bytes] | None:
    """Return the lines of ``info/exclude`` without ours; None if none of ours is there."""
    try:
        with open(f"{workspace.git_dir()}/info/exclude", "rb") as file:
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    if _is_needed_elsewhere(workspace):
        return None
    kept = [line for line in lines if not _is_ours(line.rstrip(b"\r\n"))]
    return None if len(kept) == len(lines) else kept


def _is_ours(line: bytes) -> bool:
    return line in _EXCLUDED or line.startswith(_COMMENT)


def _is_needed_elsewhere(workspace: Workspace) -> bool:
    """Tell whether another worktree of the repository has a state that git must not see.

    All of them share one ``info/exclude``. What cannot be looked at counts as needed.
    """
    here = os.path.realpath(workspace.root)
    try:
        return any(
            _is_there(f"{root}/{name}/.git")
            for root in _worktrees(workspace.git_dir())
            if os.path.realpath(root) != here
            for name in (STATE, SLOTS)
        )
    except OSError:
        return True


def _worktrees(git_dir: str) -> Iterator[str]:
    """Yield the roots of the main worktree and of every linked one, some perhaps long gone.

    Source: gitrepository-layout(5), ``worktrees``; git-worktree(1), ``--relative-paths``.

    Raises:
        OSError: one cannot be told.
    """
    yield os.path.dirname(git_dir)
    entries = f"{git_dir}/worktrees"
    for name in os.listdir(entries) if _is_there(entries) else ():
        entry = f"{entries}/{name}"
        try:
            with open(f"{entry}/gitdir", "rb") as file:
                named = os.fsdecode(file.read().strip())
        except (FileNotFoundError, NotADirectoryError):
            continue  # git is making or removing it, or it is no entry at all
        if "\0" not in named:
            yield os.path.dirname(os.path.join(entry, named))


def _is_there(path: str) -> bool:
    """Tell whether there is a *path*.

    Raises:
        OSError: that cannot be seen.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _show_to_git(workspace: Workspace) -> bool:
    """Take our lines out of ``info/exclude``; return whether there were any."""
    kept = None if os.path.lexists(workspace.state) else _exclude(workspace)
    if kept is None:  # none of ours, or a hub has been started meanwhile
        return False
    path = os.path.realpath(f"{workspace.git_dir()}/info/exclude")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    write_file(path, b"".join(kept), mode=mode, durable=False)
    return True
