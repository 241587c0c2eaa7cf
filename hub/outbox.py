"""Where the supervisor leaves its events, for trunk to publish.

Two files in one directory, ``current`` and ``previous``, of one JSON line per event:
``{"seq","epoch","time","kind","data"}``; and ``id``, a nonce that names this numbering.

* Nothing here is fsynced by the appender: a kill loses nothing, a power cut may lose events
  that were not published yet. Trunk makes the files durable before it publishes from them
  (:func:`sync`), so a number that was published is never given to another event.
* The size is bounded. What did not fit, or met a full disk, is a gap in the numbers: whoever
  reads across a gap knows how many events are missing and says so.
"""

from __future__ import annotations

import os

from foundation import codec
from foundation.atomic import read_bounded, remove, sync_directory, write_all, write_file
from foundation.clock import utc_now
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROTATE_AT_BYTES = 256 * 1024
_ID_LIMIT = 64
_READ_ATTEMPTS = 100


class Entry(Record):
    """One event of the supervisor. ``time`` is RFC 3339, UTC, to the millisecond."""

    seq: int
    epoch: int
    time: str
    kind: str
    data: dict[str, Any]


class Outbox:
    """The appending side: exactly one at a time, in the process that holds hub.lock."""

    def __init__(
        self, directory: str, *, epoch: int = 0, rotate_at_bytes: int = ROTATE_AT_BYTES
    ) -> None:
        """Open the outbox in *directory*, made if need be, and cut off a torn last line.

        Raises:
            OSError: it cannot be written.
        """
        os.makedirs(directory, 0o700, exist_ok=True)
        self.directory = directory
        self.epoch = epoch
        self.lost = 0
        """How many events :meth:`append` could not keep."""
        self.error = ""
        """Why the last of them was lost."""
        self._rotate_at_bytes = rotate_at_bytes
        self._torn = False
        self._fd, self._size = _open_whole(_current(directory))
        self._seq = _last_seq(directory)
        self.id = read_id(directory)
        if self._seq == 0 or not self.id:
            # A numbering that starts again must not be taken for the old one: its Msg-Ids
            # would be those of events that were published long ago.
            self.id = os.urandom(8).hex()
            write_file(f"{directory}/id", self.id.encode() + b"\n")

    def append(self, kind: str, data: dict[str, Any]) -> int:
        """Keep one event and return its number, or 0 if it could not be kept.

        Never raises: an event is not worth the supervisor's life. A failure is counted in
        :attr:`lost`, explained in :attr:`error`, and leaves a gap in the numbers.
        """
        self._seq += 1
        try:
            line = self._line(kind, data)
            if self._size and self._size + len(line) > self._rotate_at_bytes:
                self._rotate()
            self._write(line)
        except (OSError, TypeError, ValueError, RecursionError) as error:
            self.lost += 1
            self.error = str(error)
            return 0
        return self._seq

    def close(self) -> None:
        """Close the file; what was appended stays."""
        os.close(self._fd)

    def read_after(self, seq: int) -> list[Entry]:
        """Return the events that are kept and newer than *seq*, oldest first."""
        return read_after(self.directory, seq)

    def _line(self, kind: str, data: dict[str, Any]) -> bytes:
        line = self._encode(kind, data)
        if len(line) > self._rotate_at_bytes:
            line = self._encode(kind, {"dropped_bytes": len(line)})
        return line

    def _encode(self, kind: str, data: dict[str, Any]) -> bytes:
        entry = {
            "seq": self._seq,
            "epoch": self.epoch,
            "time": utc_now(),
            "kind": kind,
            "data": data,
        }
        return codec.dumps(entry).encode() + b"\n"

    def _write(self, line: bytes) -> None:
        if self._torn:
            os.ftruncate(self._fd, self._size)
        self._torn = True
        write_all(self._fd, line)
        self._torn = False
        self._size += len(line)

    def _rotate(self) -> None:
        """Make the current file the previous one, whose lines are given up."""
        current = _current(self.directory)
        fresh = os.open(
            f"{current}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600
        )
        try:
            # Between these two there is no current: then a reader finds all in previous, and
            # an appender that opens the outbox makes it anew.
            if os.path.lexists(current):
                os.rename(current, _previous(self.directory))
            os.rename(f"{current}.new", current)
        except OSError:
            os.close(fresh)
            raise
        os.close(self._fd)
        self._fd, self._size, self._torn = fresh, 0, False


def read_id(directory: str) -> str:
    """Return the name of the numbering in *directory*; empty if no outbox was opened there."""
    try:
        return read_bounded(f"{directory}/id", _ID_LIMIT).decode("ascii").strip()
    except (OSError, ValueError):
        return ""


def read_after(directory: str, seq: int) -> list[Entry]:
    """Return the events in *directory* that are newer than *seq*, oldest first.

    Safe beside an appender: a line in the making is left for the next call, and a rotation
    between the two files is noticed and read again. Damaged lines are passed by; like lost
    ones they show as gaps in the numbers.
    """
    entries: dict[int, Entry] = {}
    for content in _contents(directory):
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            entry = _parse(line)
            if entry is not None and entry.seq > seq:
                entries[entry.seq] = entry
    return [entries[number] for number in sorted(entries)]


def sync(directory: str) -> None:
    """Make all that was appended survive a power cut, the files' names included."""
    for path in (_previous(directory), _current(directory)):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    sync_directory(directory)


def _current(directory: str) -> str:
    return f"{directory}/current"


def _previous(directory: str) -> str:
    return f"{directory}/previous"


def _open_whole(path: str) -> tuple[int, int]:
    """Open *path* for appending, without a torn last line; return descriptor and size."""
    remove(f"{path}.new")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        content = _read_all(fd)
        size = content.rfind(b"\n") + 1
        if size < len(content):
            os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd, size


def _last_seq(directory: str) -> int:
    """Return the newest number in the files, 0 if there is none."""
    for path in (_current(directory), _previous(directory)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            content = _read_all(fd)
        finally:
            os.close(fd)
        numbers = [entry.seq for line in content.splitlines() if (entry := _parse(line))]
        if numbers:
            return max(numbers)
    return 0


def _contents(directory: str) -> list[bytes]:
    """Return previous and current as they were at one moment."""
    for _attempt in range(_READ_ATTEMPTS):
        previous = _open_if_there(_previous(directory))
        current = _open_if_there(_current(directory))
        try:
            # Held open, neither can be lost to a rotation; so if previous is still the same
            # file after current was opened, no line went from one to the other unseen.
            if _names(_previous(directory), previous):
                return [_read_all(fd) for fd in (previous, current) if fd is not None]
        finally:
            for fd in (previous, current):
                if fd is not None:
                    os.close(fd)
    raise OSError(f"{directory} rotates faster than it can be read")


def _open_if_there(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


def _names(path: str, fd: int | None) -> bool:
    """Return whether *path* names the file open at *fd*, or nothing if *fd* is None."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return fd is None
    return fd is not None and os.path.samestat(status, os.fstat(fd))


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _parse(line: bytes) -> Entry | None:
    """Return the event that *line* holds, or None if it holds none."""
    try:
        fields = codec.loads_object(line)
        entry = Entry(**fields)
    except (ValueError, TypeError):
        return None
    whole = (
        type(entry.seq) is int
        and entry.seq > 0
        and type(entry.epoch) is int
        and isinstance(entry.time, str)
        and isinstance(entry.kind, str)
        and isinstance(entry.data, dict)
    )
    return entry if whole else None
