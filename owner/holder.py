"""Who holds a lease, as others see it."""

from __future__ import annotations

from foundation.record import Record
from owner import ENDPOINT_META_KEY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from foundation.process import Identity
    from owner.lease import Lease


class Holder(Record):
    """Who holds a lease. Renewals do not change it."""

    instance_id: str
    """Of one acquisition, never used again."""
    epoch: int
    """The fencing token: a resource refuses what comes with a smaller one than it has seen."""
    identity: Identity
    meta: Mapping[str, str]
    acquired_at: str
    """UTC, for people."""
    ttl_s: float

    @classmethod
    def of(cls, lease: Lease) -> Holder:
        """Return the holder that *lease* names."""
        return cls(
            instance_id=lease.instance_id,
            epoch=lease.epoch,
            identity=lease.identity,
            meta=lease.meta,
            acquired_at=lease.acquired_at,
            ttl_s=lease.ttl_ns / 1e9,
        )

    @property
    def pid(self) -> int:
        """Its process; in another pid namespace the number means somebody else."""
        return self.identity.pid

    @property
    def endpoint(self) -> str:
        """Where it serves, "" if it said nothing."""
        return self.meta.get(ENDPOINT_META_KEY, "")
