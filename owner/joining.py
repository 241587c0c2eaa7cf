"""Becoming the owner of a path, or learning who is."""

from __future__ import annotations

import os

from foundation import filesystem
from foundation.clock import utc_now
from foundation.errors import Corrupt, Refused, Unavailable
from foundation.process import Identity
from owner import ENDPOINT_META_KEY, store
from owner import lease as rules
from owner.boottime import NS_PER_S, Boottime
from owner.guard import WAIT_S
from owner.holder import Holder
from owner.ownership import Owner
from owner.store import Store
from owner.tenure import Tenure
from owner.workers import hire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from owner.lease import Lease
    from owner.workers import Worker

TTL_MIN_S, TTL_MAX_S = 0.1, 7 * 86400.0
_RENEWALS = 3
"""By default a lease is renewed so many times in its ttl."""
_LARGEST_INTERVAL = 0.5
"""Of the ttl: belief ends at 0.8, and a renewal that failed must have time for another."""


def join(
    path: str | os.PathLike[str],
    *,
    ttl_s: float,
    renew_interval_s: float | None = None,
    endpoint: str = "",
    meta: Mapping[str, str] | None = None,
) -> Owner:
    """Become the owner of *path*, or a follower of who is.

    The lease is recorded at *path*, guarded by ``<path>.lock``; their directory must exist, and
    both files stay for ever, for they hold the epoch. The owner renews it in the background, by
    default every third of *ttl_s*. *endpoint* and *meta* (at most 8 KiB with the rest of the
    record) are for followers. A second join by the same process is a follower, too.

    Raises:
        ValueError, TypeError: an argument is out of bounds, or no such thing; it says which.
        Refused: no lease can be kept there (a network file system, no right to write).
        Corrupt: what is there is no lease: nobody becomes owner, and it says what to do.
        Unavailable: the files cannot be read or written now, or somebody stays in the guard.
    """
    path = store.checked_path(path)
    ttl_ns = _checked_ttl(ttl_s)
    interval_ns = _checked_interval(renew_interval_s, ttl_ns)
    words = _checked_meta(endpoint, meta)
    clock = Boottime.here()
    held = _seen(path, clock)
    if held is not None:
        return Owner(path, Holder.of(held), None)
    _refuse_network(path)
    identity = _own_identity(path)
    draft = rules.acquire(
        highest_epoch=0,
        instance_id=os.urandom(16).hex(),
        identity=identity,
        now_ns=clock.now_ns(),
        ttl_ns=ttl_ns,
        meta=words,
        acquired_at=utc_now(),
    )
    # Without words it is as short as the guard's copy.
    if words and len(rules.encode(draft.replace(epoch=rules.LARGEST))) > rules.RECORD_LIMIT:
        raise ValueError(f"endpoint and meta make a record of over {rules.RECORD_LIMIT} bytes")
    workers = _hired(path, clock)
    try:
        lease = _acquire(path, draft, clock)
    except BaseException:
        _rest(workers)
        raise
    if lease.instance_id != draft.instance_id:
        _rest(workers)
        return Owner(path, Holder.of(lease), None)
    return _begin(path, Tenure(path, lease, clock, workers, interval_ns))


def _seen(path: str, clock: Boottime) -> Lease | None:
    """Return the lease if it is held: to learn that takes no lock, whoever is in the guard."""
    try:
        lease = store.read_record(path)
    except Corrupt:
        return None  # the guard's copy may know better
    return lease if store.standing(lease, clock.now_ns()) == rules.HELD else None


def _acquire(path: str, draft: Lease, clock: Boottime) -> Lease:
    """Record *draft* with an epoch of its own, if the lease is free; return who has it now.

    Raises:
        Corrupt: the record is none, and somebody may still believe in what it said.
    """
    with Store(path, "acquire", timeout_s=WAIT_S) as files:
        copy = files.copy()
        record = store.read_record_beside(copy, path)
        now_ns = clock.now_ns()
        held, highest_epoch = rules.claims(
            (record, copy), lambda lease: store.standing(lease, now_ns)
        )
        if held is not None:
            return held
        epoch, now_ns = highest_epoch + 1, clock.now_ns()
        lease = draft.replace(epoch=epoch, deadline_ns=now_ns + draft.ttl_ns)
        try:
            files.reserve(lease, is_named=copy is not None and rules.is_same(record, copy))
            # The disk may have taken its time over that; nobody was let in meanwhile.
            lease = rules.restarted(lease, now_ns=clock.now_ns())
            files.write(lease)
        except BaseException:
            files.withdraw(lease)
            raise
        return lease


def _hired(path: str, clock: Boottime) -> tuple[Worker, Worker]:
    """Return the threads that are to watch and to renew: who cannot have them acquires nothing."""
    workers: list[Worker] = []
    try:
        while len(workers) < 2:  # noqa: PLR2004 - one to watch, one to renew
            workers.append(hire(clock))
    except OSError as error:
        _rest(workers)
        raise store.explain(error, path) from None
    except RuntimeError as error:
        _rest(workers)
        raise _no_threads(path, error) from None
    except BaseException:
        _rest(workers)
        raise
    return workers[0], workers[1]


def _rest(workers: Iterable[Worker]) -> None:
    for worker in workers:
        worker.rest()


def _begin(path: str, tenure: Tenure) -> Owner:
    try:
        tenure.run()
        return Owner(path, Holder.of(tenure.belief.lease), tenure)
    except BaseException as error:
        tenure.release()
        if isinstance(error, RuntimeError):
            raise _no_threads(path, error) from None
        raise


def _no_threads(path: str, error: RuntimeError) -> Unavailable:
    return Unavailable(f"{path} cannot be renewed: {error}", reason="no-threads")


def _own_identity(path: str) -> Identity:
    try:
        identity = Identity.own()
    except OSError as error:
        raise store.explain(error, path) from None
    if identity is None:
        raise Unavailable("/proc does not show this process to itself", reason="no-proc")
    return identity


def _refuse_network(path: str) -> None:
    directory = os.path.dirname(path)
    try:
        kind = filesystem.network_kind_of(directory)
    except OSError as error:
        raise store.explain(error, directory) from None
    if kind:
        raise Refused(
            f"{directory} is on a network file system ({kind}), where locks mean something else: "
            "keep the lease on a local disk",
            reason="network-filesystem",
        )


def _checked_ttl(ttl_s: float) -> int:
    if not isinstance(ttl_s, int | float):
        raise TypeError(f"ttl_s is {ttl_s!r}, no number of seconds")
    if not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
        raise ValueError(f"ttl_s is {ttl_s!r}, not between {TTL_MIN_S:g} and {TTL_MAX_S:g}")
    return int(ttl_s * NS_PER_S)


def _checked_interval(renew_interval_s: float | None, ttl_ns: int) -> int:
    if renew_interval_s is None:
        return ttl_ns // _RENEWALS
    if not isinstance(renew_interval_s, int | float):
        raise TypeError(f"renew_interval_s is {renew_interval_s!r}, no number of seconds")
    most_s = ttl_ns / NS_PER_S * _LARGEST_INTERVAL
    if not 0 < renew_interval_s <= most_s:
        raise ValueError(
            f"renew_interval_s is {renew_interval_s!r}, not above 0 and at most half of the ttl "
            f"({most_s:g})"
        )
    return max(1, int(renew_interval_s * NS_PER_S))


def _checked_meta(endpoint: str, meta: Mapping[str, str] | None) -> dict[str, str]:
    words = dict(meta or {})
    if not rules.is_meta(words):
        raise ValueError(f"meta {words!r:.200} does not map str to str")
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint is {type(endpoint).__name__}, not str")
    if endpoint:
        if words.get(ENDPOINT_META_KEY, endpoint) != endpoint:
            raise ValueError(f"meta names another endpoint than {endpoint!r}")
        words[ENDPOINT_META_KEY] = endpoint
    return words
