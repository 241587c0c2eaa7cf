"""End what serves a workspace that is gone, and what a dead hub's servers left.

A living hub ends by itself within seconds when its workspace goes; this is for one that hangs,
and for orphans. Only this user's processes, only what is provably a program of ours, and only
where the workspace is provably gone, moved or trashed: a doubt keeps a process alive.
"""

from __future__ import annotations

import os
import stat

from foundation.errors import HubError
from foundation.lock import try_lock
from foundation.process import has_exited, terminate_all
from foundation.record import Record
from foundation.workspace import Workspace
from hub import registry, whereabouts
from hub.census import census
from hub.everywhere import is_below
from hub.hold import Hold
from hub.roles import SERVERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from hub.census import Census, Member

    Kind = Literal["hub", "orphans", "leaves"]

GRACE_S = 6.0
"""A hub gives its servers 5 s to drain (:data:`hub.child.DRAIN_WITHIN_S`)."""
_KILL_WAIT_S = 5.0
_PASSES = 3
"""What a hub's servers forked while it was being ended is found by looking again."""


class Condemned(Record):
    """Processes that belong together and have lost their workspace, or their hub."""

    root: str
    """The workspace that they were started for."""
    kind: Kind
    """``hub``: one with all below it; ``orphans``: servers without a hub; ``leaves``."""
    reason: str
    members: tuple[Member, ...]
    """The hub first."""
    in_place: bool = False
    """The workspace is there: they may be ended only under its hub.lock."""


class Spared(Record):
    """A process that is named and left alone."""

    root: str
    pid: int
    role: str
    name: str
    reason: str


class Plan(Record):
    """What a reap would do."""

    condemned: tuple[Condemned, ...]
    spared: tuple[Spared, ...]


class Process(Record):
    """A process that a reap ended, or would."""

    pid: int
    role: str
    evidence: str


class Reaped(Record):
    """What became of one of :class:`Condemned`, or would (then nothing is ``gone``)."""

    root: str
    kind: Kind
    reason: str
    processes: tuple[Process, ...]
    gone: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    why: str = ""
    """Why there are survivors."""


def plan(found: Census, below: str | None = None) -> Plan:
    """Say what of *found* is to be ended, and why the rest that is in doubt is not.

    With *below* only for workspaces at that directory or below it. Changes nothing.
    """
    condemned: list[Condemned] = []
    spared: list[Spared] = []
    members = [member for member in found.members if is_below(member.root, below)]
    for hub in members:
        if hub.role != "hub":
            continue
        place = whereabouts.find(hub)
        if place.kind in whereabouts.LEFT:
            beneath = [m for m in found.members if m.role in SERVERS and found.hub_above(m) is hub]
            condemned.append(_condemned("hub", place.reason, [hub, *beneath]))
        elif place.kind == "unknown":
            spared.append(_spared(hub, place.reason))
    occupied = {hub.root for hub in found.hubs()}
    for member in members:
        if member.role == "hub" or (member.role in SERVERS and found.hub_above(member)):
            continue
        place = whereabouts.find(member)
        if place.kind == "unknown":
            spared.append(_spared(member, place.reason))
        elif member.role in SERVERS:
            if place.kind != "there":
                condemned.append(_condemned("orphans", f"no hub above; {place.reason}", [member]))
            elif member.root in occupied:
                reason = "it is not the servers' of the hub that runs there: `hub restart` ends it"
                spared.append(_spared(member, reason))
            else:
                one = _condemned("orphans", "no hub above", [member])
                condemned.append(one.replace(in_place=True))
        elif place.kind in whereabouts.LEFT:
            if member.role == "leaf":
                condemned.append(_condemned("leaves", place.reason, [member]))
            else:
                spared.append(_spared(member, f"{place.reason}; it is no program of ours"))
    return Plan(condemned=tuple(_together(condemned)), spared=tuple(spared))


def _condemned(kind: Kind, reason: str, members: list[Member]) -> Condemned:
    return Condemned(root=members[0].root, kind=kind, reason=reason, members=tuple(members))


def _spared(member: Member, reason: str) -> Spared:
    return Spared(
        root=member.root, pid=member.pid, role=member.role, name=member.name, reason=reason
    )


def _together(condemned: list[Condemned]) -> Iterable[Condemned]:
    """Put together what has everything but the members in common."""
    joined: dict[tuple[str, str, str], Condemned] = {}
    for one in condemned:
        key = (one.root, one.kind, str(one.members[0].pid) if one.kind == "hub" else one.reason)
        before = joined.get(key)
        joined[key] = (
            one if before is None else before.replace(members=(*before.members, *one.members))
        )
    return joined.values()


def would(found: Plan) -> tuple[Reaped, ...]:
    """Return *found* as what a reap would report, with nothing ended."""
    return tuple(_report(one) for one in found.condemned)


def _report(one: Condemned) -> Reaped:
    processes = tuple(Process(pid=m.pid, role=m.role, evidence=m.evidence) for m in one.members)
    return Reaped(root=one.root, kind=one.kind, reason=one.reason, processes=processes)


def reap(
    below: str | None = None, *, only: Iterable[int] | None = None, grace_s: float = GRACE_S
) -> tuple[Reaped, ...]:
    """End what is to be ended; return what became of it.

    Everything is looked at anew and judged by what is so now. With *only*, the pids that
    somebody has agreed to, nothing else is ended but what they leave. A supervisor gets
    SIGTERM and, should it be stopped, SIGCONT, so that it drains; after *grace_s* SIGKILL.

    Raises:
        Unavailable: more processes than this one may hold descriptors.
    """
    agreed = None if only is None else set(only)
    done: list[Reaped] = []
    for _pass in range(_PASSES):
        with census() as found:
            todo = [
                one
                for one in plan(found, below).condemned
                if agreed is None
                or any(member.pid in agreed for member in one.members)
                or one.root in {before.root for before in done}
            ]
            todo = [one for one in todo if not _has_failed(one, done)]
            if not todo:
                break
            done += _end(todo, grace_s)
    return tuple(done)


def _has_failed(one: Condemned, done: list[Reaped]) -> bool:
    survivors = {pid for before in done for pid in before.survivors}
    return any(member.pid in survivors for member in one.members)


def _end(condemned: list[Condemned], grace_s: float) -> list[Reaped]:
    """End all of *condemned*; but for those in place side by side, with one grace for all."""
    done = [_end_in_place(one) for one in condemned if one.in_place]
    todo = [one for one in condemned if not one.in_place]
    members = [member for one in todo for member in one.members]
    asked = [m.pidfd for m in members if m.role in ("hub", "leaf")]
    terminate_all(asked, grace_s=grace_s, kill_wait_s=_KILL_WAIT_S)
    # The servers of one that obeyed have ended with it; the others', and orphans, do at once.
    terminate_all([m.pidfd for m in members], grace_s=0, kill_wait_s=_KILL_WAIT_S)
    return done + [_ended(one) for one in todo]


def _end_in_place(one: Condemned) -> Reaped:
    """End servers whose workspace is there, under a hub's locks, held no longer than that takes.

    Meanwhile a start there waits, and a stop looks for a hub that has lost its socket.
    """
    hold = _hold(one.root)
    if hold is None:
        left = tuple(member.pid for member in one.members)
        return _report(one).replace(survivors=left, why="a hub starts, stops or runs there")
    try:
        terminate_all([m.pidfd for m in one.members], grace_s=0, kill_wait_s=_KILL_WAIT_S)
    finally:
        hold.release()
    return _ended(one)


def _ended(one: Condemned) -> Reaped:
    gone = tuple(member.pid for member in one.members if has_exited(member.pidfd))
    left = tuple(member.pid for member in one.members if member.pid not in gone)
    if one.kind == "hub" and one.members[0].pid in gone:
        _withdraw(one.members[0])
    why = "it outlived SIGKILL (is its disk hanging?)" if left else ""
    return _report(one).replace(gone=gone, survivors=left, why=why)


def _withdraw(hub: Member) -> None:
    """Remove the registry's entry of *hub*, which a killed one leaves."""
    try:
        for entry in registry.entries()[0]:
            if entry.identity == hub.identity:
                registry.withdraw(entry)
    except (OSError, HubError):
        pass  # the next listing does it


def _hold(root: str) -> Hold | None:
    """Take the locks of a hub in *root*; None if somebody has one, or it is not ours to take."""
    workspace = Workspace(root)
    try:
        status = os.lstat(workspace.state)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return None
        lock = try_lock(workspace.lock)
    except OSError:
        return None
    if lock is None:
        return None
    hold = Hold(workspace, lock)
    try:
        hold.take_directory()
    except (OSError, HubError):  # hub.lock was taken away from a hub that lives
        hold.release()
        return None
    return hold
