"""Where leaves are born: a process that has everything loaded, and forks.

A leaf that began as a program of its own would import for a fifth of a second, and share no
memory with the others. So trunk, before it has a loop, a thread or a connection, forks the
nursery, which listens at ``.orchestrator/leaves.sock``: each connection becomes a process, in a
session of its own and nobody's child, that reads the request and lives on as a leaf
(:mod:`swarm.leaf`). The nursery itself reads nothing, so no client can keep it from the next one,
and ends with trunk.

It also has the template of worktrees made ahead (:mod:`hub.trunk.wanted`), by a child of its own
that ends with it: one at a time, and never before somebody has asked.
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
from foundation.errors import HubError, Unavailable, to_wire
from foundation.process import has_exited
from foundation.title import set_name, set_title
from foundation.workspace import MARK
from hub.trunk import wanted
from hub.trunk.service import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from typing import Any

    from foundation.workspace import Workspace

    Begin = Callable[[str, socket.socket], int]
    Work = Callable[[Workspace], object]

LEAF = "swarm.leaf.process"
"""What a newborn runs, ``begin(root, connection)``. By name: swarm imports hub, and not the other
way round; the nursery knows no more of a leaf than this."""

TEMPLATE = "swarm.worktree.template"
"""What makes a template, ``prepare(workspace)``, and removes what a killed one left, ``sweep``."""

NAME = "bones-nursery"
MAKER_NAME = "bones-template"
_MAKER_NICE = 10
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
    maker = Maker(workspace, wanted.socket_of(workspace), importlib.import_module(TEMPLATE))
    listener = _listen(workspace.leaves_socket)
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
            _serve(workspace, listener, kept[0], begin, maker)
            status = 0
        except BaseException:  # noqa: BLE001 - the last stop: into trunk's log, then out
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    listener.close()
    maker.listener.close()
    os.close(kept[0])
    return Nursery(pid)


class Maker:
    """Whoever makes the template ahead: at most one process, a child of the nursery."""

    def __init__(self, workspace: Workspace, path: str, template: Any) -> None:
        """Listen at *path*; *template* is the module that does the work.

        Raises:
            OSError: it cannot listen.
        """
        os.makedirs(workspace.templates, 0o700, exist_ok=True)
        self.listener = _listen(path)
        self._workspace = workspace
        self._template = template
        self._child: tuple[int, int] | None = None

    def descriptors(self) -> list[int]:
        """Return what is to be polled for :meth:`go_on`."""
        return [self.listener.fileno(), *([self._child[1]] if self._child else [])]

    def sweep(self) -> None:
        """Have removed what one that was killed has left, if there is anything.

        Raises: as :meth:`go_on`.
        """
        if any(name.startswith(".") for name in os.listdir(self._workspace.templates)):
            self._begin(self._template.sweep)

    def go_on(self, ready: Container[int]) -> None:
        """Do what is due now that these descriptors are *ready*.

        Raises:
            OSError: there are too many processes.
        """
        if self._child is not None and self._child[1] in ready:
            os.waitpid(self._child[0], 0)
            os.close(self._child[1])
            self._child = None
        if self.listener.fileno() in ready:
            try:
                connection, _address = self.listener.accept()
            except BlockingIOError:
                return
            with connection:
                is_ours = _peer_uid(connection) == os.geteuid()
            if is_ours and self._child is None:
                self._begin(self._template.prepare)

    def _begin(self, work: Work) -> None:
        nursery = os.getpid()
        pid = os.fork()
        if pid:
            self._child = pid, os.pidfd_open(pid)
            return
        status = 1
        try:
            spawn.die_with_parent(nursery)
            set_name(MAKER_NAME)
            os.umask(_UMASK)
            os.nice(_MAKER_NICE)
            work(self._workspace)
            status = 0
        except HubError as error:  # the first join will say so too
            log("warning", "no-template", error=str(error), reason=error.reason)
        except BaseException:  # noqa: BLE001 - as above
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(fileno=control.listen(path).detach())
    listener.setblocking(False)
    return listener


def _serve(
    workspace: Workspace, listener: socket.socket, trunk: int, begin: Begin, maker: Maker
) -> None:
    """Turn every connection into a process, until the pipe *trunk* ends."""
    try:
        maker.sweep()
    except OSError as error:
        log("warning", "templates-not-swept", error=str(error))
    while True:
        poll = select.poll()
        for descriptor in (listener.fileno(), trunk, *maker.descriptors()):
            poll.register(descriptor, select.POLLIN)
        ready = dict(poll.poll())
        if trunk in ready:
            return
        try:
            maker.go_on(ready)
            if listener.fileno() not in ready:
                continue
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
