"""Whatever happens in whatever order, two never believe that they own the lease.

The model is the world around the pure rules: two places on record, a guard that its holder may
be frozen in, processes that die, a clock, boots. The rules are those that production runs.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from foundation.errors import LeaseLost
from foundation.process import ALIVE, GONE, UNKNOWN, Identity
from owner import lease as rules
from owner.lease import Lease

TTL_NS = 1000
NAMES = st.sampled_from(["a", "b", "c"])
COMPLETE = 3
"""An operation has done all of its writes; after fewer its process died."""


class Member:
    """One that may own: a process, its belief, and what it is in the middle of."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.lease: Lease | None = None
        self.writes: Lease | None = None
        """Frozen inside the guard, between its check and its write."""


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 5000
        self.boot = 1
        self.processes = 1
        self.alive: set[int] = set()
        self.record: Lease | None = None
        self.copy: Lease | None = None
        self.synced: Lease | None = None
        """What the copy falls back to when the power goes."""
        self.past: list[Lease] = []
        self.inside: str = ""
        self.epochs: list[int] = []
        self.seen_by_resource = 0
        self.foreign = False
        self.members = {name: self.spawn() for name in "abc"}

    def spawn(self) -> Member:
        self.processes += 1
        self.alive.add(self.processes)
        return Member(
            Identity(
                pid=self.processes,
                inode=self.processes,
                start=0,
                boot=str(self.boot),
                namespace=1,
                uid=0,
            )
        )

    def verdict(self, lease: Lease) -> str:
        liveness = ALIVE if lease.identity.pid in self.alive else GONE
        found = rules.judge(
            lease,
            now_ns=self.now_ns,
            boot=str(self.boot),
            liveness=UNKNOWN if self.foreign else liveness,
        )
        assert found != rules.IMPOSSIBLE
        return found

    def newest(self) -> Lease | None:
        return self.copy or self.record

    def believes(self, member: Member) -> bool:
        return member.lease is not None and self.now_ns < member.lease.belief_ends_ns

    def write(self, lease: Lease, steps: int = 2) -> None:
        if steps > 0:
            self.copy = lease
        if steps > 1:
            self.record = lease
            self.past.append(lease)

    # --- what the members do, each under the guard ---

    @initialize()
    def somebody_owns_it(self) -> None:
        self.join("a", TTL_NS, COMPLETE)

    @precondition(lambda self: not self.inside)
    @rule(names=st.permutations("abc"), ttl_ns=st.sampled_from([TTL_NS, 3 * TTL_NS]))
    def all_try_to_join(self, names: list[str], ttl_ns: int) -> None:
        for name in names:
            self.join(name, ttl_ns, COMPLETE)

    @precondition(lambda self: not self.inside)
    @rule(names=st.permutations("abc"))
    def all_try_to_renew(self, names: list[str]) -> None:
        for name in names:
            self.renew(name, COMPLETE)

    @precondition(lambda self: not self.inside)
    @rule(name=NAMES, steps=st.integers(0, COMPLETE - 1), joins=st.booleans())
    def one_dies_at_it(self, name: str, steps: int, joins: bool) -> None:
        if joins:
            self.join(name, TTL_NS, steps)
        else:
            self.renew(name, steps)

    @precondition(lambda self: not self.inside)
    @rule(name=NAMES)
    def one_freezes_renewing(self, name: str) -> None:
        lease = self.members[name].lease
        if lease is not None:
            try:
                self.members[name].writes = rules.renew(self.newest(), lease, now_ns=self.now_ns)
            except LeaseLost:
                return
            self.inside = name

    def join(self, name: str, ttl_ns: int, steps: int) -> None:
        member = self.members[name]
        if self.believes(member):
            return
        held, highest = rules.claims((self.record, self.copy), self.verdict)
        if held is not None:
            assert self.verdict(held) == rules.HELD
            return
        lease = rules.acquire(
            highest_epoch=highest,
            instance_id=f"{name}{self.processes}.{len(self.epochs)}",
            identity=member.identity,
            now_ns=self.now_ns,
            ttl_ns=ttl_ns,
            meta={},
            acquired_at="",
        )
        self.write(lease, steps=steps)
        if steps > 0:
            self.synced = lease
        if steps < COMPLETE:
            self.crash(name)
        else:
            self.epochs.append(lease.epoch)
            member.lease = lease

    def renew(self, name: str, steps: int) -> None:
        member = self.members[name]
        if member.lease is None:
            return
        try:
            renewed = rules.renew(self.newest(), member.lease, now_ns=self.now_ns)
        except LeaseLost:
            return  # it may well try again
        self.write(renewed, steps=steps)
        if steps < COMPLETE:
            self.crash(name)
        else:
            member.lease = renewed

    @precondition(lambda self: self.inside)
    @rule()
    def thaw(self) -> None:
        member = self.members[self.inside]
        assert member.writes is not None
        self.write(member.writes)
        if self.believes(member):
            member.lease = member.writes
        self.inside, member.writes = "", None

    @precondition(lambda self: not self.inside)
    @rule(name=NAMES, steps=st.integers(0, 2))
    def release(self, name: str, steps: int) -> None:
        member = self.members[name]
        if member.lease is not None and rules.is_same(self.newest(), member.lease):
            self.write(rules.release(member.lease), steps=steps)
        member.lease = None

    @precondition(lambda self: not self.inside)
    @rule(names=st.permutations("abc"))
    def all_try_to_act_fenced(self, names: list[str]) -> None:
        for name in names:
            lease = self.members[name].lease
            if lease is None:
                continue
            try:
                rules.check_mine(self.newest(), lease, now_ns=self.now_ns)
            except LeaseLost:
                continue
            assert lease.epoch >= self.seen_by_resource, "a stale write"
            self.seen_by_resource = lease.epoch

    # --- what happens to them ---

    @rule(ns=st.sampled_from([1, 50, 100, 200]))
    def some_time_passes(self, ns: int) -> None:
        self.now_ns += ns

    @rule(short_ns=st.sampled_from([1, 0]))
    def belief_ends(self, short_ns: int) -> None:
        newest = self.newest()
        if newest is not None:
            self.now_ns = max(self.now_ns, newest.belief_ends_ns - short_ns)

    @rule(short_ns=st.sampled_from([1, 0]))
    def the_deadline_comes(self, short_ns: int) -> None:
        newest = self.newest()
        if newest is not None:
            self.now_ns = max(self.now_ns, newest.deadline_ns - short_ns)

    @rule(name=NAMES, what=st.sampled_from(["crash", "crash", "namespace", "delete", "restore"]))
    def trouble(self, name: str, what: str) -> None:
        if what == "crash":
            self.crash(name)
        elif what == "namespace":  # from now on, or no longer, nobody can judge anybody's process
            self.foreign = not self.foreign
        elif what == "delete" and not self.inside:
            self.record = None
        elif what == "restore" and not self.inside:
            self.record = self.past[len(self.past) // 2] if self.past else None

    @rule(now_ns=st.integers(1, 3000))
    def power_cut(self, now_ns: int) -> None:
        """The clock starts again; of what was not synced anything may be on the disk."""
        self.boot += 1
        self.now_ns = now_ns
        self.alive.clear()
        self.inside = ""
        self.copy = self.synced
        self.record = self.past[len(self.past) // 2] if self.past else None
        self.members = {name: self.spawn() for name in "abc"}
        self.all_try_to_join(list("abc"), TTL_NS)

    def crash(self, name: str) -> None:
        self.alive.discard(self.members[name].identity.pid)
        if self.inside == name:
            self.inside = ""
        self.members[name] = self.spawn()

    # --- what never happens ---

    @invariant()
    def at_most_one_believes(self) -> None:
        believers = [name for name, member in self.members.items() if self.believes(member)]
        assert len(believers) <= 1, believers

    @invariant()
    def who_believes_is_on_record(self) -> None:
        for member in self.members.values():
            if self.believes(member):
                assert member.lease is not None
                assert rules.is_same(self.copy, member.lease)

    @invariant()
    def epochs_grow(self) -> None:
        assert self.epochs == sorted(set(self.epochs))


Leases.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase
