"""What the guests of a VM cluster are to Fossil: a login that clones and reads, and no more.

It has the password that the cluster's holder has chosen, and is there for as long as the holder's
key is: :class:`hub.trunk.accounts.Accounts` says who that is, this brings the repository in step.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from foundation import codec
from hub import logins
from hub.fossil_repo import password_digest
from hub.trunk.ledger import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.trunk.accounts import Accounts
    from hub.trunk.writer import Log

CAPABILITIES = "ghjorz"
"""Of Fossil: clone, hyperlinks, read the wiki, check out, read tickets, download archives."""
WITHIN_S = 2.0
_INFO = "guests of a VM cluster"


class Guests:
    """The logins of all clusters' guests in one repository."""

    def __init__(self, repository: str, log: Log) -> None:
        """Keep them in the repository file *repository*."""
        self._repository = repository
        self._log = log
        self._order = asyncio.Lock()
        self._working: set[asyncio.Task[bool]] = set()

    async def settle(self, known: Accounts, payload: bytes) -> bool:
        """Do for Fossil what the request *payload*, which *known* has granted, asks for.

        Returns:
            Whether it is done. A repository that is locked is not waited for long; then it may
            still be done, and who asks once more learns that it is.
        """
        body = codec.loads_object(payload)
        cluster, epoch, password = body.get("cluster"), body.get("epoch"), body.get("password", "")
        if not isinstance(password, str):
            return False
        work = asyncio.create_task(self._settle(known, str(cluster), epoch, password))
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        await asyncio.wait({work}, timeout=WITHIN_S)
        return work.done() and work.result()

    async def sweep(self, known: Accounts) -> None:
        """Remove the logins of clusters that have ended while nobody could."""
        async with self._order:
            living = {
                logins.of_fossil(logins.cluster_of(login))
                for login, entry in known.logins.items()
                if entry.public and logins.kind_of(login) == "cluster"
            }
            await self._write("guests-not-removed", lambda: keep_only(self._repository, living))

    async def _settle(self, known: Accounts, cluster: str, epoch: object, password: str) -> bool:
        async with self._order:
            entry = known.logins.get(logins.of_cluster(cluster))
            login = logins.of_fossil(cluster)
            if entry is not None and entry.public and entry.epoch != epoch:
                return True  # that of a later holder
            if entry is None or not (entry.public and password):
                return await self._write(
                    "guest-not-removed", lambda: remove(self._repository, login)
                )
            return await self._write(
                "guest-not-made", lambda: ensure(self._repository, login, password)
            )

    async def _write(self, failure: str, write: Callable[[], None]) -> bool:
        try:
            await asyncio.to_thread(write)
        except sqlite3.Error as error:
            self._log("warning", failure, error=str(error))
            return False
        return True


def ensure(path: str, login: str, password: str) -> None:
    """Let *login* clone and read the repository *path* with *password*, and with no other.

    Raises:
        sqlite3.Error: it cannot be written.
    """
    with closing(connect(path)) as db:
        row = db.execute("SELECT value FROM config WHERE name='project-code'").fetchone()
        digest = password_digest(str(row[0]), login, password)
        wanted = (digest, CAPABILITIES)
        if db.execute("SELECT pw, cap FROM user WHERE login=?", (login,)).fetchone() == wanted:
            return
        done = db.execute(
            "INSERT INTO user(login, pw, cap, info, mtime) VALUES(?1, ?2, ?3, ?4, unixepoch()) "
            "ON CONFLICT(login) DO UPDATE SET pw=?2, cap=?3, cookie=NULL, mtime=unixepoch() "
            "WHERE info=?4",
            (login, digest, CAPABILITIES, _INFO),
        )
        if not done.rowcount:
            raise sqlite3.IntegrityError(f"{login} is a login of somebody else's")


def remove(path: str, login: str) -> None:
    """Have *login* forgotten; raise as :func:`ensure`."""
    with closing(connect(path)) as db:
        db.execute("DELETE FROM user WHERE login=? AND info=?", (login, _INFO))


def keep_only(path: str, living: set[str]) -> None:
    """Have all guests but *living* forgotten; raise as :func:`ensure`."""
    with closing(connect(path)) as db:
        rows = db.execute("SELECT login FROM user WHERE info=?", (_INFO,)).fetchall()
        for (login,) in rows:
            if login not in living:
                db.execute("DELETE FROM user WHERE login=? AND info=?", (login, _INFO))
