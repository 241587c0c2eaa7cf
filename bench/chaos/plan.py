"""What happens to whom and when: a function of the seed."""

from __future__ import annotations

import argparse
import random
from typing import NamedTuple

LEADER = -1
"""Whoever leads when the fault comes: the owner, the hub."""


class Fault(NamedTuple):
    """One thing that is done to one process."""

    at_s: float
    """Since the beginning of the campaign."""
    what: str
    whom: int
    """Number of a process, or :data:`LEADER`."""
    for_s: float
    """How long a stop lasts; 0 for what lasts no time."""


class Rate(NamedTuple):
    """How often one kind of fault comes."""

    what: str
    per_s: float
    for_s: tuple[float, float] = (0.0, 0.0)
    """Bounds of how long it lasts; short ones are more frequent."""
    leader_share: float = 0.0
    """How many of them go to whoever leads."""


def stream(seed: int, *words: object) -> random.Random:
    """Return the random stream of the one that *words* name: independent of everybody else's."""
    return random.Random("/".join(str(word) for word in (seed, *words)))


def faults(seed: int, seconds: float, processes: int, rates: list[Rate]) -> list[Fault]:
    """Return all faults of a campaign in the order of their time."""
    planned: list[Fault] = []
    for rate in rates:
        draw = stream(seed, "faults", rate.what)
        at_s = draw.expovariate(rate.per_s)
        while at_s < seconds:
            leads = draw.random() < rate.leader_share
            whom = draw.randrange(processes)
            shortest, longest = rate.for_s
            lasts_s = shortest + (longest - shortest) * draw.random() ** 2
            planned.append(Fault(at_s, rate.what, LEADER if leads else whom, lasts_s))
            at_s += draw.expovariate(rate.per_s)
    return sorted(planned)


class Options(NamedTuple):
    """The command line of a campaign."""

    seed: int
    seconds: float
    processes: int
    smoke: bool
    as_json: bool
    rest: argparse.Namespace


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every campaign has."""
    made = argparse.ArgumentParser(prog=f"bin/bench chaos {name}", description=about)
    made.add_argument("--seconds", type=float, metavar="S", help="how long [default: 60]")
    made.add_argument("--processes", type=int, default=16, metavar="N", help="[default: 16]")
    made.add_argument("--seed", type=int, help="replay the plan of that seed")
    made.add_argument("--smoke", action="store_true", help="a few seconds")
    made.add_argument("--keep", action="store_true", help="keep the place if something is wrong")
    made.add_argument("--json", action="store_true")
    return made


def options(given: argparse.Namespace, *, smoke_s: float) -> Options:
    """Return what was asked for; the seed is drawn if none was."""
    seconds = given.seconds or (smoke_s if given.smoke else 60.0)
    seed = random.SystemRandom().randrange(1, 10**6) if given.seed is None else given.seed
    return Options(seed, seconds, given.processes, given.smoke, given.json, given)
