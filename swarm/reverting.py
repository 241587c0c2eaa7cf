"""Undoing a check-in: a person's own request to trunk, by way of the bus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from foundation.errors import HubError, NotRunning, Refused, Unavailable
from hub import commits, spool
from hub.bus import connect
from hub.events import address
from hub.link import PER_TRY_S
from slotgc import treepath
from swarm import history

if TYPE_CHECKING:
    from foundation.workspace import Workspace
    from hub.commits import Landed

WITHIN_S = 30.0
"""How long trunk may take; it may be just starting."""
A_PATH_S = 0.004
"""So much longer for each path that is undone."""
_SHOWN = 5


class RevertRefused(Refused):
    """Later check-ins have changed what a revert would undo; ``conflicts`` says where."""

    def __init__(self, message: str, conflicts: tuple[commits.Conflict, ...]) -> None:
        """Say where in *message*."""
        super().__init__(message, reason="conflict")
        self.conflicts = conflicts


def revert(workspace: Workspace, name: str, message: str = "") -> Landed:
    """Land a check-in that undoes check-in *name*; what others changed since stays.

    ``new`` is False where trunk holds nothing of it any more. Asked again after an answer that
    never came it undoes nothing twice: what is undone already is equal to what is asked for.

    Raises:
        RevertRefused: others have changed the same lines since; nothing was touched.
        Refused: there is no such check-in on trunk, or it cannot be undone.
        NotRunning: no hub runs.
        Unavailable: trunk did not answer in time; it may have landed.
    """
    with history.open_repository(workspace.repository) as repository:
        proposal = history.undoing(repository, name, message)
        short = history.find(repository, name).hash[: history.SHORT]
    request, parcel = spool.post(workspace.spool, proposal)
    within_s = WITHIN_S + len(proposal.changes) * A_PATH_S
    try:
        return asyncio.run(_ask(workspace, proposal.slot, request, within_s))
    except commits.Conflicted as error:
        raise _refused(short, error.conflicts, error.left_out) from None
    except Unavailable as error:
        raise Unavailable(
            f"{error}; it may have been undone all the same: `bones log`, and the same command "
            "again does no harm",
            reason=error.reason,
        ) from None
    finally:
        spool.discard(workspace.spool, parcel)


async def _ask(workspace: Workspace, slot: str, request: bytes, within_s: float) -> Landed:
    url = await asyncio.to_thread(address, workspace)
    try:
        bus = await connect(workspace, url=url)
    except NotRunning as error:
        raise Unavailable(str(error), reason="bus-down") from None
    async with bus:
        # A trunk that was killed with the question loses no connection of ours; by its id a commit
        # is made once, however often it is asked for.
        answer = await bus.request(
            f"{commits.SUBJECT}.{slot}", request, within_s=within_s, per_try_s=PER_TRY_S
        )
    try:
        return spool.answered(workspace.spool, answer.data)
    except ValueError as error:
        raise HubError(
            f"trunk's answer is not understood ({error}): `hub restart` brings up a hub of this "
            "version",
            reason="protocol",
        ) from None


def _refused(short: str, conflicts: tuple[commits.Conflict, ...], left_out: int) -> RevertRefused:
    shown = "; ".join(
        f"{treepath.show(one.path)}: {one.reason} ({one.theirs_slot or 'trunk'}, "
        f"{one.theirs_checkin[: history.SHORT]})"
        for one in conflicts[:_SHOWN]
    )
    others = max(0, len(conflicts) - _SHOWN) + left_out
    if others:
        shown += f" and {others} more"
    later = [one.theirs_checkin for one in conflicts if one.theirs_checkin]
    first = f"`bones revert {later[0][: history.SHORT]}` first, or " if later else ""
    return RevertRefused(
        f"{short} cannot be undone by itself, for others have changed the same since: {shown}. "
        f"Nothing was touched: {first}undo it by hand in a slot (`bones diff {short}` shows it)",
        conflicts,
    )
