"""``bin/bench chaos owner|slotgc|start|trunk``: brute force against the promises, with witnesses.

A campaign lets many processes work at once while they are stopped and killed at random, and
afterwards asks witnesses that share no code with what they watch. Whoever is stopped or killed
when, and what every process does, follows from the seed alone; how the kernel schedules it does
not. Only processes of the campaign's own are signalled, by pidfd, and all of them end with it.
"""

from __future__ import annotations

import importlib
import signal
import sys

CAMPAIGNS = ("owner", "slotgc", "start", "trunk")


def main(arguments: list[str]) -> int:
    """Run the campaign that the first of *arguments* names; return the exit status."""
    name = arguments[0] if arguments else ""
    if name not in CAMPAIGNS:
        asked = name in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(
            f"usage: bin/bench chaos {'|'.join(CAMPAIGNS)} [--help]\n"
        )
        return 0 if asked else 2
    try:
        return int(importlib.import_module(f"bench.chaos.{name}").main(arguments[1:]))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: no verdict; everything has ended\n")
        return 128 + signal.SIGINT
