"""What others ask trunk for over the bus: commits, slots and VM clusters that come and go."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from foundation import codec
from foundation.errors import HubError, Refused, Unavailable
from foundation.failpoint import hit
from hub import slotname, spool
from hub.commits import SUBJECT, Landed, decode, encode_answer, request_parcel
from hub.fossil_repo import OPERATOR
from hub.trunk import accounts, journal
from hub.trunk.ledger import add_users

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from foundation.workspace import Workspace
    from hub.bus import Bus
    from hub.commits import Parcel, Proposal
    from hub.trunk.accounts import Accounts
    from hub.trunk.guests import Guests
    from hub.trunk.queue import Asked
    from hub.trunk.writer import Log, Outcome, Writer

    T = TypeVar("T")

AT_ONCE = 1024
"""Commits that wait for the writer; more wait to be read."""
USERS_WITHIN_S = 2.0
OUTCOME_WITHIN_S = 10.0
_LOOK_S = 0.005
_SHORT = 100
"""So many files that were merged fit into a message, whatever they are called."""


class _Waiting(NamedTuple):
    slot: str
    epoch: int
    outcome: asyncio.Future[Outcome]


class Commits:
    """The commits that wait for their answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workspace: Workspace) -> None:
        """Answer on *loop* what is asked of the trunk of *workspace*."""
        self._loop = loop
        self._journal = workspace.journal
        self._spool = workspace.spool
        self._waiting: dict[str, _Waiting] = {}
        self._parcels: dict[str, asyncio.Task[Outcome]] = {}
        self._one_parcel = asyncio.Semaphore()  # each may take 50 MB of memory
        self.writer: Writer
        """Whom to ask; set once, before the first request."""

    async def answer(self, subject: str, payload: bytes, _headers: Mapping[str, str]) -> bytes:
        """Answer a request on ``trunk.request.commit.<name>``.

        A commit that is asked for again while it is being made gets the same answer.
        """
        try:
            parcel = _understood(request_parcel, payload)
            if parcel is None:
                outcome = await self._asked(_proposal(subject, payload))
            else:
                outcome = await self._asked_by_parcel(subject, parcel)
            if _may_be_long(outcome):
                return await asyncio.to_thread(spool.post_answer, self._spool, outcome)
        except HubError as error:
            return encode_answer(error)
        return encode_answer(outcome)

    async def _asked(self, proposal: Proposal, *, in_thread: bool = False) -> Outcome:
        waiting = self._waiting.get(proposal.id)
        if waiting is None:
            waiting = _Waiting(proposal.slot, proposal.epoch, self._loop.create_future())
            self._waiting[proposal.id] = waiting
            try:
                if in_thread:  # it looks at every content that is spooled
                    await asyncio.to_thread(self.writer.submit, proposal, proposal.id)
                else:
                    self.writer.submit(proposal, proposal.id)
            except BaseException:
                self._waiting.pop(proposal.id, None)  # nobody will answer it
                raise
        return await asyncio.shield(waiting.outcome)

    async def _asked_by_parcel(self, subject: str, parcel: Parcel) -> Outcome:
        """Return what becomes of a commit in the spool, opened once however often it is asked for.

        Raises:
            Refused: it is asked for in another's name, or is another.
            Unavailable: it is not there.
        """
        _check_asker(subject, parcel.slot)
        asked = self._parcels.get(parcel.id)
        if asked is None:
            asked = self._parcels[parcel.id] = self._loop.create_task(self._open(parcel))
            asked.add_done_callback(lambda _task: self._parcels.pop(parcel.id))
        return await asyncio.shield(asked)

    async def _open(self, parcel: Parcel) -> Outcome:
        async with self._one_parcel:
            try:
                proposal = await asyncio.to_thread(spool.opened, self._spool, parcel)
            except HubError as error:
                return error
            hit("trunk.parcel-opened")
            return await self._asked(proposal, in_thread=True)

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
    proposal = _understood(decode, payload)
    _check_asker(subject, proposal.slot)
    return proposal


def _understood(read: Callable[[bytes], T], payload: bytes) -> T:
    try:
        return read(payload)
    except ValueError as error:
        raise Refused(
            f"trunk does not understand this commit: {error}", reason="protocol"
        ) from None


def _check_asker(subject: str, slot: str) -> None:
    asker = subject.removeprefix(f"{SUBJECT}.")
    if asker != slot or not (asker == OPERATOR or slotname.is_name(asker)):
        raise Refused(f"{asker[:80]!r} may not commit as {slot[:80]!r}", reason="protocol")


def _may_be_long(outcome: Outcome) -> bool:
    return isinstance(outcome, Landed) and len(outcome.merged) > _SHORT


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


async def serve(bus: Bus, commits: Commits, known: Accounts, users: Users, guests: Guests) -> None:
    """Answer what arrives on *bus* until it is closed.

    Raises: as :meth:`Bus.serve`.
    """

    async def slot_request(subject: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        if subject == f"{accounts.SUBJECTS[:-1]}register":
            await users.ensure(_slot_of(payload))
        return await known.answer(subject, payload, headers)

    async def cluster_request(subject: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        answer = await known.answer(subject, payload, headers)
        granted = codec.loads_object(answer)
        if "error" in granted:
            return answer
        return codec.dumps({**granted, "fossil": await guests.settle(known, payload)}).encode()

    await bus.serve(accounts.SUBJECTS, slot_request, at_once=AT_ONCE)
    await bus.serve(accounts.CLUSTER_SUBJECTS, cluster_request)
    await bus.serve(f"{SUBJECT}.*", commits.answer, at_once=AT_ONCE)


def _slot_of(payload: bytes) -> str:
    try:
        return str(codec.loads_object(payload).get("slot"))
    except ValueError:
        return ""
