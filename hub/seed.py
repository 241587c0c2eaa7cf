"""Seeding: the Fossil repository of a workspace, made from what git tracks in it.

The root check-in is HEAD's tree in git's own bytes; uncommitted changes of tracked files are
a second check-in. Everything is made in a scratch directory and appears under its name in one
rename, so a seeding that is killed anywhere has not happened, and the next one begins anew.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from contextlib import ExitStack
from time import monotonic, time_ns

from foundation.atomic import remove, sync_directory, write_file
from foundation.errors import Refused
from foundation.failpoint import hit
from foundation.record import Record
from hub import fossil_repo, git, manifest, place
from hub.fossil_repo import RepositoryFile
from hub.packing import Packers, batches
from hub.secrets_check import likely_secrets
from hub.wording import several

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from foundation.workspace import Workspace
    from hub.git import Contents, Entry
    from hub.manifest import Checkin
    from hub.packing import Packed

    Progress = Callable[[str, int, int], None]
    Files = dict[bytes, tuple[bytes, bytes]]
    """path → (permission as a manifest has it, SHA3-256 digest)"""

SCRATCH = "hub.fossil.seeding"

_BIG_BYTES = 4 * 1024 * 1024
_PROGRESS_EVERY_S = 0.05
_NAMED = 10


class Seeded(Record):
    """What a seeding made, and what it could not take."""

    hub_id: str
    """Fossil's project code: what tells this trunk from all others."""
    base: str | None
    """The git commit that the root check-in is the tree of; None before the first commit."""
    root: str
    tip: str
    dirty: bool
    """There were uncommitted changes of tracked files, so the tip is the root's child."""
    files: int
    """How many files the tip has."""
    skipped_submodules: int
    left_out: tuple[tuple[bytes, str], ...]
    """(name, reason) of every other tracked file that is not in the tip as git has it."""
    secrets: tuple[bytes, ...]
    """Names of files in the tip that look like secrets."""

    def summary(self) -> str:
        """Return what was seeded, in a sentence."""
        base = f"commit {self.base[:12]}" if self.base else "a repository without commits"
        dirty = ", and uncommitted changes as a second check-in" if self.dirty else ""
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        return f"seeded {files} from {base}{dirty}"

    def warnings(self) -> list[str]:
        """Return what the user should be told, one sentence an item."""
        told = []
        if self.secrets:
            told.append(
                f"tracked files that look like secrets are now readable to every slot: "
                f"{_names(self.secrets)}; `git rm --cached` what does not belong"
            )
        for reason in dict.fromkeys(reason for _name, reason in self.left_out):
            names = [name for name, why in self.left_out if why == reason]
            told.append(f"left out ({reason}): {_names(names)}")
        if self.skipped_submodules:
            told.append(
                f"{self.skipped_submodules} submodule(s) are not in the trunk: slots "
                "work without them"
            )
        return told


def seed(workspace: Workspace, fossil: str, progress: Progress) -> Seeded:
    """Make the repository of *workspace*, which must not have one, with the binary *fossil*.

    Call it as the holder of hub.lock, in a process of its own and in its main thread (the
    children die with the thread that made them). *progress* gets (phase, done, total), at
    most 20 times a second.

    Raises:
        AssertionError: there is a repository; it is never touched.
        HubError: it cannot be done, and why; nothing was changed, and a later call may succeed.
    """
    if os.path.lexists(workspace.repository):
        raise AssertionError(f"{workspace.repository} exists")
    scratch = f"{workspace.state}/{SCRATCH}"
    try:
        _remove_whatever(scratch)
        os.mkdir(scratch, 0o700)
        hit("seed.started")
        try:
            seeded = _seed_in(scratch, workspace, fossil, _Throttled(progress))
        finally:
            _remove_whatever(scratch)
    except BrokenPipeError:
        raise  # from progress: nobody waits for us
    except sqlite3.Error as error:
        raise fossil_repo.explain_database(error, workspace.repository) from error
    except OSError as error:
        raise place.explain(error, workspace.state) from error
    return seeded


def _seed_in(scratch: str, workspace: Workspace, fossil: str, progress: _Throttled) -> Seeded:
    path = f"{scratch}/hub.fossil"
    with ExitStack() as running:
        # Fossil makes its empty file, and git compares times, while we go on.
        creating = running.enter_context(RepositoryFile.create(fossil, path, scratch))
        repository = git.Git(workspace, scratch)
        base = repository.head()
        changes = repository.start_changes(base)
        if changes is not None:
            running.enter_context(changes)
        entries = [] if base is None else list(repository.tree(base))
        RepositoryFile.created(creating, path)
        hit("seed.created")
        project_code, trees = _take(path, scratch, repository, changes, entries, progress)
    hit("seed.blobs")

    checkins = _checkins(trees, base, repository.user_name())
    progress.always("writing", 0, len(checkins))
    RepositoryFile.store(fossil, path, checkins, project_code, scratch)
    progress.always("writing", len(checkins), len(checkins))
    hit("seed.stored")
    passwords = {login: secrets.token_urlsafe(24) for login in fossil_repo.LOGINS}
    with RepositoryFile(path) as file:
        file.finish(checkins, len(trees.root), passwords)
    hit("seed.finished")
    # Before the rename: where there is a repository, there are the keys to it.
    os.makedirs(workspace.creds, 0o700, exist_ok=True)
    for login, password in passwords.items():
        write_file(password_path(workspace, login), f"{password}\n".encode())
        hit("seed.password")
    _move_into_place(path, workspace)
    tip = trees.root if trees.changed is None else trees.changed
    return Seeded(
        hub_id=project_code,
        base=base,
        root=checkins[0].hash,
        tip=checkins[-1].hash,
        dirty=trees.changed is not None,
        files=len(tip),
        skipped_submodules=len(trees.submodules),
        left_out=tuple(sorted(trees.left_out.items())),
        secrets=tuple(likely_secrets(sorted(tip))),
    )


def password_path(workspace: Workspace, login: str) -> str:
    """Return the file that holds the Fossil password of *login*, one of ``fossil_repo.LOGINS``."""
    return f"{workspace.creds}/fossil-{login}"


def _move_into_place(path: str, workspace: Workspace) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # nothing before it was ever synchronised
    finally:
        os.close(fd)
    hit("seed.synced")
    try:
        os.link(path, workspace.repository)  # not a rename: that would replace what is there
    except FileExistsError:
        raise Refused(
            f"{workspace.repository} appeared while it was being seeded, and is kept: "
            "`hub start` again uses it",
            reason="repository-appeared",
        ) from None
    hit("seed.renamed")
    os.unlink(path)
    sync_directory(workspace.state)


class _Trees:
    """What the check-ins will hold, and what they will not."""

    def __init__(self) -> None:
        self.root: Files = {}
        self.changed: Files | None = None
        self.submodules: set[bytes] = set()
        self.left_out: dict[bytes, str] = {}


def _take(
    path: str,
    scratch: str,
    repository: git.Git,
    changes: git.Changes | None,
    entries: list[Entry],
    progress: _Throttled,
) -> tuple[str, _Trees]:
    """Put all contents into the file at *path*; return its project code and the trees."""
    trees = _Trees()
    with RepositoryFile(path) as file:
        intake = _Intake(file, f"{scratch}/big", progress)
        intake.read("reading", entries, repository)
        _enter(entries, intake, trees.root, trees)
        hit("seed.read")
        if changes is not None:
            changed, removed = changes.finish()
            _apply_changes(changed, removed, intake, changes, trees)
        if not (entries or trees.root or trees.changed or trees.left_out or trees.submodules):
            raise Refused(
                "git tracks no file here, so there is nothing to share: `git add` something first",
                reason="no-tracked-file",
            )
        project_code = file.project_code
        file.close()
    return project_code, trees


def _enter(entries: list[Entry], intake: _Intake, files: Files, trees: _Trees) -> None:
    """Add *entries*, whose contents were taken, to *files*; note those that are not."""
    for mode, oid, path in entries:
        if mode == git.SUBMODULE:
            trees.submodules.add(path)
            continue
        reason = manifest.unfit_name(path) or intake.refused.get(oid)
        if reason is not None:
            trees.left_out[path] = reason
            continue
        files[path] = (manifest.PERMISSIONS.get(mode, b""), intake.digests[oid])


def _apply_changes(
    changed: list[Entry],
    removed: list[bytes],
    intake: _Intake,
    changes: git.Changes,
    trees: _Trees,
) -> None:
    """Set ``trees.changed`` if the uncommitted changes make a difference."""
    if not changed and not removed:
        return
    intake.read("changes", changed, changes)
    files = dict(trees.root)
    before = dict(trees.left_out)
    for path in removed:
        files.pop(path, None)
        trees.left_out.pop(path, None)
        trees.submodules.discard(path)
    for entry in changed:
        trees.left_out.pop(entry[2], None)
        if entry[0] == git.SUBMODULE:
            files.pop(entry[2], None)
        _enter([entry], intake, files, trees)
    for path, reason in trees.left_out.items():
        if path in files and path not in before:
            trees.left_out[path] = f"its uncommitted change, {reason}"
    if files != trees.root:
        trees.changed = files


def _checkins(trees: _Trees, base: str | None, user_name: str | None) -> list[Checkin]:
    """Return the check-ins, the root first.

    They are dated now, not by HEAD: every later check-in must be later than its parent, and
    a commit made by a clock that ran ahead would freeze the trunk until that time comes.
    """
    now_ms = time_ns() // 1_000_000
    root = manifest.checkin(
        files=_sorted(trees.root),
        comment=f"session base: {base[:12] if base else 'none'}",
        date=_date(now_ms - 1),
        user=fossil_repo.HUB_USER,
        parent=None,
    )
    if trees.changed is None:
        return [root]
    return [
        root,
        manifest.checkin(
            files=_sorted(trees.changed),
            comment="uncommitted changes of tracked files",
            date=_date(now_ms),
            user=user_name or _login(),
            parent=root.hash,
        ),
    ]


def _sorted(files: Files) -> Iterator[tuple[bytes, bytes, bytes]]:
    return ((path, *files[path]) for path in sorted(files))


def _date(at_ms: int) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415

    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.replace(tzinfo=None).isoformat(timespec="milliseconds")


def _login() -> str:
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwuid(os.geteuid()).pw_name or "user"
    except KeyError:
        return "user"


class _Intake:
    """Contents on their way from git into the repository file, each of them once."""

    def __init__(self, file: RepositoryFile, spill: str, progress: _Throttled) -> None:
        self.digests: dict[bytes, bytes] = {}
        """git's id → SHA3-256, of what was taken."""
        self.refused: dict[bytes, str] = {}
        """git's id → why it was not."""
        self._file = file
        self._spill = spill
        self._progress = progress

    def read(self, phase: str, entries: list[Entry], source: git.Git | git.Changes) -> None:
        """Take the contents of *entries* that are wanted and not there yet."""
        wanted = list(
            dict.fromkeys(
                oid
                for mode, oid, path in entries
                if mode != git.SUBMODULE
                and oid not in self.digests
                and manifest.unfit_name(path) is None
            )
        )
        total = len(entries)
        offset = total - len(wanted)
        self._progress.always(phase, offset, total)
        if wanted:
            with source.contents(wanted, big_bytes=_BIG_BYTES) as contents, Packers() as packers:
                for done in self._take(contents, packers):
                    self._progress(phase, offset + done, total)
        self._progress.always(phase, total, total)

    def _take(self, contents: Contents, packers: Packers) -> Iterator[int]:
        """Store *contents*; yield how many of them are there, now and then."""
        done = 0
        for batch in batches(contents, self._take_big):
            packers.submit(batch)
            while (packed := packers.collect(wait=False)) is not None:
                done += self._store(packed)
                yield done
        while (packed := packers.collect(wait=True)) is not None:
            done += self._store(packed)
            yield done

    def _store(self, packed: Packed) -> int:
        self._file.add([row for _oid, row in packed if row is not None])
        for oid, row in packed:
            if row is None:
                self.refused[oid] = _ARTIFACT
            else:
                self.digests[oid] = row[1]
        hit("seed.batch")
        return len(packed)

    def _take_big(self, oid: bytes, size: int, contents: Contents) -> None:
        if size > fossil_repo.LARGEST_BYTES:
            for _chunk in contents.chunks():
                pass
            self.refused[oid] = _TOO_BIG
            return
        digest = self._file.add_big(size, contents.chunks(), self._spill)
        if digest is None:
            self.refused[oid] = _ARTIFACT
        else:
            self.digests[oid] = digest


_ARTIFACT = "its content is a Fossil control artifact, which Fossil would obey"
_TOO_BIG = f"larger than {fossil_repo.LARGEST_BYTES >> 20} MiB"


class _Throttled:
    """A progress callable that is called at most 20 times a second."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._not_before_s = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        if monotonic() >= self._not_before_s:
            self.always(phase, done, total)

    def always(self, phase: str, done: int, total: int) -> None:
        """Pass it on, whenever the last was: the first and the last of a phase."""
        self._progress(phase, done, total)
        self._not_before_s = monotonic() + _PROGRESS_EVERY_S


def remove_scratch(workspace: Workspace) -> None:
    """Remove what a seeding that was killed left beside the repository that it made."""
    _remove_whatever(f"{workspace.state}/{SCRATCH}")


def _remove_whatever(path: str) -> None:
    """Remove *path*, a directory with what is below it, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        remove(path)


def _names(names: Iterable[bytes]) -> str:
    return several([name.decode("utf-8", "backslashreplace") for name in names], _NAMED)
