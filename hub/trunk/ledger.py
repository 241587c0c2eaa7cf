"""What stands in the repository: the few questions that the writer asks for every batch.

A connection of its own, on plain SQL, because what :class:`hub.repository.Repository` answers
about trees and names costs more than the writer has time for.
"""

from __future__ import annotations

import os
import sqlite3
from typing import NamedTuple

from foundation import codec
from foundation.atomic import sync_directory
from hub.manifest import COMMIT_ID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

_BUSY_S = 15.0
_POSITION = """
SELECT (SELECT count(*) FROM tag JOIN tagxref USING (tagid)
         WHERE tagname='sym-trunk' AND tagtype>0 AND tagxref.rid=blob.rid),
       (SELECT json_group_array(uuid) FROM
           (SELECT child.uuid FROM plink JOIN blob AS child ON child.rid=plink.cid
             WHERE plink.pid=blob.rid AND plink.isprim
               AND EXISTS (SELECT 1 FROM tag JOIN tagxref USING (tagid)
                            WHERE tagname='sym-trunk' AND tagtype>0 AND tagxref.rid=plink.cid)
             ORDER BY child.rid))
  FROM blob WHERE uuid=?
"""
_PATHS = """
SELECT CAST(now.name AS BLOB), CAST(before.name AS BLOB)
  FROM blob JOIN mlink ON mlink.mid=blob.rid AND NOT mlink.isaux
  JOIN filename AS now ON now.fnid=mlink.fnid
  LEFT JOIN filename AS before ON before.fnid=mlink.pfnid
 WHERE blob.uuid=?
"""
_LEAVES = """
SELECT uuid FROM leaf JOIN blob USING (rid)
 WHERE EXISTS (SELECT 1 FROM tag JOIN tagxref USING (tagid)
                WHERE tagname='sym-trunk' AND tagtype>0 AND tagxref.rid=leaf.rid)
"""


class Position(NamedTuple):
    """Where a check-in stands."""

    on_trunk: bool
    children: tuple[str, ...]
    """On trunk and with it as primary parent, in the order in which they came."""


class Ledger:
    """One open repository file, to be used in one thread. Errors are ``sqlite3.Error``."""

    def __init__(self, path: str) -> None:
        """Open the repository file *path*, which is there."""
        self._path = path
        self._wal = -1
        self._db = connect(path)
        self._db.execute("PRAGMA query_only=1")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._db.close()
        if self._wal >= 0:
            os.close(self._wal)
            self._wal = -1

    def project_code(self) -> str:
        """Return what tells this project from all others."""
        row = self._db.execute("SELECT value FROM config WHERE name='project-code'").fetchone()
        return str(row[0])

    def version(self) -> int:
        """Return a number that changes whenever another connection has written."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def position(self, checkin: str) -> Position:
        """Return where *checkin* stands now."""
        row = self._db.execute(_POSITION, (checkin,)).fetchone()
        return Position(bool(row[0]), tuple(codec.loads(row[1]))) if row else Position(False, ())

    def landed(self, checkins: Sequence[str]) -> set[str]:
        """Return those of *checkins* that are check-ins of this repository."""
        rows = self._db.execute(
            "SELECT uuid FROM json_each(?) JOIN blob ON uuid=json_each.value "
            "JOIN event ON objid=rid AND event.type='ci'",
            (codec.dumps(list(checkins)),),
        )
        return {row[0] for row in rows}

    def holds(self, name: str) -> bool:
        """Tell whether the artifact *name* is there."""
        return (
            self._db.execute("SELECT 1 FROM blob WHERE uuid=? AND size>=0", (name,)).fetchone()
            is not None
        )

    def held(self, names: Iterable[str]) -> set[str]:
        """Return those of *names* that are artifacts which are there."""
        rows = self._db.execute(
            "SELECT uuid FROM json_each(?) JOIN blob ON uuid=json_each.value AND size>=0",
            (codec.dumps(list(names)),),
        )
        return {row[0] for row in rows}

    def id_of(self, checkin: str) -> str:
        """Return the commit id that *checkin* carries, "" if it has none."""
        row = self._db.execute(
            "SELECT value FROM blob JOIN tagxref USING (rid) JOIN tag USING (tagid) "
            "WHERE uuid=? AND tagname=? AND tagtype=1",
            (checkin, COMMIT_ID),
        ).fetchone()
        return str(row[0]) if row else ""

    def paths(self, checkin: str) -> list[bytes]:
        """Return what *checkin* changed, names before and after a stock renaming both, ordered.

        By Fossil's own record: to compare trees costs a hundred times as much.
        """
        rows = self._db.execute(_PATHS, (checkin,))
        return sorted({path for row in rows for path in row if path is not None})

    def leaves(self) -> list[str]:
        """Return the check-ins on trunk without a child there; one is right."""
        return [row[0] for row in self._db.execute(_LEAVES)]

    def sync(self) -> None:
        """Make all that Fossil has committed survive a power cut.

        Debian's fossil does not sync a commit in WAL mode (ADR 0007). A checkpoint syncs the log
        before it copies from it, so the log is all that is ever ahead.

        Raises:
            OSError: it cannot be.
        """
        log = f"{self._path}-wal"
        try:
            there = os.stat(log)
        except FileNotFoundError:
            self._sync_file(self._path)
            return
        if self._wal >= 0:
            known = os.fstat(self._wal)
            if (known.st_ino, known.st_dev) != (there.st_ino, there.st_dev):
                os.close(self._wal)
                self._wal = -1
        if self._wal < 0:
            self._wal = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            sync_directory(os.path.dirname(self._path))  # its name, too
        os.fdatasync(self._wal)

    @staticmethod
    def _sync_file(path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def connect(path: str) -> sqlite3.Connection:
    """Open the repository file *path*, which is there, to read and write.

    Raises:
        sqlite3.Error: it is not there, or cannot be opened.
    """
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(
        f"file:{quoted}?mode=rw", uri=True, timeout=_BUSY_S, isolation_level=None
    )


def add_users(path: str, logins: Iterable[str]) -> None:
    """Let stock Fossil in the worktrees of *logins* commit as them: make them users.

    Without rights and without a password, so nobody can log in to the server as one.

    Raises:
        sqlite3.Error: they cannot be written.
    """
    db = connect(path)
    try:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO user(login, pw, cap, info, mtime) VALUES(?, '', '', 'a slot', unixepoch())"
            " ON CONFLICT(login) DO NOTHING",
            ((login,) for login in logins),
        )
        db.execute("COMMIT")
    finally:
        db.close()
