"""Who may make, revive or remove a slot: two locks, always in this order.

``.bones/swarm.lock`` is held only for the moment in which a slot's directory is made, claimed,
revived or moved away. ``leaf.lock`` in the slot is held for the life of its leaf. Both are flocks,
freed by the kernel; neither file is ever unlinked (leaf.lock goes with its slot's directory).

- A **maker** has :meth:`foundation.workspace.Workspace.make_bones` make ``.bones`` (hidden from
  git, spared by ``git clean -fdx``), takes swarm.lock, makes the directory, creates and takes
  leaf.lock (:func:`make_leaf_lock`) and lets swarm.lock go. It builds the worktree as ``wt.new``
  and renames it to ``wt`` last, starts the leaf with the descriptor of leaf.lock among its files,
  and closes its own. So the slot is never without a holder while it is being made, and only
  ``wt`` can hold work.
- A **reviver** does the same with a directory that is there, once it has seen under both locks
  that its leaf is dead: :class:`Claim`, then :meth:`Claim.take`.
- A **leaf** writes leaf.json, then leaf.pid (:func:`slotgc.leaf.write_record`), and keeps the
  descriptor close-on-exec: an agent that inherited it would hold the slot after its leaf.
- A **remover** takes swarm.lock, then leaf.lock if there is one, and looks again, all by
  :class:`Claim`; then it renames the directory away. What it does with it after that needs no
  lock.

Who merely looks takes neither; its probe of leaf.lock is shared and momentary, so whoever takes
leaf.lock must wait a moment before believing that it is held.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from foundation.errors import HubError, Refused, Unavailable
from foundation.lock import try_lock
from foundation.process import GONE
from slotgc.leaf import Leaf, is_own_directory, look, look_all, read_record, slot_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from foundation.workspace import Workspace

WITHIN_S = 5.0
"""How long to wait for swarm.lock, which nobody holds for more than milliseconds."""

_PROBES_LAST_S = 0.2
_RETRY_S = 0.001
_RETRY_AT_MOST_S = 0.02
"""A hundred who ask every millisecond leave whoever has the lock no processor to finish on."""


def swarm_lock(workspace: Workspace, within_s: float = WITHIN_S) -> int:
    """Return a descriptor that holds swarm.lock; closing it lets go.

    Raises:
        Unavailable: another has held it for *within_s* (``swarm-busy``).
        Refused: ``.bones`` is not a directory of our own (``state-foreign``).
        OSError: the lock file cannot be opened.
    """
    deadline_s = time.monotonic() + within_s
    wait_s = _RETRY_S
    while True:
        if not is_own_directory(workspace.bones):
            raise _foreign(workspace.bones)
        fd = try_lock(workspace.swarm_lock)
        if fd is not None:
            if _is_file_at(fd, workspace.swarm_lock):
                return fd
            os.close(fd)  # of a .bones that was deleted meanwhile
        if time.monotonic() > deadline_s:
            raise Unavailable(
                f"another has held {workspace.swarm_lock} for {within_s:g} s: find it with "
                f"`fuser {workspace.swarm_lock}`",
                reason="swarm-busy",
            )
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.5, _RETRY_AT_MOST_S)


def refuse_foreign(workspace: Workspace) -> None:
    """Refuse state that is not this user's: of what is in it nothing could be seen or ended.

    Raises:
        Refused: it is there and another user's, or a link or a file (``state-foreign``).
        HubError: it cannot be looked at.
    """
    for directory in (workspace.state, workspace.bones, workspace.swarm):
        try:
            if os.path.lexists(directory) and not is_own_directory(directory):
                raise _foreign(directory)
            if directory == workspace.swarm:
                look_all(workspace)
        except OSError as error:
            raise HubError(f"{directory} cannot be looked at: {error}", reason="swarm") from None


def is_busy(workspace: Workspace, name: str) -> bool:
    """Tell whether slot *name*, whatever its leaf.pid says, may have a maker or a leaf.

    Somebody holds its leaf.lock, or its leaf.json names a process that lives. Asks for a moment
    only, as every look.
    """
    directory = slot_directory(workspace, name)
    if not is_own_directory(directory):
        return False
    try:
        identity = read_record(directory)
        if identity is not None and identity.state() != GONE:
            return True
        fd = os.open(f"{directory}/leaf.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def make_leaf_lock(workspace: Workspace, name: str) -> int:
    """Return a descriptor that holds the leaf.lock of slot *name*, made if there is none.

    The caller has swarm.lock, and has made the slot's directory or judged its leaf.

    Raises:
        Unavailable: somebody holds it (``leaf-busy``).
        OSError: it cannot be opened, or is not a regular file.
    """
    return _take_lock(f"{slot_directory(workspace, name)}/leaf.lock", os.O_CREAT)


def leaf_lock(workspace: Workspace, name: str) -> int | None:
    """Return a descriptor that holds the leaf.lock of slot *name*, None if there is none.

    The caller has swarm.lock.

    Raises:
        Unavailable: somebody holds it (``leaf-busy``).
        OSError: it cannot be opened, or is not a regular file.
    """
    try:
        return _take_lock(f"{slot_directory(workspace, name)}/leaf.lock", 0)
    except FileNotFoundError:
        return None


def _take_lock(path: str, create: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | create, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file")
        deadline_s = time.monotonic() + _PROBES_LAST_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise Unavailable(f"{path} is held", reason="leaf-busy") from None
                time.sleep(_RETRY_S)
            else:
                return fd
    except BaseException:
        os.close(fd)
        raise


def _foreign(directory: str) -> Refused:
    return Refused(
        f"{directory} is not a directory of our own, but a link, a file or another user's: be that "
        "user, or move it away",
        reason="state-foreign",
    )


class Claim:
    """Hold a slot for the body of a ``with``, its leaf judged under the locks.

    In the body nobody else makes, revives or removes it: if ``leaf`` is dead, or unborn and
    abandoned, the slot may be moved away or taken over. Keep it short: every other maker waits.

    Raises:
        Unavailable: swarm.lock was not to be had (``swarm-busy``).
        Refused: ``.bones`` is not a directory of our own (``state-foreign``).
    """

    leaf: Leaf
    """What was found under the locks; unknown where somebody else holds leaf.lock."""

    def __init__(self, workspace: Workspace, name: str, *, within_s: float = WITHIN_S) -> None:
        """Name the slot; nothing is locked yet."""
        self._workspace = workspace
        self._name = name
        self._within_s = within_s
        self._swarm = -1
        self._leaf: int | None = None

    def __enter__(self) -> Self:
        """Take the locks and look."""
        self._swarm = swarm_lock(self._workspace, self._within_s)
        try:
            try:
                self._leaf = leaf_lock(self._workspace, self._name)
            except (OSError, Unavailable):
                pass  # held or unreadable: the look says which
            locked = self._leaf is not None
            self.leaf = look(self._workspace, self._name, locked=locked)
        except BaseException:
            self._release()
            raise
        return self

    def take(self) -> int:
        """Return the leaf.lock, made if there was none, for the caller to keep after the body.

        Raises:
            Unavailable: somebody else holds it (``leaf-busy``).
            OSError: it cannot be opened, or there is no such slot.
        """
        fd, self._leaf = self._leaf, None
        return make_leaf_lock(self._workspace, self._name) if fd is None else fd

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go, leaf.lock first."""
        self._release()

    def _release(self) -> None:
        if self._leaf is not None:
            os.close(self._leaf)
        os.close(self._swarm)


def _is_file_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
