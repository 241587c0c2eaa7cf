"""The commits that wait for the writer: what has arrived goes in batches, what failed alone.

One batch costs less than two, so when several slots commit it is worth a moment to wait for those
that were answered together and come back together.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.commits import Proposal

BATCH_COMMITS = 200
BATCH_BYTES = 8 << 20
LINGER_S = 0.002
LINGER_SHARE, LINGER_AT_MOST_S = 0.15, 0.02
"""How long to wait, when several slots commit, for those of them that do not wait yet: at least
so long, and a share of what the last batch took."""
ATTEMPTS = 3
"""How often a commit is tried that was in a batch which failed."""
_ACTIVE_S = 0.1
_STEP_S = 0.001


class Asked(NamedTuple):
    """One commit that is asked for."""

    proposal: Proposal
    ticket: object
    """Whatever the caller knows it by."""
    failures: list[str]
    """Why it did not get anywhere before; whatever has any is tried by itself."""
    size: int = 0
    """Bytes of its contents, those in the spool included."""


class Queue:
    """What waits, in the order of its arrival. One thread takes, any may put and end."""

    def __init__(self) -> None:
        """Begin empty."""
        self.arrival = threading.Condition()
        """Who holds it keeps everybody else away."""
        self.ended = False
        self._waiting: deque[Asked] = deque()
        self._active: dict[str, float] = {}

    def put(self, asked: Asked) -> None:
        """Let *asked* wait."""
        with self.arrival:
            self._waiting.append(asked)
            self.arrival.notify()

    def put_first(self, asked: Asked) -> None:
        """Let *asked* be the next."""
        with self.arrival:
            self._waiting.appendleft(asked)

    def end(self) -> None:
        """Have whoever takes, or pauses, return at once, now and from now on."""
        with self.arrival:
            self.ended = True
            self.arrival.notify()

    def pause(self, seconds: float) -> None:
        """Wait for *seconds*, or the end."""
        with self.arrival:
            self.arrival.wait_for(lambda: self.ended, seconds)

    def take_all(self) -> list[Asked]:
        """Return all that waits, at once."""
        with self.arrival:
            waiting = list(self._waiting)
            self._waiting.clear()
        return waiting

    def take(
        self, *, within_s: float, last_took_s: float, is_alone: Callable[[], bool]
    ) -> list[Asked]:
        """Return a batch of what waits; nothing if nothing came *within_s*.

        It is one commit if *is_alone*, or if that has failed before. *last_took_s* is what the
        batch before took.
        """
        with self.arrival:
            self.arrival.wait_for(lambda: self._waiting or self.ended, within_s)
            if not self._waiting:
                return []
        most = 1 if is_alone() or self._waiting[0].failures else BATCH_COMMITS
        batch: list[Asked] = []
        with self.arrival:
            self._drain(batch, most)
        if most == 1:
            return batch
        now_s = time.monotonic()
        since_s = now_s - _ACTIVE_S - last_took_s
        self._active = {slot: at for slot, at in self._active.items() if at > since_s}
        self._active |= {asked.proposal.slot: now_s for asked in batch}
        if len(self._active) > 1:
            share_s = min(last_took_s * LINGER_SHARE, LINGER_AT_MOST_S)
            self._linger(batch, now_s + max(LINGER_S, share_s))
            self._active |= {asked.proposal.slot: now_s for asked in batch}
        return batch

    def put_back(self, batch: list[Asked], why: str) -> list[Asked]:
        """Let each of *batch* be tried again by itself, for one may be to blame.

        Return those that were tried often enough: they do not wait any more.
        """
        for asked in batch:
            asked.failures.append(why)
        with self.arrival:
            again = (asked for asked in reversed(batch) if len(asked.failures) < ATTEMPTS)
            self._waiting.extendleft(again)
        return [asked for asked in batch if len(asked.failures) >= ATTEMPTS]

    def _linger(self, batch: list[Asked], until_s: float) -> None:
        while (
            len({asked.proposal.slot for asked in batch}) < len(self._active)
            and len(batch) < BATCH_COMMITS
            and (left_s := until_s - time.monotonic()) > 0
        ):
            time.sleep(min(_STEP_S, left_s))
            with self.arrival:
                self._drain(batch, BATCH_COMMITS)

    def _drain(self, batch: list[Asked], most: int) -> None:
        size = sum(asked.size for asked in batch)
        while self._waiting and len(batch) < most and size < BATCH_BYTES:
            if batch and self._waiting[0].failures:
                break  # that one is tried by itself
            asked = self._waiting.popleft()
            size += asked.size
            batch.append(asked)
