"""The single writer: what slots ask for, planned on the tip, pushed in batches, answered when safe.

One thread, because every step of it blocks: SQLite, the push, the sync. A turn takes all that
waits, catches up with what others committed, plans, writes the journal, pushes once, looks whether
the check-ins stand in the repository, makes that durable, and answers. Whatever fails in between,
a commit is answered only for what stands there (ADR 0011).
"""

from __future__ import annotations

import os
import sqlite3
import time
import traceback
from typing import NamedTuple

from foundation.errors import HubError, Refused, Unavailable
from foundation.failpoint import hit
from hub import place, spool
from hub.commits import Landed
from hub.trunk import baseline
from hub.trunk.ahead import Ahead
from hub.trunk.head import Arrival, Head
from hub.trunk.journal import Batch, Journal
from hub.trunk.planning import Plan, Planned, Unacceptable
from hub.trunk.pushing import NotStoredError, Server
from hub.trunk.queue import ATTEMPTS, BATCH_BYTES, Asked, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from foundation.workspace import Workspace
    from hub.commits import Conflict, Proposal
    from hub.trunk.gate import Gate

    Outcome = Landed | tuple[Conflict, ...] | HubError
    Log = Callable[..., None]

ALONE_BYTES = 4 << 20
"""A content larger than this is pushed by itself, before the check-in that names it."""
COMMIT_BYTES = 1 << 30
"""The contents of one commit at most."""
UNSPOOLED = 500
"""So many contents are removed from the spool at once; the others when nobody waits."""
LEAST_FREE_BYTES = 64 << 20
"""Below this no commit is taken: Fossil, JetStream and everybody's worktrees share the disk."""

IDLE_S = 1.0
"""How often to look for stock commits when nobody asks for anything."""
_WAIT_S, _WAIT_AT_MOST_S = 0.05, 5.0


class Reports(NamedTuple):
    """Whom the writer tells, in its own thread; none of them may block."""

    log: Log
    """``log(level, event, **fields)``."""
    opened: Callable[[], None]
    """Commits are taken, or taken again; what arrived before may not have been told."""
    answered: Callable[[Sequence[tuple[Asked, Outcome]]], None]
    """What became of a batch; each that was asked for is answered once."""
    arrived: Callable[[Sequence[Arrival]], None]
    """Check-ins that have become the tip, in order; at times none."""
    forked: Callable[[Sequence[str]], None]
    """The leaves of trunk when they are more than one, whenever they change."""


class _BugError(Exception):
    """Planning one of the commits met a bug; the tip may be half way to it."""

    def __init__(self, asked: Asked, bug: Exception) -> None:
        super().__init__(repr(bug))
        self.asked = asked


class Writer:
    """The writer of one workspace. But for :meth:`submit` and :meth:`stop` it is one thread's."""

    def __init__(
        self,
        workspace: Workspace,
        reports: Reports,
        *,
        fence: Callable[[Proposal], HubError | None] = lambda _proposal: None,
        gate: Gate | None = None,
    ) -> None:
        """Write to the repository of *workspace*.

        *fence* says whether a proposal comes too late; *gate* whether what was planned may land.
        While the gate is closed, commits land one by one.
        """
        self._workspace = workspace
        self._reports = reports
        self._fence = fence
        self._gate = gate
        self._queue = Queue()
        self._ahead = Ahead()
        self._rubbish: list[str] = []
        self._batch: list[Asked] = []
        self._gated = False
        self._failures = 0
        self._stuck = ""
        self._looked_s = self._took_s = 0.0
        self._version = -1
        self._leaves: list[str] = []
        self._baseline = ""
        self._journal: Journal
        self._server: Server

    # --- for others ------------------------------------------------------------------------

    def submit(self, proposal: Proposal, ticket: object) -> None:
        """Ask for *proposal*; the answer comes with *ticket*. From any thread."""
        self._queue.put(Asked(proposal, ticket, [], self._size(proposal)))

    def _size(self, proposal: Proposal) -> int:
        size = sum(map(len, proposal.contents.values()))
        for name in proposal.spooled:
            try:
                size += os.stat(f"{self._workspace.spool}/{name}").st_size
            except OSError:
                pass  # trunk has it by now, or planning says what is missing
        return size

    def refuse(self, error: HubError) -> None:
        """Answer all that wait with *error*."""
        waiting = self._queue.take_all() + self._ahead.take_all()
        self._reports.answered([(asked, error) for asked in waiting])

    def stop(self) -> None:
        """Let :meth:`run` return; who waits for an answer gets none."""
        self._queue.end()

    # --- the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Write until :meth:`stop`; a repository that cannot be used is tried again and again."""
        wait_s = _WAIT_S
        while not self._queue.ended:
            try:
                with (
                    Journal(self._workspace.journal) as self._journal,
                    Head(self._workspace.repository, self._workspace.spool) as head,
                ):
                    self._server = Server(
                        self._workspace, self._queue, self._reports.log, head.ledger.project_code()
                    )
                    self._recover(head)
                    # What stands there may be of a trunk that was killed before it synced it,
                    # and whoever asks for it again is told that it has landed.
                    head.ledger.sync()
                    self._sweep()
                    self._reports.opened()
                    while not self._queue.ended:
                        self._turn(head)
                        self._stuck, self._failures, wait_s = "", 0, _WAIT_S
            except (HubError, sqlite3.Error, OSError) as error:
                self._give_back(error)
            except Exception as bug:  # noqa: BLE001 - told, and no reason to end all commits
                self._reports.log("error", "bug", trace=traceback.format_exc())
                self._give_back(bug)
            self._queue.pause(wait_s)
            wait_s = min(2 * wait_s, _WAIT_AT_MOST_S)

    def _sweep(self) -> None:
        try:
            spool.sweep(self._workspace, time.time_ns())
        except OSError as error:  # most commits need none
            self._reports.log("warning", "spool-not-swept", error=str(error))

    def _turn(self, head: Head) -> None:
        busy = bool(self._ahead or self._rubbish)
        taken = self._queue.take(
            within_s=0 if busy else IDLE_S,
            last_took_s=self._took_s,
            is_alone=self._look_at_gate,
        )
        self._batch = [asked for asked in taken if not self._ahead.is_large(asked)]
        for asked in taken:
            if self._ahead.is_large(asked):
                self._ahead.put(asked)
        if self._batch:
            began_s = time.monotonic()
            try:
                self._answer(self._land(head, self._batch))
            except NotStoredError as error:
                hopeless = self._put_back(str(error))
                self._reports.answered([(asked, _not_stored(error)) for asked in hopeless])
            head.repository.forget()
            self._took_s = time.monotonic() - began_s
        else:
            head.anchor.release()
        if self._ahead:
            self._send_ahead(head)
        if self._rubbish:
            head.unspool(self._rubbish[-UNSPOOLED:])
            del self._rubbish[-UNSPOOLED:]
        self._lighten(head.tip.baseline)
        self._look_around(head)

    def _send_ahead(self, head: Head) -> None:
        """Send a part of a large commit, between two batches."""
        try:
            ready = self._ahead.step(
                head,
                lambda asked, first: self._foreseen(head, asked, first=first),
                lambda part: self._push_ahead(head, part),
            )
        except NotStoredError as error:
            asked = self._ahead.failed(str(error))
            if asked is not None:
                self._reports.answered([(asked, _not_stored(error))])
            return
        if ready is None:
            return
        if ready.outcome is None:
            self._queue.put_first(ready.asked)
        else:
            self._reports.answered([(ready.asked, ready.outcome)])

    def _foreseen(self, head: Head, asked: Asked, *, first: bool) -> Outcome | None:
        """Return what will become of a large commit whatever is sent; None if it may land."""
        known = self._known(head, asked, self._room())
        if known is not None or not first:
            return known
        self._catch_up(head)
        try:
            return Plan(head.tip, head.store, now_ms=0).conflicts(asked.proposal) or None
        except Unacceptable as error:
            return error
        except Exception:  # noqa: BLE001 - planning meets it again, and tells
            return None

    def _lighten(self, name: str) -> None:
        """Have Fossil read the baseline *name* faster from now on."""
        if name != self._baseline:
            self._baseline = name
            try:
                baseline.store_plain(self._workspace.repository, name)
            except sqlite3.Error as error:  # it is slower, no more
                self._reports.log("info", "baseline-as-it-was", error=str(error))

    def _look_at_gate(self) -> bool:
        """Tell whether commits land one by one now, because each is judged."""
        self._gated = self._gate is not None and self._gate.is_closed()
        return self._gated

    def _answer(self, outcomes: Sequence[Outcome]) -> None:
        batch, self._batch = self._batch, []
        self._reports.answered(list(zip(batch, outcomes, strict=True)))
        hit("trunk.answered")

    def _give_back(self, error: Exception) -> None:
        """Put the batch back that *error* stopped; who has met too many is told."""
        if str(error) != self._stuck:
            self._stuck = str(error)
            reason = error.reason if isinstance(error, HubError) else "repository"
            self._reports.log("error", "trunk-stuck", reason=reason, error=str(error))
        answer = Unavailable(f"trunk cannot commit: {error}", reason="trunk-stuck")
        if not self._batch:
            self._failures += 1
            if self._failures >= ATTEMPTS:
                self.refuse(answer)
        hopeless = self._put_back(str(error))
        if hopeless:
            self._reports.answered([(asked, answer) for asked in hopeless])

    def _put_back(self, why: str) -> list[Asked]:
        batch, self._batch = self._batch, []
        return self._queue.put_back(batch, why)

    # --- a batch ---------------------------------------------------------------------------

    def _land(self, head: Head, batch: Sequence[Asked]) -> list[Outcome]:
        """Return what became of each of *batch*; what landed is safe.

        Raises:
            NotStoredError: Fossil does not take it, and one of several may be to blame.
        """
        bugs: dict[str, Outcome] = {}
        room = self._room()
        while True:
            self._catch_up(head)
            plan = Plan(head.tip, head.store, now_ms=time.time_ns() // 1_000_000)
            try:
                outcomes = [
                    bugs.get(asked.proposal.id) or self._judge(head, plan, asked, room)
                    for asked in batch
                ]
            except _BugError as bug:
                text = f"trunk met a bug in this commit: {bug}"
                bugs[bug.asked.proposal.id] = HubError(text, reason="bug")
                head.reload()
                continue
            hit("trunk.planned")
            planned = [one for one in outcomes if isinstance(one, Planned)]
            if not planned:
                return [_answered(one) for one in outcomes]
            if plan.ahead_ms:
                self._reports.log("warning", "clock-behind", ahead_ms=plan.ahead_ms)
            try:
                if self._store(head, plan, planned):
                    break
            except NotStoredError as error:
                self._undo(plan, planned)
                if len(batch) == 1:
                    return [_not_stored(error)]
                raise
            self._undo(plan, planned)
        head.ledger.sync()
        hit("trunk.synced")
        ids = {
            one.checkin.hash: asked.proposal.id
            for asked, one in zip(batch, outcomes, strict=True)
            if isinstance(one, Planned)
        }
        head.remember((commit_id, checkin) for checkin, commit_id in ids.items())
        for asked in batch:
            head.unspool(asked.proposal.spooled[:UNSPOOLED])
            self._rubbish.extend(asked.proposal.spooled[UNSPOOLED:])
        self._reports.arrived([_arrival(one) for one in planned])
        return [_answered(one) for one in outcomes]

    def _judge(
        self, head: Head, plan: Plan, asked: Asked, room: HubError | None
    ) -> Planned | Outcome:
        proposal = asked.proposal
        known = self._known(head, asked, room)
        if known is not None:
            return known
        try:
            outcome = plan.add(proposal)
        except (HubError, sqlite3.Error, OSError):
            raise
        except Exception as bug:  # one commit's bug is not everybody's
            self._reports.log("error", "bug", trace=traceback.format_exc())
            raise _BugError(asked, bug) from bug
        if isinstance(outcome, Planned) and self._gate is not None and self._gated:
            # Another leaf may have taken the slot while the gate was at work.
            refused = self._gate.judge(plan, outcome) or self._fence(proposal)
            if refused is not None:
                plan.take_back(outcome)
                return refused
        return outcome

    def _known(self, head: Head, asked: Asked, room: HubError | None) -> Landed | HubError | None:
        """Return what is said of a commit before anybody looks at its changes."""
        proposal = asked.proposal
        landed = head.landed_before(proposal)
        if isinstance(landed, Landed):
            self._rubbish.extend(proposal.spooled)
        return landed or self._fence(proposal) or room or _too_large(asked.size)

    def _room(self) -> HubError | None:
        free = place.free_bytes(self._workspace.state)
        if free >= LEAST_FREE_BYTES:
            return None
        return Refused(
            f"the disk that holds {self._workspace.state} has {free >> 20} MiB left: no commits "
            f"below {LEAST_FREE_BYTES >> 20} MiB. Free some space and commit again",
            reason="disk-full",
        )

    @staticmethod
    def _undo(plan: Plan, planned: Sequence[Planned]) -> None:
        for one in reversed(planned):
            plan.take_back(one)

    def _store(self, head: Head, plan: Plan, planned: Sequence[Planned]) -> bool:
        """Push *planned*; return False if somebody else has moved the tip meanwhile.

        Raises:
            NotStoredError: Fossil does not take it.
        """
        contents: list[tuple[str, bytes]] = []
        size = 0
        for name in [name for one in planned for name in one.send]:
            content = plan.contents[name]
            if len(content) > ALONE_BYTES:
                self._push_ahead(head, [(name, content)])
                continue
            if size + len(content) > BATCH_BYTES:
                self._push_ahead(head, contents)
                contents, size = [], 0
            contents.append((name, content))
            size += len(content)
        manifests = [(one.checkin.hash, one.checkin.manifest) for one in planned]
        checkins = [one.checkin.hash for one in planned]
        body = self._server.message(contents + manifests)
        batch = Batch(planned[0].answer.parent, tuple(checkins), body)
        self._journal.record(batch)
        hit("trunk.journalled")
        head.anchor.hold(len(body))
        try:
            stored = self._push_batch(head, batch)
        except NotStoredError:
            self._journal.clear()
            raise
        self._journal.clear()  # and not when nobody could look: the next opening does
        return stored

    def _push_batch(self, head: Head, batch: Batch) -> bool:
        return self._server.push(
            batch.body,
            stored=lambda: len(head.ledger.landed(batch.checkins)) == len(batch.checkins),
            moved=lambda: _has_moved(head, batch.parent),
        )

    def _push_ahead(self, head: Head, contents: Sequence[tuple[str, bytes]]) -> None:
        """Push *contents* which no check-in names yet: a large one, or some of very many."""
        body = self._server.message(contents)
        head.anchor.hold(len(body))
        self._server.push(
            body,
            stored=lambda: all(head.ledger.holds(name) for name, _content in contents),
            moved=lambda: False,
        )

    # --- beside the batches ----------------------------------------------------------------

    def _recover(self, head: Head) -> None:
        """Finish what a trunk that was killed had begun."""
        try:
            batch = self._journal.read()
        except ValueError as error:
            aside = self._journal.set_aside()
            self._reports.log("warning", "journal-unreadable", error=str(error), kept=aside)
            return
        if batch is None:
            return
        missing = len(batch.checkins) - len(head.ledger.landed(batch.checkins))
        outcome = "had-landed"
        if missing and _has_moved(head, batch.parent):
            outcome = "superseded"
        elif missing:
            try:
                outcome = "landed" if self._push_batch(head, batch) else "superseded"
            except NotStoredError as error:
                outcome = f"not-stored: {error}"
        self._journal.clear()
        self._reports.log(
            "info", "journal", checkins=len(batch.checkins), missing=missing, outcome=outcome
        )

    def _catch_up(self, head: Head) -> None:
        """Follow what others have committed, once it is as safe as what we answer."""
        arrivals = head.catch_up()
        if arrivals:
            head.ledger.sync()
        self._reports.arrived(arrivals)

    def _look_around(self, head: Head) -> None:
        """Now and then, follow stock commits and see whether trunk is one line."""
        now_s = time.monotonic()
        if now_s < self._looked_s + IDLE_S:
            return
        self._looked_s = now_s
        version = head.ledger.version()
        if version == self._version:
            return
        self._version = version
        self._catch_up(head)
        leaves = head.ledger.leaves()
        if len(leaves) > 1 and leaves != self._leaves:
            self._reports.log("error", "trunk-forked", leaves=leaves, line=head.tip.checkin)
            self._reports.forked(leaves)
        self._leaves = leaves


def _has_moved(head: Head, parent: str) -> bool:
    """Tell whether trunk ends somewhere else than at *parent*, which it once ended at."""
    position = head.ledger.position(parent)
    return bool(position.children) or not position.on_trunk


def _not_stored(error: NotStoredError) -> Unavailable:
    return Unavailable(f"Fossil did not store the commit: {error}", reason="commit-not-stored")


def _too_large(size: int) -> Refused | None:
    if size <= COMMIT_BYTES:
        return None
    return Refused(
        f"this commit has {size >> 20} MiB of contents, and trunk takes {COMMIT_BYTES >> 20} MiB "
        "at once: commit some of its paths first",
        reason="commit-too-large",
    )


def _answered(one: Planned | Any) -> Any:
    return one.answer if isinstance(one, Planned) else one


def _arrival(one: Planned) -> Arrival:
    answer = one.answer
    return Arrival(
        checkin=answer.checkin,
        parent=answer.parent,
        time=answer.time,
        slot=answer.slot,
        message=answer.message,
        paths=tuple(sorted(path for path, *_rest in one.step.paths)),
    )
