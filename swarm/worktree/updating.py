"""Bringing a worktree to another check-in, with what was changed in it.

First everything is judged and merged, in memory; then it is written, file by file. A file that
trunk changed is replaced if it is as in the base, merged if both changed it, and stops the update
if that does not go.
"""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple

from foundation.errors import Refused
from foundation.record import Record
from hub.commits import Conflict
from hub.trunk import merge
from slotgc import artifact, base, treepath
from slotgc.beneath import INTO, BlockedError, enter
from swarm.worktree.ignoring import ignored
from swarm.worktree.placing import Judged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hub.repository import CheckinRow, Entry, Repository
    from slotgc.base import Base, Row

_SHOWN = 5
_FILE_THERE = "trunk has a file there"


class Updated(Record):
    """What an update has brought."""

    checkin: str
    previous: str
    files: int
    """How many were replaced, added or removed, to be as trunk has them."""
    merged: tuple[bytes, ...] = ()
    """Have trunk's changes and the slot's."""
    conflicted: tuple[bytes, ...] = ()
    """Have markers where both changed the same lines, or are left as they were here, because they
    are no text."""


class Write(NamedTuple):
    """A file to be put in its place."""

    path: bytes
    kind: str
    content: bytes | None
    """None: trunk's, of the hash that the base will have."""
    judged: Judged
    only_kind: bool = False
    """The content is right already."""


def differing(known: Base, wanted: dict[bytes, Entry]) -> Iterator[tuple[bytes, Entry | None]]:
    """Yield where *known*, which may be of several check-ins, differs from *wanted*, used up."""
    for path, row in known.files.items():
        entry = wanted.pop(path, None)
        if entry is None or (entry.kind, entry.hash) != (row[0], row[2]):
            yield path, entry
    yield from wanted.items()


class Plan:
    """What is to be done to a worktree, and what its base is then."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.deletes: list[tuple[bytes, Judged]] = []
        self.writes: list[Write] = []
        self.base: dict[bytes, Entry | None] = {}
        """What trunk has at each path where it differs from the base, None: nothing."""
        self.stays: dict[bytes, os.stat_result] = {}
        """Files that are as trunk has them already."""
        self.merged: list[bytes] = []
        self.conflicted: list[bytes] = []
        self.marked: dict[bytes, tuple[str, ...]] = {}
        """Files that get conflict markers, and what stands in those lines."""
        self.conflicts: list[Conflict] = []
        self.in_the_way: dict[bytes, str] = {}
        """What stays here where trunk has something else, and what that is, in words."""
        self.mergeable: list[bytes] = []
        """Those of them which markers would help with, but for what git ignores."""


class Planner:
    """Judges every path where trunk differs from the base."""

    def __init__(self, worktree: str, known: Base, repository: Repository, slot: str) -> None:
        """Judge *worktree*, whose base is *known*."""
        self._worktree = worktree
        self._known = known
        self._repository = repository
        self._slot = slot

    def plan(self, to: CheckinRow, *, markers: bool) -> Plan:
        """Return the way to the check-in *to*; nothing is touched.

        Raises:
            HubError: a file cannot be read.
        """
        self._to = to
        self._markers = markers
        plan = Plan()
        plan.base = dict(differing(self._known, self._repository.files(to.hash)))
        self._doomed = {path for path, entry in plan.base.items() if entry is None}
        self._going: set[bytes] = set()  # those of them that are as in the base
        self._tree = os.open(self._worktree, INTO)
        try:
            for path, entry in sorted(plan.base.items()):
                self._judge(plan, path, entry)
        finally:
            os.close(self._tree)
        return plan

    def _judge(self, plan: Plan, path: bytes, theirs: Entry | None) -> None:
        row = self._known.files.get(path)
        try:
            mine, judged = self._look(path, row)
        except BlockedError as error:
            mine, judged = None, Judged(None, "", 0)
            if theirs is not None and error.prefix not in self._going:
                shown = treepath.show(path)
                plan.in_the_way.setdefault(
                    error.prefix, f"trunk has a directory there, with {shown}"
                )
                return
        if mine is None and judged.status is not None:  # a directory, or what is no file
            stays = b"" if theirs is None else self._stays_below(path, judged.status)
            if stays == path:
                plan.in_the_way[path] = _FILE_THERE
            elif stays:
                plan.in_the_way[path] = f"{_FILE_THERE}, the slot {treepath.show(stays)}"
            elif theirs is not None:
                plan.writes.append(Write(path, theirs.kind, None, Judged(None, "", 0)))
            return
        was = None if row is None else (row[0], row[2])
        there = None if theirs is None else (theirs.kind, theirs.hash)
        if mine == there:
            if judged.status is not None:
                plan.stays[path] = judged.status
        elif mine == was:
            if there is None:
                plan.deletes.append((path, judged))
                self._going.add(path)
            else:
                only_kind = (
                    mine is not None
                    and mine[1] == there[1]
                    and "link"
                    not in (
                        mine[0],
                        there[0],
                    )
                )
                plan.writes.append(Write(path, there[0], None, judged, only_kind))
        elif was is None and not self._markers:
            plan.in_the_way[path] = _FILE_THERE
            plan.mergeable.append(path)
        elif was is None and ignored(self._worktree, [path]):
            plan.in_the_way[path] = _FILE_THERE
        else:
            self._both(plan, path, was, mine, there, judged)

    def _look(self, path: bytes, row: Row | None) -> tuple[tuple[str, str] | None, Judged]:
        """Return kind and hash of what is at *path*, and what to compare it with later."""
        seen_ns = time.time_ns()
        try:
            parent, last = enter(self._tree, path)
        except FileNotFoundError:
            return None, Judged(None, "", 0)
        try:
            status = os.lstat(last, dir_fd=parent)
            kind = base.kind_of(status.st_mode)
            if not kind:
                return None, Judged(status, "", seen_ns)
            if row is not None and self._known.trusts(row, status):
                return (kind, row[2]), Judged(status, row[2], seen_ns)
            name = artifact.of_entry(last, kind, dir_fd=parent)
            return (kind, name), Judged(status, name, seen_ns)
        except FileNotFoundError:
            return None, Judged(None, "", 0)
        except OSError as error:
            raise Refused(
                f"{treepath.show(path)} cannot be read: {error.strerror or error}",
                reason="unreadable",
            ) from None
        finally:
            os.close(parent)

    def _stays_below(self, path: bytes, status: os.stat_result) -> bytes:
        """Return what is in the place of the file *path* when trunk's deletions are done.

        A file in that directory, *path* itself if it is none or cannot be looked into; b"": nothing
        but empty directories.
        """
        if not stat.S_ISDIR(status.st_mode):
            return path
        pending = [path]
        while pending:
            where = pending.pop()
            try:
                with os.scandir(os.fsencode(self._worktree) + b"/" + where) as entries:
                    for entry in entries:
                        below = where + b"/" + entry.name
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(below)
                        elif not self._is_going(below):
                            return below
            except OSError:
                return where
        return b""

    def _is_going(self, path: bytes) -> bool:
        """Tell whether trunk deletes the file *path*, which is as in the base."""
        row = self._known.files.get(path)
        if row is None or path not in self._doomed:
            return False
        found, _judged = self._look(path, row)
        return found == (row[0], row[2])

    def _both(
        self,
        plan: Plan,
        path: bytes,
        was: tuple[str, str] | None,
        mine: tuple[str, str] | None,
        there: tuple[str, str] | None,
        judged: Judged,
    ) -> None:
        """Merge what both changed, or say why that does not go."""
        reason = ""
        if mine is None:
            reason = "deleted here, changed there"
        elif there is None:
            reason = "changed here, deleted there"
        else:
            kind = _merged_kind(was, mine[0], there[0])
            if not kind or "link" in (mine[0], there[0]):
                reason = "both changed what it is"
            else:
                reason = self._merge(plan, path, was, mine, there, kind, judged)
        if not reason:
            return
        if self._markers:
            plan.conflicted.append(path)
            if mine is None and there is not None:
                plan.writes.append(Write(path, there[0], None, judged))
            return
        changer = self._changer(path, deleted=there is None)
        plan.conflicts.append(
            Conflict(
                path=path,
                reason=reason,
                base_hash="" if was is None else was[1],
                mine_hash="" if mine is None else mine[1],
                theirs_hash="" if there is None else there[1],
                theirs_checkin=changer.hash,
                theirs_slot=changer.user,
            )
        )

    def _merge(
        self,
        plan: Plan,
        path: bytes,
        was: tuple[str, str] | None,
        mine: tuple[str, str],
        there: tuple[str, str],
        kind: str,
        judged: Judged,
    ) -> str:
        """Merge the texts; return why they do not go together, "" if they do."""
        if was is not None and mine[1] == was[1]:  # only its mode was changed here
            plan.writes.append(Write(path, kind, self._repository.content(there[1]), judged))
            return ""
        content = self._content_here(path)
        if artifact.of_bytes(content) != mine[1]:
            return "it is being written here"
        origin = b"" if was is None else self._repository.content(was[1])
        theirs = self._repository.content(there[1])
        try:
            merged = merge.merge(origin, content, theirs)
        except merge.CannotMerge as error:
            if not self._markers or error.reason in (merge.BINARY, merge.TOO_LARGE):
                return error.reason
            mine_is, theirs_is = self._slot, f"trunk {self._to.hash[:10]}"
            marked = merge.marked(origin, content, theirs, mine_is=mine_is, theirs_is=theirs_is)
            plan.writes.append(Write(path, kind, marked, judged))
            plan.marked[path] = f"<<<<<<< {mine_is}", f">>>>>>> {theirs_is}"
            plan.conflicted.append(path)
            return ""
        if merged == content and kind == mine[0]:
            plan.stays[path] = judged.status  # type: ignore[assignment] # it was read
        else:
            plan.writes.append(Write(path, kind, merged, judged))
        plan.merged.append(path)
        return ""

    def _content_here(self, path: bytes) -> bytes:
        parent, last = enter(self._tree, path)
        try:
            fd = artifact.open_regular(last, dir_fd=parent)
            with os.fdopen(fd, "rb") as file:
                return file.read()
        finally:
            os.close(parent)

    def _changer(self, path: bytes, *, deleted: bool) -> CheckinRow:
        """Return who made *path* what trunk has, or has not.

        Fossil notes no deletion of a file that the baseline of a delta manifest has not either.
        """
        if not deleted:
            return self._repository.last_change(path, self._to.hash) or self._to
        for one in reversed(self._repository.line(after=self._known.checkin, until=self._to.hash)):
            if any(path == changed for changed, _old, _new in self._repository.changes(one.hash)):
                return one
        return self._to


def _merged_kind(was: tuple[str, str] | None, mine: str, theirs: str) -> str:
    """Return what the merged file is, "" if that cannot be said."""
    if mine == theirs:
        return mine
    if was is None:
        return ""
    return theirs if mine == was[0] else mine


def refuse_what_is_in_the_way(plan: Plan, worktree: str) -> None:
    """Refuse to overwrite files that nobody committed.

    Raises:
        Refused: there are such, by name (``in-the-way``).
    """
    found = sorted(plan.in_the_way)
    if not found:
        return
    by_words: dict[str, list[bytes]] = {}
    for path in found[:_SHOWN]:
        by_words.setdefault(plan.in_the_way[path], []).append(path)
    shown = "; ".join(
        f"{', '.join(map(treepath.show, paths))}: {words}" for words, paths in by_words.items()
    )
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    way_out = "move it away, then update again"
    if sorted(plan.mergeable) == found and not ignored(worktree, found):
        way_out += " (`--markers` merges it)"
    raise Refused(
        f"{shown}{more}. What is there in the slot is not committed: {way_out}",
        reason="in-the-way",
    )


def has_markers(lines: Iterable[bytes], markers: Iterable[str]) -> bool:
    """Tell whether one of *lines* is one of *markers*."""
    wanted = {marker.encode() for marker in markers}
    return any(line.rstrip(b"\r\n") in wanted for line in lines)
