"""Whether a slot's leaf lives: the one judgement on which everything else here acts.

A slot is ``.bones/swarm/<name>/``. Its leaf is a process that holds a flock on ``leaf.lock`` for
life, and has said who it is in ``leaf.json`` (its :class:`~foundation.process.Identity`) and
``leaf.pid`` (a number and a newline, for people and tools). The judgement reads only.

=========================================  =========================================
found                                      the leaf is
=========================================  =========================================
no leaf.pid                                unborn: being made, or its maker died
leaf.pid holds no pid                      junk: neither dead nor live
leaf.json names a process, it lives        live
… of another pid namespace                 unknown
… it is gone                               dead, unless leaf.pid names another
no (sound) leaf.json, no such process      dead
… a process that carries our mark          live
… any other process                        unknown
dead, but leaf.lock cannot be taken        unknown
anything that cannot be read               unknown
=========================================  =========================================

Unknown counts as alive wherever it matters.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from foundation import codec
from foundation.atomic import read_bounded, write_file
from foundation.process import (
    ALIVE,
    GONE,
    PID_MAX,
    Identity,
    has_exited,
    open_pidfd,
)
from foundation.record import Record
from slotgc.mark import is_marked_as_leaf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

LIVE = "live"
DEAD = "dead"
UNKNOWN = "unknown"
JUNK = "junk"
UNBORN = "unborn"

SCHEMA = 1
_PID_LIMIT = 64
_RECORD_LIMIT = 8192

_FREE = "free"
_HELD = "held"
_ABSENT = "absent"


class Leaf(Record):
    """What was found of a slot's leaf."""

    name: str
    """The slot's."""
    state: str
    """``live``, ``dead``, ``unknown``, ``junk`` or ``unborn``."""
    reason: str
    """Why, in words for a person."""
    pid: int = 0
    """The leaf's, 0 if none is known."""
    abandoned: bool = False
    """Unborn, and its maker is gone: its directory is empty, or nobody holds its leaf.lock."""


def look_all(workspace: Workspace) -> list[Leaf]:
    """Return the leaf of every slot, by name; none without a swarm directory of our own.

    Hidden names, links, files and what belongs to another user are no slots.

    Raises:
        OSError: the swarm directory cannot be listed.
    """
    if not (is_own_directory(workspace.bones) and is_own_directory(workspace.swarm)):
        return []
    names = [name for name in os.listdir(workspace.swarm) if not name.startswith(".")]
    slots = [name for name in sorted(names) if is_own_directory(f"{workspace.swarm}/{name}")]
    return [look(workspace, name) for name in slots]


def look(workspace: Workspace, name: str, *, locked: bool = False) -> Leaf:
    """Judge the leaf of slot *name*; *locked*: the caller itself holds its leaf.lock.

    Raises:
        ValueError: *name* cannot be a slot's.
    """
    directory = slot_directory(workspace, name)
    if not os.path.lexists(directory):
        return Leaf(name=name, state=UNBORN, reason="there is no such slot")
    if not is_own_directory(directory):
        return Leaf(name=name, state=JUNK, reason="not a directory of our own")
    try:
        return _look(workspace, name, directory, locked=locked)
    except OSError as error:  # out of descriptors, say: nothing is known, so nothing is dead
        return Leaf(name=name, state=UNKNOWN, reason=f"it cannot be judged: {error}")


def slot_directory(workspace: Workspace, name: str) -> str:
    """Return the directory of slot *name*.

    Raises:
        ValueError: *name* is empty, hidden or a path.
    """
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be the name of a slot")
    return f"{workspace.swarm}/{name}"


def is_own_directory(path: str) -> bool:
    """Tell whether *path* is a real directory (no link) of this user."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def write_record(directory: str, identity: Identity) -> None:
    """Say in the slot *directory* who its leaf is; the caller holds its leaf.lock.

    leaf.json first: as soon as leaf.pid is there, its process can be proved to be the leaf.
    """
    content = codec.dumps({"schema": SCHEMA, "identity": identity.as_dict()})
    write_file(f"{directory}/leaf.json", content.encode() + b"\n", durable=False)
    write_file(f"{directory}/leaf.pid", b"%d\n" % identity.pid, mode=0o644, durable=False)


def read_record(directory: str) -> Identity | None:
    """Return whom leaf.json names, None if it is not there or not sound.

    Sound: a regular file of this user that nobody else may write, with exactly our fields. Who
    could write it could have any process of ours ended.

    Raises:
        OSError: it is sound as far as can be told, but cannot be read.
    """
    path = f"{directory}/leaf.json"
    try:
        status = os.lstat(path)
        if not _is_own_file(status) or status.st_mode & 0o022:
            return None
        value = codec.loads_object(read_bounded(path, _RECORD_LIMIT))
    except (FileNotFoundError, ValueError):
        return None
    if type(value.get("schema")) is not int or value["schema"] != SCHEMA:
        return None
    return Identity.from_json(value.get("identity"))


def _look(workspace: Workspace, name: str, directory: str, *, locked: bool) -> Leaf:
    try:
        pid = _read_pid(f"{directory}/leaf.pid")
    except FileNotFoundError:
        return _unborn(name, directory, locked=locked)
    if pid is None:
        return Leaf(name=name, state=JUNK, reason="leaf.pid holds no pid")
    leaf = _judge(workspace, name, pid, read_record(directory))
    if leaf.state != DEAD or locked:
        return leaf
    lock = _probe(f"{directory}/leaf.lock")
    if lock in (_FREE, _ABSENT):
        return leaf
    return leaf.replace(
        state=UNKNOWN, reason="leaf.lock is held" if lock == _HELD else f"leaf.lock is {lock}"
    )


def _unborn(name: str, directory: str, *, locked: bool) -> Leaf:
    lock = _FREE if locked else _probe(f"{directory}/leaf.lock")
    abandoned = lock == _FREE or (lock == _ABSENT and not os.listdir(directory))
    reason = "its maker died" if abandoned else "being made, or its maker died"
    return Leaf(name=name, state=UNBORN, reason=f"no leaf.pid: {reason}", abandoned=abandoned)


def _judge(workspace: Workspace, name: str, pid: int, identity: Identity | None) -> Leaf:
    """Judge by the process alone."""
    if identity is not None:
        state = identity.state()
        if state == ALIVE:
            words = f"pid {identity.pid} is the leaf and lives"
            return Leaf(name=name, state=LIVE, reason=words, pid=identity.pid)
        if state != GONE:  # its pid is no number of ours: none is handed out
            words = f"leaf of another pid namespace (pid {identity.pid} there)"
            return Leaf(name=name, state=UNKNOWN, reason=words)
        if identity.pid == pid:
            return Leaf(name=name, state=DEAD, reason=f"pid {pid} has ended", pid=pid)
    pidfd = open_pidfd(pid)
    try:
        if pidfd is None or has_exited(pidfd):
            return Leaf(name=name, state=DEAD, reason=f"pid {pid} has ended", pid=pid)
        if is_marked_as_leaf(pid, workspace.root, name):
            return Leaf(name=name, state=LIVE, reason=f"pid {pid} lives, with our mark", pid=pid)
    finally:
        if pidfd is not None:
            os.close(pidfd)
    words = f"pid {pid} is alive and nothing proves that it is the leaf"
    return Leaf(name=name, state=UNKNOWN, reason=words, pid=pid)


def _read_pid(path: str) -> int | None:
    """Return the pid in the file at *path*, None for anything else.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read.
    """
    if not _is_own_file(os.lstat(path)):
        return None
    try:
        text = read_bounded(path, _PID_LIMIT).decode("ascii").strip()
    except ValueError:
        return None
    return int(text) if text.isdigit() and 1 < int(text) <= PID_MAX else None


def _is_own_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _probe(path: str) -> str:
    """Return whether the lock at *path* could be taken: ``free``, ``held``, ``absent``, or why not.

    Shared and only for a moment: two who ask do not see each other, and a leaf that is about to
    take it waits that moment.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        return "a link" if error.errno == errno.ELOOP else f"unreadable: {error.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "no regular file"
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _HELD
    except OSError as error:
        return f"not to be asked: {error.strerror}"
    else:
        return _FREE
    finally:
        os.close(fd)
