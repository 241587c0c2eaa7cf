"""Stop the hub of a workspace."""

from __future__ import annotations

import os
import time

from foundation.errors import HubError, Refused, Unavailable
from foundation.failpoint import hit
from foundation.lock import try_lock
from foundation.process import (
    Identity,
    children_of,
    holds_open,
    send_signal,
    wait_exit,
)
from foundation.record import Record
from foundation.workspace import Workspace
from hub.contact import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.control import Connection

TIMEOUT_S = 30.0
_KILL_WAIT_S = 5.0
_LISTENS_WITHIN_S = 1.0
"""How long a held lock may be without a listener before it counts as a hub that lost its socket."""
_RETRY_S = 0.002


class Stopped(Record):
    """What a stop found and did."""

    root: str
    was_running: bool
    pids: tuple[int, ...] = ()
    """The processes that ran and are gone now: the supervisor and its servers."""
    killed: bool = False
    """It did not answer and was ended by force."""


def stop(
    root: str | os.PathLike[str] | None = None, *, force: bool = False, timeout_s: float = TIMEOUT_S
) -> Stopped:
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
        return _stop(workspace, force=force, timeout_s=timeout_s)
    except OSError as error:
        from hub.place import explain  # noqa: PLC0415

        raise explain(error, workspace.state) from None


def _stop(workspace: Workspace, *, force: bool, timeout_s: float) -> Stopped:
    deadline_s = time.monotonic() + _LISTENS_WITHIN_S
    while True:
        connection = connect(workspace)
        if connection is not None:
            with connection:
                return _stop_running(workspace, connection, force=force, timeout_s=timeout_s)
        cleared = _clear(workspace)
        if cleared is not None:
            return cleared
        if time.monotonic() > deadline_s:
            return _by_force(
                workspace,
                None,
                force=force,
                grace_s=timeout_s,
                why="it holds its lock but does not listen",
            )
        time.sleep(_RETRY_S)  # one that starts listens in a moment, another stop lets go


def _stop_running(
    workspace: Workspace, connection: Connection, *, force: bool, timeout_s: float
) -> Stopped:
    identity, pids = None, ()
    try:
        answer = connection.ask("status", timeout_s=timeout_s)
        identity = Identity.from_json(answer["identity"], init=True)
        pids = tuple(child["pid"] for child in answer["children"] if child["pid"])
    except Unavailable as error:
        if error.reason == "no-answer":
            return _by_force(workspace, None, force=force, grace_s=0, why=str(error))
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
        hit("stop.asked")
        ended = connection.wait_end(timeout_s)
        if pidfd is not None:
            ended = wait_exit(pidfd, timeout_s if ended else 0)
    finally:
        if pidfd is not None:
            os.close(pidfd)
    if not ended:
        why = f"it did not drain within {timeout_s:g} s"
        return _by_force(workspace, identity, force=force, grace_s=0, why=why)
    known = () if identity is None else (identity.pid,)
    _reap_own(known)
    return Stopped(root=workspace.root, was_running=True, pids=(*known, *pids))


def _clear(workspace: Workspace) -> Stopped | None:
    """Clear what a killed hub left; None if somebody holds the lock."""
    if not os.path.isdir(workspace.state):
        return Stopped(root=workspace.root, was_running=False)
    lock = try_lock(workspace.lock)
    if lock is None:
        return None
    try:
        from hub import discovery  # noqa: PLC0415

        if discovery.remove_pids(workspace):
            from hub.orphans import end_orphans  # noqa: PLC0415

            hit("stop.pids-cleared")
            end_orphans(workspace)
    finally:
        os.close(lock)
    return Stopped(root=workspace.root, was_running=False)


def _by_force(
    workspace: Workspace, answered: Identity | None, *, force: bool, grace_s: float, why: str
) -> Stopped:
    """End the supervisor and see its children gone; SIGTERM and *grace_s* first, if there is any.

    Whom: who *answered* on our socket, else whom hub.json names; if that very process lives and
    has this workspace's hub.lock open, for anybody can be named, and anybody can answer.
    """
    identity = answered or _recorded(workspace)
    pidfd = None if identity is None else identity.open()
    if identity is None or pidfd is None:
        raise _not_provable(workspace, why)
    children: dict[int, int] = {}
    try:
        if identity.pid == os.getpid():
            return Stopped(root=workspace.root, was_running=False)
        if not holds_open(identity.pid, workspace.lock):
            raise _not_provable(workspace, why)
        if not force:
            refuse_live_slots(workspace)
        children = children_of(identity.pid)
        obeyed = grace_s > 0 and send_signal(pidfd, 15) and wait_exit(pidfd, grace_s)
        if not obeyed:
            send_signal(pidfd, 9)
        for pid, fd in {identity.pid: pidfd, **children}.items():
            if not wait_exit(fd, _KILL_WAIT_S):
                raise Unavailable(
                    f"pid {pid} outlived SIGKILL (is its disk hanging?)", reason="not-killed"
                )
    finally:
        for fd in (pidfd, *children.values()):
            os.close(fd)
    _reap_own((identity.pid,))
    _clear(workspace)
    return Stopped(
        root=workspace.root,
        was_running=True,
        pids=(identity.pid, *children),
        killed=not obeyed,
    )


def _not_provable(workspace: Workspace, why: str) -> Unavailable:
    return Unavailable(
        f"the hub of {workspace.root} does not answer ({why}), and {workspace.discovery} does "
        "not name a process that is provably it: find who holds hub.lock with "
        f"`fuser {workspace.lock}`",
        reason="not-provable",
    )


def _recorded(workspace: Workspace) -> Identity | None:
    """Return whom hub.json names, unless it came with a copy of another directory."""
    from hub import discovery  # noqa: PLC0415

    record = discovery.read(workspace)
    return record.identity if record is not None and record.is_of(workspace) else None


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
            f"slots are alive: {names}; `bones down` ends them too and rescues their work, --force "
            "stops the hub alone (they keep running and find the next one)",
            reason="live-slots",
        )


def _reap_own(pids: tuple[int, ...]) -> None:
    """Reap a hub that this very process had started."""
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass
