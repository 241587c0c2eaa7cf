"""Stop the hub of a workspace."""

from __future__ import annotations

import os

from foundation.control import Connection
from foundation.errors import HubError, Refused, Unavailable
from foundation.lock import try_lock
from foundation.process import Identity, has_exited, send_signal, wait_exit
from foundation.record import Record
from foundation.workspace import Workspace

TIMEOUT_S = 30.0
_KILL_WAIT_S = 5.0


class Stopped(Record):
    """What a stop found and did."""

    root: str
    was_running: bool
    pids: tuple[int, ...] = ()
    """The processes that ran and are gone now: the supervisor and its servers."""
    killed: bool = False
    """It did not answer and was ended by force."""


def stop(root: str | None = None, *, force: bool = False, timeout_s: float = TIMEOUT_S) -> Stopped:
    """Stop the hub of the workspace around *root*; return when its processes are gone.

    Missing or stale state is no error. With a live slot it refuses unless *force*. A hub
    that does not drain within *timeout_s* is killed, through its verified identity. A call
    from the hub's own process stops nothing: end it through ``cancel`` or a signal.

    Raises:
        Refused: slots are alive (``live-slots``).
        Unavailable: the hub cannot be judged from here, or outlived SIGKILL.
    """
    workspace = Workspace.find(root)
    try:
        connection = Connection.open(workspace.socket)
    except OSError as error:
        from hub.place import explain  # noqa: PLC0415

        raise explain(error, workspace.socket) from None
    if connection is None:
        return _without_socket(workspace, force=force)
    with connection:
        return _stop_running(workspace, connection, force=force, timeout_s=timeout_s)


def _stop_running(
    workspace: Workspace, connection: Connection, *, force: bool, timeout_s: float
) -> Stopped:
    identity, pids = None, ()
    try:
        answer = connection.ask("status", timeout_s=timeout_s)
        identity = Identity.from_json(answer["identity"])
        pids = tuple(child["pid"] for child in answer["children"] if child["pid"])
    except Unavailable as error:
        if error.reason == "no-answer":
            return _by_force(workspace, force=force, why=str(error))
        identity = _recorded(workspace)  # another version, or on its way out
    except HubError:
        identity = _recorded(workspace)
    if identity is not None and identity.pid == os.getpid():
        return Stopped(root=workspace.root, was_running=False)
    if not force:
        refuse_live_slots(workspace)
    pidfd = None if identity is None else identity.open()
    try:
        try:
            connection.ask("stop", timeout_s=timeout_s)
        except HubError:
            pass  # of another version, or on its way out: its end is what counts
        ended = connection.wait_end(timeout_s)
        if pidfd is not None:
            ended = wait_exit(pidfd, timeout_s if ended else 0)
    finally:
        if pidfd is not None:
            os.close(pidfd)
    if not ended:
        return _by_force(workspace, force=force, why=f"it did not drain within {timeout_s:g} s")
    known = () if identity is None else (identity.pid,)
    _reap_own(known)
    return Stopped(root=workspace.root, was_running=True, pids=(*known, *pids))


def _without_socket(workspace: Workspace, *, force: bool) -> Stopped:
    """Nobody listens: clear what a killed hub left, or end one that lost its socket."""
    if not os.path.isdir(workspace.state):
        return Stopped(root=workspace.root, was_running=False)
    lock = try_lock(workspace.lock)
    if lock is None:
        return _by_force(workspace, force=force, why="it holds its lock but does not listen")
    try:
        from hub import discovery  # noqa: PLC0415

        discovery.remove_pids(workspace)
    finally:
        os.close(lock)
    return Stopped(root=workspace.root, was_running=False)


def _by_force(workspace: Workspace, *, force: bool, why: str) -> Stopped:
    """Kill the supervisor that hub.json names, if it is that very process; its servers follow."""
    identity = _recorded(workspace)
    pidfd = None if identity is None else identity.open()
    if identity is None or pidfd is None:
        raise Unavailable(
            f"the hub of {workspace.root} does not answer ({why}), and {workspace.discovery} does "
            "not name a process that is provably it: find who holds hub.lock with "
            f"`fuser {workspace.lock}`",
            reason="not-provable",
        )
    try:
        if identity.pid == os.getpid():
            return Stopped(root=workspace.root, was_running=False)
        if not force:
            refuse_live_slots(workspace)
        if not has_exited(pidfd):
            send_signal(pidfd, 9)
        if not wait_exit(pidfd, _KILL_WAIT_S):
            raise Unavailable(
                f"pid {identity.pid} outlived SIGKILL (is its disk hanging?)", reason="not-killed"
            )
    finally:
        os.close(pidfd)
    _reap_own((identity.pid,))
    return _without_socket(workspace, force=True).replace(
        was_running=True, pids=(identity.pid,), killed=True
    )


def _recorded(workspace: Workspace) -> Identity | None:
    from hub import discovery  # noqa: PLC0415

    record = discovery.read(workspace)
    return None if record is None else record.identity


def refuse_live_slots(workspace: Workspace) -> None:
    """Refuse to stop under a slot that works.

    Raises:
        Refused: slots are alive; it names them.
    """
    if not os.path.isdir(workspace.swarm):
        return
    from slotgc.slots import live_slots  # noqa: PLC0415

    live = live_slots(workspace.root)
    if live:
        names = ", ".join(f"{slot.name} (pid {slot.pid})" for slot in live)
        raise Refused(
            f"slots are alive: {names}; close them, or stop anyway with --force (they "
            "keep running and find the next hub)",
            reason="live-slots",
        )


def _reap_own(pids: tuple[int, ...]) -> None:
    """Reap a hub that this very process had started."""
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass
