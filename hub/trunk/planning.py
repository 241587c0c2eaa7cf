"""What becomes of each commit that slots ask for: landed, merged, in conflict, or refused. Pure.

Every path is judged by itself: what has not moved since the slot read it is free, what has is
merged, and what cannot be merged stops the whole commit. So commits to different files never
wait for each other, and nothing that another slot landed is ever undone.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from foundation.errors import Refused
from foundation.record import Record
from hub import manifest
from hub.commits import LARGEST_BYTES, Conflict, Landed
from hub.trees import Entry
from hub.trunk import merge
from hub.trunk.tip import AHEAD_MS, Holder, directories_of
from slotgc import treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from foundation.errors import HubError
    from hub.commits import Change, Proposal
    from hub.manifest import Checkin
    from hub.trunk.tip import Step, Tip

NO_MESSAGE = "(no message)"
MOST_CONFLICTS = 1000
"""After so many nobody is told whose the others are, and nothing is merged to see whether it can
be: that takes long, and the commit cannot land anyway."""
_NOTHING = ("", "")
_LONGEST_TARGET = 4095  # PATH_MAX


class Planned(Record):
    """A check-in to be made."""

    checkin: Checkin
    send: tuple[str, ...]
    """The contents that must reach Fossil before the manifest and were in no commit before it;
    in :attr:`Plan.contents`."""
    answer: Landed
    """What the slot is told once the check-in is on disk."""
    step: Step


if TYPE_CHECKING:
    Outcome = Planned | Landed | tuple[Conflict, ...] | HubError
    """Landed: trunk has all of it already, and no check-in is made."""


class Fault(NamedTuple):
    """Why a content cannot be stored: a slug for programs, words for people."""

    reason: str
    words: str


MISSING = Fault(
    "content-missing", "trunk does not hold its content, and that did not come along: commit again"
)


class Unacceptable(Refused):
    """A commit can never land as it is; a :class:`Refused` of the store is trouble with that."""


class Store(NamedTuple):
    """What planning asks about trunk beyond its tip."""

    has: Callable[[str], bool]
    """Whether trunk holds a content, or will once the plan before this one has landed."""
    content: Callable[[str], bytes]
    """A content of trunk or of the spool by hash; KeyError: there is none."""
    last_change: Callable[[bytes], Holder | None]
    """Who made a path what it is, if that was before the tip was read."""


class Plan:
    """A growing list of check-ins on a tip, which moves on with each.

    The commits may come in one plan or in several: what becomes of them is the same.
    """

    def __init__(
        self, tip: Tip, store: Store, *, now_ms: int, checked: Collection[str] = ()
    ) -> None:
        """Plan on *tip* at the time *now_ms*.

        *checked*: contents in the spool for which :func:`fault_of` was asked before (it takes
        long for a big one) and had nothing to say.
        """
        self.tip = tip
        self.contents: dict[str, bytes] = {}
        """All that is to be sent, by hash."""
        ahead_ms = tip.time_ms - now_ms
        self.ahead_ms = ahead_ms if ahead_ms > AHEAD_MS else 0
        """By how much the tip's time is ahead of the clock, if that is more than an hour: the
        next check-in is then dated earlier than its parent."""
        self._store = store
        self._now_ms = now_ms
        self._checked = checked

    def add(self, proposal: Proposal) -> Outcome:
        """Return what becomes of *proposal*; if it lands, the tip has moved on."""
        try:
            return self._judge(proposal)
        except Unacceptable as error:
            return error

    def conflicts(self, proposal: Proposal) -> tuple[Conflict, ...]:
        """Return the conflicts that *proposal* would meet, at the cost of what has moved.

        Raises:
            Unacceptable: it cannot land whatever has moved.
        """
        commit = _Commit(proposal, self)
        files = self.tip.files
        for change in proposal.changes:
            if (files.get(change.path) or _NOTHING) != (change.base_kind, change.base_hash):
                commit.take(change)
        return tuple(commit.conflicts)

    def take_back(self, planned: Planned) -> None:
        """Undo the latest check-in planned; its contents are not sent.

        Raises:
            ValueError: it is not the latest.
        """
        self.tip.take_back(planned.step)
        for name in planned.send:
            del self.contents[name]

    def _judge(self, proposal: Proposal) -> Outcome:
        commit = _Commit(proposal, self)
        for change in proposal.changes:
            commit.take(change)
        if commit.conflicts:
            return tuple(commit.conflicts)
        message = cleaned(proposal.message)
        if not commit.changes:
            return Landed(
                checkin=self.tip.checkin,
                parent=self.tip.parent,
                time=manifest.date_of(self.tip.time_ms),
                slot=proposal.slot,
                message=message,
                merged=tuple(commit.merged),
                new=False,
            )
        _refuse_clashes(self.tip, commit.changes)
        parent = self.tip.checkin
        checkin, step = self.tip.extend(
            commit.changes,
            slot=proposal.slot,
            message=message,
            commit_id=proposal.id,
            now_ms=self._now_ms,
        )
        self.contents |= commit.contents
        answer = Landed(
            checkin=checkin.hash,
            parent=parent,
            time=manifest.date_of(self.tip.time_ms),
            slot=proposal.slot,
            message=message,
            merged=tuple(commit.merged),
        )
        return Planned(checkin=checkin, send=tuple(commit.contents), answer=answer, step=step)

    def holder(self, path: bytes) -> Holder:
        """Return who made *path* what it is."""
        return self.tip.holder(path) or self._store.last_change(path) or Holder("", "")

    def content(self, name: str) -> bytes:
        """Return a content that is to be sent, or is trunk's or the spool's.

        Raises:
            KeyError: there is none.
        """
        planned = self.contents.get(name)
        return self._store.content(name) if planned is None else planned

    def has(self, name: str) -> bool:
        """Tell whether trunk holds a content, or will have been sent it."""
        return name in self.contents or self._store.has(name)

    def was_checked(self, name: str) -> bool:
        """Tell whether somebody has looked at a content of the spool before."""
        return name in self._checked


class _Commit:
    """One proposal while its paths are judged."""

    def __init__(self, proposal: Proposal, plan: Plan) -> None:
        self.changes: dict[bytes, Entry | None] = {}
        self.contents: dict[str, bytes] = {}
        self.merged: list[tuple[bytes, str, str]] = []
        self.conflicts: list[Conflict] = []
        self._proposal = proposal
        self._plan = plan
        self._files = plan.tip.files
        self._spooled = frozenset(proposal.spooled)
        self._known: dict[str, bytes] = {}

    def take(self, change: Change) -> None:
        """Judge one path.

        Raises:
            Unacceptable: it cannot be in a check-in.
        """
        path = change.path
        reason = manifest.unfit_name(path)
        if reason:
            raise Unacceptable(
                f"{treepath.show(path)} cannot be committed: {reason}", reason="unfit-path"
            )
        base = Entry(change.base_kind, change.base_hash) if change.base_kind else None
        mine = Entry(change.kind, change.hash) if change.kind else None
        theirs = self._files.get(path)
        if mine in (theirs, base):
            return
        result = mine
        if theirs != base:
            try:
                result = self._merge(path, base, mine, theirs)
            except merge.CannotMerge as error:
                self.conflicts.append(self._conflict(change, theirs, error.reason))
                return
            if result not in (None, mine):
                self.merged.append((path, *result))
        if result == theirs:
            return
        if result is not None and not self.conflicts:
            self._provide(path, result)
        self.changes[path] = result

    def _merge(
        self, path: bytes, base: Entry | None, mine: Entry | None, theirs: Entry | None
    ) -> Entry:
        """Return what becomes of a path that both have changed, each differently.

        Raises:
            CannotMerge: one of both has to give way.
        """
        if mine is None:
            raise merge.CannotMerge("changed there, deleted here")
        if theirs is None:
            raise merge.CannotMerge("deleted there, changed here")
        if base is None:
            raise merge.CannotMerge("added there and here, not the same")
        if "link" in (base.kind, mine.kind, theirs.kind):
            raise merge.CannotMerge("both changed it, and it is a symbolic link to one of them")
        # Two values: if the sides differ, one of them is the base's, and the other is a change.
        kind = theirs.kind if mine.kind == base.kind else mine.kind
        if mine.hash in (theirs.hash, base.hash):
            return Entry(kind, theirs.hash)
        if theirs.hash == base.hash:
            return Entry(kind, mine.hash)
        if self._is_hopeless():
            raise merge.CannotMerge("both changed it")
        merged = merge.merge(*(self._read(path, one.hash) for one in (base, mine, theirs)))
        name = hashlib.sha3_256(merged).hexdigest()
        if manifest.is_artifact(merged):
            raise merge.CannotMerge("merged it would be one of Fossil's control artifacts")
        if name not in (mine.hash, theirs.hash) and not self._plan.has(name):
            self.contents[name] = merged
        return Entry(kind, name)

    def _provide(self, path: bytes, entry: Entry) -> None:
        """See to it that trunk will hold what *entry* names.

        Raises:
            Unacceptable: it cannot, or must not.
        """
        name = entry.hash
        if name in self.contents or name in self._plan.contents:
            pass
        elif name in self._proposal.contents or not self._plan.has(name):
            self.contents[name] = self._brought(path, name)
        if entry.kind == "link":
            _check_target(path, self._read(path, name))

    def _read(self, path: bytes, name: str) -> bytes:
        """Return a content, wherever it is.

        Raises:
            Unacceptable: it is nowhere, or cannot be stored.
        """
        if name in self.contents:
            return self.contents[name]
        if name in self._proposal.contents or name in self._spooled:
            return self._brought(path, name)
        return self._fetched(path, name)

    def _brought(self, path: bytes, name: str) -> bytes:
        """Return a content that came with the proposal, once it is known to be sound.

        Raises:
            Unacceptable: it did not come, or cannot be stored.
        """
        content = self._known.get(name)
        if content is None:
            content = self._proposal.contents.get(name)
            if content is None:
                if name not in self._spooled:
                    raise unacceptable(path, MISSING)
                content = self._fetched(path, name)
            fault = None if self._plan.was_checked(name) else fault_of(content, name)
            if fault:
                raise unacceptable(path, fault)
            self._known[name] = content
        return content

    def _fetched(self, path: bytes, name: str) -> bytes:
        try:
            return self._plan.content(name)
        except KeyError:
            raise unacceptable(path, MISSING) from None

    def _is_hopeless(self) -> bool:
        return len(self.conflicts) >= MOST_CONFLICTS

    def _conflict(self, change: Change, theirs: Entry | None, reason: str) -> Conflict:
        holder = Holder("", "") if self._is_hopeless() else self._plan.holder(change.path)
        return Conflict(
            path=change.path,
            reason=reason,
            base_hash=change.base_hash,
            mine_hash=change.hash,
            theirs_hash=theirs.hash if theirs else "",
            theirs_checkin=holder.checkin,
            theirs_slot=holder.slot,
        )


def plan(
    tip: Tip,
    proposals: Iterable[Proposal],
    store: Store,
    *,
    now_ms: int,
    checked: Collection[str] = (),
) -> tuple[Plan, list[Outcome]]:
    """Return the plan on *tip*, and what becomes of each of *proposals*, in their order."""
    made = Plan(tip, store, now_ms=now_ms, checked=checked)
    return made, [made.add(proposal) for proposal in proposals]


def cleaned(message: str) -> str:
    """Return *message* as a check-in can hold it."""
    encodable = message.replace("\0", "").encode("utf-8", "replace").decode()
    return encodable.rstrip() or NO_MESSAGE


def fault_of(content: bytes, name: str) -> Fault | None:
    """Return why *content*, called *name*, cannot be stored; None if it can."""
    if len(content) > LARGEST_BYTES:
        return Fault("content-too-large", f"it is larger than {LARGEST_BYTES >> 20} MiB")
    if hashlib.sha3_256(content).hexdigest() != name:
        return Fault("content-damaged", f"what came as {name[:16]} has another hash")
    if manifest.is_artifact(content):
        return Fault(
            "content-is-artifact",
            "Fossil would take its content for a control artifact and act on it",
        )
    return None


def unacceptable(path: bytes, fault: Fault) -> Unacceptable:
    """Return what is said of a commit because of the *fault* of its content at *path*."""
    return Unacceptable(
        f"{treepath.show(path)} cannot be committed: {fault.words}", reason=fault.reason
    )


def _check_target(path: bytes, target: bytes) -> None:
    if not target or len(target) > _LONGEST_TARGET or b"\0" in target:
        raise Unacceptable(
            f"{treepath.show(path)} cannot be committed: no symbolic link can lead there",
            reason="unfit-link",
        )


def _refuse_clashes(tip: Tip, changes: dict[bytes, Entry | None]) -> None:
    """Refuse what would make one path both a file and a directory; what goes must be there.

    Raises:
        Unacceptable: it would.
    """
    for path, entry in changes.items():
        if entry is None or path in tip.files:
            continue  # what is a file already has no file above or below it
        for above in directories_of(path):
            if changes[above] if above in changes else tip.files.get(above):
                raise _clash(above, path)
        below = tip.files_below(path)
        if below:
            inside = path + b"/"
            gone = sum(other is None and name.startswith(inside) for name, other in changes.items())
            if below > gone:
                kept = next(
                    name
                    for name in tip.files
                    if name.startswith(inside) and changes.get(name, name) is not None
                )
                raise _clash(path, kept)


def _clash(file: bytes, below: bytes) -> Unacceptable:
    return Unacceptable(
        f"{treepath.show(file)} would be a file and {treepath.show(below)} a file below it: "
        "`bones swarm update`, then move one of them",
        reason="path-clash",
    )
