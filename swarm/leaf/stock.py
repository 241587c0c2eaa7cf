"""What a slot has landed by itself: the check-ins of a stock ``fossil commit`` in its worktree.

The worktree notices them (:mod:`swarm.worktree.upkeep`) and follows; here they are counted. A
check-in of trunk's own carries the id of the commit that it was asked for under, a stock one none.
"""

from __future__ import annotations

from foundation.errors import HubError, Refused
from hub.manifest import COMMIT_ID
from hub.repository import Repository

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.repository import CheckinRow

_ID_TAG = f"+{COMMIT_ID}"


class StockCommits:
    """Counts them, from the join on."""

    def __init__(self, repository: str, slot: str, checkin: str) -> None:
        """Begin at *checkin*, where the worktree of *slot* is; *repository* is a path."""
        self._repository = repository
        self._slot = slot
        self._seen = checkin
        self._found: set[str] = set()
        self._last = ""
        self._landed = ""
        """What was the last to land through the leaf when ``_last`` was found."""

    @property
    def commits(self) -> int:
        """How many there are."""
        return len(self._found)

    def notice(self, checkin: str, landed: str) -> str:
        """Look at what the worktree, now at *checkin*, has come past; return the slot's last.

        *landed* is the last that came through the leaf. What cannot be read now is read by the
        next call.
        """
        if checkin != self._seen:
            try:
                with Repository(self._repository) as trunk:
                    self._look(trunk, checkin, landed)
                self._seen = checkin
            except HubError:
                pass
        return self._last if self._last and landed == self._landed else landed

    def _look(self, trunk: Repository, checkin: str, landed: str) -> None:
        try:
            rows = trunk.line(after=self._seen, until=checkin)
        except Refused:  # taken back to an older one
            return
        new = [row.hash for row in rows if self._is_stock(trunk, row)]
        if new:
            self._found.update(new)
            later = {row.hash for row in trunk.line(after=new[-1])}
            self._last = "" if landed in later else new[-1]
            self._landed = landed

    def _is_stock(self, trunk: Repository, row: CheckinRow) -> bool:
        if row.user != self._slot or row.hash in self._found:
            return False
        return all(name != _ID_TAG for name, _target, _value in trunk.manifest(row.hash).tags)
