"""Large commits: their contents reach Fossil in parts, and other commits land between two of them.

A commit that has more contents than a batch waits here until trunk holds them, and goes to the
queue then, like one that brings none. So trunk never holds all of them in memory, and whoever else
commits waits for a part. What would not land is found out first, by a rehearsal; if it does not
after all, because somebody was faster, Fossil keeps the contents, and the next try need not bring
them again.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from foundation.failpoint import hit
from hub import spool
from hub.trunk.planning import MISSING, fault_of, unacceptable
from hub.trunk.queue import ATTEMPTS, BATCH_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foundation.errors import HubError
    from hub.commits import Conflict, Landed
    from hub.trunk.head import Head
    from hub.trunk.queue import Asked

    Verdict = Landed | tuple[Conflict, ...] | HubError | None

PART_BYTES = 2 << 20
PART_CONTENTS = 1000
"""Of a part; it takes some 0.1 s."""


class Ready(NamedTuple):
    """A commit that waits here no more."""

    asked: Asked
    outcome: Verdict
    """None: trunk holds what it brings, and it can be planned."""


class Ahead:
    """The large commits, the first of which is on its way. Belongs to the writer's thread."""

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: deque[Asked] = deque()
        self._left: list[str] | None = None
        """The contents of the first that are to be looked at, the last of them first."""

    def __bool__(self) -> bool:
        """Tell whether any waits."""
        return bool(self._waiting)

    @staticmethod
    def is_large(asked: Asked) -> bool:
        """Tell whether the contents of *asked* should go ahead of it."""
        return asked.size > BATCH_BYTES and bool(asked.proposal.spooled)

    def put(self, asked: Asked) -> None:
        """Let *asked* wait."""
        self._waiting.append(asked)

    def take_all(self) -> list[Asked]:
        """Return all that wait, at once."""
        waiting = list(self._waiting)
        self._waiting.clear()
        self._left = None
        return waiting

    def step(
        self,
        head: Head,
        judge: Callable[[Asked, bool], Verdict],
        push: Callable[[Sequence[tuple[str, bytes]]], None],
    ) -> Ready | None:
        """Send a part of the first by *push*; return it if that was the last, or if it is over.

        *judge* is asked before each part what would become of it, and told whether it is the
        first; while it says None it goes on.

        Raises: as *judge* and *push*; after :meth:`failed` it is tried again.
        """
        asked = self._waiting[0]
        outcome = judge(asked, self._left is None)
        if outcome is None:
            if self._left is None:
                self._left = list(reversed(asked.proposal.spooled))
            part, left, outcome = _part(head, asked, self._left)
            if outcome is None:
                if part:
                    push(part)
                    hit("trunk.part-pushed")
                self._left = left
                if left:
                    return None
        self._waiting.popleft()
        self._left = None
        return Ready(asked._replace(size=_inline(asked)), outcome)

    def failed(self, why: str) -> Asked | None:
        """Note that the first failed; return it if that was once too often: it waits no more."""
        asked = self._waiting[0]
        asked.failures.append(why)
        if len(asked.failures) < ATTEMPTS:
            return None
        self._left = None
        return self._waiting.popleft()


def _part(
    head: Head, asked: Asked, left: list[str]
) -> tuple[list[tuple[str, bytes]], list[str], HubError | None]:
    """Return the next part of the contents, what is left after it, and what is wrong with it."""
    left = left.copy()
    part: list[tuple[str, bytes]] = []
    size = 0
    while left and size < PART_BYTES and len(part) < PART_CONTENTS:
        name = left.pop()
        if head.ledger.holds(name):
            continue
        content = spool.content(head.spool, name)
        fault = MISSING if content is None else fault_of(content, name)
        if content is None or fault is not None:
            path = next((one.path for one in asked.proposal.changes if one.hash == name), b"")
            return [], left, unacceptable(path, fault or MISSING)
        part.append((name, content))
        size += len(content)
    return part, left, None


def _inline(asked: Asked) -> int:
    return sum(map(len, asked.proposal.contents.values()))
