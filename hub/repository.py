"""Reading the trunk: the Fossil repository file of a workspace, straight from its database.

For any process of ours on this machine, also while Fossil serves and writes. An artifact that is
named but not there (Fossil: a phantom) is absent here.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager

from foundation.errors import Corrupt, HubError, Refused, Unavailable
from foundation.record import Record
from hub import manifest_reading
from hub.contents import Contents
from hub.manifest import COMMIT_ID
from hub.trees import Difference, Entry, Told, Trees
from hub.wording import starting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Any, Self

    from hub.manifest_reading import Manifest

__all__ = ["CheckinRow", "Difference", "Entry", "Repository"]

_BUSY_S = 15.0  # Source: fossil 2.21 db.c, what it waits itself
_TOGETHER = 500
_LEAST_PREFIX = 4
_DIGITS = frozenset("0123456789abcdef")
_NAME_DIGITS = 64

_CHECKIN = """
    SELECT blob.uuid, coalesce(parent.uuid, ''),
           strftime('%Y-%m-%dT%H:%M:%f', coalesce(event.omtime, event.mtime)),
           coalesce(event.euser, event.user, ''), coalesce(event.ecomment, event.comment, ''),
           event.objid
      FROM {rids}
      JOIN event ON event.objid = {rid} AND event.type = 'ci'
      JOIN blob ON blob.rid = event.objid
      LEFT JOIN plink ON plink.cid = event.objid AND plink.isprim
      LEFT JOIN blob AS parent ON parent.rid = plink.pid
"""
_TRUNK = """WITH trunk(rid) AS (
    SELECT rid FROM tagxref JOIN tag USING (tagid) WHERE tagname = 'sym-trunk' AND tagtype > 0
)
"""
_LINE = """WITH RECURSIVE line(rid, depth) AS (
    SELECT ?1, 0
    UNION ALL
    SELECT pid, depth + 1 FROM line JOIN plink ON cid = rid AND isprim WHERE rid != ?2
)
"""


class CheckinRow(Record):
    """One check-in, as the timeline has it: with what was amended later."""

    hash: str
    parent: str
    """The primary one; "" of the root."""
    time: str
    """ISO 8601, UTC, milliseconds: the D card."""
    user: str
    comment: str
    rid: int
    """Its row number in this repository file, and in no clone of it."""


class Repository:
    """One open repository file. Not to be carried over a fork, nor into another thread."""

    def __init__(self, path: str) -> None:
        """Open the repository file *path* for reading.

        Raises:
            Refused: it is not there, or not readable.
            Corrupt: it is no Fossil repository.
        """
        self.path = path
        quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        try:
            # Not mode=ro: that cannot roll back what a killed writer left behind.
            self._db = sqlite3.connect(
                f"file:{quoted}?mode=rw", uri=True, timeout=_BUSY_S, isolation_level=None
            )
        except sqlite3.Error as error:
            raise explain(error, path) from None
        self._db.text_factory = lambda text: text.decode("utf-8", "replace")
        self._contents = Contents(self._rows, self._snapshot)
        self._trees = Trees(self.manifest)
        try:
            self._rows("PRAGMA query_only=1")
            self._rows("SELECT 1 FROM blob, plink, event, tagxref LIMIT 1")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; for good."""
        self._db.close()

    def forget(self) -> None:
        """Let go of the trees and contents that are kept for the next question."""
        self._contents.forget()
        self._trees.forget()

    def data_version(self) -> int:
        """Return a number that changes whenever another process has written."""
        return int(self._rows("PRAGMA data_version")[0][0])

    # --- artifacts -----------------------------------------------------------------------

    def rid(self, name: str) -> int | None:
        """Return the row number of the artifact *name* (its full hash), None if it is absent."""
        rows = self._rows("SELECT rid FROM blob WHERE uuid=? AND size>=0", name)
        return int(rows[0][0]) if rows else None

    def has(self, name: str) -> bool:
        """Tell whether the artifact *name* is there."""
        return self.rid(name) is not None

    def size(self, name: str) -> int:
        """Return the size of the artifact *name* in bytes.

        Raises:
            Refused: it is absent.
        """
        return int(self._artifact(name)[1])

    def content(self, name: str) -> bytes:
        """Return the content of the artifact *name*, compared with its hash.

        Raises:
            Refused: it is absent.
            Corrupt: it is damaged.
        """
        return self._contents.of(self._artifact(name)[0], name)

    def contents(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of many artifacts, in no order; for many versions of the same.

        All are of one moment, which is held until the last is taken: take them without delay.

        Raises:
            Refused: one is absent.
            Corrupt: one is damaged.
        """
        by_rid = {self._artifact(name)[0]: name for name in names}
        for rid, content in self._contents.each(by_rid):
            yield by_rid[rid], content

    def manifest(self, name: str) -> Manifest:
        """Return what the manifest of the check-in *name* says.

        Raises:
            Refused: it is absent.
            Corrupt: it is damaged, or no check-in.
        """
        return _parsed(name, self.content(name))

    # --- check-ins -----------------------------------------------------------------------

    def tip(self) -> CheckinRow:
        """Return the newest check-in on trunk.

        Raises:
            Corrupt: there is none.
        """
        rows = self._checkins(
            "WHERE EXISTS (SELECT 1 FROM trunk WHERE trunk.rid = leaf.rid) "
            "ORDER BY event.mtime DESC, event.objid DESC LIMIT 1",
            before=_TRUNK,
            rids="leaf",
        )
        if not rows:
            raise Corrupt(f"{self.path} has no check-in on trunk", reason="no-trunk")
        return rows[0]

    def root(self) -> CheckinRow:
        """Return the check-in that trunk begins with.

        Raises:
            Corrupt: there is none.
        """
        rows = self._trunk_rows(
            "SELECT objid FROM event WHERE type='ci' "
            "AND NOT EXISTS (SELECT 1 FROM plink WHERE cid=objid) "
            "AND EXISTS (SELECT 1 FROM trunk WHERE rid = objid) ORDER BY mtime LIMIT 1"
        )
        if not rows:
            raise Corrupt(f"{self.path} has no root on trunk", reason="no-trunk")
        return self._of_rid(rows[0][0])

    def checkin(self, name: str) -> CheckinRow:
        """Return the check-in *name*: a full hash, a unique beginning of one, ``tip``, ``root``.

        Raises:
            Refused: there is none of that name (``no-such-checkin``), or several
                (``ambiguous-checkin``).
        """
        if name == "tip":
            return self.tip()
        if name == "root":
            return self.root()
        wanted = name.lower()
        if not _DIGITS.issuperset(wanted) or not _LEAST_PREFIX <= len(wanted) <= _NAME_DIGITS:
            raise Refused(
                f"{name!r:.80} names no check-in: `tip`, `root`, or at least {_LEAST_PREFIX} "
                "hex digits of one's hash (`bones log` lists them)",
                reason="no-such-checkin",
            )
        found = self._rows(
            "SELECT objid FROM blob JOIN event ON objid=rid WHERE type='ci' "
            "AND uuid>=?1 AND uuid<?1||'g' LIMIT 2",
            wanted,
        )
        if len(found) == 1:
            return self._of_rid(found[0][0])
        if found:
            raise Refused(
                f"{name} begins the names of several check-ins: give more digits",
                reason="ambiguous-checkin",
            )
        raise Refused(
            f"no check-in {name} on trunk (`bones log` lists them)", reason="no-such-checkin"
        )

    def line(self, after: str = "", until: str = "") -> list[CheckinRow]:
        """Return the check-ins on the line of primary parents, the oldest first.

        Beyond the full hash *after* ("": the root included), up to and with *until* ("": the tip).

        Raises:
            Refused: one of them is no check-in, or *after* is not on the line to *until*.
        """
        last = self.checkin(until or "tip")
        first = self.checkin(after).rid if after else 0
        rows = self._checkins(
            "ORDER BY line.depth",
            last.rid,
            first,
            before=_LINE,
            rids="line",
        )
        if first and rows.pop().rid != first:
            raise Refused(
                f"check-in {after} is not before {last.hash} on one line", reason="not-on-line"
            )
        rows.reverse()
        return rows

    def leaves(self) -> list[str]:
        """Return the check-ins on trunk without a child there, the newest first; one is right."""
        rows = self._trunk_rows(
            "SELECT uuid FROM leaf JOIN blob USING (rid) JOIN event ON objid = leaf.rid "
            "WHERE EXISTS (SELECT 1 FROM trunk WHERE trunk.rid = leaf.rid) "
            "ORDER BY event.mtime DESC, objid DESC"
        )
        return [row[0] for row in rows]

    def forks(self) -> int:
        """Return how many check-ins have several children on trunk; 0 is right."""
        rows = self._trunk_rows(
            "SELECT count(*) FROM (SELECT pid FROM plink WHERE isprim "
            "AND EXISTS (SELECT 1 FROM trunk WHERE rid = cid) GROUP BY pid HAVING count(*) > 1)"
        )
        return int(rows[0][0])

    def recent_ids(self, limit: int) -> dict[str, str]:
        """Return commit id → check-in of the latest *limit* check-ins that carry one."""
        rows = self._rows(
            "SELECT value, uuid FROM tagxref JOIN tag USING (tagid) JOIN blob USING (rid) "
            "WHERE tagname=? AND tagtype=1 ORDER BY tagxref.mtime DESC LIMIT ?",
            COMMIT_ID,
            limit,
        )
        return dict(rows)

    def landed(self, commit_id: str) -> str | None:
        """Return the check-in that carries *commit_id*, None if none does.

        Looks at every id there is, 1 ms for some thousands; no index leads to one.
        """
        rows = self._rows(
            "SELECT uuid FROM tagxref JOIN tag USING (tagid) JOIN blob USING (rid) "
            "WHERE tagname=? AND tagtype=1 AND value=? LIMIT 1",
            COMMIT_ID,
            commit_id,
        )
        return str(rows[0][0]) if rows else None

    def last_change(self, path: bytes, until: str = "") -> CheckinRow | None:
        """Return the latest check-in on trunk that changed *path*, None if none ever did.

        Up to and with *until*, a check-in on trunk ("": the tip).

        Raises:
            Refused: *until* is no check-in.
        """
        bound = self.checkin(until or "tip")
        rows = self._trunk_rows(
            # A file that was renamed away stands only as the other's former name.
            "SELECT mid FROM filename JOIN mlink ON filename.fnid IN (mlink.fnid, mlink.pfnid) "
            "JOIN event ON objid = mid WHERE name = CAST(? AS TEXT) AND NOT isaux "
            "AND event.mtime <= (SELECT mtime FROM event WHERE objid = ?) "
            "AND EXISTS (SELECT 1 FROM trunk WHERE rid = mid) "
            "ORDER BY event.mtime DESC, mid DESC LIMIT 1",
            path,
            bound.rid,
        )
        return self._of_rid(rows[0][0]) if rows else None

    # --- trees ---------------------------------------------------------------------------

    def files(self, checkin: str) -> dict[bytes, Entry]:
        """Return every file of *checkin* (its full hash) by path.

        Raises:
            Refused: it is absent.
            Corrupt: it, or its baseline, is damaged or no check-in.
        """
        return self._trees.files(checkin)

    def difference(self, one: str, other: str) -> list[Difference]:
        """Return (path, entry in *one*, entry in *other*) where they differ, by the paths' bytes.

        Raises:
            HubError: as :meth:`files`.
        """
        return self._trees.difference(one, other)

    def changes(self, checkin: str) -> list[Difference]:
        """Return what *checkin* (its full hash) changed against its primary parent.

        Raises:
            HubError: as :meth:`files`; ``no-such-checkin`` for what is no check-in.
        """
        parent = self.checkin(checkin).parent
        if not parent:
            return self._trees.everything(checkin)
        return self._trees.difference(parent, checkin)

    def line_changes(
        self, rows: Iterable[CheckinRow]
    ) -> Iterator[tuple[CheckinRow, list[Difference]]]:
        """Yield each of *rows*, neighbours on a line, with what it changed, as :meth:`changes`.

        Reads their manifests together: thousands in the time that a hundred take one by one.

        Raises:
            HubError: as :meth:`files`.
        """
        pending = list(rows)
        while pending:
            some, pending = pending[:_TOGETHER], pending[_TOGETHER:]
            names = {name for row in some for name in (row.hash, row.parent) if name}
            manifests = {
                name: content for name, content in self.contents(names) if content.startswith(b"B ")
            }
            last: tuple[str, Told | None] = "", None
            for row in some:
                one = last[1] if last[0] == row.parent else Told.by(manifests.get(row.parent, b""))
                other = Told.by(manifests.get(row.hash, b""))
                last = row.hash, other
                if one and other and one.baseline == other.baseline:
                    yield row, self._trees.difference_as_told(one, other)
                elif row.parent:
                    yield row, self._trees.difference(row.parent, row.hash)
                else:
                    yield row, self._trees.everything(row.hash)

    # --- the database --------------------------------------------------------------------

    def _artifact(self, name: str) -> tuple[int, int]:
        rows = self._rows("SELECT rid, size FROM blob WHERE uuid=? AND size>=0", name)
        if not rows:
            raise Refused(f"no artifact {name!r:.80} on trunk", reason="no-such-artifact")
        return rows[0][0], rows[0][1]

    def _of_rid(self, rid: int) -> CheckinRow:
        return self._checkins("", rid, rids="(SELECT ?1 AS rid) AS one")[0]

    def _checkins(self, rest: str, *values: Any, rids: str, before: str = "") -> list[CheckinRow]:
        """Return the check-ins whose numbers the table expression *rids* has in ``rid``."""
        name = rids.rpartition(" ")[2]
        rows = self._rows(before + _CHECKIN.format(rids=rids, rid=f"{name}.rid") + rest, *values)
        return [
            CheckinRow(
                hash=row[0], parent=row[1], time=row[2], user=row[3], comment=row[4], rid=row[5]
            )
            for row in rows
        ]

    def _trunk_rows(self, sql: str, *values: Any) -> list[Any]:
        """Return the rows for *sql*, which may ask the table ``trunk`` of all that is on it."""
        return self._rows(_TRUNK + sql, *values)

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise explain(error, self.path) from None

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let all that is read inside be of one moment."""
        if self._db.in_transaction:
            yield
            return
        self._rows("BEGIN")
        try:
            yield
        finally:
            self._rows("COMMIT")


def _parsed(name: str, content: bytes) -> Manifest:
    try:
        return manifest_reading.parse(content)
    except Corrupt as error:
        raise Corrupt(f"artifact {name}: {error}", reason=error.reason) from None


def explain(error: sqlite3.Error, path: str) -> HubError:
    """Return what *error*, met while reading the repository file *path*, means for the user."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return Unavailable(
            f"{path} was locked for {_BUSY_S:g} s by who writes it: try again", reason="busy"
        )
    if "unable to open" in text:
        return Refused(
            f"{path} cannot be opened: is there a hub here? (`{starting()}`)", reason="no-trunk"
        )
    if "malformed" in text or "not a database" in text or "no such table" in text:
        return Corrupt(f"{path} is no sound Fossil repository: {text}", reason="repository-corrupt")
    return HubError(f"{path}: {text}", reason="system")
