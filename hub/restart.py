"""When to start a child again that has exited, and when to give up. Pure.

An exit *counts* when the child had not been ready for at least a second: a child that is
killed every few seconds by something outside comes back at once every time, one that cannot
run is left alone soon.
"""

from __future__ import annotations

from foundation.record import Record

READY_FOR_S = 1.0
"""An exit after this long in readiness does not count."""
LIMIT = 5
WINDOW_S = 30.0
"""LIMIT counted exits within WINDOW_S are a crash loop."""
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
JITTER = 0.2
"""A delay varies by this fraction, so that children that fell together do not rise together."""


class History(Record):
    """The counted exits that still matter, as times of one monotonic clock, oldest first."""

    exits: tuple[float, ...] = ()
    streak: int = 0


def after_exit(
    history: History, *, now_s: float, ready_for_s: float | None, spread: float
) -> tuple[History, float | None]:
    """Return the new history and the delay in seconds before the next start, None: give up.

    *ready_for_s* is how long the child had been ready (None: never), *spread* a random
    number in [-1, 1].
    """
    recent = tuple(t for t in history.exits if now_s - t < WINDOW_S)
    if ready_for_s is not None and ready_for_s >= READY_FOR_S:
        return History(exits=recent), 0.0
    after = History(exits=(*recent, now_s), streak=history.streak + 1)
    if len(after.exits) >= LIMIT:
        return after, None
    if after.streak == 1:
        return after, 0.0
    delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (after.streak - 2))
    return after, delay * (1 + JITTER * spread)
