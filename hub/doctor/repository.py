"""The trunk's file, looked at without a trace.

A plain read-only opening would make ``-wal`` and ``-shm`` files, or refuse where a writer was
killed. So: where the write-ahead log holds something its index is there too, and both are
only read (``readonly_shm``); where it holds nothing, the file alone is the truth
(``immutable``) for as long as nobody writes, which is looked at again afterwards.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import time
import urllib.parse

from hub.doctor.finding import FOSSIL, Scene, Verdict, ok, problem, warning
from hub.wording import several, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CHECK_WITHIN_S = 2.0
AHEAD_S = 3600.0
"""A tip dated further in the future than this would hold up every later check-in's date."""

_TRIES = 3
_STEPS = 10_000  # of the virtual machine between two looks at the clock: about a millisecond
_MAGIC = b"SQLite format 3\0"
_WAL_FORMAT = b"\2\2"  # Source: SQLite file format, bytes 18 and 19 of the header
_RIGHTS_OF = ("nobody", "anonymous")

# Source: fossil's schema; the tag "branch" holds the name of a check-in's branch.
_TRUNK = """WITH RECURSIVE trunk(rid) AS (
    SELECT rid FROM tagxref WHERE value='trunk' AND tagtype>0
      AND tagid=(SELECT tagid FROM tag WHERE tagname='branch'))"""
_TIP = f"""{_TRUNK} SELECT objid, uuid, (mtime - julianday('now')) * 86400.0 FROM event
  JOIN blob ON rid=objid WHERE type='ci' AND objid IN trunk
  ORDER BY mtime DESC, objid DESC LIMIT 1"""  # noqa: S608 - of constants, like the next two
_LEAVES = f"{_TRUNK} SELECT count(*) FROM leaf WHERE rid IN trunk"  # noqa: S608
_ASIDE = f"""{_TRUNK}, line(rid) AS (
    VALUES(?) UNION SELECT pid FROM plink JOIN line ON cid=rid WHERE isprim)
  SELECT uuid FROM plink JOIN blob ON rid=cid
  WHERE isprim AND pid IN line AND cid NOT IN line AND cid IN trunk ORDER BY cid"""  # noqa: S608
"""The first check-ins of every line on trunk that leaves the one to the newest tip."""


class _Busy(Exception):
    """It is written to all the time."""


def file(scene: Scene) -> Verdict:
    """The file is there and is a database."""
    path = scene.workspace.repository
    aside = f"mv {shlex.quote(path)} {shlex.quote(path)}.aside && {scene.hub('start --detach')}"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if scene.record is None and not scene.runs:
            return ok("no trunk yet: the first `hub start` makes it")
        ran = "a hub runs on it" if scene.runs else "a hub has run here"
        return problem(
            f"{path} is missing, and {ran}: put a backup in its place, or begin anew", scene.renew()
        )
    if not stat.S_ISREG(status.st_mode):
        return problem(f"{path} is not a regular file", scene.while_stopped(aside))
    header = _header(scene)
    told = f"{path}, {size(status.st_size)}"
    if header[:16] != _MAGIC:
        seen = "it does not begin like an SQLite database" if header else "it is empty"
        return problem(
            f"{told}, is no Fossil repository: {seen}; put a backup in its place, or "
            "have a new one seeded",
            scene.while_stopped(aside),
        )
    return ok(told)


def wal(scene: Scene) -> Verdict | None:
    """Readers and the writer do not stop each other."""
    header = _header(scene)
    if header[:16] != _MAGIC:
        return None
    if header[18:20] == _WAL_FORMAT:
        return ok("write-ahead log")
    path = shlex.quote(scene.workspace.repository)
    return warning(
        f"{scene.workspace.repository} is not in WAL mode: every reader stops commits",
        scene.while_stopped(f"{FOSSIL} sql -R {path} 'PRAGMA journal_mode=WAL'"),
    )


def content(scene: Scene) -> Verdict | None:
    """SQLite finds the file whole, as far as it gets in two seconds."""

    def look(database: sqlite3.Connection) -> Verdict:
        try:
            rows = [str(row[0]) for row in database.execute("PRAGMA quick_check(5)")]
        except sqlite3.OperationalError as error:
            if "interrupted" not in str(error):
                raise
            return ok(f"nothing wrong in the first {CHECK_WITHIN_S:g} s of a check")
        return ok("quick_check: ok") if rows == ["ok"] else _damaged(scene, several(rows, 3))

    return _ask(scene, look)


def settings(scene: Scene) -> Verdict | None:
    """Fossil leaves no process behind that would outlive its server."""

    def look(database: sqlite3.Connection) -> Verdict:
        row = database.execute(
            "SELECT value FROM config WHERE name='backoffice-disable'"
        ).fetchone()
        if row is not None and str(row[0]) in ("1", "on"):
            return ok("backoffice-disable is on")
        seen = "not set" if row is None else repr(row[0])
        path = shlex.quote(scene.workspace.repository)
        return problem(
            f"backoffice-disable is {seen}: Fossil starts processes that outlive it",
            f"{FOSSIL} settings backoffice-disable 1 -R {path}",
        )

    return _ask(scene, look, quiet=True)


def rights(scene: Scene) -> Verdict | None:
    """Who has no password may do nothing."""

    def look(database: sqlite3.Connection) -> Verdict:
        found = database.execute(
            "SELECT login, cap FROM user WHERE login IN (?, ?) AND cap<>''", _RIGHTS_OF
        ).fetchall()
        if not found:
            return ok("nobody and anonymous may do nothing")
        path = shlex.quote(scene.workspace.repository)
        return problem(
            ", ".join(f"{login} has the rights {cap!r}" for login, cap in found)
            + ": every program on this machine can use the Fossil server",
            " && ".join(
                f"{FOSSIL} user capabilities {login} '' -R {path}" for login, _cap in found
            ),
        )

    return _ask(scene, look, quiet=True)


def checkins(scene: Scene) -> Verdict | None:
    """The trunk has at least its root."""

    def look(database: sqlite3.Connection) -> Verdict:
        (count,) = database.execute("SELECT count(*) FROM event WHERE type='ci'").fetchone()
        tip = database.execute(_TIP).fetchone()
        if tip is None:
            path = shlex.quote(scene.workspace.repository)
            aside = f"mv {path} {path}.aside && {scene.hub('start --detach')}"
            return problem(f"{count} check-ins, none of them on trunk", scene.while_stopped(aside))
        return ok(f"{count} check-in{'' if count == 1 else 's'}, the tip of trunk is {tip[1][:12]}")

    return _ask(scene, look, quiet=True)


def fork(scene: Scene) -> Verdict | None:
    """Trunk is one line."""

    def look(database: sqlite3.Connection) -> Verdict | None:
        tip = database.execute(_TIP).fetchone()
        if tip is None:
            return None
        (leaves,) = database.execute(_LEAVES).fetchone()
        aside = [str(row[0]) for row in database.execute(_ASIDE, (tip[0],))]
        if leaves == 1 and not aside:
            return ok("trunk is one line")
        path = shlex.quote(scene.workspace.repository)
        seen = f"trunk has {leaves} leaves"
        if not aside:
            return problem(f"{seen}, the newest of them {tip[1][:12]}", f"{FOSSIL} rebuild {path}")
        return problem(
            f"{seen}: besides the line to {tip[1][:12]} one begins at "
            f"{several([name[:12] for name in aside])}",
            " && ".join(
                f"{FOSSIL} amend {name[:16]} --branch fork-{name[:8]} -R {path}" for name in aside
            ),
        )

    return _ask(scene, look, quiet=True)


def clock(scene: Scene) -> Verdict | None:
    """The tip is not of the future: every later check-in must be dated after it."""

    def look(database: sqlite3.Connection) -> Verdict | None:
        tip = database.execute(_TIP).fetchone()
        if tip is None:
            return None
        ahead_s = float(tip[2])
        if ahead_s > AHEAD_S:
            return warning(
                f"the tip of trunk, {tip[1][:12]}, is dated {ahead_s / 3600:.1f} h ahead "
                "of this machine's clock",
                "timedatectl status",
            )
        return ok("the tip of trunk is dated in the past")

    return _ask(scene, look, quiet=True)


def _header(scene: Scene) -> bytes:
    try:
        fd = os.open(scene.workspace.repository, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, 100) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _damaged(scene: Scene, seen: str) -> Verdict:
    path = shlex.quote(scene.workspace.repository)
    return problem(
        f"{scene.workspace.repository} is damaged: {seen}; put a backup in its place, or try",
        scene.while_stopped(f"cp -p {path} {path}.damaged && {FOSSIL} rebuild {path}"),
    )


def _ask(
    scene: Scene, look: Callable[[sqlite3.Connection], Verdict | None], *, quiet: bool = False
) -> Verdict | None:
    """Return the answer of *look*; where there is no database to ask, None.

    One check says what keeps us from asking, the others are *quiet* about it.
    """
    if _header(scene)[:16] != _MAGIC:
        return None
    path = scene.workspace.repository
    journal = f"{path}-journal"
    if os.path.isfile(journal) and os.path.getsize(journal):
        seen = f"{journal}: a transaction is under way, or its writer was killed: not judged"
        return None if quiet else warning(seen, scene.renew())
    try:
        return _undisturbed(path, look)
    except _Busy:
        return None if quiet else ok("not judged: it is being written to all the time")
    except sqlite3.OperationalError as error:
        if quiet:
            return None
        return warning(f"{path} cannot be read now: {error}", scene.renew())
    except sqlite3.DatabaseError as error:
        return None if quiet else _damaged(scene, str(error))


def _undisturbed(path: str, look: Callable[[sqlite3.Connection], Verdict | None]) -> Verdict | None:
    """Return what *look* sees of one state of the database at *path*.

    Raises:
        _Busy: it changed during every look.
    """
    for _ in range(_TRIES):
        before = _stamps(path)
        logged = before[1] is not None and before[1][0] > 0
        options = "mode=ro&readonly_shm=1" if logged else "immutable=1"
        uri = f"file:{urllib.parse.quote(os.fsencode(path))}?{options}"
        failure: sqlite3.DatabaseError | None = None
        answer = None
        database = sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None)
        try:
            deadline_s = time.monotonic() + CHECK_WITHIN_S
            database.set_progress_handler(lambda end=deadline_s: time.monotonic() > end, _STEPS)  # type: ignore[misc]
            answer = look(database)
        except sqlite3.DatabaseError as error:
            failure = error
        finally:
            database.close()
        if logged or _stamps(path) == before:
            if failure is not None:
                raise failure
            return answer
    raise _Busy


def _stamps(path: str) -> list[tuple[Any, ...] | None]:
    """Return what changes when the database or its log does."""
    stamps: list[tuple[Any, ...] | None] = []
    for name in (path, f"{path}-wal"):
        try:
            status = os.stat(name)
        except FileNotFoundError:
            stamps.append(None)
        else:
            stamps.append((status.st_size, status.st_mtime_ns, status.st_ino))
    return stamps
