"""What a killed hub's servers leave: Fossil's processes of requests that were in flight.

The kernel ends the servers with their supervisor, but not what they had forked; that would hold
the port for as long as its client stays connected.
"""

from __future__ import annotations

import os

from foundation import procfs
from foundation.process import open_pidfd, send_signal, wait_exit
from foundation.workspace import MARK
from hub import nats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

_KILL_WAIT_S = 2.0


def end_orphans(workspace: Workspace) -> list[int]:
    """End the servers' processes that serve *workspace* still; return their pids.

    Only the holder of hub.lock may call it: then no living hub has any. A process is one of
    them if it carries our mark for this workspace and runs on this workspace's own files.
    """
    files = (os.fsencode(workspace.repository), os.fsencode(nats.config_path(workspace)))
    mark = os.fsencode(f"{MARK}={workspace.root}")
    ended = []
    for pid in procfs.pids():
        if not _serves(pid, files, mark):
            continue
        pidfd = open_pidfd(pid)
        if pidfd is None:
            continue
        try:
            # Looked at again, now that the descriptor holds on to whom we look at.
            if _serves(pid, files, mark) and send_signal(pidfd, 9):
                wait_exit(pidfd, _KILL_WAIT_S)
                ended.append(pid)
        finally:
            os.close(pidfd)
    return ended


def _serves(pid: int, files: tuple[bytes, bytes], mark: bytes) -> bool:
    words = procfs.command_line(pid) or []
    if len(words) < 3 or words[-1] not in files or words[1] not in (b"server", b"-c"):  # noqa: PLR2004
        return False
    return mark in (procfs.environment(pid) or ())
