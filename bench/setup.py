"""`bin/bench setup`: how long the first set-up of a fresh checkout takes, packages cached."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from bench.measure import Row, report

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 15.0


def main(arguments: list[str]) -> int:
    """Measure; print a table."""
    parser = argparse.ArgumentParser(prog="bin/bench setup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    took = sorted(first_set_up() for _turn in range(options.rounds + 1))[:-1]
    row = Row(
        name="first set-up, packages cached",
        ours=took[len(took) // 2],
        floor=LIMIT_S,
        unit="s",
        limit=1.0,
        rounds=options.rounds,
    )
    return report([row], as_json=options.json)


def first_set_up() -> float:
    """Clone the project and set it up; return the seconds that the set-up took."""
    with tempfile.TemporaryDirectory(prefix="bench-setup-") as directory:
        clone = Path(directory) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        began = time.perf_counter()
        subprocess.run([str(clone / "bin" / "setup")], check=True, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began
