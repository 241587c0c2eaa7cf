"""The restart policy on a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.restart import (
    FIRST_DELAY_S,
    JITTER,
    LIMIT,
    LONGEST_DELAY_S,
    READY_FOR_S,
    WINDOW_S,
    History,
    after_exit,
)

READY_FOR = st.none() | st.floats(0, 100, allow_nan=False)
LIVES = st.lists(st.tuples(READY_FOR, st.floats(0, 40), st.floats(-1, 1)), max_size=60)


@given(LIVES)
def test_a_sick_child_is_given_up_a_healthy_one_never(
    lives: list[tuple[float | None, float, float]],
) -> None:
    history, now_s = History(), 1000.0
    counted: list[float] = []
    for ready_for_s, starting_s, spread in lives:
        now_s += starting_s + (ready_for_s or 0.0)
        history, delay_s = after_exit(history, now_s=now_s, ready_for_s=ready_for_s, spread=spread)
        if ready_for_s is not None and ready_for_s >= READY_FOR_S:
            assert delay_s == 0.0
            continue
        counted.append(now_s)
        recent = [t for t in counted if now_s - t < WINDOW_S]
        if delay_s is None:
            assert len(recent) >= LIMIT
            return
        assert len(recent) < LIMIT
        assert 0.0 <= delay_s <= LONGEST_DELAY_S * (1 + JITTER)
        now_s += delay_s
        assert len(history.exits) < LIMIT, "the history grows"


def test_a_child_that_cannot_run_is_given_up_within_two_seconds() -> None:
    history, now_s, delays = History(), 0.0, []
    while True:
        now_s += 0.01
        history, delay_s = after_exit(history, now_s=now_s, ready_for_s=None, spread=0.0)
        if delay_s is None:
            break
        delays.append(delay_s)
        now_s += delay_s
    assert delays == pytest.approx([0.0, FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S])
    assert now_s < 2


def test_one_second_of_health_wipes_the_slate() -> None:
    history = History()
    for turn in range(100):
        sick = turn % 2
        history, delay_s = after_exit(
            history, now_s=float(10 * turn), ready_for_s=None if sick else READY_FOR_S, spread=0.0
        )
        assert delay_s == 0.0, "first restart at once"


@given(st.floats(-1, 1), st.integers(2, 200))
def test_delays_double_up_to_the_longest(spread: float, streak: int) -> None:
    history = History(streak=streak)
    _after, delay_s = after_exit(history, now_s=0.0, ready_for_s=None, spread=spread)
    plain = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (streak - 1))
    assert delay_s == pytest.approx(plain * (1 + JITTER * spread))
