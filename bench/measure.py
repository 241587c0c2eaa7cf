"""What the benchmarks share: timing a process, waiting for quiet, a table of ratios."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from foundation.spawn import describe_exit

INTERPRETER = [sys.executable, "-I", "-S", "-c", "pass"]
"""The floor of every verb: nothing in Python can be faster."""

QUIET_FACTOR = 1.35
"""A round counts only if the interpreter, right before it, took less than this times its best."""


def run_ms(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    expect: int | None = 0,
) -> float:
    """Run *argv* with its output thrown away; return the wall time in milliseconds.

    Raises:
        RuntimeError: it exited with another status than *expect*.
    """
    before = os.getcwd()
    null = os.open(os.devnull, os.O_RDWR)
    if cwd is not None:
        os.chdir(cwd)
    try:
        began = time.perf_counter()
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            dict(os.environ if env is None else env),
            file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)],
        )
        _pid, status = os.waitpid(pid, 0)
        took = (time.perf_counter() - began) * 1000
    finally:
        os.chdir(before)
        os.close(null)
    code = os.waitstatus_to_exitcode(status)
    if expect is not None and code != expect:
        raise RuntimeError(f"{' '.join(argv)} {describe_exit(code)}")
    return took


class Quiet:
    """Tells whether the machine is quiet enough for a round to count."""

    def __init__(self) -> None:
        """Learn the interpreter's best time."""
        self.best_ms = min(run_ms(INTERPRETER) for _ in range(20))

    def now(self) -> float | None:
        """Return the interpreter's time in milliseconds, None if the machine is busy."""
        took = run_ms(INTERPRETER)
        self.best_ms = min(self.best_ms, took)
        return took if took < QUIET_FACTOR * self.best_ms else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure beside its floor, both medians."""

    name: str
    ours: float
    floor: float
    unit: str
    limit: float | None
    """The largest ratio allowed; None: only shown."""
    rounds: int

    @property
    def ratio(self) -> float:
        """Ours to the floor."""
        return self.ours / self.floor

    @property
    def held(self) -> bool:
        """Whether the limit is kept."""
        return self.limit is None or self.ratio <= self.limit


def paired(
    name: str,
    rounds: int,
    floor: Callable[[], float],
    ours: Callable[[], float],
    *,
    quiet: Quiet,
    limit: float | None,
    unit: str = "ms",
) -> Row:
    """Measure *floor* and *ours* in turn, *rounds* quiet times (or four times as many in all)."""
    floors: list[float] = []
    figures: list[float] = []
    busy: list[tuple[float, float]] = []
    for _turn in range(4 * rounds):
        counts = quiet.now() is not None
        pair = floor(), ours()
        if counts:
            floors.append(pair[0])
            figures.append(pair[1])
            if len(floors) == rounds:
                break
        else:
            busy.append(pair)
    if len(floors) < max(3, rounds // 4):  # never quiet: the ratio still means something
        floors += [pair[0] for pair in busy]
        figures += [pair[1] for pair in busy]
    return Row(
        name=name,
        ours=statistics.median(figures),
        floor=statistics.median(floors),
        unit=unit,
        limit=limit,
        rounds=len(floors),
    )


def report(rows: Sequence[Row], *, as_json: bool) -> int:
    """Print the table; return 1 if a limit is missed."""
    if as_json:
        sys.stdout.write(
            json.dumps(
                [{**asdict(row), "ratio": round(row.ratio, 3), "held": row.held} for row in rows]
            )
            + "\n"
        )
    else:
        width = max(len(row.name) for row in rows)
        for row in rows:
            limit = "" if row.limit is None else f"  limit {row.limit:g}"
            missed = "" if row.held else "  MISSED"
            sys.stdout.write(
                f"{row.name:{width}}  {row.ours:9.2f} {row.unit:3}  floor {row.floor:9.2f}  "
                f"ratio {row.ratio:5.2f}{limit}{missed}  (n={row.rounds})\n"
            )
    return 0 if all(row.held for row in rows) else 1
