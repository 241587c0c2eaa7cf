"""The guard in the repository: a push that would fork trunk is not stored at all.

Stock Fossil stores whatever is pushed, forks too, and between a look at the tip and a push
somebody else may commit. So the repository carries a script that Fossil runs inside the
transaction of every push, when all has been stored and before any of it counts (the setting
``xfer-push-script``, TH1). If a check-in that came is on trunk but its parent is not, or has
another child there, the script ends the request and the transaction is rolled back. So it does
if a slot's commit, known by its id, would stand on a branch: its parent was on trunk when we
looked, and somebody has moved it since.

Triggers would reach stock's own ``fossil commit`` too, but Fossil opens a repository with
triggers switched off (measured with 2.21). That commit looks before it leaps by itself, in its own
transaction.
"""

from __future__ import annotations

import sqlite3

from hub.manifest import COMMIT_ID

SETTING = "xfer-push-script"
REFUSED_STATUS = frozenset((302, 400))
"""What the server answers to a push that the guard refuses; and to some others."""

# $uuids is what a script is given: the hashes of all that came, separated by spaces.
_FORKS = f"""
SELECT 1 FROM json_each('["'||replace($uuids,' ','","')||'"]') AS came
JOIN tag AS trunk ON trunk.tagname='sym-trunk'
JOIN blob ON blob.uuid=came.value
JOIN tagxref AS t ON t.rid=blob.rid AND t.tagtype>0 AND t.tagid=trunk.tagid
WHERE NOT EXISTS (
  SELECT 1 FROM plink
  JOIN tagxref AS t ON t.rid=plink.pid AND t.tagtype>0 AND t.tagid=trunk.tagid
  WHERE plink.cid=blob.rid AND plink.isprim)
OR EXISTS (
  SELECT 1 FROM plink AS mine
  JOIN plink AS other ON other.pid=mine.pid AND other.isprim AND other.cid<>mine.cid
  JOIN tagxref AS t ON t.rid=other.cid AND t.tagtype>0 AND t.tagid=trunk.tagid
  WHERE mine.cid=blob.rid AND mine.isprim)
UNION ALL
SELECT 1 FROM json_each('["'||replace($uuids,' ','","')||'"]') AS came
JOIN tag AS named ON named.tagname='{COMMIT_ID}'
JOIN blob ON blob.uuid=came.value
JOIN tagxref AS t ON t.rid=blob.rid AND t.tagtype>0 AND t.tagid=named.tagid
WHERE NOT EXISTS (
  SELECT 1 FROM tag AS trunk JOIN tagxref AS t ON t.tagid=trunk.tagid
  WHERE trunk.tagname='sym-trunk' AND t.rid=blob.rid AND t.tagtype>0)
LIMIT 1
"""  # noqa: S608 - of a constant
# TH1 has no word for "refuse". These end the process in mid-transaction, the first of them with
# a text of ours in its error page and status 400; the others in case a version lacks it. The
# last one is silent: a stock client takes a redirection for an answer.
SCRIPT = f"""\
set forks 0
query {{{_FORKS}}} {{set forks 1}}
if {{$forks}} {{
  catch {{builtin_request_js {{trunk has moved on: this push would fork it. Pull, update, commit}}}}
  catch {{verifyCsrf}}
  redirect /trunk-has-moved-on
}}
"""


def install(db: sqlite3.Connection) -> bool:
    """Put the guard into the repository that *db* writes; return whether it was not there.

    Raises:
        sqlite3.Error: it cannot be written.
    """
    found = db.execute("SELECT value FROM config WHERE name=?", (SETTING,)).fetchone()
    if found == (SCRIPT,):
        return False
    db.execute(
        "REPLACE INTO config(name, value, mtime) VALUES(?, ?, unixepoch())", (SETTING, SCRIPT)
    )
    return True
