"""A snapshot of the repository, kept open while commits keep coming.

Fossil has SQLite copy its log into the database after every transaction, which syncs the log and
the database, and then has the log begin anew, which syncs it and its directory: four syncs a push,
of which an acknowledged commit needs none (the log alone is synced before the answer, see
:meth:`hub.trunk.ledger.Ledger.sync`). What is copied never passes a reader, so while one keeps its
snapshot open nothing is. Source: SQLite, "Write-Ahead Logging", checkpointing; fossil 2.21, seen
with strace.
"""

from __future__ import annotations

from hub.trunk.ledger import connect

PUSHES = 64
PUSHED_BYTES = 4 << 20
"""After so many pushes, or so many bytes in them, the log is copied: a reader looks things up in
it, and it stays as large as it once was."""


class Anchor:
    """The open snapshot of one repository file. Belongs to one thread; errors are SQLite's."""

    def __init__(self, path: str) -> None:
        """Open the repository file *path*; nothing is held yet."""
        self._db = connect(path)
        self._db.execute("PRAGMA query_only=1")
        # In another mode a reader would keep writers out.
        self._is_log = self._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        self._pushes = self._bytes = 0

    def close(self) -> None:
        """Let go of it."""
        self._db.close()

    def hold(self, size: int) -> None:
        """Keep the log from being copied over a push of *size* bytes, and until the release."""
        if self._pushes >= PUSHES or self._bytes >= PUSHED_BYTES:
            self.release()
        self._pushes += 1
        self._bytes += size
        if self._is_log and not self._db.in_transaction:
            self._db.execute("BEGIN")
            self._db.execute("SELECT 1 FROM config LIMIT 1").fetchone()

    def release(self) -> None:
        """Copy the log, if there was a push since this was done last."""
        if not self._pushes:
            return
        self._pushes = self._bytes = 0
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
