"""A commit on its way: asked for under one id until its fate is known.

A request that was not answered may have landed. So the proposal stays, and whatever is to come
next asks for it once more, under its id: trunk lands an id once, and the base follows what landed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from foundation.errors import HubError, LeaseLost, Refused, Unavailable
from foundation.failpoint import hit
from hub import commits, spool

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.commits import Landed, Proposal
    from swarm.leaf.link import Link
    from swarm.worktree import Worktree

_AGAIN_S = 0.2
A_PATH_S = 0.004
"""So much longer a commit may take for each of its paths: Fossil alone takes 0.5 ms."""
MANY = 5000
"""So many paths take longer than whoever waits may believe."""
NOTHING = "nothing-to-commit"


class Committer:
    """Lands a worktree's changes, one commit at a time; its caller sees to that."""

    def __init__(
        self,
        worktree: Worktree,
        link: Link,
        slot: str,
        spool_directory: str,
        *,
        on_superseded: Callable[[LeaseLost], None],
        complain: Callable[[str, BaseException], None],
    ) -> None:
        """Ask over *link*; *on_superseded* is told that trunk knows a later leaf.

        What is too long for the bus goes by *spool_directory*.
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
        self._spool = spool_directory
        self._on_superseded = on_superseded
        self._complain = complain

    async def commit(
        self,
        message: str,
        paths: list[bytes] | None,
        deadline_s: float,
        announce: Callable[[int], object] = lambda _paths: None,
    ) -> tuple[Landed, int]:
        """Land what has changed; return the check-in, and how many paths were asked for.

        If it is many, *announce* is told before they are sent.

        Raises:
            Conflicted: others have changed the same; nothing was touched.
            Refused: nothing to commit, or trunk will not have it.
            Unavailable: its fate is not known at *deadline_s* (of the loop's clock), for many
                paths some time later.
            LeaseLost: a later leaf has the slot.
        """
        await self.settle(deadline_s)
        untold, self.untold = self.untold, None
        try:
            proposal = self._worktree.propose(
                message, paths, id=commits.new_id(), epoch=self._link.epoch
            )
        except HubError as error:
            if untold is None or error.reason != NOTHING:
                raise
            landed = untold[0]
            if landed.message.split() == message.split():
                return untold  # whoever was told that nobody knows asks again
            raise Refused(
                f"{error}; the commit before this, {landed.message.splitlines()[0]:.50}, has "
                f"landed as {landed.checkin[:10]}",
                reason=NOTHING,
            ) from None
        request, parcel = self._posted(proposal)
        self.pending = proposal
        if len(proposal.changes) >= MANY:
            announce(len(proposal.changes))
        return await self._land(request, parcel, deadline_s + len(proposal.changes) * A_PATH_S)

    def recall(self) -> None:
        """Learn what became of the commit that the leaf before us had asked for, if there is one.

        Trunk must know our epoch, so that nothing of that leaf can land from now on.

        Raises:
            HubError: trunk cannot be read.
        """
        former = self._worktree.recalled()
        if former is not None:
            proposal, landed = former
            self.landed = landed.checkin
            self.untold = landed, len(proposal.changes)

    async def settle(self, deadline_s: float) -> None:
        """Learn what became of the pending commit, if there is one.

        Raises:
            Unavailable: nobody can tell yet.
            LeaseLost: a later leaf has the slot.
        """
        if self.pending is None:
            return
        try:
            self.untold = await self._land(*self._posted(self.pending), deadline_s)
        except Unavailable as error:
            raise Unavailable(
                f"about the commit before this: {error}", reason=error.reason
            ) from None
        except LeaseLost:
            raise
        except HubError:
            pass  # it was refused: what it was made of is still there to be committed

    async def _land(self, message: bytes, parcel: str, deadline_s: float) -> tuple[Landed, int]:
        """Return what the pending commit, which *message* asks for, has become."""
        try:
            while True:
                landed = await self._ask(message, deadline_s)
                if landed is not None:
                    return landed
                assert self.pending is not None
                former = parcel
                message, parcel = self._posted(self.pending)
                if former != parcel:
                    spool.discard(self._spool, former)  # that of an epoch that is over
        finally:
            if self.pending is None:
                spool.discard(self._spool, parcel)

    def _posted(self, proposal: Proposal) -> tuple[bytes, str]:
        """Return the message that asks for *proposal*, and its parcel in the spool.

        Raises:
            HubError: it cannot be asked for; what it has spooled is gone.
        """
        try:
            message, parcel = spool.post(self._spool, proposal)
        except HubError:
            if self.pending is None:
                self._take_back(proposal)
            raise
        if parcel:
            hit("commit.spooled")
        return message, parcel

    def _take_back(self, proposal: Proposal) -> None:
        """Remove what a refused commit has spooled; who has spooled the same has to try again."""
        for name in proposal.spooled:
            spool.discard(self._spool, name)

    async def _ask(self, message: bytes, deadline_s: float) -> tuple[Landed, int] | None:
        """Return what has landed, None: it is to be asked for once more."""
        loop = asyncio.get_running_loop()
        proposal = self.pending
        assert proposal is not None
        try:
            answer = await self._link.request(
                self._subject, message, within_s=deadline_s - loop.time()
            )
        except Unavailable as error:
            away = self._link.away
            why = f"the hub is away ({away}); `bones up` starts one" if away else str(error)
            raise Unavailable(
                f"not known to have landed: {why}. The leaf keeps the commit and asks for it until "
                "it is known; it lands once. `bones swarm status` tells, and so does the same "
                "commit again",
                reason="commit-unknown",
            ) from None
        try:
            landed = spool.answered(self._spool, answer)
        except LeaseLost as error:
            if self._link.epoch > proposal.epoch:  # we had lost the slot and have it again
                self.pending = proposal.replace(epoch=self._link.epoch)
                return None
            self._on_superseded(error)
            raise
        except Unavailable:
            if loop.time() + _AGAIN_S >= deadline_s:
                raise
            await asyncio.sleep(_AGAIN_S)
            return None
        except HubError:
            self.pending = None
            self._take_back(proposal)
            raise
        self.pending = None
        hit("commit.answered")
        try:
            self._worktree.landed(proposal, landed)
        except OSError as error:  # it is on trunk, and in memory: so the commit has succeeded
            self._complain("base", error)
        self.landed = landed.checkin
        self.commits += 1
        return landed, len(proposal.changes)
