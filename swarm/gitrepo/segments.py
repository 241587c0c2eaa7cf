"""Git's index, as bytes: parsed as far as an update needs, and written again. Pure.

Entries are kept in segments of a few dozen, as they stand in the file. An update touches the
segments of its paths; the checksum is taken on from the last point before them.

Source: gitformat-index(5). Read are versions 2, 3 and 4, written 2, and 3 if an entry needs it.
Extensions are dropped: they are caches, but for the two that :class:`NeedsGit` is about.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import islice

from swarm.gitrepo.index import (
    EXTENDED,
    LENGTH,
    MODE_AT,
    MTIME_AT,
    STAT_BYTES,
    padded,
    stat_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from swarm.gitrepo.index import Owner, Stamp
    from swarm.gitrepo.objects import Format

_MAGIC = b"DIRC"
_HEADER_BYTES = 12
_STAGE, _STAGES = 0x3000, 0x30
_ODD = 0x70  # of the first byte of the flags: a stage, or extended
_SEGMENT_ENTRIES = 32
_SEGMENT_BYTES = 2 * _SEGMENT_ENTRIES * 96
"""One that has grown beyond is cut."""
_POINT_SEGMENTS = 8
_WORD = 0xFFFFFFFF


class NeedsGit(Exception):
    """The index is in a form that only git resolves: split, sparse, or of a version to come."""


class Index:
    """The entries of an index."""

    def __init__(self, form: Format) -> None:
        """Begin with none."""
        self._form = form
        self._name_at = STAT_BYTES + form.size
        self._firsts: list[bytes] = []
        self._bodies: list[bytes] = []
        self._count = 0
        self._version = 2
        self._points: list[Any] = []
        """Checksums so far: before segment 0, 8, 16, …"""
        self._sound_to = 0
        """How many of the points still hold."""
        self.recent: dict[bytes, bytes] = {}
        """Of a parsed one: the entries whose files changed when it was written, or later."""

    @classmethod
    def parse(cls, content: bytes, form: Format, second_s: int) -> Index:
        """Return what an index file holds; *second_s* is when it was written, seconds.

        Raises:
            NeedsGit: git must write it in another form first.
            ValueError: it is damaged.
        """
        index = cls(form)
        if content[:4] != _MAGIC or len(content) < _HEADER_BYTES + form.size:
            raise ValueError("it is no index")
        version, count = struct.unpack_from(">II", content, 4)
        if version not in (2, 3, 4):
            raise NeedsGit
        since = (second_s & _WORD).to_bytes(4, "big")
        try:
            if version == 4:  # noqa: PLR2004
                at = index._expand(content, count, since)
            else:
                index._version = version
                at = index._cut(content, count, since)
        except IndexError:
            raise ValueError("it ends early") from None
        if at > len(content) - form.size:
            raise ValueError("it ends early")
        _check_extensions(content[at : len(content) - form.size])
        return index

    def __len__(self) -> int:
        return self._count

    def get(self, path: bytes) -> bytes | None:
        """Return the entry of *path*, None if there is none, or only stages of a conflict."""
        if not self._bodies:
            return None
        body = self._bodies[self._segment(path)]
        at = self._find(body, len(path).to_bytes(2, "big") + path + b"\0")
        if at >= 0 and len(path) < LENGTH:
            return body[at : at + (self._name_at + 2 + len(path) + 8 & ~7)]
        for key, raw in self._split(body):  # one that is extended, or of a very long path
            if key == path + b"\0\0":
                return raw
        return None

    def _find(self, body: bytes, end: bytes) -> int:
        """Return where an entry with *end*, its flags, path and NUL, begins; below 0: nowhere.

        What it matches by chance is aligned once in 2**60 times.
        """
        at = body.find(end) - self._name_at
        return -1 if at % 8 else at

    def restamp(self, stamps: Mapping[bytes, Stamp], owner: Owner) -> None:
        """Let every entry hold the stamp of its path: the files are copies of those it was of.

        Left as they are: entries of a conflict, and those whose file is not in the worktree.
        """
        for number, body in enumerate(self._bodies):
            changed = bytearray(body)
            for at, start, end, _following in self._bounds(body, 0, len(body)):
                stamp = stamps.get(body[start:end])
                if stamp is not None and not body[at + self._name_at] & _ODD:
                    mode = int.from_bytes(body[at + MODE_AT : at + MODE_AT + 4], "big")
                    changed[at : at + STAT_BYTES] = stat_of(stamp, mode, owner)
            self._bodies[number] = bytes(changed)
        self._sound_to = 0

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Give each path its entry (None: none).

        What stands in its way goes, as with ``git add``: its stages of a conflict, a file where
        its directory is to be, whatever is below it.
        """
        if not self._count:  # what a worktree holds never stands in its own way
            self._fill(
                sorted((path + b"\0\0", raw) for path, raw in changes.items() if raw is not None)
            )
            self._note_extended()
            return
        changes = {path: raw for path, raw in changes.items() if not self._replace(path, raw)}
        added = [path for path, raw in changes.items() if self._insert(path, raw)]
        if len(added) < len(changes):
            added += self._edit({path: changes[path] for path in changes.keys() - set(added)})
        in_the_way: dict[bytes, None] = {}
        above = {
            path[:at] for path in added for at in range(1, len(path)) if path[at : at + 1] == b"/"
        }
        for path in above:
            if self._holds(path):
                in_the_way[path] = None
        for path in added:
            in_the_way.update(dict.fromkeys(self._below(path)))
        if in_the_way:
            self._edit(in_the_way)

    def pieces(self) -> list[bytes]:
        """Return the file: header, segments, checksum. What has not changed is the same object."""
        header = _MAGIC + struct.pack(">II", self._version, self._count)
        if not self._points or not self._sound_to:
            self._points = [self._form.new(header)]
            self._sound_to = 1
        del self._points[self._sound_to :]
        total = self._points[-1]
        for first in range(
            (self._sound_to - 1) * _POINT_SEGMENTS, len(self._bodies), _POINT_SEGMENTS
        ):
            if first // _POINT_SEGMENTS >= len(self._points):
                self._points.append(total)
            total = total.copy()
            total.update(b"".join(self._bodies[first : first + _POINT_SEGMENTS]))
        self._sound_to = len(self._points)
        return [header, *self._bodies, total.digest()]

    def _fill(self, rows: list[tuple[bytes, bytes]]) -> None:
        self._count = len(rows)
        self._firsts, self._bodies = _segments(rows)
        self._sound_to = 0

    def _note_extended(self) -> None:
        if any(self._extended(raw) for _key, raw in self._all()):
            self._version = 3

    def _segment(self, path: bytes) -> int:
        """Return which segment has, or would have, the entries of *path*, of any stage."""
        return max(0, bisect_right(self._firsts, path + b"\0\3") - 1)

    def _replace(self, path: bytes, raw: bytes | None) -> bool:
        """Put *raw* where *path* has an entry of the same form; tell whether it has."""
        if raw is None:
            return False
        number = self._segment(path)
        body = self._bodies[number]
        at = self._find(body, raw[self._name_at :].rstrip(b"\0") + b"\0")
        if at < 0:
            return False
        self._bodies[number] = body[:at] + raw + body[at + len(raw) :]
        self._sound_to = min(self._sound_to, number // _POINT_SEGMENTS + 1)
        return True

    def _insert(self, path: bytes, raw: bytes | None) -> bool:
        """Put *raw* where *path* has no entry of any kind; tell whether it had none."""
        number = self._segment(path)
        body = self._bodies[number]
        if raw is None or path + b"\0" in body or self._extended(raw) or len(path) >= LENGTH:
            return False
        place = len(body)
        for at, start, end, _following in self._bounds(body, 0, len(body)):
            if body[start:end] > path:
                place = at
                break
        if not place:
            self._firsts[number] = path + b"\0\0"
        self._bodies[number] = body = body[:place] + raw + body[place:]
        if len(body) > _SEGMENT_BYTES:
            self._firsts[number : number + 1], self._bodies[number : number + 1] = _segments(
                self._split(body)
            )
        self._count += 1
        self._sound_to = 0
        return True

    def _edit(self, changes: Mapping[bytes, bytes | None]) -> list[bytes]:
        """Replace, insert and remove; return the paths that had no entry of their own before."""
        by_segment: dict[int, dict[bytes, bytes | None]] = {}
        for path, raw in changes.items():
            by_segment.setdefault(self._segment(path), {})[path] = raw
        added: list[bytes] = []
        count = self._count
        for number in sorted(by_segment, reverse=True):  # so that a split moves none to come
            self._edit_segment(number, by_segment[number], added)
        if self._count != count:
            self._sound_to = 0
        return added

    def _edit_segment(
        self, number: int, changes: dict[bytes, bytes | None], added: list[bytes]
    ) -> None:
        body = self._bodies[number] if self._bodies else b""
        before = self._split(body)
        rows, met = [], set()
        for row in before:
            path = row[0][:-2]
            if path in changes:
                met.add(path)
            else:
                rows.append(row)
        for path, raw in changes.items():
            if raw is not None:
                rows.append((path + b"\0\0", raw))
                if path not in met:
                    added.append(path)
                if self._extended(raw) and self._version == 2:  # noqa: PLR2004
                    self._version, self._sound_to = 3, 0
        rows.sort()
        self._count += len(rows) - len(before)
        if len(rows) <= 2 * _SEGMENT_ENTRIES and rows:
            firsts, bodies = [rows[0][0]], [b"".join([raw for _key, raw in rows])]
        else:
            firsts, bodies = _segments(rows)
        self._firsts[number : number + 1] = firsts
        self._bodies[number : number + 1] = bodies
        self._sound_to = min(self._sound_to, number // _POINT_SEGMENTS + 1)

    def _holds(self, path: bytes) -> bool:
        """Tell whether *path* has an entry, of any stage."""
        body = self._bodies[self._segment(path)]
        return path + b"\0" in body and any(key[:-2] == path for key, _raw in self._split(body))

    def _below(self, path: bytes) -> Iterator[bytes]:
        """Yield the paths that have an entry below *path*."""
        prefix = path + b"/"
        for number in range(self._segment(prefix), len(self._bodies)):
            if self._firsts[number] > prefix and not self._firsts[number].startswith(prefix):
                return
            if prefix in self._bodies[number]:
                for key, _raw in self._split(self._bodies[number]):
                    if key.startswith(prefix):
                        yield key[:-2]

    def _all(self) -> Iterator[tuple[bytes, bytes]]:
        for body in self._bodies:
            yield from self._split(body)

    def _extended(self, raw: bytes) -> bool:
        return bool(raw[self._name_at] & EXTENDED >> 8)

    def _bounds(self, body: bytes, at: int, total: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield where each entry begins, its path begins and ends, and the next entry begins."""
        flags_at = self._name_at
        while at < total:
            high = body[at + flags_at]
            start = at + flags_at + (4 if high & 0x40 else 2)
            length = (high & 0x0F) << 8 | body[at + flags_at + 1]
            end = start + length if length < LENGTH else _nul(body, start + LENGTH)
            following = at + ((end - at + 8) & ~7)
            yield at, start, end, following
            at = following

    def _split(self, body: bytes) -> list[tuple[bytes, bytes]]:
        """Return (path NUL stage, entry) of each entry in *body*."""
        return [
            (
                b"%s\0%c" % (body[start:end], body[at + self._name_at] >> 4 & 3),
                body[at:following],
            )
            for at, start, end, following in self._bounds(body, 0, len(body))
        ]

    def _cut(self, content: bytes, count: int, since: bytes) -> int:
        """Take in the *count* entries of a file, segment by segment; return where they end."""
        begun, left = _HEADER_BYTES, 0
        following = begun
        bounds = self._bounds(content, begun, len(content))
        for at, start, end, following in islice(bounds, count):
            if left <= 0 and not content[at + self._name_at] & _STAGES:  # a path's stay together
                if at > begun:
                    self._bodies.append(content[begun:at])
                self._firsts.append(content[start:end] + b"\0\0")
                begun, left = at, _SEGMENT_ENTRIES
            left -= 1
            if content[at + MTIME_AT : at + MTIME_AT + 4] >= since:
                self._note_recent(content[start:end], content[at:following])
            self._count += 1
        if self._count != count:
            raise IndexError
        if count:
            self._bodies.append(content[begun:following])
        if len(self._firsts) < len(self._bodies):  # it begins with a conflict
            self._fill(list(self._all()))
        return following

    def _expand(self, content: bytes, count: int, since: bytes) -> int:
        """Take in the entries of a file of version 4, where paths share their beginnings."""
        rows = []
        at, path = _HEADER_BYTES, b""
        for _number in range(count):
            flags = int.from_bytes(content[at + self._name_at : at + self._name_at + 2], "big")
            start = at + self._name_at + (4 if flags & EXTENDED else 2)
            kept, name_at = _varint(content, start)
            end = _nul(content, name_at)
            path = path[: len(path) - kept] + content[name_at:end]
            raw = padded(content[at:start] + path)
            rows.append((b"%s\0%c" % (path, (flags & _STAGE) >> 12), raw))
            if raw[MTIME_AT : MTIME_AT + 4] >= since:
                self._note_recent(path, raw)
            at = end + 1
        self._fill(rows)
        self._note_extended()
        return at

    def _note_recent(self, path: bytes, raw: bytes) -> None:
        if not raw[self._name_at] & _STAGES:
            self.recent[path] = raw


def _nul(content: bytes, at: int) -> int:
    end = content.find(b"\0", at)
    if end < 0:
        raise IndexError
    return end


def _segments(rows: list[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """Return the first key and the bytes of each segment; the stages of a path stay together."""
    firsts, bodies = [], []
    at = 0
    while at < len(rows):
        end = at + _SEGMENT_ENTRIES
        while end < len(rows) and rows[end][0][:-2] == rows[end - 1][0][:-2]:
            end += 1
        firsts.append(rows[at][0])
        bodies.append(b"".join([raw for _key, raw in rows[at:end]]))
        at = end
    return firsts, bodies


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number as an offset delta of a pack has it, and where it ends."""
    byte = content[at]
    at += 1
    value = byte & 127
    while byte & 128:
        byte = content[at]
        at += 1
        value = (value + 1) << 7 | byte & 127
    return value, at


def _check_extensions(extensions: bytes) -> None:
    """Raise NeedsGit for one that must be understood: its name is in lower case."""
    at = 0
    while at + 8 <= len(extensions):
        if extensions[at : at + 1].islower():
            raise NeedsGit
        at += 8 + int.from_bytes(extensions[at + 4 : at + 8], "big")
