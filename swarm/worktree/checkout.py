"""``.fslckout``: Fossil's own record of a check-out, kept true by us so that stock fossil is.

It is an SQLite database: ``vvar`` (which repository, which check-in), ``vfile`` (a row per file:
what content it had), ``vmerge``. Source: fossil 2.21 schema.c, vfile.c, checkout.c. Fossil judges a
file by size and whole seconds of its time against ``vfile.mtime``, and by hash where these differ.

A check-out may be *mixed*: ``vvar.checkout`` is one check-in and some rows have the content of a
later one. Stock ``status``, ``diff`` and ``update`` go by the rows and get it right.

Nothing here is needed for the truth: that is the base. So nothing is synced to disk, and what is
damaged or gone is made anew.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import NamedTuple

from foundation.errors import Corrupt, Unavailable
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

NAME = ".fslckout"
BUSY_S = 2.0
"""How long a stock command may keep us from it; none takes longer for what is not our affair."""

_APPLICATION = 252006674  # Source: fossil 2.21 schema.c, zLocalSchema: PRAGMA application_id
_SCHEMA = """
CREATE TABLE vvar(
  name TEXT PRIMARY KEY NOT NULL,
  value CLOB,
  CHECK( typeof(name)='text' AND length(name)>=1 )
);
CREATE TABLE vfile(
  id INTEGER PRIMARY KEY,
  vid INTEGER REFERENCES blob,
  chnged INT DEFAULT 0,
  deleted BOOLEAN DEFAULT 0,
  isexe BOOLEAN,
  islink BOOLEAN,
  rid INTEGER,
  mrid INTEGER,
  mtime INTEGER,
  pathname TEXT,
  origname TEXT,
  mhash TEXT,
  UNIQUE(pathname,vid)
);
CREATE TABLE vmerge(
  id INTEGER REFERENCES vfile,
  merge INTEGER,
  mhash TEXT
);
CREATE UNIQUE INDEX vmergex1 ON vmerge(id,mhash);
CREATE TRIGGER vmerge_ck1 AFTER INSERT ON vmerge
WHEN new.mhash IS NULL BEGIN
  SELECT raise(FAIL,
  'trying to update a newer check-out with an older version of Fossil');
END;
"""
_VID = "(SELECT CAST(value AS INTEGER) FROM vvar WHERE name='checkout')"
_PUT = f"""
INSERT INTO vfile(vid,chnged,deleted,isexe,islink,rid,mrid,mtime,pathname)
  VALUES({_VID},0,0,?1,?2,?3,?3,?4,CAST(?5 AS TEXT))
  ON CONFLICT(pathname,vid) DO UPDATE SET chnged=0, deleted=0, isexe=excluded.isexe,
    islink=excluded.islink, rid=excluded.rid, mrid=excluded.mrid, mtime=excluded.mtime,
    origname=NULL, mhash=NULL
"""
_DROP = f"DELETE FROM vfile WHERE pathname=CAST(? AS TEXT) AND vid={_VID}"  # noqa: S608
_FILES = (
    "SELECT coalesce(origname, pathname), rid, isexe, islink "  # noqa: S608
    f"FROM vfile WHERE rid>0 AND vid={_VID}"
)
_LEFT = "slot-checkout"
"""Our own variable: the check-in as we left it. A stock command moves ``checkout-hash`` alone."""

Stamp = tuple[int, int, int, int]


class VFile(NamedTuple):
    """A file as a check-out has it."""

    rid: int
    """The content's row number in the repository file."""
    kind: str
    mtime_s: int
    """The file's time in whole seconds; 0: let Fossil compare the content."""


class Seen(Record):
    """What a check-out says of itself."""

    repository: str
    checkin: str
    left: str
    """The check-in that we left it at; "" if we never did."""


class Checkout:
    """The check-out of one worktree. For one thread at a time; not to be carried over a fork."""

    def __init__(self, worktree: str) -> None:
        """Name the worktree; nothing is opened yet."""
        self.path = f"{worktree}/{NAME}"
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._stamp: Stamp | None = None

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def is_untouched(self) -> bool:
        """Tell by a look at the file alone that nobody has written to it since we did."""
        return self._stamp is not None and self._stamp == _stamp_of(self.path)

    def look(self) -> Seen | None:
        """Return what it says, None if it is not there or no sound check-out.

        Raises:
            Unavailable: somebody has kept it locked for too long (``checkout-busy``).
        """
        stamp = _stamp_of(self.path)
        if stamp is None:
            self.close()
            return None
        try:
            rows = dict(self._open().execute("SELECT name, value FROM vvar").fetchall())
            self._open().execute("SELECT 1 FROM vfile, vmerge LIMIT 1").fetchall()
        except sqlite3.Error as error:
            self.close()
            if _is_busy(error):
                raise _busy(self.path) from None
            return None
        self._stamp = stamp
        text = {
            name: os.fsdecode(rows.get(name.encode(), b""))
            for name in ("repository", "checkout-hash", _LEFT)
        }
        directory = os.path.dirname(self.path)
        return Seen(
            repository=os.path.normpath(os.path.join(directory, text["repository"])),
            checkin=text["checkout-hash"],
            left=text[_LEFT],
        )

    def files(self) -> dict[bytes, tuple[int, str]]:
        """Return the row number and kind of each file that its check-in has, by path.

        What ``fossil add`` announced has none yet; what ``fossil mv`` moved has its former path.
        """
        try:
            rows = self._open().execute(_FILES).fetchall()
        except sqlite3.Error as error:
            raise self._failure(error) from None
        return {path: (rid, _kind(isexe, islink)) for path, rid, isexe, islink in rows}

    def record(self, files: Mapping[bytes, VFile], removed: Collection[bytes] = ()) -> None:
        """Have these files be as given, and those not be.

        Raises:
            Unavailable: somebody has kept it locked for too long (``checkout-busy``).
            Corrupt: it is damaged.
        """
        with self._changing() as db:
            db.executemany(_DROP, [(path,) for path in removed])
            db.executemany(_PUT, _values(files.items()))
            # What a stock command could undo is not what there is now.
            db.execute("UPDATE vvar SET value=0 WHERE name='undo_available'")

    def move(self, checkin: str, rid: int) -> None:
        """Have it be a check-out of *checkin*, every row as it stands; 1.2 µs a row.

        Raises:
            HubError: as :meth:`record`.
        """
        with self._changing() as db:
            # Of a broken-off stock update there may be rows of another check-in.
            db.execute(f"DELETE FROM vfile WHERE vid!={_VID}")  # noqa: S608
            db.execute("UPDATE vfile SET vid=?", (rid,))
            db.executemany("REPLACE INTO vvar VALUES(?,?)", _variables(checkin, rid))

    def _changing(self) -> _Transaction:
        return _Transaction(self)

    def open_for_change(self) -> sqlite3.Connection:
        """Return the connection, in a transaction."""
        try:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._failure(error) from None
        return db

    def end_change(self, db: sqlite3.Connection, error: BaseException | None) -> None:
        """End the transaction, well if there was no *error*."""
        try:
            db.execute("COMMIT" if error is None else "ROLLBACK")
        except sqlite3.Error as failure:
            raise self._failure(failure) from None
        if isinstance(error, sqlite3.Error):
            raise self._failure(error) from None
        self._stamp = _stamp_of(self.path)

    def _failure(self, error: sqlite3.Error) -> Unavailable | Corrupt:
        self.close()
        if _is_busy(error):
            return _busy(self.path)
        return Corrupt(f"{self.path} is damaged: {error}", reason="checkout")

    def _open(self) -> sqlite3.Connection:
        try:
            status = os.stat(self.path)
            inode = status.st_dev, status.st_ino
        except FileNotFoundError:
            inode = 0, 0
        if self._db is not None and inode != self._inode:
            self.close()  # git clean took it away, and somebody made another
        if self._db is None:
            self._db = _connect(self.path)
            self._inode = inode
        return self._db


class _Transaction:
    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout

    def __enter__(self) -> sqlite3.Connection:
        self._db = self._checkout.open_for_change()
        return self._db

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._checkout.end_change(self._db, error)


def create(
    path: str,
    repository: str,
    checkin: str,
    rid: int,
    files: Iterable[tuple[bytes, VFile]],
    user: str,
) -> None:
    """Make the check-out *path*, which must not be there: of *checkin*, with *files*.

    *user* is whom a stock commit names, if the repository has such a login.
    """
    db = _connect(path, create=True)
    try:
        db.execute(f"PRAGMA application_id={_APPLICATION}")
        db.executescript(f"BEGIN; {_SCHEMA}")
        variables = [
            ("repository", repository),
            ("undo_available", 0),
            ("undo_checkout", 0),
            ("default-user", user),
        ]
        db.executemany("INSERT INTO vvar VALUES(?,?)", variables)
        db.executemany("INSERT INTO vvar VALUES(?,?)", _variables(checkin, rid))
        db.executemany(_PUT, _values(files))
        db.execute("COMMIT")
    finally:
        db.close()


def readdress(path: str, repository: str, user: str) -> None:
    """Have the check-out *path*, a copy of a template's, be *user*'s, of *repository*."""
    db = _connect(path)
    try:
        values = [("repository", repository), ("default-user", user)]
        db.execute("BEGIN")
        db.executemany("REPLACE INTO vvar VALUES(?,?)", values)
        db.execute("COMMIT")
    finally:
        db.close()


def _connect(path: str, *, create: bool = False) -> sqlite3.Connection:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    mode = "rwc" if create else "rw"
    db = sqlite3.connect(
        f"file:{quoted}?mode={mode}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    db.text_factory = bytes
    # An empty journal that stays is half the price of one that is made and removed each time.
    db.execute("PRAGMA journal_mode=TRUNCATE")
    db.execute("PRAGMA synchronous=OFF")
    return db


def _variables(checkin: str, rid: int) -> list[tuple[str, str | int]]:
    return [("checkout", rid), ("checkout-hash", checkin), (_LEFT, checkin)]


def _values(files: Iterable[tuple[bytes, VFile]]) -> Iterator[tuple[int, int, int, int, bytes]]:
    for path, one in files:
        yield one.kind == "exec", one.kind == "link", one.rid, one.mtime_s, path


def _kind(isexe: int, islink: int) -> str:
    return "link" if islink else "exec" if isexe else "file"


def _stamp_of(path: str) -> Stamp | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None  # of a link, the database of who knows what
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _busy(path: str) -> Unavailable:
    return Unavailable(
        f"{path} has been locked for {BUSY_S:g} s: is a fossil command running in the worktree?",
        reason="checkout-busy",
    )
