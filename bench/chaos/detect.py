"""Double ownership, found in what processes have said. Pure.

A lease gives epochs. A *grant* says: between ``before`` and ``after`` this epoch was given to this
process. A *claim* says: between ``before`` and ``after`` this process was told that it (still) has
it. The instant of the truth lies between the two clocks, so only what holds for every instant in
between is called a violation; a process that is stopped after it was told is not one, for what it
does then no lease can prevent (that is the fence's business).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

from bench.chaos.witness import Entry


def superseded(claims: Iterable[Entry], grants: Sequence[Entry]) -> Iterator[str]:
    """Yield a sentence for every claim that began after a higher epoch had been given.

    Grants as claims of themselves must not go back either: whoever asked after somebody had got
    an epoch gets a higher one.
    """
    given = sorted(grants, key=lambda grant: grant.after)
    moments = [grant.after for grant in given]
    highest: list[Entry] = []
    for grant in given:
        highest.append(grant if not highest or grant.epoch > highest[-1].epoch else highest[-1])
    for claim in claims:
        earlier = bisect.bisect_left(moments, claim.before)
        if earlier and highest[earlier - 1].epoch > claim.epoch:
            newer = highest[earlier - 1]
            late_ms = (claim.before - newer.after) / 1e6
            yield (
                f"pid {claim.pid} had epoch {claim.epoch} confirmed {late_ms:.1f} ms after pid "
                f"{newer.pid} had got epoch {newer.epoch}"
            )


def shared(claims: Iterable[Entry], grants: Iterable[Entry]) -> Iterator[str]:
    """Yield a sentence for every epoch that was given twice, or is claimed by another process."""
    owner: dict[int, int] = {}
    for grant in grants:
        first = owner.setdefault(grant.epoch, grant.pid)
        if first != grant.pid:
            yield f"epoch {grant.epoch} was given to pid {first} and to pid {grant.pid}"
    told: set[tuple[int, int]] = set()
    for claim in claims:
        if owner.get(claim.epoch, claim.pid) != claim.pid and (claim.epoch, claim.pid) not in told:
            told.add((claim.epoch, claim.pid))
            yield f"epoch {claim.epoch} of pid {owner[claim.epoch]} is claimed by pid {claim.pid}"


def repeated(grants: Iterable[Entry]) -> Iterator[str]:
    """Yield a sentence for every epoch that was given more than once, to whomever."""
    seen: set[int] = set()
    for grant in grants:
        if grant.epoch in seen:
            yield f"epoch {grant.epoch} was given again, to pid {grant.pid}"
        seen.add(grant.epoch)
