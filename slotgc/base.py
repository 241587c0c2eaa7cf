"""``base.json`` and ``base.log``: what a slot's worktree was when it last agreed with trunk.

Whatever in the worktree differs from it is work that is saved nowhere else. It is written by who
makes a worktree and by who commits it, and it is read with the standard library alone, by who
must judge a slot whose leaf is dead.

base.json is one JSON object::

    {"schema": 1,
     "checkin": HASH or "",
     "indexed_ns": when the first file was looked at, nanoseconds since the epoch,
     "files": [[PATH, "file"|"exec"|"link", SIZE, HASH, MTIME_NS, CTIME_NS, INODE], …],
     "git": {"head": TEXT, "refs": {NAME: TEXT}, "since_ns": as indexed_ns},
     "marked": [[PATH, TEXT, …], …],
     "asked": TEXT,
     "log": ID}

PATH is a string, or ``{"b64": …}`` where it is not UTF-8. HASH is Fossil's name of the content (a
link's content is its target). MTIME_NS, CTIME_NS and INODE are what the file system said of the
file when it was known to have that content; 0 in one of them: not known. ``git`` is what
:func:`slotgc.history.git_refs` saw of the worktree's own repository; what was stored in it after
``since_ns`` (without one: indexed_ns) is somebody's work. ``marked`` may be missing; it names the
files in which an update has left conflict markers, and their lines. ``asked`` may be missing; it
is the commit that trunk was asked for last, if what became of it is not in here yet.

base.log, beside it, says what has become of it since, an object a line, so that a commit of one
file in fifty thousand costs one line::

    {"log": ID, "checkin": HASH, "indexed_ns": N, "files": [ROW, …], "removed": [PATH, …],
     "refs": {NAME: TEXT}}
    {"log": ID, "asked": TEXT}

The first may say as well what is asked: nothing any more, "". A line counts only for the base.json
that has its ID. So a new base.json, which holds all that the lines said, ends them in the same
instant, whoever is killed before the log is removed. Reading ends at the first line that is not
whole: the base is then older than it could be, and more counts as work.
"""

from __future__ import annotations

import os
import stat
import time

from foundation import atomic, codec
from foundation.errors import Corrupt
from foundation.record import Record
from slotgc import artifact, history, treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from typing import Any

FILE, EXEC, LINK = "file", "exec", "link"
_KINDS = frozenset((FILE, EXEC, LINK))
SCHEMA = 1
NAME = "base.json"
LOG_NAME = "base.log"
LIMIT_BYTES = 256 << 20
"""A million files; more cannot be judged."""

TICK_NS = 20_000_000
"""Twice the coarsest step of the kernel's clock for files: two changes within one look like one."""

_SECOND_NS = 1_000_000_000
_COARSE_TICK_NS = 3 * _SECOND_NS  # where the file system itself keeps whole seconds, or every other

Row = tuple[str, int, str, int, int, int]
"""Kind, size in bytes, hash, mtime_ns, ctime_ns, inode."""


class Base(Record):
    """A worktree as it was: its files by path, its check-in ("": none), its git references."""

    checkin: str
    indexed_ns: int
    files: dict[bytes, Row]
    git_head: str = ""
    git_refs: dict[str, str] = {}  # noqa: RUF012 - a record never changes
    git_since_ns: int = 0
    """Its git holds somebody's work if it has stored anything after this; 0: after indexed_ns."""
    marked: dict[bytes, tuple[str, ...]] = {}  # noqa: RUF012 - a record never changes
    """Files in which an update has left conflict markers, and what stands in those lines."""
    asked: str = ""
    """The commit, as it travels without contents, whose fate is not in here yet; "": none."""
    log: str = ""
    """Which lines of base.log go on from here; "": none."""

    def artifacts(self) -> set[str]:
        """Return the names of all that must be on trunk for this to be saved there; "" is never."""
        return {self.checkin, *(row[2] for row in self.files.values())}

    def trusts(self, row: Row, status: os.stat_result) -> bool:
        """Tell from *status* alone that a file still is what *row* says.

        Any change moves the ctime, unless it falls into the same tick as the one before it: one
        that was young when it was indexed proves nothing (git calls this a racy entry).
        """
        _kind, size, _hash, mtime_ns, ctime_ns, inode = row
        return (
            status.st_ctime_ns == ctime_ns
            and status.st_size == size
            and status.st_mtime_ns == mtime_ns
            and status.st_ino == inode
            and was_settled(ctime_ns, self.indexed_ns)
        )

    def settled(self) -> Base:
        """Return it with no trust in files that were young when they were indexed.

        Needed before indexed_ns moves on, which would make every one of them look old.
        """
        files = {path: settle(row, self.indexed_ns) for path, row in self.files.items()}
        return self.replace(files=files)


def was_settled(ctime_ns: int, seen_ns: int) -> bool:
    """Tell whether a file with *ctime_ns*, looked at at *seen_ns*, cannot change unnoticed."""
    return ctime_ns < seen_ns - (TICK_NS if ctime_ns % _SECOND_NS else _COARSE_TICK_NS)


def settle(row: Row, seen_ns: int) -> Row:
    """Return *row* of a file looked at at *seen_ns*; of one too young to be trusted, no ctime."""
    if row[4] and not was_settled(row[4], seen_ns):
        return (*row[:4], 0, row[5])
    return row


def kind_of(mode: int) -> str:
    """Return ``file``, ``exec`` or ``link`` for a file's st_mode, "" for anything else."""
    if stat.S_ISLNK(mode):
        return LINK
    if not stat.S_ISREG(mode):
        return ""
    return EXEC if mode & stat.S_IXUSR else FILE


def index(worktree: str, *, checkin: str = "", hashes: Mapping[bytes, str] | None = None) -> Base:
    """Return what *worktree* is now, every file of it.

    A hash that the caller knows (*hashes*, by path) is believed, the others are taken of the
    content. Whoever calls this has the worktree alone.

    Raises:
        OSError: something in it cannot be read.
    """
    indexed_ns = time.time_ns()
    known = hashes or {}
    top = os.fsencode(worktree)
    files: dict[bytes, Row] = {}
    for path, status in _walk(top):
        kind = kind_of(status.st_mode)
        if not kind:
            continue
        name = known.get(path) or artifact.of_entry(top + b"/" + path, kind)
        stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        files[path] = (kind, status.st_size, name, *stamps)
    head, refs = history.git_refs(worktree)
    return Base(checkin=checkin, indexed_ns=indexed_ns, files=files, git_head=head, git_refs=refs)


def _walk(top: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield what is no directory below *top*, by its path from there; no link is followed."""
    pending = [b""]
    while pending:
        below = pending.pop()
        with os.scandir(top + b"/" + below) as entries:
            for entry in entries:
                path = below + entry.name
                if path in treepath.BOOKKEEPING:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path + b"/")
                else:
                    yield path, entry.stat(follow_symlinks=False)


def write(path: str, base: Base, *, sound: bool = False) -> None:
    """Put *base* at *path*, whole or not at all.

    *sound*: the caller vouches for it; looking takes 4 us a file, four times as long as writing.

    Raises:
        ValueError: it is not sound; :func:`read` would refuse it.
        OSError: it cannot be written.
    """
    rows = [[treepath.to_json(name), *row] for name, row in sorted(base.files.items())]
    git: dict[str, Any] = {"head": base.git_head, "refs": base.git_refs}
    value = {
        "schema": SCHEMA,
        "checkin": base.checkin,
        "indexed_ns": base.indexed_ns,
        "files": rows,
        "git": git,
    }
    if base.git_since_ns:
        git["since_ns"] = base.git_since_ns
    if base.marked:
        value["marked"] = [[treepath.to_json(name), *at] for name, at in base.marked.items()]
    if base.asked:
        value["asked"] = base.asked
    if base.log:
        value["log"] = base.log
    if not sound:
        _parse(value)
    atomic.write_file(path, codec.dumps(value).encode() + b"\n", durable=False)


def log_line(
    base: Base,
    rows: Mapping[bytes, Row],
    removed: Collection[bytes],
    refs: Mapping[str, str],
    *,
    is_answer: bool = False,
) -> bytes:
    """Return the line of base.log that makes *base* what it is of what it was.

    *rows* and *removed*: its files that changed and those that went; *refs*: those of its git.
    *is_answer*: what was asked is in it.
    """
    value = {
        "log": base.log,
        "checkin": base.checkin,
        "indexed_ns": base.indexed_ns,
        "files": [[treepath.to_json(path), *row] for path, row in rows.items()],
        "removed": [treepath.to_json(path) for path in removed],
        "refs": dict(refs),
        **({"asked": ""} if is_answer else {}),
    }
    return codec.dumps(value).encode() + b"\n"


def asked_line(log: str, asked: str) -> bytes:
    """Return the line of base.log, of the base.json *log*, that says what trunk is asked for."""
    return codec.dumps({"log": log, "asked": asked}).encode() + b"\n"


def read(path: str) -> Base | None:
    """Return the base at *path* with what the log beside it says, None if there is none.

    Raises:
        Corrupt: it is not sound, or cannot be read: nothing can be judged by it.
    """
    try:
        base = _parse(codec.loads(atomic.read_bounded(path, LIMIT_BYTES)))
        if not base.log:
            return base
        try:
            log = atomic.read_bounded(f"{os.path.dirname(path)}/{LOG_NAME}", LIMIT_BYTES)
        except FileNotFoundError:
            return base
        return _replay(base, log)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Corrupt(f"{path} cannot be used: {error}", reason="base") from None


def _replay(base: Base, log: bytes) -> Base:
    """Return what *base* has become by the lines of *log*, up to the first that is not whole."""
    first = True
    for line in log.splitlines(keepends=True):
        try:
            _require(line.endswith(b"\n"), "torn")
            value = codec.loads_object(line)
            if value.get("log") != base.log:
                continue  # of a base.json before this one, which holds all that it said
            if "asked" in value:
                _require(isinstance(value["asked"], str), "asked is no text")
                base = base.replace(asked=value["asked"])
                if "checkin" not in value:
                    continue
            step = _parse({**value, "schema": SCHEMA, "git": {"head": "", "refs": value["refs"]}})
            removed = [treepath.from_json(one) for one in value["removed"]]
        except (ValueError, LookupError, TypeError):
            return base
        if first:
            base, first = base.settled(), False
        files = base.files
        for path in removed:
            files.pop(path, None)
        files.update(step.settled().files)
        base = base.replace(
            checkin=step.checkin,
            indexed_ns=step.indexed_ns,
            git_refs={**base.git_refs, **step.git_refs},
            git_since_ns=base.git_since_ns or base.indexed_ns,
        )
    return base


def _parse(value: Any) -> Base:
    """Return the base that *value* (decoded JSON) holds.

    Raises:
        ValueError: it is not sound.
    """
    _require(isinstance(value, dict), "it is no object")
    _require(value.get("schema") == SCHEMA, f"schema {value.get('schema')!r:.20}, not {SCHEMA}")
    checkin, indexed_ns = value.get("checkin"), value.get("indexed_ns")
    _require(checkin == "" or artifact.is_name(checkin), "checkin is no hash")
    _require(_is_count(indexed_ns), "indexed_ns is no time")
    _require(isinstance(value.get("files"), list), "files is no list")
    files: dict[bytes, Row] = {}
    for row in value["files"]:
        _require(isinstance(row, list) and len(row) == 1 + 6, "a row of files is no row")
        path = treepath.from_json(row[0])
        kind, size, name, *stamps = row[1:]
        _require(isinstance(kind, str) and kind in _KINDS, "a kind is none")
        _require(artifact.is_name(name), "a hash is none")
        _require(_is_count(size) and all(map(_is_count, stamps)), "a number is none")
        _require(path not in files, "a path stands twice")
        files[path] = (kind, size, name, *stamps)
    git = value.get("git")
    _require(isinstance(git, dict) and {"head", "refs"} <= set(git), "git is incomplete")
    head, refs, since_ns = git["head"], git["refs"], git.get("since_ns", 0)
    _require(_is_count(since_ns), "since_ns is no time")
    marked = value.get("marked", [])
    _require(isinstance(marked, list) and all(map(_is_marked, marked)), "marked is malformed")
    asked, log = value.get("asked", ""), value.get("log", "")
    _require(isinstance(asked, str) and isinstance(log, str), "asked or log is no text")
    _require(isinstance(head, str) and isinstance(refs, dict), "git is malformed")
    _require(all(isinstance(to, str) for to in refs.values()), "a reference is no text")
    return Base(
        checkin=checkin,
        indexed_ns=indexed_ns,
        files=files,
        git_head=head,
        git_refs=refs,
        git_since_ns=since_ns,
        marked={treepath.from_json(name): tuple(lines) for name, *lines in marked},
        asked=asked,
        log=log,
    )


def _is_marked(row: object) -> bool:
    return isinstance(row, list) and bool(row) and all(isinstance(one, str) for one in row[1:])


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _require(sound: bool, fault: str) -> None:
    if not sound:
        raise ValueError(fault)
