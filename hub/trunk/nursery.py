"""Where leaves are born: a process that has everything loaded, and forks.

A leaf that began as a program of its own would import for a fifth of a second, and share no
memory with the others. So trunk, before it has a loop, a thread or a connection, forks the
nursery, which listens at ``.orchestrator/leaves.sock``: each connection becomes a process, in a
session of its own and nobody's child, that reads the request and lives on as a leaf
(:mod:`swarm.leaf`). The nursery itself reads nothing, so no client can keep it from the next one,
and ends with trunk.
"""

from __future__ import annotations

import _signal
import gc
import importlib
import os
import select
import socket
import sys
import time

from foundation import control, spawn
from foundation.errors import Unavailable, to_wire
from foundation.process import has_exited
from foundation.title import set_name, set_title
from foundation.workspace import MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from foundation.workspace import Workspace

    Begin = Callable[[str, socket.socket], int]

LEAF = "swarm.leaf.process"
"""What a newborn runs, ``begin(root, connection)``. By name: swarm imports hub, and not the other
way round; the nursery knows no more of a leaf than this."""

NAME = "bones-nursery"
_CONNECTION = 3
"""The one descriptor that a newborn has beside the first three."""
_DEFAULTED = (1, 2, 3, 15, 17)
_ENDING_SIGNALS = (2, 15)
_PAUSE_S = 0.05
_UMASK = 0o022
"""Files in worktrees are like everybody's; what is private says so where it is made."""


class Nursery:
    """The nursery as trunk has it."""

    def __init__(self, pid: int) -> None:
        """Name the child *pid*."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def ended(self) -> bool:
        """Tell whether it has ended; trunk cannot fork another once it has a loop."""
        return has_exited(self._pidfd)

    def was_told_to_end(self) -> bool:
        """Tell whether it has ended by a signal that asks a process to end."""
        how = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return how is not None and how.si_code == os.CLD_KILLED and how.si_status in _ENDING_SIGNALS


def open_nursery(workspace: Workspace) -> Nursery:
    """Fork the nursery of *workspace*. The caller has one thread, no loop and no handlers yet.

    Raises:
        OSError: it cannot listen, or the system has no process left.
    """
    begin: Begin = importlib.import_module(LEAF).begin
    listener = socket.socket(fileno=control.listen(workspace.leaves_socket).detach())
    trunk, kept = os.getpid(), os.pipe()
    # What exists now is never garbage: no collection writes to the pages that all share.
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(kept[1])
            spawn.die_with_parent(trunk)
            set_name(NAME)
            for number in _DEFAULTED:
                _signal.signal(number, _signal.SIG_DFL)
            _quiet(0, 1)
            _serve(workspace, listener, kept[0], begin)
            status = 0
        except BaseException:  # noqa: BLE001 - the last stop: into trunk's log, then out
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    listener.close()
    os.close(kept[0])
    return Nursery(pid)


def _serve(workspace: Workspace, listener: socket.socket, trunk: int, begin: Begin) -> None:
    """Turn every connection into a process, until the pipe *trunk* ends."""
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    poll.register(trunk, select.POLLIN)
    listener.setblocking(False)
    while trunk not in dict(poll.poll()):
        try:
            connection, _address = listener.accept()
        except BlockingIOError:
            continue  # whoever it was has gone
        except OSError:  # out of descriptors: those who wait will be served later
            time.sleep(_PAUSE_S)
            continue
        try:
            if _peer_uid(connection) == os.geteuid():
                _deliver(workspace, connection, begin)
        except OSError as error:
            _refuse(connection, error)
        finally:
            connection.close()


def _deliver(workspace: Workspace, connection: socket.socket, begin: Begin) -> None:
    """Give *connection* to a process that is nobody's child.

    Raises:
        OSError: there are too many processes.
    """
    between = os.fork()
    if between == 0:
        status = 1
        try:
            status = _bear(workspace, connection, begin)
        except OSError as error:
            _refuse(connection, error)
        except BaseException:  # noqa: BLE001 - as above
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.waitpid(between, 0)


def _bear(workspace: Workspace, connection: socket.socket, begin: Begin) -> int:
    """Fork once more and end, so that the leaf is the child of whoever takes in orphans."""
    # Before it has lost its parent: by trunk's words it would be taken for an orphaned trunk.
    set_title(["bones-leaf"], {MARK: workspace.root})
    if os.fork():
        return 0
    os.setsid()
    os.chdir("/")
    os.umask(_UMASK)
    os.dup2(connection.detach(), _CONNECTION, inheritable=False)
    _quiet(0, 1, 2)
    os.closerange(_CONNECTION + 1, os.sysconf("SC_OPEN_MAX"))
    return begin(workspace.root, socket.socket(fileno=_CONNECTION))


def _quiet(*descriptors: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in descriptors:
        os.dup2(null, fd)
    if null not in descriptors:
        os.close(null)


def _refuse(connection: socket.socket, error: OSError) -> None:
    """Say why there will be no leaf; nobody is waited for."""
    wrong = Unavailable(f"no process can be started for a leaf: {error}", reason="no-process")
    try:
        connection.setblocking(False)
        connection.send(control.encode({"error": to_wire(wrong)}))
    except OSError:
        pass


def _peer_uid(connection: socket.socket) -> int:
    """Return the uid of the process that asks. Source: unix(7), SO_PEERCRED."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little")
