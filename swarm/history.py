"""What trunk says: its check-ins, what each changed, and how one is undone.

Read straight from the repository file, so the hub need not run; only undoing asks trunk.
"""

from __future__ import annotations

from foundation.errors import Refused
from foundation.record import Record
from hub.commits import Change, Proposal, new_id
from hub.repository import Repository
from swarm.unified import Version, difference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hub.repository import CheckinRow, Difference, Entry

OPERATOR = "operator"
"""Who a person at the command line is, on the bus and as the author of a check-in."""
SHORT = 10
"""Digits by which people are told of a hash."""

_LEAST_PREFIX = 4
_NEAR = 5
_HEX = frozenset("0123456789abcdef")


class FileChange(Record):
    """What two check-ins have at one path; "" stands for no file there."""

    path: bytes
    old_kind: str
    old_hash: str
    new_kind: str
    new_hash: str
    diff: bytes
    """As `git apply` takes it (:mod:`swarm.unified`)."""


def open_repository(path: str) -> Repository:
    """Return the repository at *path*, to be read.

    Raises:
        Refused: there is none (``no-trunk``).
        Corrupt: it cannot be read.
    """
    import os  # noqa: PLC0415

    if not os.path.exists(path):
        raise Refused(
            f"{path} is not there: `bones up` seeds it from what git tracks", reason="no-trunk"
        )
    return Repository(path)


def find(repository: Repository, name: str) -> CheckinRow:
    """Return the check-in that *name* means: a hash, 4 or more first digits of one, tip or root.

    Raises:
        Refused: it means none, or several (``no-such-checkin``, ``ambiguous-checkin``); those of
            trunk that may be meant are named.
    """
    try:
        return repository.checkin(name)
    except Refused as error:
        near = _near(repository, name)
        if not near:
            raise
        shown = "; ".join(f"{row.hash[:SHORT]} ({row.user}: {title(row)})" for row in near)
        words = "is it one of these?" if error.reason == "no-such-checkin" else "these begin so:"
        raise Refused(f"{error}; {words} {shown}", reason=error.reason) from None


def _near(repository: Repository, name: str) -> list[CheckinRow]:
    """Return check-ins of trunk that somebody may have meant by *name*, the newest first."""
    wanted = name.strip().lower()[:_LEAST_PREFIX]
    if len(wanted) < _LEAST_PREFIX or not _HEX.issuperset(wanted):
        return []
    return [row for row in reversed(repository.line()) if row.hash.startswith(wanted)][:_NEAR]


def title(row: CheckinRow) -> str:
    """Return the first line of a check-in's message."""
    return row.comment.strip().partition("\n")[0]


def log(repository: Repository, *, slot: str = "") -> Iterator[CheckinRow]:
    """Yield the check-ins of trunk, the newest first; only those of *slot* if one is named."""
    row = repository.tip()
    while True:
        if not slot or row.user == slot:
            yield row
        if not row.parent:
            return
        row = repository.checkin(row.parent)


def diff(repository: Repository, found: Iterable[Difference]) -> Iterator[FileChange]:
    """Yield each of *found*, as ``changes`` and ``difference`` of *repository* return them."""
    for path, old, new in found:
        yield FileChange(
            path=path,
            old_kind=old.kind if old else "",
            old_hash=old.hash if old else "",
            new_kind=new.kind if new else "",
            new_hash=new.hash if new else "",
            diff=difference(path, version(repository, old), version(repository, new)),
        )


def version(repository: Repository, entry: Entry | None) -> Version | None:
    """Return the file that *entry* names, None for none."""
    return None if entry is None else Version(entry.kind, repository.content(entry.hash))


def undoing(repository: Repository, name: str, message: str = "") -> Proposal:
    """Return the commit that undoes check-in *name*, whatever has landed since.

    Each path's base is what the check-in made of it, and what is asked for is what it had been.
    So trunk's three-way rule keeps all that others did to the same files meanwhile.

    Raises:
        Refused: it is not on trunk, is its root, or has changed nothing (``not-revertible``).
    """
    row = find(repository, name)
    short = row.hash[:SHORT]
    if not row.parent:
        raise Refused(
            f"{short} is the root of trunk, and nothing was before it", reason="not-revertible"
        )
    tip = repository.tip()
    if row.hash not in {one.hash for one in repository.line()}:
        raise Refused(
            f"{short} is not on trunk, so it has nothing to undo there: `bones log --all` names "
            "what is",
            reason="not-revertible",
        )
    changes = tuple(
        Change(
            path=path,
            kind=before.kind if before else "",
            hash=before.hash if before else "",
            base_kind=after.kind if after else "",
            base_hash=after.hash if after else "",
        )
        for path, before, after in repository.changes(row.hash)
    )
    if not changes:
        raise Refused(f"{short} has changed nothing", reason="not-revertible")
    return Proposal(
        id=new_id(),
        slot=OPERATOR,
        epoch=0,
        base=tip.hash,
        message=message or f"revert {short}: {title(row)}",
        changes=changes,
        contents={},
    )
