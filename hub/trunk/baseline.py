"""The baseline of trunk's delta manifests, stored so that reading it costs next to nothing.

Fossil reads it twice for every push, and a list of a tree's hashes hardly compresses: inflating it
costs 10 % of a push at 2,000 files and 30 % at 50,000 (measured with 2.21). An artifact may be
stored at any level of zlib, so this one is at level 0. Source: fossil 2.21, blob.c,
blob_uncompress: four bytes of size, most significant first, then what zlib makes of the content.
"""

from __future__ import annotations

import zlib

from hub.trunk.ledger import connect

LEAST_BYTES = 16_384
"""Of an artifact for which it is worth the space."""
_BUSY_MS = 1_000
_PREFIX = 4


def store_plain(path: str, name: str) -> bool:
    """Store the artifact *name* of the repository file *path* uncompressed; say if it was not.

    Raises:
        sqlite3.Error: it cannot be written now.
    """
    db = connect(path)
    try:
        db.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        row = db.execute(
            "SELECT rid, size, content FROM blob WHERE uuid=? AND size>=?"
            " AND NOT EXISTS (SELECT 1 FROM delta WHERE delta.rid=blob.rid)",
            (name, LEAST_BYTES),
        ).fetchone()
        if row is None:
            return False
        rid, size, stored = row
        if len(stored) > size:
            return False
        content = zlib.decompress(stored[_PREFIX:])
        plain = stored[:_PREFIX] + zlib.compress(content, 0)
        # Nothing is written if Fossil has stored it in another form meanwhile.
        changed = db.execute(
            "UPDATE blob SET content=? WHERE rid=? AND content=?"
            " AND NOT EXISTS (SELECT 1 FROM delta WHERE delta.rid=blob.rid)",
            (plain, rid, stored),
        )
        return changed.rowcount == 1
    finally:
        db.close()
