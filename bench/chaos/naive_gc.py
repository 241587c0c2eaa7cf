"""Cleaning up as one writes it at first, to show that the witnesses can see what is wrong with it.

A pid file is believed, ``kill(pid, 0)`` tells who lives, and what is dead is deleted.
"""

from __future__ import annotations

import os
import shutil
import signal
from typing import NamedTuple

from foundation import procfs
from foundation.process import open_pidfd, send_signal
from foundation.workspace import Workspace


class Pruned(NamedTuple):
    """What a pass has done."""

    removed: list[str]
    rescued: dict[str, str]
    failed: dict[str, str]


def prune(root: str, *, clean_only: bool = False) -> Pruned:
    """Delete every slot whose pid file names no process."""
    del clean_only
    swarm = Workspace(root).swarm
    removed = []
    for name in os.listdir(swarm):
        if not _lives(f"{swarm}/{name}/leaf.pid"):
            shutil.rmtree(f"{swarm}/{name}", ignore_errors=True)
            removed.append(name)
    return Pruned(removed, {}, {})


def kill(pid: int, *, workspace_dir: str, grace_s: float) -> bool:
    """Send SIGTERM to whoever has that number now, if it is a process of the campaign."""
    del workspace_dir, grace_s
    pidfd = open_pidfd(pid)
    if pidfd is None:
        return False
    try:
        # The one precaution: what it may hit are its siblings, not somebody's editor.
        if pid == os.getpid() or procfs.parent_of(pid) != os.getppid():
            return False
        return send_signal(pidfd, signal.SIGTERM)
    finally:
        os.close(pidfd)


def _lives(path: str) -> bool:
    try:
        with open(path) as file:
            os.kill(int(file.read()), 0)
    except (OSError, ValueError, OverflowError):
        return False
    return True
