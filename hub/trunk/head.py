"""The tip of trunk in memory, kept in step with the repository, whoever commits to it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from foundation.atomic import remove
from foundation.errors import HubError, Refused
from foundation.record import Record
from hub import spool
from hub.recall import recall
from hub.repository import Repository
from hub.trunk.anchor import Anchor
from hub.trunk.ledger import Ledger
from hub.trunk.planning import Store
from hub.trunk.tip import Holder, Tip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from hub.commits import Landed, Proposal
    from hub.repository import CheckinRow

IDS_KEPT = 100_000
"""Commits that are recognised when they are asked for again: hours of them, and a request is
repeated for minutes."""


class Arrival(Record):
    """A check-in that has become the tip, by whoever."""

    checkin: str
    parent: str
    time: str
    """ISO 8601, UTC, milliseconds."""
    slot: str
    """Its author: a slot, or a person who used stock Fossil."""
    message: str
    paths: tuple[bytes, ...]
    """What it changed, ordered."""


class Head:
    """The newest check-in of trunk with its tree, and which commits stand on trunk by their ids.

    Belongs to one thread. Errors are :class:`HubError`, ``sqlite3.Error`` and ``OSError``; after
    one of them make a new one.
    """

    def __init__(self, path: str, spool_directory: str) -> None:
        """Read the tip of the repository file *path*; contents may also lie in a spool."""
        self._path = path
        self.spool = spool_directory
        self.ledger = Ledger(path)
        try:
            self.repository = Repository(path)
            self.anchor = Anchor(path)
            self._ids = dict(reversed(self.repository.recent_ids(IDS_KEPT).items()))
            self.tip = self._read_tip()
        except BaseException:
            self.close()
            raise
        self.store = Store(has=self.ledger.holds, content=self._content, last_change=self._holder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the repository."""
        self.ledger.close()
        if hasattr(self, "repository"):
            self.repository.close()
        if hasattr(self, "anchor"):
            self.anchor.close()

    def catch_up(self) -> list[Arrival]:
        """Move on to what others have committed; return it, the oldest first.

        Of several children of the tip the first is the line's. A tip that was moved to another
        branch is let go: the line ends where the repository says.
        """
        arrivals: list[Arrival] = []
        while True:
            position = self.ledger.position(self.tip.checkin)
            if not position.on_trunk:
                self.reload()
                return arrivals
            if not position.children:
                return arrivals
            arrivals.append(self._follow(self.repository.checkin(position.children[0])))

    def reload(self) -> None:
        """Read the tip anew."""
        self.tip = self._read_tip()

    def _follow(self, row: CheckinRow) -> Arrival:
        changes = {path: after for path, _before, after in self.repository.changes(row.hash)}
        self.repository.forget()
        self.tip.follow(row.hash, time_ms=_milliseconds(row.time), user=row.user, changes=changes)
        commit_id = self.ledger.id_of(row.hash)
        if commit_id:
            self.remember([(commit_id, row.hash)])
        return arrival_of(row, changes)

    def remember(self, landed: Iterable[tuple[str, str]]) -> None:
        """Know these commits, (id, check-in), when they are asked for again."""
        self._ids.update(landed)
        while len(self._ids) > IDS_KEPT:
            del self._ids[next(iter(self._ids))]

    def landed_before(self, proposal: Proposal) -> Landed | HubError | None:
        """Return what *proposal* was answered, or ought to have been, if it stands on trunk."""
        checkin = self._ids.get(proposal.id)
        if checkin is None:
            return None
        try:
            return recall(self.repository, checkin, proposal)
        except Refused as error:
            return error

    def unspool(self, names: Iterable[str]) -> None:
        """Remove the contents *names* from the spool if trunk holds them."""
        for name in self.ledger.held(names):
            with suppress(OSError):  # the sweep tries again
                remove(f"{self.spool}/{name}")

    def _read_tip(self) -> Tip:
        row = self.repository.tip()
        baseline = self.repository.manifest(row.hash).baseline or row.hash
        tip = Tip(
            checkin=row.hash,
            parent=row.parent,
            time_ms=_milliseconds(row.time),
            files=self.repository.files(row.hash),
            baseline=baseline,
            baseline_files=self.repository.files(baseline),
        )
        self.repository.forget()
        return tip

    def _content(self, name: str) -> bytes:
        if self.ledger.holds(name):
            return self.repository.content(name)
        content = spool.content(self.spool, name)
        if content is None:
            raise KeyError(name)
        return content

    def _holder(self, path: bytes) -> Holder | None:
        row = self.repository.last_change(path)
        return None if row is None else Holder(row.hash, row.user)


def arrival_of(row: CheckinRow, paths: Iterable[bytes]) -> Arrival:
    """Return the arrival of the check-in *row*, which changed *paths*."""
    return Arrival(
        checkin=row.hash,
        parent=row.parent,
        time=row.time,
        slot=row.user,
        message=row.comment,
        paths=tuple(sorted(paths)),
    )


def _milliseconds(time: str) -> int:
    moment = datetime.fromisoformat(time)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
