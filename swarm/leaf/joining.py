"""Taking a slot: its lease first, then its leaf.lock, from whoever had it before.

========================================  ==================================================
found                                     so
========================================  ==================================================
the lease is held, its leaf answers       that leaf's answer is ours: the slot is joined
the lease is held, nobody answers         wait for the one or for the other to end
it has ended, a leaf stays in its guard   it froze as it renewed: end it
the lease is ours, leaf.lock is free      take it: the slot is new, or its leaf is dead
the lease is ours, a leaf has leaf.lock   it hangs: revoke its key, end it, take leaf.lock
the lease is ours, another has leaf.lock  wait a moment for who merely looks, then refuse
========================================  ==================================================

The lease lets one joiner through at a time and gives the epoch by which trunk tells us from whoever
was before us. What keeps two leaves from the same files is leaf.lock, which its holder loses by
its death alone: so a leaf that was frozen never wakes up beside its successor (ADR 0013).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.control import LINE_LIMIT, encode
from foundation.errors import HubError, OwnedByAnother, Refused, Unavailable
from foundation.failpoint import hit
from hub.wording import size

# Not by the package's front, which would load them when they are first needed: in every leaf.
from owner import joining, watching
from owner.guard import holder_of
from slotgc import ending
from slotgc.hold import Claim
from slotgc.leaf import LIVE, Leaf, is_own_directory, look, slot_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from foundation.workspace import Workspace
    from owner.holder import Holder
    from owner.ownership import Owner

    Note = Callable[[str], None]

LEASE_S = 15.0
LEASE_VARIABLE = "BONES_LEASE_S"
"""Another time than :data:`LEASE_S`, for tests and for machines that stand still for long."""

NEW_SLOT_BYTES = 2**30
"""With less free on the disk no new slot is made; those there are go on."""
_PROBES_LAST_S = 2.0
_AGAIN_S = 0.02
_QUIET_S = 0.5
"""A leaf that is being made answers soon; only after this is anybody told that we wait."""


def lease_path(workspace: Workspace, name: str) -> str:
    """Return where the lease of slot *name* is recorded."""
    return f"{workspace.leases}/slot-{name}"


def join_lease(workspace: Workspace, name: str, task: str) -> Owner:
    """Become the owner of the slot's lease, or a follower of who is.

    Raises: as :func:`owner.join`.
    """
    ttl_s = float(os.environ.get(LEASE_VARIABLE, LEASE_S))
    meta = {"slot": name, "task": task[:1000]}
    return joining.join(lease_path(workspace, name), ttl_s=ttl_s, meta=meta)


async def acquire(
    workspace: Workspace, name: str, task: str, *, within_s: float, note: Note
) -> Owner | dict[str, Any]:
    """Return the slot's lease, ours; or what its leaf says, if one serves it already.

    *note* is told, in words, what is waited for.

    Raises:
        Unavailable: whoever has the lease did not answer, or let go, in time (``leaf-hangs``).
        HubError: as :func:`owner.join`.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    noting = None
    try:
        while True:
            try:
                mine = join_lease(workspace, name, task)
            except Unavailable as error:
                if error.reason != "guard-busy" or loop.time() >= deadline_s:
                    raise
                await _end_in_guard(workspace, name, note)
                continue
            if mine.is_owner:
                hit("join.leased")
                return mine
            if noting is None:
                words = f"pid {mine.holder.pid} has slot {name} and does not answer yet; waiting"
                noting = loop.call_later(_QUIET_S, note, words)
            answer = await _answer_or_change(workspace, name, mine.holder, deadline_s)
            if answer is not None:
                return answer
    finally:
        if noting is not None:
            noting.cancel()


async def _end_in_guard(workspace: Workspace, name: str, note: Note) -> None:
    """End the slot's leaf if it is who keeps us out of its lease, which has ended.

    Without an epoch of ours its key cannot be revoked first. It need not: until somebody gets into
    the guard nobody has its slot but itself.
    """
    path = lease_path(workspace, name)
    leaf = look(workspace, name)
    if leaf.state != LIVE or holder_of(f"{path}.lock") != leaf.pid:
        return
    if watching.inspect(path) is None:  # else it has come to itself meanwhile
        note(f"the leaf of slot {name}, pid {leaf.pid}, hangs in its lease: it is ended")
        await asyncio.to_thread(ending.end, leaf.pid, workspace_dir=workspace.root)


async def _answer_or_change(
    workspace: Workspace, name: str, holder: Holder, deadline_s: float
) -> dict[str, Any] | None:
    """Return what the leaf of *holder* answers, None once another has the lease or nobody."""
    loop = asyncio.get_running_loop()
    asking = loop.create_task(_ask_until_answered(slot_directory(workspace, name)))
    watching = loop.create_task(_until_changed(lease_path(workspace, name), holder))
    try:
        await asyncio.wait(
            {asking, watching},
            timeout=deadline_s - loop.time(),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if asking.done():
            return asking.result()
        if watching.done():
            watching.result()
            return None
        raise Unavailable(
            f"slot {name} has a leaf, pid {holder.pid}, that does not answer: if it is stopped, "
            f"`kill -CONT {holder.pid}`; if it hangs, end it or try again when its lease of "
            f"{holder.ttl_s:g} s has ended",
            reason="leaf-hangs",
        )
    finally:
        for task in (asking, watching):
            task.cancel()
        await asyncio.wait({asking, watching})


async def _until_changed(path: str, holder: Holder) -> None:
    with watching.watch(path) as watch:
        async for now in watch:
            if now is None or now.instance_id != holder.instance_id:
                return


async def _ask_until_answered(directory: str) -> dict[str, Any]:
    """Return what the leaf that serves *directory* says to a join, however long that takes."""
    while True:
        try:
            answer = await _ask(directory)
        except (OSError, ValueError):
            answer = None
        if answer is not None:
            return answer
        await asyncio.sleep(_AGAIN_S)


async def _ask(directory: str) -> dict[str, Any] | None:
    # A socket's address holds 107 bytes; by way of the directory's descriptor any depth fits.
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        path = f"/proc/self/fd/{fd}/leaf.sock"
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_LIMIT)
    finally:
        os.close(fd)
    try:
        writer.write(encode({"verb": "join"}))
        answer = codec.loads_object(await reader.readline())
        data = answer.get("data")
        return data if isinstance(data, dict) else None  # it ends, or has lost the slot
    finally:
        writer.close()


class Taken:
    """A slot that is ours: its directory is there and its leaf.lock held."""

    def __init__(self, directory: str, lock: int, *, was_there: bool) -> None:
        """Hold *lock*; *was_there*: the directory was not made by us."""
        self.directory = directory
        self.lock = lock
        """Held for life, and never inherited by what an agent starts."""
        self.was_there = was_there


async def take(
    workspace: Workspace, name: str, *, revoke: Callable[[], Awaitable[None]], note: Note
) -> Taken:
    """Take leaf.lock of slot *name*, whose lease is ours; a leaf that hangs is ended.

    *revoke* has its key revoked, before it is ended: from then on nothing that it sends counts.

    Raises:
        Refused: something else than a slot stands there (``slot-foreign``).
        OwnedByAnother: whoever has it cannot be ended (``leaf-held``).
        Unavailable: swarm.lock was not to be had.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _PROBES_LAST_S
    while True:
        taken, found = _claim(workspace, name)
        if taken is not None:
            return taken
        if found.state == LIVE:
            note(f"the leaf of slot {name}, pid {found.pid}, hangs: it is ended")
            await revoke()
            hit("join.revoked")
            done = await asyncio.to_thread(ending.end, found.pid, workspace_dir=workspace.root)
            if not done.gone:
                raise OwnedByAnother(
                    f"slot {name} has a leaf that cannot be ended: {done.reason}",
                    reason="leaf-held",
                )
        elif loop.time() > deadline_s:
            pid = holder_of(f"{slot_directory(workspace, name)}/leaf.lock")
            who = f"pid {pid}" if pid else "a process that cannot be seen from here"
            raise OwnedByAnother(
                f"{who} holds leaf.lock of slot {name} ({found.reason})", reason="leaf-held"
            )
        await asyncio.sleep(_AGAIN_S)


def require_room(directory: str) -> None:
    """Refuse a new slot where little room is left.

    Raises:
        Unavailable: the disk of *directory* is all but full (``disk-full``).
    """
    room = os.statvfs(directory)
    free_bytes = room.f_bavail * room.f_frsize
    if free_bytes < NEW_SLOT_BYTES:
        raise Unavailable(
            f"{size(free_bytes)} are left on the disk of {directory}, and a new slot needs "
            f"{size(NEW_SLOT_BYTES)}: free some, for example by `bones down` and removing old "
            "rescues",
            reason="disk-full",
        )


def _claim(workspace: Workspace, name: str) -> tuple[Taken | None, Leaf]:
    """Take the slot if nobody has it; return what was found otherwise."""
    directory = slot_directory(workspace, name)
    with Claim(workspace, name) as claim:
        was_there = os.path.lexists(directory)
        if not was_there:
            require_room(workspace.bones)
            os.mkdir(directory, 0o700)
            hit("join.made")
        elif not is_own_directory(directory):
            raise Refused(
                f"{directory} is not a directory of our own: move it away", reason="slot-foreign"
            )
        try:
            return Taken(directory, claim.take(), was_there=was_there), claim.leaf
        except Unavailable:
            return None, claim.leaf
        except OSError as error:
            raise HubError(f"{directory}/leaf.lock: {error}", reason="slot") from None
