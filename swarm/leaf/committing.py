"""A commit on its way: asked for under one id until its fate is known.

A request that was not answered may have landed. So the proposal stays, and whatever is to come
next asks for it once more, under its id: trunk lands an id once, and the base follows what landed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from foundation.errors import HubError, LeaseLost, Refused, Unavailable
from hub import commits
from hub.nats import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.commits import Landed, Proposal
    from swarm.leaf.link import Link
    from swarm.worktree import Worktree

_AGAIN_S = 0.2
_LONGEST_REQUEST = MAX_PAYLOAD_BYTES - 4096  # headers count
NOTHING = "nothing-to-commit"


class Committer:
    """Lands a worktree's changes, one commit at a time; its caller sees to that."""

    def __init__(
        self,
        worktree: Worktree,
        link: Link,
        slot: str,
        *,
        on_superseded: Callable[[LeaseLost], None],
        complain: Callable[[str, BaseException], None],
    ) -> None:
        """Ask over *link*; *on_superseded* is told that trunk knows a later leaf.

        *complain* is told what could not be written down of a commit that has landed.
        """
        self.pending: Proposal | None = None
        """What was asked for and not answered."""
        self.landed = ""
        """The last check-in of ours."""
        self.commits = 0
        """How many were made since the join."""
        self.untold: tuple[Landed, int] | None = None
        """A commit that has landed and of which its caller was not told."""
        self._worktree = worktree
        self._link = link
        self._subject = f"{commits.SUBJECT}.{slot}"
        self._on_superseded = on_superseded
        self._complain = complain

    async def commit(
        self, message: str, paths: list[bytes] | None, deadline_s: float
    ) -> tuple[Landed, int]:
        """Land what has changed; return the check-in, and how many paths were asked for.

        Raises:
            Conflicted: others have changed the same; nothing was touched.
            Refused: nothing to commit, or trunk will not have it.
            Unavailable: its fate is not known at *deadline_s* (of the loop's clock).
            LeaseLost: a later leaf has the slot.
        """
        await self.settle(deadline_s)
        untold, self.untold = self.untold, None
        try:
            proposal = self._worktree.propose(
                message, paths, id=commits.new_id(), epoch=self._link.epoch
            )
        except HubError as error:
            if untold is not None and error.reason == NOTHING:
                return untold  # whoever was told that nobody knows asks again
            raise
        self.pending = proposal
        return await self._land(deadline_s)

    async def settle(self, deadline_s: float) -> None:
        """Learn what became of the pending commit, if there is one.

        Raises:
            Unavailable: nobody can tell yet.
            LeaseLost: a later leaf has the slot.
        """
        if self.pending is None:
            return
        try:
            self.untold = await self._land(deadline_s)
        except (Unavailable, LeaseLost):
            raise
        except HubError:
            pass  # it was refused: what it was made of is still there to be committed

    async def _land(self, deadline_s: float) -> tuple[Landed, int]:
        loop = asyncio.get_running_loop()
        while True:
            proposal = self.pending
            assert proposal is not None
            request = commits.encode(proposal)
            if len(request) > _LONGEST_REQUEST:
                self.pending = None
                raise Refused(
                    f"{len(proposal.changes)} changes are too many for one commit: commit them in "
                    "parts, a few directories at a time",
                    reason="too-many-changes",
                )
            try:
                answer = await self._link.request(
                    self._subject, request, within_s=deadline_s - loop.time()
                )
            except Unavailable as error:
                raise Unavailable(
                    f"it is not known whether the commit has landed ({error}); the next commit or "
                    "status finds out, and it lands once",
                    reason="commit-unknown",
                ) from None
            try:
                landed = commits.decode_answer(answer)
            except LeaseLost as error:
                if self._link.epoch > proposal.epoch:  # we had lost the slot and have it again
                    self.pending = proposal.replace(epoch=self._link.epoch)
                    continue
                self._on_superseded(error)
                raise
            except Unavailable:
                if loop.time() + _AGAIN_S >= deadline_s:
                    raise
                await asyncio.sleep(_AGAIN_S)
                continue
            except HubError:
                self.pending = None
                raise
            self.pending = None
            try:
                self._worktree.landed(proposal, landed)
            except OSError as error:  # it is on trunk, and in memory: so the commit has succeeded
                self._complain("base", error)
            self.landed = landed.checkin
            self.commits += 1
            return landed, len(proposal.changes)
