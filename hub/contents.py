"""The contents in a Fossil repository: unpacked, made from deltas, compared with their hash.

Fossil keeps the newest version of a file or manifest whole and the older ones each as a delta of
the next, so the oldest of many costs as much to read as all of them: :meth:`Contents.each` reads
many, each step once. Source: fossil 2.21 content.c, blob.c.
"""

from __future__ import annotations

import zlib
from collections import defaultdict

from foundation.errors import Corrupt
from hub import fossil_delta
from slotgc import artifact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    Query = Callable[..., list[Any]]
    """SQL and its values → rows."""

_KEPT_BYTES = 2 * 1024 * 1024
_LARGEST_KEPT_BYTES = 256 * 1024
_AT_ONCE = 500  # of SQLite's 999 parameters


class Contents:
    """What the rows of ``blob`` hold, by row number."""

    def __init__(self, query: Query, snapshot: Callable[[], AbstractContextManager[None]]) -> None:
        """Ask by *query*; inside *snapshot* all answers are of one moment."""
        self._query = query
        self._snapshot = snapshot
        self._kept: dict[int, bytes] = {}
        self._kept_bytes = 0

    def of(self, rid: int, name: str) -> bytes:
        """Return the content of row *rid*, whose hash is *name*.

        Raises:
            Corrupt: what is stored is not that.
        """
        with self._snapshot():
            content = self._whole(rid, name)
        _compare(content, name)
        self._keep(rid, content)
        return content

    def each(self, names: dict[int, str]) -> Iterator[tuple[int, bytes]]:
        """Yield number and content of the rows *names* (number → hash), in no order.

        Until the last is taken it holds on to the moment of the first.

        Raises:
            Corrupt: as :meth:`of`.
        """
        with self._snapshot():
            made_from = self._sources(names)
            makes = defaultdict(list)
            for rid, source in made_from.items():
                makes[source].append(rid)
            # Depth first, with no content held that is not on the way to the next.
            pending: list[tuple[int, bytes | None]] = [
                (rid, None) for rid in {*names, *makes} if rid not in made_from
            ]
            left = set(names)
            while pending:
                rid, source_content = pending.pop()
                stored = self._unpacked(rid, names.get(rid, ""))
                content = _made(source_content, stored, rid)
                pending += [(one, content) for one in makes.get(rid, ())]
                if rid in names:
                    _compare(content, names[rid])
                    yield rid, content
                    left.discard(rid)
            if left:
                raise _damaged(names[left.pop()], "it is made from itself")

    def forget(self) -> None:
        """Let go of what is kept for the next question."""
        self._kept.clear()
        self._kept_bytes = 0

    def _whole(self, rid: int, name: str) -> bytes:
        chain = []
        seen = set()
        while rid not in self._kept:
            if rid in seen:
                raise _damaged(name, "it is made from itself")
            seen.add(rid)
            source = self._query("SELECT srcid FROM delta WHERE rid=?", rid)
            stored = self._unpacked(rid, name)
            if not source:
                break
            chain.append((rid, stored))
            rid = source[0][0]
        else:
            stored = self._kept[rid]
        for step, delta in reversed(chain):
            stored = _made(stored, delta, step)
        return stored

    def _sources(self, rids: Iterable[int]) -> dict[int, int]:
        """Return what each of *rids*, and what they are made from in turn, is made from."""
        sources: dict[int, int] = {}
        pending = list(rids)
        seen = set(pending)
        while pending:
            asked, pending = pending[:_AT_ONCE], pending[_AT_ONCE:]
            marks = ",".join("?" * len(asked))
            for rid, source in self._query(
                f"SELECT rid, srcid FROM delta WHERE rid IN ({marks})",  # noqa: S608 - marks
                *asked,
            ):
                sources[rid] = source
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
        return sources

    def _unpacked(self, rid: int, name: str) -> bytes:
        rows = self._query("SELECT size, content FROM blob WHERE rid=?", rid)
        if not rows or rows[0][0] < 0 or not rows[0][1]:
            raise _damaged(name, "a part of it is missing")
        packed = rows[0][1]
        try:
            content = zlib.decompress(memoryview(packed)[4:], bufsize=packed_size(packed) or 1)
        except zlib.error as error:
            raise _damaged(name, str(error)) from None
        if len(content) != packed_size(packed):
            raise _damaged(name, "it is not as long as it says")
        return content

    def _keep(self, rid: int, content: bytes) -> None:
        if rid in self._kept or len(content) > _LARGEST_KEPT_BYTES:
            return
        self._kept[rid] = content
        self._kept_bytes += len(content)
        while self._kept_bytes > _KEPT_BYTES:
            oldest = next(iter(self._kept))
            self._kept_bytes -= len(self._kept.pop(oldest))


def packed_size(packed: bytes) -> int:
    """Return how long a *packed* content is, which its first 4 bytes say."""
    return int.from_bytes(packed[:4], "big")


def _made(source: bytes | None, stored: bytes, rid: int) -> bytes:
    if source is None:
        return stored
    try:
        return fossil_delta.apply(source, stored)
    except ValueError as error:
        raise _damaged(f"row {rid}", str(error)) from None


def _compare(content: bytes, name: str) -> None:
    if artifact.of_bytes(content, name) != name:
        raise _damaged(name, "its content has another hash")


def _damaged(name: str, fault: str) -> Corrupt:
    return Corrupt(
        f"the trunk's artifact {name} is damaged: {fault}; `fossil test-integrity` on "
        ".orchestrator/hub.fossil shows how far it goes",
        reason="repository-corrupt",
    )
