"""Which slots are alive."""

from __future__ import annotations

import os

from foundation.atomic import read_bounded
from foundation.process import PID_MAX, has_exited, open_pidfd
from foundation.record import Record
from foundation.workspace import Workspace

_PIDFILE_LIMIT = 64


class Slot(Record):
    """A slot with the pid of its leaf."""

    name: str
    pid: int


def live_slots(workspace_dir: str) -> list[Slot]:
    """Return the slots of *workspace_dir* whose leaf process exists, by name.

    A slot is ``.bones/swarm/<name>/``, its leaf the process in ``leaf.pid``. A slot without
    that file, or with junk in it, is not alive. Whether the process really is the leaf is not
    asked: a doubt counts as alive.
    """
    swarm = Workspace(os.path.abspath(workspace_dir)).swarm
    try:
        names = sorted(os.listdir(swarm))
    except (FileNotFoundError, NotADirectoryError):
        return []
    slots = []
    for name in names:
        pid = _pid_in(f"{swarm}/{name}/leaf.pid")
        if pid is not None and _exists(pid):
            slots.append(Slot(name=name, pid=pid))
    return slots


def _pid_in(path: str) -> int | None:
    try:
        text = read_bounded(path, _PIDFILE_LIMIT).decode("ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() and 1 < int(text) <= PID_MAX else None


def _exists(pid: int) -> bool:
    pidfd = open_pidfd(pid)
    if pidfd is None:
        return False
    try:
        return not has_exited(pidfd)
    finally:
        os.close(pidfd)
