"""Templates: worktrees that nobody works in, to be copied (``.orchestrator/templates/``).

A template is a directory ``<generation>/`` with ``wt/`` (files, ``.fslckout``, ``.git``),
``index.json`` (what its files are, as in base.json) and ``lock``. Who copies
one holds its lock shared; who removes one, alone. Who makes one holds ``templates/lock``, builds
it under another name and renames it: whatever is killed when, what has a generation's name is
whole.

The files' times lie in the past: Fossil compares whole seconds, git calls a file racy that is not
older than its index, and an edit of a copy must differ for both.
"""

from __future__ import annotations

import fcntl
import os
import time
from calendar import timegm

from foundation import atomic, codec
from foundation.errors import Corrupt, HubError, Unavailable
from foundation.failpoint import hit
from foundation.lock import try_lock
from hub.repository import Repository
from hub.wording import size
from slotgc import base, planted, treepath
from slotgc.removal import remove_tree
from swarm.worktree import checkout, gitside
from swarm.worktree.checkout import VFile
from swarm.worktree.copying import copy_tree
from swarm.worktree.placing import Planter, unplant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Any, Self

    from foundation.workspace import Workspace
    from hub.repository import Difference, Entry
    from slotgc.base import Base, Row

    Progress = Callable[..., None]
    """``phase`` in words, ``done``, ``total`` (0: not known), all by name."""

REFRESH_PATHS = 300
"""A template is followed by a newer one when the tip differs from it in more files than that."""

LEAST_ROOM_BYTES = 2**30
"""With less free on the disk no template is made but by a join that needs one."""

_KEPT = 2
_AGAIN_S = 0.05
_NOTE_LIMIT = 64
_SECOND_NS = 1_000_000_000
_PAST_NS = 10 * _SECOND_NS
_TELL_EVERY = 256
_NAME_DIGITS = 20
_NOBODY = "anonymous"


class Template:
    """A template that is held: nobody removes it until :meth:`close`."""

    def __init__(self, path: str, index: Base, lock: int) -> None:
        """Take over *lock*, the descriptor that holds it."""
        self.path = path
        self.index = index
        self.worktree = f"{path}/wt"
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._lock)


def prepare(workspace: Workspace) -> None:
    """Make a template now, if there is none that will do, so that no join has to.

    One that another is making is left to him.

    Raises:
        HubError: none can be made.
    """
    lock = try_lock(_lock_path(workspace))
    if lock is None:
        return
    try:
        _sweep(workspace)
        room = os.statvfs(workspace.templates)
        if room.f_bavail * room.f_frsize < LEAST_ROOM_BYTES:
            raise Unavailable(
                f"less than {size(LEAST_ROOM_BYTES)} are left on the disk of "
                f"{workspace.templates}: no template is made ahead",
                reason="disk-full",
            )
        with Repository(workspace.repository) as repository:
            found = _newest(workspace)
            if found is None or _is_far_behind(found, repository):
                found = _make_next(workspace, repository, found, _silent, lock)
            found.close()
    finally:
        os.close(lock)


def sweep(workspace: Workspace) -> None:
    """Remove what makers that were killed have left.

    Raises:
        OSError: something cannot be removed.
    """
    lock = try_lock(_lock_path(workspace))
    if lock is None:
        return
    try:
        _sweep(workspace)
    finally:
        os.close(lock)


def hold(workspace: Workspace, repository: Repository, progress: Progress) -> Template:
    """Return a template to copy from, made now if there is none that will do.

    One that another is making is waited for, and his progress told.

    Raises:
        HubError: none can be made.
    """
    while True:
        before = _generations(workspace)
        found = _newest(workspace)
        if found is not None and not _is_far_behind(found, repository):
            return found
        lock = try_lock(_lock_path(workspace))
        if lock is None:
            if found is not None:
                return found  # somebody is making a better one; this one costs a longer difference
            _tell_of_other(workspace, progress)
            time.sleep(_AGAIN_S)
            continue
        try:
            if _generations(workspace) == before:
                return _make_next(workspace, repository, found, progress, lock)
        finally:
            os.close(lock)
        if found is not None:
            found.close()


def _lock_path(workspace: Workspace) -> str:
    return f"{workspace.templates}/lock"


def _silent(**_progress: Any) -> None:
    """Report progress to nobody."""


def _tell_of_other(workspace: Workspace, progress: Progress) -> None:
    """Tell how far the one is who makes a template now, which he notes in the lock."""
    try:
        words = atomic.read_bounded(_lock_path(workspace), _NOTE_LIMIT).split()
        done, total = map(int, words)
    except (OSError, ValueError):
        done, total = 0, 0
    progress(phase="waiting for the template that another makes", done=done, total=total)


def _noting(lock: int, progress: Progress) -> Progress:
    """Return *progress* that is noted in *lock* as well, for those who wait for it."""

    def note(**told: Any) -> None:
        words = b"%12d %12d\n" % (told.get("done", 0), told.get("total", 0))
        try:
            os.pwrite(lock, words, 0)
        except OSError:
            pass  # the disk is full: he who makes it will say so
        progress(**told)

    return note


def renewed(workspace: Workspace, repository: Repository, progress: Progress) -> Template:
    """Return a template made now, from trunk alone: the newest was not as it had been made.

    Raises:
        HubError: it cannot be made.
    """
    lock = os.open(_lock_path(workspace), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _make_next(workspace, repository, None, progress, lock)
    finally:
        os.close(lock)


def _make_next(
    workspace: Workspace,
    repository: Repository,
    older: Template | None,
    progress: Progress,
    lock: int,
) -> Template:
    """Make the next template, of *older* if there is one, which is let go; return it, held.

    *lock*: that of all templates, which the caller holds.
    """
    progress = _noting(lock, progress)
    try:
        try:
            _make(workspace, repository, older, progress)
        except Corrupt:
            _make(workspace, repository, None, progress)
    except OSError as error:
        raise HubError(
            f"the template of worktrees cannot be made: {error}", reason="template"
        ) from None
    finally:
        if older is not None:
            older.close()
    _remove_old(workspace)
    made = _newest(workspace)
    if made is None:
        raise HubError(f"{workspace.templates} lost the template just made", reason="template")
    return made


def _is_far_behind(template: Template, repository: Repository) -> bool:
    tip = repository.tip().hash
    at = template.index.checkin
    return at != tip and len(repository.difference(at, tip)) > REFRESH_PATHS


def _generations(workspace: Workspace) -> list[str]:
    """Return the names of the templates that are whole, the newest first."""
    names = [name for name in os.listdir(workspace.templates) if name.isdigit()]
    return sorted(names, reverse=True)


def _newest(workspace: Workspace) -> Template | None:
    for name in _generations(workspace):
        path = f"{workspace.templates}/{name}"
        try:
            lock = os.open(f"{path}/lock", os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            index = _read_index(f"{path}/index.json", workspace)
        except (OSError, ValueError, LookupError, TypeError):
            os.close(lock)  # being removed, damaged, or of a workspace that was moved
            continue
        return Template(path, index, lock)
    return None


def _sweep(workspace: Workspace) -> None:
    for name in os.listdir(workspace.templates):
        if name.startswith("."):
            remove_tree(f"{workspace.templates}/{name}")


def _make(
    workspace: Workspace, repository: Repository, older: Template | None, progress: Progress
) -> None:
    tip = repository.tip()
    _sweep(workspace)
    new = f"{workspace.templates}/.new-{os.getpid()}"
    os.mkdir(new, 0o700)
    hit("template.begun")
    worktree = f"{new}/wt"
    seen_ns = time.time_ns()
    mtime_ns = past_ns(tip.time)
    rows: dict[bytes, Row]
    if older is None:
        os.mkdir(worktree)
        rows = {}
        entries = repository.files(tip.hash)
        plant_all(repository, worktree, entries, rows, mtime_ns, progress)
    else:
        rows = _copy(older, worktree, progress)
        _forget_bookkeeping(worktree)
        difference = repository.difference(older.index.checkin, tip.hash)
        apply(repository, worktree, difference, rows, mtime_ns, progress)
    hit("template.planted")
    progress(phase="recording the check-out")
    checkout.create(
        f"{worktree}/{checkout.NAME}",
        workspace.repository,
        tip.hash,
        tip.rid,
        vfiles(repository, rows),
        _NOBODY,
    )
    gitside.make(workspace, repository, worktree, _NOBODY, at=tip, rows=rows, seen_ns=seen_ns)
    index = base.Base(checkin=tip.hash, indexed_ns=0, files=rows)
    _write_index(f"{new}/index.json", index, workspace)
    os.close(os.open(f"{new}/lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    hit("template.made")
    os.rename(new, f"{workspace.templates}/{time.time_ns():0{_NAME_DIGITS}}")


def _forget_bookkeeping(worktree: str) -> None:
    """Remove what Fossil and git had in the template that this one is copied from."""
    remove_tree(f"{worktree}/.git")
    for name in treepath.BOOKKEEPING - {treepath.GIT}:
        atomic.remove(f"{worktree}/{name.decode()}")


def copied(template: Template, target: str, progress: Progress) -> dict[bytes, Row]:
    """Copy the worktree of *template* to *target*, in a slot; return the rows of its files.

    Raises: as :func:`_copy`.
    """
    rows = _copy(template, target, progress)
    planted.note(os.path.dirname(target), target)
    return rows


def _copy(template: Template, target: str, progress: Progress) -> dict[bytes, Row]:
    """Copy the worktree of *template* to *target*; return the rows of its files.

    Raises:
        Corrupt: the template is not what its index says: it was tampered with, and is useless.
        OSError: something cannot be copied.
    """
    index = template.index
    rows: dict[bytes, Row] = {}
    total = len(index.files)
    words = "copying the template"

    def seen(path: bytes, was: os.stat_result, now: os.stat_result) -> None:
        row = index.files.get(path)
        if row is None:
            if path.startswith(b".git/") or path in treepath.BOOKKEEPING:
                return
            raise _unsound(template, path)
        if (
            was.st_size != row[1]
            or was.st_mtime_ns != row[3]
            or base.kind_of(was.st_mode) != row[0]
        ):
            raise _unsound(template, path)
        rows[path] = (*row[:3], now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
        if len(rows) % _TELL_EVERY == 0:
            progress(phase=words, done=len(rows), total=total)

    copy_tree(template.worktree, target, seen)
    if len(rows) != total:
        raise _unsound(template, next(iter(index.files.keys() - rows.keys())))
    return rows


def _unsound(template: Template, path: bytes) -> Corrupt:
    return Corrupt(
        f"{template.worktree}/{treepath.show(path)} is not as the template was made: delete "
        f"{template.path}, the next join makes another",
        reason="template",
    )


def plant_all(
    repository: Repository,
    worktree: str,
    entries: Mapping[bytes, Entry],
    rows: dict[bytes, Row],
    mtime_ns: int,
    progress: Progress,
) -> None:
    """Make *entries* in *worktree*, a directory that nobody else knows; enter them in *rows*."""
    paths: dict[str, list[bytes]] = {}
    for path, entry in entries.items():
        paths.setdefault(entry.hash, []).append(path)
    done = 0
    with Planter(worktree) as planter:
        for name, content in repository.contents(paths):
            for path in paths[name]:
                kind = entries[path].kind
                status = planter.plant(path, kind, content, mtime_ns)
                stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                rows[path] = (kind, status.st_size, name, *stamps)
                done += 1
                if done % _TELL_EVERY == 0:
                    progress(phase="writing files", done=done, total=len(entries))
                    hit("template.file")


def apply(
    repository: Repository,
    worktree: str,
    difference: Iterable[Difference],
    rows: dict[bytes, Row],
    mtime_ns: int,
    progress: Progress,
) -> tuple[dict[bytes, Row], list[bytes]]:
    """Take *worktree*, which nobody else knows, across *difference*; *rows* with it.

    Returns the rows of what was written and the paths of what was removed.
    """
    top = os.fsencode(worktree)
    added: dict[bytes, Entry] = {}
    removed = []
    for path, _before, after in difference:
        if after is not None:
            added[path] = after
        else:
            removed.append(path)
        if path in rows:
            unplant(top, path)
            del rows[path]
    plant_all(repository, worktree, added, rows, mtime_ns, progress)
    return {path: rows[path] for path in added}, removed


def vfiles(repository: Repository, rows: Mapping[bytes, Row]) -> list[tuple[bytes, VFile]]:
    """Return *rows* as a check-out has them; without those whose content is not there."""
    rids: dict[str, int | None] = {}
    found = []
    for path, row in rows.items():
        name = row[2]
        if name not in rids:
            rids[name] = repository.rid(name)
        rid = rids[name]
        if rid is not None:
            found.append((path, VFile(rid, row[0], row[3] // _SECOND_NS)))
    return found


def past_ns(checkin_time: str) -> int:
    """Return a time for files that lies before the check-in of that time, and before now."""
    at_ns = timegm(time.strptime(checkin_time[:19], "%Y-%m-%dT%H:%M:%S")) * _SECOND_NS
    return (min(at_ns, time.time_ns()) - _PAST_NS) // _SECOND_NS * _SECOND_NS


def _write_index(path: str, index: Base, workspace: Workspace) -> None:
    rows = [[treepath.to_json(name), *row] for name, row in index.files.items()]
    value = {"repository": workspace.repository, "checkin": index.checkin, "files": rows}
    atomic.write_file(path, codec.dumps(value).encode(), durable=False)


def _read_index(path: str, workspace: Workspace) -> Base:
    """Return the index at *path*.

    Its rows are believed: it is ours, and each is compared with its file when that is copied.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or of another workspace.
    """
    value: dict[str, Any] = codec.loads_object(atomic.read_bounded(path, base.LIMIT_BYTES))
    if value["repository"] != workspace.repository:
        raise ValueError("its check-out names another repository")
    files = {
        one[0].encode() if isinstance(one[0], str) else treepath.from_json(one[0]): tuple(one[1:])
        for one in value["files"]
    }
    return base.Base(checkin=value["checkin"], indexed_ns=0, files=files)


def _remove_old(workspace: Workspace) -> None:
    """Remove all but the newest templates, unless somebody copies one; the next maker does then."""
    for name in _generations(workspace)[_KEPT:]:
        path = f"{workspace.templates}/{name}"
        try:
            lock = try_lock(f"{path}/lock")
        except FileNotFoundError:
            continue
        if lock is None:
            continue
        try:
            gone = f"{workspace.templates}/.old-{name}"
            os.rename(path, gone)
            hit("template.old")
            remove_tree(gone)
        finally:
            os.close(lock)
