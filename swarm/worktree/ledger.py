"""The base of one worktree, in memory and on disk: base.json and its log, kept by one process.

A commit appends a line to base.log; when the log has outgrown base.json, or much has changed, a
new base.json ends it. Nothing is synced to disk: what a power cut takes from it counts as work
once more, and trunk finds that it has it already.
"""

from __future__ import annotations

import os

from foundation.atomic import remove, write_all
from foundation.failpoint import hit
from slotgc import base
from slotgc.base import Base

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from slotgc.base import Row

_LEAST_LOG_BYTES = 256 * 1024
_LOG_PARTS = 2
"""The log is ended when it has that part of the length of base.json, or the least above."""


class Ledger:
    """What the worktree of the slot directory *slot* last agreed on with trunk."""

    def __init__(self, slot: str, known: Base) -> None:
        """Keep *known*, which is on disk or about to be (:meth:`rewrite`)."""
        self._path = f"{slot}/{base.NAME}"
        self._log_path = f"{slot}/{base.LOG_NAME}"
        self._log = -1
        self._log_bytes = 0
        self._directories: set[bytes] | None = None
        self._whole = False
        """Whether base.json and its log say all that ``base`` does."""
        settled = known.settled()
        self.base = settled.replace(git_since_ns=known.git_since_ns or known.indexed_ns)

    @classmethod
    def read(cls, slot: str) -> Ledger | None:
        """Return what is on disk, None if there is no base.json.

        Raises:
            Corrupt: it is not sound.
        """
        known = base.read(f"{slot}/{base.NAME}")
        return None if known is None else cls(slot, known)

    def may_be_directory(self, path: bytes) -> bool:
        """Tell whether the base may have files in a directory *path*; false is sure."""
        if self._directories is None:
            self._directories = set()
            self._note_directories(self.base.files)
        return path in self._directories

    def _note_directories(self, paths: Iterable[bytes]) -> None:
        """Learn of the directories that *paths* are in; those that empty stay, to cost nothing."""
        known = self._directories
        if known is not None:
            for path in paths:
                while (path := path.rpartition(b"/")[0]) and path not in known:
                    known.add(path)

    def close(self) -> None:
        """Write what the disk does not know yet, and let go."""
        if not self._whole:
            self.rewrite()
        self._end_log()

    def change(
        self,
        *,
        checkin: str,
        indexed_ns: int,
        rows: Mapping[bytes, Row],
        removed: Collection[bytes] = (),
        refs: Mapping[str, str] | None = None,
        is_answer: bool = False,
    ) -> None:
        """Have the worktree be at *checkin*, with *rows* as they were seen at *indexed_ns*.

        *refs*: those of its git that have moved with it. *is_answer*: it is what was asked for.

        Raises:
            OSError: it cannot be written; the memory has it nevertheless.
        """
        files = self.base.files
        for path in removed:
            files.pop(path, None)
        kept = {path: base.settle(row, indexed_ns) for path, row in rows.items()}
        files.update(kept)
        self._note_directories(kept)
        moved = refs or {}
        self.base = self.base.replace(
            checkin=checkin,
            indexed_ns=max(indexed_ns, self.base.indexed_ns),
            git_refs={**self.base.git_refs, **moved},
            asked="" if is_answer else self.base.asked,
        )
        self._tell(lambda: base.log_line(self.base, kept, removed, moved, is_answer=is_answer))

    def ask(self, asked: str) -> None:
        """Know that trunk is asked for the commit *asked* (``Base.asked``), until that is answered.

        Raises:
            OSError: it cannot be written; the memory has it nevertheless.
        """
        self.base = self.base.replace(asked=asked)
        self._tell(lambda: base.asked_line(self.base.log, asked))

    def _tell(self, line: Callable[[], bytes]) -> None:
        """Have the disk know what the memory does."""
        if not self._whole or self._log_bytes > self._most_bytes:
            self.rewrite()
            return
        try:
            self._append(line())
        except OSError:
            self._whole = False  # the log may end in half a line, after which nothing counts
            raise

    def become(self, known: Base) -> None:
        """Let the base be *known* from now on.

        Raises:
            OSError: it cannot be written.
        """
        self.base = known.settled()
        self._directories = None
        self.rewrite()

    def mark(self, marked: Mapping[bytes, tuple[str, ...]]) -> None:
        """Know where an update has left conflict markers (``Base.marked``): there and nowhere else.

        Raises:
            OSError: it cannot be written; the memory has it nevertheless.
        """
        if marked != self.base.marked:
            self.base = self.base.replace(marked=dict(marked))
            self.rewrite()

    def refresh(self, rows: Mapping[bytes, Row], seen_ns: int) -> None:
        """Learn new stamps of files whose content is what it was; the disk is told some day."""
        for path, row in rows.items():
            self.base.files[path] = base.settle(row, seen_ns)
        if seen_ns > self.base.indexed_ns:
            self.base = self.base.replace(indexed_ns=seen_ns)

    def rewrite(self) -> None:
        """Write base.json, which ends the log.

        Raises:
            OSError: it cannot be written.
        """
        self._end_log()
        self._whole = False
        self.base = self.base.replace(log=os.urandom(8).hex())
        base.write(self._path, self.base, sound=True)
        hit("base.written")
        self._whole = True
        remove(self._log_path)
        self._log_bytes = 0
        size = os.stat(self._path).st_size
        self._most_bytes = max(_LEAST_LOG_BYTES, size // _LOG_PARTS)

    def _append(self, line: bytes) -> None:
        if self._log < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
            self._log = os.open(self._log_path, flags, 0o600)
        write_all(self._log, line)
        self._log_bytes += len(line)

    def _end_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
