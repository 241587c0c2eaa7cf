"""The rules of a lease, without a clock and without files: both come in as arguments.

A lease is free once it is proved that its holder cannot believe in it any more: released, of
another boot, its process dead, or its deadline past. Its holder stops believing a fifth of the
ttl before the deadline. The epoch grows with every acquisition and with nothing else.
"""

from __future__ import annotations

from foundation import codec
from foundation.errors import LeaseLost
from foundation.process import GONE, Identity
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

SCHEMA = 1
RECORD_LIMIT = 8192
COPY_SIZE = 512
"""The guard's copy is overwritten in place: it stays within one sector of a disk."""

_BELIEF_ENDS_BEFORE_DEADLINE = 5  # a fifth of the ttl
LARGEST = 2**63 - 1

HELD = "held"
IMPOSSIBLE = "impossible"
NEVER_HELD = "never held"
RELEASED = "released"
OTHER_BOOT = "other boot"
DEAD = "dead"
EXPIRED = "expired"

FREE = frozenset({NEVER_HELD, RELEASED, OTHER_BOOT, DEAD, EXPIRED})


class Lease(Record):
    """One acquisition, as it is recorded. Times are nanoseconds of CLOCK_BOOTTIME."""

    epoch: int
    instance_id: str
    identity: Identity
    deadline_ns: int
    """0: released."""
    ttl_ns: int
    meta: Mapping[str, str]
    acquired_at: str
    """UTC, for people."""

    @property
    def belief_ends_ns(self) -> int:
        """When its holder stops believing in it, unless it is renewed."""
        return self.deadline_ns - self.ttl_ns // _BELIEF_ENDS_BEFORE_DEADLINE


def judge(lease: Lease | None, *, now_ns: int, boot: str, liveness: str) -> str:
    """Return whether *lease* is held, or why it is not: one of the words above.

    *liveness* is what is known of the process that it names: ``gone``, ``alive``, ``unknown``.
    """
    if lease is None:
        return NEVER_HELD
    if lease.deadline_ns == 0:
        return RELEASED
    if lease.identity.boot != boot:
        return OTHER_BOOT
    if liveness == GONE:
        return DEAD
    if lease.deadline_ns <= now_ns:
        return EXPIRED
    if lease.deadline_ns > now_ns + lease.ttl_ns:
        return IMPOSSIBLE
    return HELD


def claims(
    leases: Iterable[Lease | None], verdict: Callable[[Lease], str]
) -> tuple[Lease | None, int]:
    """Return the newest of *leases* that is held, and the highest epoch of all.

    *leases* are the places in which an acquisition is recorded: one of them may be gone, or be
    of yesterday. So a lease is free only if it is in every place.
    """
    found = [lease for lease in leases if lease is not None]
    held = [lease for lease in found if verdict(lease) not in FREE]
    highest_epoch = max((lease.epoch for lease in found), default=0)
    return max(held, key=lambda lease: lease.epoch, default=None), highest_epoch


def acquire(
    *,
    highest_epoch: int,
    instance_id: str,
    identity: Identity,
    now_ns: int,
    ttl_ns: int,
    meta: Mapping[str, str],
    acquired_at: str,
) -> Lease:
    """Return the lease of a new holder, above the *highest_epoch* there was."""
    return Lease(
        epoch=highest_epoch + 1,
        instance_id=instance_id,
        identity=identity,
        deadline_ns=now_ns + ttl_ns,
        ttl_ns=ttl_ns,
        meta=meta,
        acquired_at=acquired_at,
    )


def is_same(stored: Lease | None, mine: Lease) -> bool:
    """Tell whether *stored* is of the same acquisition as *mine*."""
    return stored is not None and (stored.epoch, stored.instance_id) == (
        mine.epoch,
        mine.instance_id,
    )


def renew(stored: Lease | None, mine: Lease, *, now_ns: int) -> Lease:
    """Return *mine* with a new deadline, if it is the one that is *stored*.

    Raises:
        LeaseLost: somebody else acquired it, or the holder has ceased to believe in it.
    """
    check_mine(stored, mine, now_ns=now_ns)
    return restarted(mine, now_ns=now_ns)


def restarted(mine: Lease, *, now_ns: int) -> Lease:
    """Return *mine* with all of its ttl from now."""
    return mine.replace(deadline_ns=now_ns + mine.ttl_ns)


def check_mine(stored: Lease | None, mine: Lease, *, now_ns: int) -> None:
    """Make sure that *mine* is what is *stored* and that its holder still believes in it.

    Raises:
        LeaseLost: it is not (``superseded``), or no more (``expired``).
    """
    if stored is None or stored.deadline_ns == 0 or not is_same(stored, mine):
        raise LeaseLost(f"epoch {mine.epoch} {_fate(stored, mine)}", reason="superseded")
    if now_ns >= mine.belief_ends_ns:
        raise LeaseLost(
            f"epoch {mine.epoch} was not renewed in time: another may have it now",
            reason="expired",
        )


def _fate(stored: Lease | None, mine: Lease) -> str:
    if stored is None:
        return "is not on record any more: both files were removed"
    if is_same(stored, mine):
        return "was released"
    return f"was superseded by epoch {stored.epoch}, of pid {stored.identity.pid}"


def release(mine: Lease) -> Lease:
    """Return *mine* as nobody's: it keeps its epoch."""
    return mine.replace(deadline_ns=0)


def encode(lease: Lease) -> bytes:
    """Return the record of *lease*: a JSON object and a newline."""
    return f"{codec.dumps({'schema': SCHEMA, **lease.as_dict()})}\n".encode()


def encode_copy(lease: Lease, record: bytes | None = None) -> bytes:
    """Return what the guard file keeps of *lease*: all but the metadata, at a fixed size.

    *record*: what :func:`encode` makes of it, if that is known.
    """
    if lease.meta:
        record = encode(lease.replace(meta={}))
    return (record or encode(lease)).rstrip().ljust(COPY_SIZE - 1) + b"\n"


_FIELDS = frozenset(Lease.field_names())


def decode(content: bytes) -> Lease:
    """Return the lease that :func:`encode` made *content* of.

    Raises:
        ValueError: it is anything else; it says what.
    """
    fields = codec.loads_object(content)
    schema = fields.pop("schema", None)
    if schema != SCHEMA or type(schema) is not int:
        raise ValueError(f"its schema is {schema!r}, not {SCHEMA}")
    if fields.keys() != _FIELDS:
        raise ValueError("its fields are not those of a lease")
    identity = Identity.from_json(fields["identity"], init=True)  # nobody signals whom it names
    if identity is None:
        raise ValueError("it names no process")
    for name, least in (("epoch", 1), ("deadline_ns", 0), ("ttl_ns", 1)):
        if type(fields[name]) is not int or not least <= fields[name] <= LARGEST:
            raise ValueError(f"its {name} is {fields[name]!r:.40}")
    if not all(isinstance(fields[name], str) for name in ("instance_id", "acquired_at")):
        raise ValueError("its instance_id or acquired_at is not text")
    if not is_meta(fields["meta"]):
        raise ValueError("its meta does not map text to text")
    fields["identity"] = identity
    return Lease(**fields)


def is_meta(value: Any) -> bool:
    """Tell whether *value* can be a lease's metadata."""
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(text, str) for key, text in value.items()
    )
