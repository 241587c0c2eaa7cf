"""What a commit that stands on trunk was answered, or ought to have been: read from trunk."""

from __future__ import annotations

from foundation.errors import Refused
from hub.commits import Landed
from hub.trees import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.commits import Proposal
    from hub.repository import Repository


def recall(repository: Repository, checkin: str, proposal: Proposal) -> Landed:
    """Return what is to be said of *proposal*, whose id is that of *checkin*.

    Raises:
        Refused: another slot has landed it (``id-taken``).
        HubError: the repository cannot be read.
    """
    row = repository.checkin(checkin)
    if row.user != proposal.slot:
        raise Refused(
            f"commit {proposal.id} is {row.user}'s: ask under an id of your own",
            reason="id-taken",
        )
    files = repository.files(checkin)
    merged = []
    for change in proposal.changes:
        entry = files.get(change.path)
        mine = Entry(change.kind, change.hash) if change.kind else None
        base = Entry(change.base_kind, change.base_hash) if change.base_kind else None
        if entry is not None and mine not in (None, base, entry):
            merged.append((change.path, entry.kind, entry.hash))
    return Landed(
        checkin=checkin,
        parent=row.parent,
        time=row.time,
        slot=row.user,
        message=row.comment,
        merged=tuple(merged),
    )
