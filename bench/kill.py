"""`bin/bench kill`: how long after a process has ended `slotgc.kill` knows it.

The floor is taken in the same rounds: SIGTERM and waitid(2), nothing else, to a process whose
own way out takes as long.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from bench.measure import Quiet, Row, report
from foundation.workspace import MARK
from slotgc import kill

EXITS_MS = (0, 2, 20)
LIMIT_MS = 2.0

PROGRAM = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.write(1, b"ready")
signal.sigwait({signal.SIGTERM})
time.sleep(float(sys.argv[1]))
os._exit(0)
"""


def main(arguments: list[str]) -> int:
    """Measure; print a table."""
    parser = argparse.ArgumentParser(prog="bin/bench kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="one round, no verdict")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rounds = 1 if options.smoke else options.rounds
    quiet = Quiet()
    with tempfile.TemporaryDirectory(prefix="bench-kill-") as directory:
        rows = [row for exit_ms in EXITS_MS for row in measure(directory, exit_ms, rounds, quiet)]
    status = report(rows, as_json=options.json)
    return 0 if options.smoke else status


def measure(root: str, exit_ms: int, rounds: int, quiet: Quiet) -> list[Row]:
    """Return what a kill takes, and by how much it is later than the process's own end."""
    pairs: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    for _turn in range(4 * rounds):
        kept = pairs if quiet.now() is not None else busy
        kept.append((plain_ms(root, exit_ms), ours_ms(root, exit_ms)))
        if len(pairs) == rounds:
            break
    if len(pairs) < max(3, rounds // 4):
        pairs += busy
    floor = statistics.median(pair[0] for pair in pairs)
    ours = statistics.median(pair[1] for pair in pairs)
    over = statistics.median(pair[1] - pair[0] for pair in pairs)
    name = f"kill, an exit of {exit_ms} ms"
    n = len(pairs)
    later = f"{name}: later by"
    return [
        Row(name=name, ours=ours, floor=floor, unit="ms", limit=None, rounds=n),
        Row(name=later, ours=over, floor=LIMIT_MS, unit="ms", limit=1.0, rounds=n),
    ]


def plain_ms(root: str, exit_ms: int) -> float:
    """Return how long it takes until a process has ended that is known to be ours."""
    child = begin(root, exit_ms)
    began = time.perf_counter()
    os.kill(child.pid, signal.SIGTERM)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    took = (time.perf_counter() - began) * 1000
    finish(child)
    return took


def ours_ms(root: str, exit_ms: int) -> float:
    """Return the same for a process that must be proved to be ours."""
    child = begin(root, exit_ms)
    began = time.perf_counter()
    gone = kill(child.pid, workspace_dir=root)
    took = (time.perf_counter() - began) * 1000
    finish(child)
    if not gone:
        raise RuntimeError(f"kill did not end pid {child.pid}")
    return took


def begin(root: str, exit_ms: int) -> subprocess.Popen[bytes]:
    """Start a process with our mark whose way out takes *exit_ms* milliseconds."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(exit_ms / 1000)],
        stdout=subprocess.PIPE,
        env={**os.environ, MARK: root},
    )
    if child.stdout is None or child.stdout.read(5) != b"ready":
        raise RuntimeError("the process to be ended did not start")
    return child


def finish(child: subprocess.Popen[bytes]) -> None:
    """Reap it, whatever became of it."""
    child.kill()
    child.communicate()
