"""`bin/bench chaos owner`: many processes want one lease.

Each joins, works while it owns, releases, or dies; the conductor stops them for up to three ttl
and kills them, the owner by preference; some have a slow disk, some lack descriptors or room. Two
witnesses: what each was told and when, in memory that survives it, by which no epoch may be
confirmed once a higher one has been given; and a resource behind the fence, which counts epochs
and visitors by itself. Then, in quiet: an owner that is stopped is followed after its ttl, and one
that is killed at once, whatever its ttl.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from contextlib import nullcontext
from typing import Any

from bench.chaos import detect, fenced, hardship, plan
from bench.chaos.crew import Crew, Hand
from bench.chaos.stage import Stage
from bench.chaos.verdict import Verdict
from bench.chaos.witness import Entry, Witness, now_ns
from foundation.errors import HubError, LeaseLost

TTL_S = (0.2, 0.5)
_SMOKE_S = 3.0
_LOOK_EVERY_S = 0.005
_QUIET_HANDS = 6
_QUIET_TURNS = {False: 20, True: 4}
"""How many owners die in the quiet part, by whether it is a smoke test."""
_LONG_TTL_S = 30.0
_LATE_S = 1.0
"""Beyond the due time, on a machine with far more to do than processors."""

GRANT, CLAIM, VISIT, FENCED_OUT, RELEASE, LOST, FOLLOW, FAILED, WANT, WRONG = range(10)

FOLLOWER_LOST, LOST_AFTER_RELEASE, NOT_FOLLOWER, OWNER_AFTER_LOST, NOT_TOLD, NO_EPOCH = range(
    10, 16
)

_WRONG = {
    fenced.TWO_INSIDE: "met another inside the fence",
    fenced.WENT_BACK: "was let in by the fence after a higher epoch had been",
    fenced.OVERWRITTEN: "was overwritten inside the fence",
    FOLLOWER_LOST: "is a follower, and its `lost` is set",
    LOST_AFTER_RELEASE: "had `lost` set after it had released",
    NOT_FOLLOWER: "is no owner any more, or never was, and is_owner is true",
    OWNER_AFTER_LOST: "is owner although `lost` was set",
    NOT_TOLD: "is not owner any more and was not told within a second",
    NO_EPOCH: "became owner without an epoch",
}


def rates(processes: int) -> list[plan.Rate]:
    """Return how often what happens, for so many processes."""
    return [
        plan.Rate("stop", 0.9 * processes, (0.0, 3 * TTL_S[1]), leader_share=0.4),
        plan.Rate("kill", 0.7 * processes, leader_share=0.4),
    ]


def main(arguments: list[str]) -> int:
    """Run the campaign; return 1 if a promise was broken."""
    parser = plan.parser("owner", __doc__)
    parser.add_argument(
        "--lease",
        choices=["owner", "bench.chaos.naive"],
        default="owner",
        help="what to torment; the naive one shows what the witnesses can see",
    )
    parser.add_argument(
        "--no-fence",
        action="store_true",
        help="use the resource by is_owner alone, to show what the fence is for",
    )
    options = plan.options(parser.parse_args(arguments), smoke_s=_SMOKE_S)
    verdict = Verdict("owner", options)
    with Stage("owner") as stage:
        Campaign(stage, options, verdict).run()
        verdict.look_into(stage)
    return verdict.report()


class Campaign:
    """One run."""

    def __init__(self, stage: Stage, options: plan.Options, verdict: Verdict) -> None:
        """Prepare the witnesses; start nothing."""
        self.stage = stage
        self.options = options
        self.verdict = verdict
        self.module: Any = importlib.import_module(options.rest.lease)
        for name in ("join", "watch", "Owner", "Holder"):
            getattr(self.module, name, None)  # loaded before anybody forks: all run one code
        capacity = int(4000 + 1000 * options.seconds)
        self.witnesses = [Witness(capacity) for _ in range(options.processes)]
        self.resource = fenced.Resource(str(stage.place / "resource"))
        self.path = str(stage.place / "lease")

    def run(self) -> None:
        """Brawl, then judge what was said, then see in quiet that owners are followed."""
        errors = self.stage.place / "errors"
        with Crew(str(errors)) as crew:
            self._brawl(crew)
        self._judge()
        if self.options.rest.lease == "owner":
            self._quiet(str(errors))
        if errors.exists() and (text := errors.read_text(errors="replace")):
            self.verdict.wrong(f"a process failed: {text[-3000:]}")

    def _brawl(self, crew: Crew) -> None:
        for number in range(self.options.processes):
            self._recruit(crew, number, 0)
        began = time.monotonic()
        options = self.options
        for fault in plan.faults(
            options.seed, options.seconds, options.processes, rates(options.processes)
        ):
            self._pass_time(crew, began + fault.at_s)
            leader = self._leader(crew) if fault.whom == plan.LEADER else None
            number = fault.whom if leader is None else leader
            hand = crew.hands[number % options.processes]
            if fault.what == "stop":
                crew.freezer.stop(hand.pidfd, fault.for_s)
            else:
                crew.kill(hand.number)
                self._recruit(crew, hand.number, hand.turn + 1)
        self._pass_time(crew, began + options.seconds)
        self.verdict.figures["stops"] = crew.freezer.stops
        self.verdict.figures["kills"] = crew.kills

    def _recruit(self, crew: Crew, number: int, turn: int) -> None:
        crew.fork(number, turn, Hopeful(self, number, turn).work)

    def _pass_time(self, crew: Crew, until_s: float) -> None:
        while (now := time.monotonic()) < until_s:
            crew.freezer.thaw()
            for hand in crew.ended():
                self.verdict.figures["died owning, by themselves"] += 1
                self._recruit(crew, hand.number, hand.turn + 1)
            soonest = min(until_s, crew.freezer.next_s())
            time.sleep(max(0.0, min(_LOOK_EVERY_S, soonest - now)))

    def _leader(self, crew: Crew, above: int = 0) -> int | None:
        """Return who was given the highest epoch *above* that, as far as they have said."""
        best, leader = above, None
        for number in crew.hands:
            last = self.witnesses[number].last()
            if last is not None and last.kind in (GRANT, CLAIM, VISIT) and last.epoch > best:
                best, leader = last.epoch, number
        return leader

    def _judge(self) -> None:
        """Judge what was said in the brawl."""
        said = [entry for witness in self.witnesses for entry in witness]
        by_kind: dict[int, list[Entry]] = {kind: [] for kind in range(10)}
        for entry in said:
            by_kind[entry.kind].append(entry)
        grants, claims = by_kind[GRANT], by_kind[CLAIM]
        told = (
            *detect.superseded(claims, grants),
            *detect.superseded(grants, grants),
            *detect.shared(claims, grants),
            *detect.repeated(grants),
        )
        for sentence in told:
            self.verdict.wrong(sentence)
        for entry in by_kind[WRONG]:
            self.verdict.wrong(f"pid {entry.pid} of epoch {entry.epoch} {_WRONG[entry.after]}")
        if any(witness.is_full for witness in self.witnesses):
            self.verdict.wrong("a witness was full: the campaign proves nothing")
        released = {entry.epoch for entry in by_kind[RELEASE]}
        figures = self.verdict.figures
        figures["claims"] = len(claims)
        figures["visits behind the fence"] = self.resource.visits
        figures["kept out by the fence"] = len(by_kind[FENCED_OUT])
        figures["owners"] = len(grants)
        figures["owners that did not release"] = len({g.epoch for g in grants} - released)
        figures["told that it was lost"] = len(by_kind[LOST])
        figures["times followed"] = len(by_kind[FOLLOW])
        figures["wants of descriptors or room"] = len(by_kind[WANT])
        figures["refusals for want of something"] = len(by_kind[FAILED])

    def _quiet(self, errors: str) -> None:
        """See that owners are followed when nothing else happens."""
        turns = _QUIET_TURNS[self.options.smoke]
        ttl_s = TTL_S[1]
        after_brawl = self._follow(errors, self.path, ttl_s, "begin", 1)
        self._took("first owner after the brawl", after_brawl, ttl_s)
        stopped = self._follow(errors, self.path, ttl_s, "stop", turns)
        self._took("owner after a stopped one", stopped, ttl_s)
        path = f"{self.path}-long"
        killed = self._follow(errors, path, _LONG_TTL_S, "kill", turns)
        self._took(f"owner after a killed one (ttl {_LONG_TTL_S:g} s)", killed, 0)

    def _took(self, what: str, took_s: list[float], due_s: float) -> None:
        if took_s:
            self.verdict.figures[f"{what}: median us"] = round(1e6 * statistics.median(took_s))
            self.verdict.figures[f"{what}: worst us"] = round(1e6 * max(took_s))
        for took in took_s:
            if took > due_s + _LATE_S:
                self.verdict.wrong(f"{what} came after {took:.3f} s, {due_s:g} s were due")

    def _follow(self, errors: str, path: str, ttl_s: float, what: str, turns: int) -> list[float]:
        """Stop or kill the owner so many times; return how long it took to have another."""
        took: list[float] = []
        quiet = Quiet(path, ttl_s)
        self.witnesses = [Witness(500_000) for _ in range(_QUIET_HANDS)]
        with Crew(errors) as crew:
            began_ns = now_ns()
            for number in range(_QUIET_HANDS):
                crew.fork(number, 0, Hopeful(self, number, 0, quiet).work)
            leader, epoch = self._await_leader(crew, 0, began_ns, took if what == "begin" else [])
            for turn in range(turns if what != "begin" else 0):
                if leader is None:
                    break
                began_ns = now_ns()
                hand = crew.hands[leader]
                if what == "stop":
                    crew.freezer.stop(hand.pidfd, 3600)
                else:
                    crew.kill(leader)
                leader, epoch = self._await_leader(crew, epoch, began_ns, took)
                self._replace(crew, hand, turn + 1, quiet)
        if leader is None:
            self.verdict.wrong(f"no owner came within {ttl_s + 10 * _LATE_S:g} s ({what})")
        return took

    def _replace(self, crew: Crew, hand: Hand, turn: int, quiet: Quiet) -> None:
        crew.freezer.thaw(everybody=True)
        if hand.number in crew.hands:
            crew.kill(hand.number)
        crew.fork(hand.number, turn, Hopeful(self, hand.number, turn, quiet).work)

    def _await_leader(
        self, crew: Crew, epoch: int, began_ns: int, took: list[float]
    ) -> tuple[int | None, int]:
        """Wait for an owner above *epoch*; return its number and epoch."""
        deadline_s = time.monotonic() + 10 * _LATE_S
        while time.monotonic() < deadline_s:
            leader = self._leader(crew, epoch)
            if leader is not None:
                last = self.witnesses[leader].last()
                assert last is not None
                grant = next(e for e in self.witnesses[leader] if e.epoch == last.epoch)
                took.append((grant.after - began_ns) / 1e9)
                return leader, last.epoch
            time.sleep(0.001)
        return None, epoch


class Quiet:
    """How to behave where only the conductor disturbs: own for ever, follow by watching."""

    def __init__(self, path: str, ttl_s: float) -> None:
        """Want the lease at *path*."""
        self.path = path
        self.ttl_s = ttl_s


class Hopeful:
    """One process that wants the lease, again and again."""

    def __init__(
        self, campaign: Campaign, number: int, turn: int, quiet: Quiet | None = None
    ) -> None:
        """Be number *number*, the *turn*-th to be it."""
        self._module = campaign.module
        self._fences = not campaign.options.rest.no_fence
        self._resource = campaign.resource
        self._witness = campaign.witnesses[number]
        self._draw = plan.stream(campaign.options.seed, "hopeful", number, turn)
        self._quiet = quiet
        self._path = quiet.path if quiet else campaign.path
        self._ttl_s = quiet.ttl_s if quiet else self._draw.uniform(*TTL_S)
        self._pid = 0

    def work(self) -> None:
        """Want the lease until killed."""
        self._pid = os.getpid()
        self._resource.open()
        self._want = hardship.Want(self._draw)
        if self._quiet is None and self._draw.random() < 0.25:
            hardship.slow_disk(self._draw, self._ttl_s)
        while True:
            lacks = self._quiet is None and self._draw.random() < 0.1
            if lacks:
                self._lack()
            self._turn()
            if self._want.suffers:
                self._want.end()

    def _lack(self) -> None:
        self._want.begin()
        self._say(WANT, 0, 0, 0)

    def _say(self, kind: int, epoch: int, before: int, after: int) -> None:
        self._witness.write(Entry(kind, self._pid, epoch, before, after))

    def _say_wrong(self, epoch: int, what: int) -> None:
        self._say(WRONG, epoch, now_ns(), what)

    def _turn(self) -> None:
        """Join once, and work or follow."""
        before = now_ns()
        try:
            lease = self._module.join(self._path, ttl_s=self._ttl_s, meta={"pid": str(self._pid)})
        except (HubError, OSError, ValueError):  # ValueError: what the naive one reads, torn
            self._say(FAILED, 0, before, now_ns())
            time.sleep(self._draw.uniform(0.002, 0.02))
            return
        if lease.role != self._module.OWNER:
            self._follow(lease)
            return
        after = now_ns()
        epoch = lease.epoch
        if not isinstance(epoch, int) or epoch < 1:
            self._say_wrong(0, NO_EPOCH)
            return
        self._say(GRANT, epoch, before, after)
        self._own(lease, epoch)

    def _follow(self, lease: Any) -> None:
        self._say(FOLLOW, 0, now_ns(), 0)
        if lease.is_owner:
            self._say_wrong(0, NOT_FOLLOWER)
        watch = getattr(self._module, "watch", None)
        if watch is None or (self._draw.random() < 0.5 and not self._quiet):
            time.sleep(self._draw.uniform(0.005, 0.04))
        else:
            try:
                for holder in watch(self._path):
                    if holder is None:
                        break
            except (HubError, OSError):
                self._say(FAILED, 0, 0, 0)
                time.sleep(self._draw.uniform(0.005, 0.04))
        if lease.lost.is_set():
            self._say_wrong(0, FOLLOWER_LOST)

    def _own(self, lease: Any, epoch: int) -> None:
        """Work for a while, then end it in one of the ways there are."""
        steps = 10**9 if self._quiet else self._draw.randrange(1, 150)
        cancels_at = self._draw.randrange(150) if self._draw.random() < 0.15 else -1
        for step in range(steps):
            if not self._work_once(lease, epoch):
                self._end_lost(lease, epoch)
                return
            if self._quiet is None:
                if step == cancels_at:
                    lease.cancel()
                if self._draw.random() < 0.005:
                    self._want.end() if self._want.suffers else self._lack()
            time.sleep(self._draw.uniform(0.0005, 0.002))
        if self._draw.random() < 0.1:
            os._exit(0)  # owning: the campaign has another take its place
        before = now_ns()
        lease.release()
        was_lost = lease.lost.is_set()
        if lease.is_owner:
            self._say_wrong(epoch, NOT_FOLLOWER)
        self._say(RELEASE, epoch, before, now_ns())
        time.sleep(self._draw.uniform(0, 0.01))
        if lease.lost.is_set() and not was_lost:
            self._say_wrong(epoch, LOST_AFTER_RELEASE)

    def _work_once(self, lease: Any, epoch: int) -> bool:
        """Claim, and use the resource at times; return whether this still is the owner."""
        was_lost = lease.lost.is_set()
        before = now_ns()
        is_owner = lease.is_owner
        after = now_ns()
        if not is_owner:
            return False
        self._say(CLAIM, epoch, before, after)
        if was_lost:
            self._say_wrong(epoch, OWNER_AFTER_LOST)
        if self._draw.random() < 0.2 and not self._quiet:
            try:
                with lease.fenced() if self._fences else nullcontext():
                    found = self._resource.visit(epoch, self._draw.choice([0, 0, 0.001, 0.005]))
            except LeaseLost:
                self._say(FENCED_OUT, epoch, before, now_ns())
            except (HubError, OSError):
                self._say(FAILED, epoch, before, now_ns())
            else:
                self._say(VISIT, epoch, before, now_ns())
                if found:
                    self._say_wrong(epoch, found)
        return True

    def _end_lost(self, lease: Any, epoch: int) -> None:
        if lease.lost.wait(1.0):
            self._say(LOST, epoch, 0, 0)
        else:
            self._say_wrong(epoch, NOT_TOLD)
        if self._draw.random() < 0.5:
            lease.release()
