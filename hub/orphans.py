"""What a killed hub's servers leave: Fossil's processes of requests that were in flight.

The kernel ends the servers with their supervisor, but not what they had forked; that would hold
the port for as long as its client stays connected.
"""

from __future__ import annotations

from foundation.process import send_signal, wait_exit
from hub.census import census
from hub.roles import SERVERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

_KILL_WAIT_S = 2.0


def end_orphans(workspace: Workspace) -> list[int]:
    """End the servers' processes that serve *workspace* still; return their pids.

    Only the holder of hub.lock may call it: then no living hub has any.
    """
    with census(workspace.root, hubs=False) as found:
        doomed = [member for member in found.members if member.role in SERVERS]
        ended = [member.pid for member in doomed if send_signal(member.pidfd, 9)]
        for member in doomed:
            wait_exit(member.pidfd, _KILL_WAIT_S)
    return ended
