"""The rules of a lease, one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import codec
from foundation.errors import LeaseLost
from foundation.process import ALIVE, GONE, UNKNOWN, Identity
from owner import lease as rules
from owner.lease import Lease

SECOND = 10**9
ME = Identity(pid=4242, inode=77, start=9, boot="this", namespace=4026531836, uid=0)


def make(**changes: Any) -> Lease:
    lease = rules.acquire(
        highest_epoch=6,
        instance_id="ab" * 16,
        identity=ME,
        now_ns=100 * SECOND,
        ttl_ns=10 * SECOND,
        meta={"endpoint": "nats://x"},
        acquired_at="2026-11-21T02:34:53.211Z",
    )
    return lease.replace(**changes)


@pytest.mark.parametrize(
    ("lease", "now_s", "boot", "liveness", "verdict"),
    [
        (None, 100, "this", GONE, rules.NEVER_HELD),
        (make(), 100, "this", ALIVE, rules.HELD),
        (make(), 100, "this", UNKNOWN, rules.HELD),
        (make(), 109.999, "this", ALIVE, rules.HELD),
        (make(), 110, "this", ALIVE, rules.EXPIRED),
        (make(), 110, "this", UNKNOWN, rules.EXPIRED),
        (make(), 100, "this", GONE, rules.DEAD),
        (make(), 3, "another", UNKNOWN, rules.OTHER_BOOT),
        (make(deadline_ns=0), 100, "this", ALIVE, rules.RELEASED),
        (make(deadline_ns=0), 100, "another", ALIVE, rules.RELEASED),
        (make(), 99.999, "this", ALIVE, rules.IMPOSSIBLE),
        (make(), 99.999, "this", GONE, rules.DEAD),
    ],
)
def test_a_lease_is_free_only_when_nobody_can_believe_in_it(
    lease: Lease | None, now_s: float, boot: str, liveness: str, verdict: str
) -> None:
    now_ns = int(now_s * SECOND)
    assert rules.judge(lease, now_ns=now_ns, boot=boot, liveness=liveness) == verdict
    assert (verdict in rules.FREE) == (verdict not in {rules.HELD, rules.IMPOSSIBLE})


def test_it_is_free_only_if_it_is_in_every_place() -> None:
    old, new = make(), make(epoch=9)
    assert rules.claims((None, None), lambda _lease: rules.HELD) == (None, 0)
    assert rules.claims((old, None), lambda _lease: rules.HELD) == (old, 7)
    assert rules.claims((old, new), lambda _lease: rules.DEAD) == (None, 9)
    assert rules.claims((new, old), lambda _lease: rules.HELD) == (new, 9)
    held_if_old = {7: rules.HELD, 9: rules.RELEASED}
    assert rules.claims((new, old), lambda lease: held_if_old[lease.epoch]) == (old, 9)


def test_belief_ends_a_fifth_of_the_ttl_before_the_deadline() -> None:
    lease = make()
    assert lease.deadline_ns == 110 * SECOND
    assert lease.belief_ends_ns == 108 * SECOND
    renewed = rules.renew(lease, lease, now_ns=108 * SECOND - 1)
    assert renewed == lease.replace(deadline_ns=118 * SECOND - 1)
    with pytest.raises(LeaseLost) as lost:
        rules.renew(lease, lease, now_ns=108 * SECOND)
    assert lost.value.reason == "expired"


@pytest.mark.parametrize(
    "now_on_record",
    [None, make(epoch=8), make(instance_id="cd" * 16), make(deadline_ns=0)],
)
def test_what_is_not_ours_is_not_renewed(now_on_record: Lease | None) -> None:
    with pytest.raises(LeaseLost) as lost:
        rules.renew(now_on_record, make(), now_ns=101 * SECOND)
    assert lost.value.reason == "superseded"


def test_a_release_keeps_the_epoch() -> None:
    released = rules.release(make())
    assert (released.deadline_ns, released.epoch) == (0, 7)


def test_a_record_is_read_as_it_was_written() -> None:
    lease = make(meta={"endpoint": "x", "ключ": "\ud800 \n"})
    assert rules.decode(rules.encode(lease)) == lease


def test_the_first_process_of_a_container_can_own() -> None:
    lease = make(identity=ME.replace(pid=1))
    assert rules.decode(rules.encode(lease)) == lease


def test_the_largest_copy_stays_within_one_sector() -> None:
    most = 2**63 - 1
    identity = Identity(
        pid=2**22, inode=2**64, start=most, boot="f" * 36, namespace=2**32, uid=2**32
    )
    lease = make(
        identity=identity, epoch=most, deadline_ns=most, ttl_ns=most, meta={"a": "b" * 600}
    )
    copy = rules.encode_copy(lease)
    assert len(copy) == rules.COPY_SIZE == 512
    assert rules.decode(copy) == lease.replace(meta={})


def fields(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, **make().as_dict(), **changes}


JUNK: list[Any] = [
    {},
    [],
    None,
    1,
    {"schema": 1},
    fields(schema=2),
    fields(schema=True),
    fields(schema="1"),
    fields(more=1),
    *(fields(epoch=epoch) for epoch in (0, -1, True, None, "7", 7.0, 2**63)),
    *(fields(deadline_ns=value) for value in (-1, None, True, 1.5, 2**64)),
    fields(ttl_ns=0),
    fields(instance_id=None),
    fields(acquired_at=5),
    fields(meta=None),
    fields(meta=[]),
    fields(meta={"a": 1}),
    fields(identity=None),
    fields(identity={**ME.as_dict(), "pid": 0}),
    fields(identity={**ME.as_dict(), "pid": True}),
    fields(identity={**ME.as_dict(), "pid": 1, "uid": None}),
    fields(identity={**ME.as_dict(), "pid": -1}),
]


@pytest.mark.parametrize("value", JUNK)
def test_what_is_no_record_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        rules.decode(codec.dumps(value).encode())


@given(st.binary(max_size=64))
def test_no_bytes_do_more_than_be_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        rules.decode(content)


@given(st.integers(min_value=0, max_value=len(rules.encode(make())) - 2))
def test_a_torn_record_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        rules.decode(rules.encode(make())[:length])
