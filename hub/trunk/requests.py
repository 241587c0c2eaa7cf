"""What others ask trunk for over the bus: commits, and slots' comings and goings."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from foundation import codec
from foundation.errors import HubError, Refused, Unavailable
from hub import slotname
from hub.commits import SUBJECT, decode, encode_answer
from hub.fossil_repo import OPERATOR
from hub.trunk import accounts, journal
from hub.trunk.ledger import add_users

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hub.bus import Bus
    from hub.commits import Proposal
    from hub.trunk.accounts import Accounts
    from hub.trunk.queue import Asked
    from hub.trunk.writer import Log, Outcome, Writer

AT_ONCE = 1024
"""Commits that wait for the writer; more wait to be read."""
USERS_WITHIN_S = 2.0
OUTCOME_WITHIN_S = 10.0
_LOOK_S = 0.005


class _Waiting(NamedTuple):
    slot: str
    epoch: int
    outcome: asyncio.Future[Outcome]


class Commits:
    """The commits that wait for their answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal_directory: str) -> None:
        """Answer on *loop*; the writer's journal is in *journal_directory*."""
        self._loop = loop
        self._journal = journal_directory
        self._waiting: dict[str, _Waiting] = {}
        self.writer: Writer
        """Whom to ask; set once, before the first request."""

    async def answer(self, subject: str, payload: bytes, _headers: Mapping[str, str]) -> bytes:
        """Answer a request on ``trunk.request.commit.<name>``.

        A commit that is asked for again while it is being made gets the same answer.
        """
        try:
            proposal = _proposal(subject, payload)
        except HubError as error:
            return encode_answer(error)
        waiting = self._waiting.get(proposal.id)
        if waiting is None:
            waiting = _Waiting(proposal.slot, proposal.epoch, self._loop.create_future())
            self._waiting[proposal.id] = waiting
            self.writer.submit(proposal, proposal.id)
        return encode_answer(await asyncio.shield(waiting.outcome))

    async def ended(self, slot: str, epoch: int) -> None:
        """Wait until nothing can land any more that a leaf of *slot* before *epoch* asked for.

        What arrives from now on the fence must refuse; what has passed it is in the batch that is
        on its way, ours or that of a trunk before us.

        Raises:
            Unavailable: that takes too long (``commits-in-flight``).
        """
        older = [
            one.outcome for one in self._waiting.values() if one.slot == slot and one.epoch < epoch
        ]
        left = journal.first_bytes(self._journal)
        try:
            async with asyncio.timeout(OUTCOME_WITHIN_S):
                if older:
                    await asyncio.wait(older)
                while left and journal.first_bytes(self._journal) == left:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise Unavailable(
                f"slot {slot}: a commit of the leaf before this one is still on its way to Fossil: "
                "join again; `hub status` shows what is wrong",
                reason="commits-in-flight",
            ) from None

    def answered(self, answers: Sequence[tuple[Asked, Outcome]]) -> None:
        """Hand the writer's *answers* on. Called in the writer's thread."""
        self._loop.call_soon_threadsafe(self._deliver, answers)

    def _deliver(self, answers: Sequence[tuple[Asked, Outcome]]) -> None:
        for asked, outcome in answers:
            self._waiting.pop(asked.proposal.id).outcome.set_result(outcome)


def _proposal(subject: str, payload: bytes) -> Proposal:
    """Return what is asked for.

    Raises:
        Refused: it is not to be understood, or in another's name.
    """
    try:
        proposal = decode(payload)
    except ValueError as error:
        raise Refused(
            f"trunk does not understand this commit: {error}", reason="protocol"
        ) from None
    asker = subject.removeprefix(f"{SUBJECT}.")
    if asker != proposal.slot or not (asker == OPERATOR or slotname.is_name(asker)):
        raise Refused(f"{asker[:80]!r} may not commit as {proposal.slot[:80]!r}", reason="protocol")
    return proposal


def fence(current: Callable[[], Accounts | None]) -> Callable[[Proposal], HubError | None]:
    """Return what tells whether a proposal comes from a leaf of yesterday."""

    def judge(proposal: Proposal) -> HubError | None:
        known = current()
        if known is None or proposal.slot == OPERATOR:
            return None
        try:
            known.check(proposal.slot, proposal.epoch)
        except HubError as error:
            return error
        return None

    return judge


class Users:
    """The slots that stock Fossil knows as users, so that it lets them commit."""

    def __init__(self, repository: str, log: Log) -> None:
        """Make them in the repository file *repository*."""
        self._repository = repository
        self._log = log
        self._there: set[str] = set()
        self._wanted: set[str] = set()
        self._work: asyncio.Task[None] | None = None

    async def ensure(self, slot: str) -> None:
        """See to it that *slot* is a user: for many at once one transaction, in a thread.

        A repository that is locked is not waited for long; the user is made when it is free.
        """
        if slot in self._there or not slotname.is_name(slot):
            return
        self._wanted.add(slot)
        if self._work is None:
            self._work = asyncio.create_task(self._make())
        await asyncio.wait({self._work}, timeout=USERS_WITHIN_S)

    async def _make(self) -> None:
        try:
            while some := set(self._wanted):
                await asyncio.to_thread(add_users, self._repository, some)
                self._there |= some
                self._wanted -= some
        except sqlite3.Error as error:
            self._log("warning", "user-not-made", slots=sorted(self._wanted), error=str(error))
            self._wanted.clear()
        finally:
            self._work = None


async def serve(bus: Bus, commits: Commits, known: Accounts, users: Users) -> None:
    """Answer what arrives on *bus* until it is closed.

    Raises: as :meth:`Bus.serve`.
    """

    async def slot_request(subject: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        if subject == f"{accounts.SUBJECTS[:-1]}register":
            await users.ensure(_slot_of(payload))
        return await known.answer(subject, payload, headers)

    await bus.serve(accounts.SUBJECTS, slot_request, at_once=AT_ONCE)
    await bus.serve(f"{SUBJECT}.*", commits.answer, at_once=AT_ONCE)


def _slot_of(payload: bytes) -> str:
    try:
        return str(codec.loads_object(payload).get("slot"))
    except ValueError:
        return ""
