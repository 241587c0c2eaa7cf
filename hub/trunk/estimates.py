"""What SQLite's planner is told of the tables that a push reads: that they are large.

Fossil lets SQLite count them now and then (``PRAGMA optimize``). In a trunk that has just been
seeded it counts one check-in with all the files, concludes that the indexes single out nothing, and
reads whole tables for every check-in that is pushed, until they have grown 25-fold (measured with
2.21: a push of 100 commits took 160 ms after 24,000 of them, and 75 with these numbers; ADR 0011).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

_ROWS = 1_000_000
ESTIMATES = {
    # Table and index; rows in all, then rows for one value of the first column, of the first two …
    ("mlink", "mlink_i1"): f"{_ROWS} 4",
    ("mlink", "mlink_i2"): f"{_ROWS} 100",
    ("mlink", "mlink_i3"): f"{_ROWS} 2",
    ("mlink", "mlink_i4"): f"{_ROWS} 2",
    ("plink", "plink_i2"): f"{_ROWS} 1 1",
    ("plink", "sqlite_autoindex_plink_1"): f"{_ROWS} 1 1",
    ("tagxref", "sqlite_autoindex_tagxref_1"): f"{_ROWS} 3 1",
    ("tagxref", "tagxref_i1"): f"{_ROWS} 100000 2",
}


def install(db: sqlite3.Connection) -> bool:
    """Put the estimates into the repository that *db* writes; return whether any were not there.

    Raises:
        sqlite3.Error: they cannot be written.
    """
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name='sqlite_stat1'").fetchone():
        db.execute("ANALYZE leaf")  # of any table: it makes the one that we write to
    known = {
        (row[0], row[1]): row[2] for row in db.execute("SELECT tbl, idx, stat FROM sqlite_stat1")
    }
    wrong = {key: stat for key, stat in ESTIMATES.items() if not _is_large(known.get(key, ""))}
    if not wrong:
        return False
    for (table, index), stat in wrong.items():
        db.execute("DELETE FROM sqlite_stat1 WHERE tbl=? AND idx=?", (table, index))
        db.execute("INSERT INTO sqlite_stat1(tbl, idx, stat) VALUES(?, ?, ?)", (table, index, stat))
    return True


def _is_large(stat: str) -> bool:
    """Tell whether *stat* was counted in a large table, or is one of ours."""
    rows = stat.partition(" ")[0]
    return rows.isdigit() and int(rows) >= _ROWS
