"""Making a Fossil repository file: its rows, its check-ins, its users and settings.

Contents go in as rows, exactly as Fossil's own ``content_put`` leaves them: 4 bytes of
length, then zlib (Source: fossil 2.21 blob.c ``blob_compress``), and the row's number in
``unclustered``, from which a pull learns what there is. The check-ins go in through stock
Fossil, as a push of their manifests, so that every derived table is Fossil's own work and no
``rebuild`` has to read the contents again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from itertools import pairwise

from foundation.errors import Corrupt, HubError, Refused, ToolFailed
from hub import fossil as fossil_binary
from hub import place
from hub.manifest import HEAD_BYTES, LEVEL, TAIL_BYTES, may_be_artifact
from hub.tool import Tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from hub.manifest import Checkin, Row

LARGEST_BYTES = 512 * 1024 * 1024
"""The largest content taken. Fossil holds three copies of one while it checks it out."""

HUB_USER, OPERATOR = "hub", "operator"
LOGINS = (HUB_USER, OPERATOR)
"""Who may log in to the Fossil server."""

_CAPABILITIES = {
    # Source: fossil "Administering User Capabilities". g clone, i push, o pull and read,
    # j read wiki, r read tickets, z download archives, h see hyperlinks.
    HUB_USER: "gijor",
    OPERATOR: "ghijorz",
}

_SETTINGS = {
    "allow-symlinks": "1",  # else a check-out turns symbolic links into plain files
    "autosync": "0",  # this repository has nothing to synchronise with
    "backoffice-disable": "1",  # it leaves processes behind that outlive the server
}

_SPILL_CHUNK = 1 << 20
_REPLY_BYTES = 4096


class RepositoryFile:
    """A repository file that nobody else knows of yet.

    In order: :meth:`create`; the constructor and :meth:`add`, :meth:`add_big`,
    :meth:`close`; :meth:`store`; the constructor again for :meth:`finish`. Until it is
    finished a crash spoils it: throw it away and begin again.
    """

    @staticmethod
    def create(fossil: str, path: str, home: str) -> Tool:
        """Start making an empty repository at *path*; pass the result to :meth:`created`.

        Through ``import`` of nothing, because ``new`` makes a check-in that nobody asked for.
        """
        return Tool(
            [fossil, "import", "--git", "--no-vacuum", path],
            env=fossil_binary.environment(home),
            cwd=home,
        )

    @staticmethod
    def created(tool: Tool, path: str) -> None:
        """Wait until the repository is made; only its owner may read it from then on."""
        tool.stdout.read()
        if tool.wait() != 0:
            raise _explain(tool, tool.said(), path)
        os.chmod(path, 0o600)

    def __init__(self, path: str) -> None:
        """Open the repository at *path*, without the safety that a shared file would need."""
        self.path = path
        # Whole transactions at once: fossil's own rows first, ours when close() comes.
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("PRAGMA cache_size=-16000")
        self._db.execute("BEGIN EXCLUSIVE")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    @property
    def project_code(self) -> str:
        """What tells this repository and its clones from all others."""
        row = self._db.execute("SELECT value FROM config WHERE name='project-code'").fetchone()
        return str(row[0])

    def add(self, rows: Iterable[Row]) -> None:
        """Store contents; one that is there already stays as it is."""
        self._db.executemany(
            "INSERT OR IGNORE INTO blob(rcvid, size, uuid, content) VALUES(1, ?, ?, ?)",
            ((size, digest.hex(), packed) for size, digest, packed in rows),
        )

    def add_big(self, size: int, chunks: Iterable[bytes], spill: str) -> bytes | None:
        """Store one big content piece by piece, packed first into the file *spill*.

        Returns:
            Its digest; None if it is left out because it looks like a control artifact.
        """
        digest, packer, tail, head = hashlib.sha3_256(), zlib.compressobj(LEVEL), b"", b""
        with open(spill, "w+b") as file:
            file.write(size.to_bytes(4, "big"))
            for chunk in chunks:
                head = head or chunk[:HEAD_BYTES]
                tail = (tail + chunk)[-TAIL_BYTES:]
                digest.update(chunk)
                file.write(packer.compress(chunk))
            file.write(packer.flush())
            file.flush()
            if may_be_artifact(head, tail):
                return None
            self._copy_in(file.tell(), size, digest.hexdigest(), _from_start(file.fileno()))
        os.unlink(spill)
        return digest.digest()

    def _copy_in(self, packed_size: int, size: int, uuid: str, packed: Iterator[bytes]) -> None:
        if self._db.execute("SELECT 1 FROM blob WHERE uuid=?", (uuid,)).fetchone():
            return
        rid = self._db.execute(
            "INSERT INTO blob(rcvid, size, uuid, content) VALUES(1, ?, ?, zeroblob(?))",
            (size, uuid, packed_size),
        ).lastrowid
        assert rid is not None
        with self._db.blobopen("blob", "content", rid) as blob:
            for chunk in packed:
                blob.write(chunk)

    def close(self) -> None:
        """Commit what was added, ready for :meth:`store`."""
        self._db.execute("INSERT INTO unclustered SELECT rid FROM blob")
        # fossil reads the setting while it stores, and would start its backoffice.
        self._db.execute(
            "REPLACE INTO config(name, value, mtime) VALUES('backoffice-disable', '1', unixepoch())"
        )
        self._db.execute("COMMIT")
        self._db.close()

    @staticmethod
    def store(
        fossil: str, path: str, checkins: list[Checkin], project_code: str, home: str
    ) -> None:
        """Have fossil receive *checkins*, a parent before its child.

        Through ``test-http``: the request comes on standard input with all rights, and it
        neither changes root directory nor user, as ``http`` does for root. One request each:
        the server holds several copies of what it receives.

        Raises:
            ToolFailed: fossil did not take them.
        """
        for one in checkins:
            fd = os.memfd_create("request")
            with os.fdopen(fd, "wb") as request:
                card = b"push %s %s\nfile %s %d\n" % (
                    b"0" * 40,
                    project_code.encode(),
                    one.hash.encode(),
                    len(one.manifest),
                )
                request.write(
                    b"POST /xfer HTTP/1.0\r\nHost: localhost\r\n"
                    b"Content-Type: application/x-fossil-uncompressed\r\n"
                    b"Content-Length: %d\r\n\r\n" % (len(card) + len(one.manifest))
                )
                request.write(card)
                request.write(one.manifest)
                request.flush()
                os.lseek(fd, 0, os.SEEK_SET)
                with Tool(
                    [fossil, "test-http", path],
                    cwd=home,
                    stdin=fd,
                    env=fossil_binary.environment(home),
                ) as tool:
                    reply = tool.stdout.read(_REPLY_BYTES)
                    tool.stdout.read()
                    said = f"{tool.said()}\n{_answer(reply)}".strip()
                    if tool.wait() != 0 or b"\nerror " in reply:
                        raise _explain(tool, said, path)

    def finish(self, checkins: list[Checkin], files: int, passwords: Mapping[str, str]) -> None:
        """Check that fossil understood *checkins*, then set users and settings, and close.

        *files* is how many the first of them has. *passwords* are for the two users that
        there will be; every other one loses its rights, fossil's administrator included.

        Raises:
            Corrupt: what fossil made of the check-ins is not what was sent.
        """
        self._expect(checkins, files)
        project_code = self.project_code
        self._db.execute("UPDATE user SET cap='', pw=''")
        for login, password in passwords.items():
            self._db.execute(
                "INSERT INTO user(login, pw, cap, info, mtime) VALUES(?1, ?2, ?3, '', unixepoch()) "
                "ON CONFLICT(login) DO UPDATE SET pw=?2, cap=?3",
                (login, password_digest(project_code, login, password), _CAPABILITIES[login]),
            )
        self._db.executemany(
            "REPLACE INTO config(name, value, mtime) VALUES(?, ?, unixepoch())", _SETTINGS.items()
        )
        self._db.execute("COMMIT")
        mode = self._db.execute("PRAGMA journal_mode=WAL").fetchone()
        assert mode == ("wal",), mode
        self._db.close()

    def _expect(self, checkins: list[Checkin], files: int) -> None:
        ids = [
            self._db.execute(
                "SELECT rid FROM blob JOIN event ON objid=rid WHERE uuid=? AND type='ci'",
                (one.hash,),
            ).fetchone()
            for one in checkins
        ]
        found = {
            "check-ins": ids.count(None),
            "leaves": self._db.execute("SELECT rid FROM leaf").fetchall() != ids[-1:],
            "parents": self._db.execute("SELECT pid, cid FROM plink WHERE isprim").fetchall()
            != [(*a, *b) for a, b in pairwise(ids) if a and b],
            "phantoms": self._db.execute("SELECT count(*) FROM phantom").fetchone()[0],
            "files": ids[0] is None
            or self._db.execute("SELECT count(*) FROM mlink WHERE mid=?", ids[0]).fetchone()[0]
            != files,
        }
        wrong = [name for name, problem in found.items() if problem]
        if wrong:
            raise Corrupt(
                f"{self.path}: fossil took the check-ins but their {', '.join(wrong)} "
                "are wrong; is this version of fossil supported?",
                reason="seed-not-understood",
            )


def password_digest(project_code: str, login: str, password: str) -> str:
    """Return what fossil stores for a password. Source: fossil 2.21 sha1.c."""
    return hashlib.sha1(
        f"{project_code}/{login}/{password}".encode(), usedforsecurity=False
    ).hexdigest()


def explain_database(error: sqlite3.Error, path: str) -> HubError:
    """Return what *error*, met while writing the database *path*, means for the user."""
    directory = os.path.dirname(path)
    text = str(error)
    if "full" in text:
        return place.disk_full(directory)
    if "readonly" in text or "unable to open" in text:
        return Refused(f"{directory} cannot be written: {text}", reason="state-not-writable")
    return HubError(f"{path}: {text}", reason="system")


def _explain(tool: Tool, said: str, path: str) -> HubError:
    """Return the error for a fossil that failed at *path*, having *said* that."""
    status = tool.wait()
    directory = os.path.dirname(path)
    # On a full disk fossil may say anything ("not a valid repository").
    if "disk is full" in said or place.free_bytes(directory) < place.LEAST_FREE_BYTES:
        return place.disk_full(directory)
    return ToolFailed(["fossil", *tool.argv[1:]], status, said, reason="fossil")


def _answer(reply: bytes) -> str:
    return reply.partition(b"\r\n\r\n")[2].decode("utf-8", "replace").strip()


def _from_start(fd: int) -> Iterator[bytes]:
    os.lseek(fd, 0, os.SEEK_SET)
    while chunk := os.read(fd, _SPILL_CHUNK):
        yield chunk
