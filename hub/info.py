"""What a caller learns of a running hub."""

from __future__ import annotations

from foundation.record import Record


class HubInfo(Record):
    """A running hub, as `hub start` returns it and `hub status` shows it."""

    root: str
    hub_id: str
    epoch: int
    """Grows by one with every start of a hub in this workspace."""
    pid: int
    fossil_pid: int
    nats_pid: int
    fossil_url: str
    nats_url: str
    started_at: str
    """RFC 3339, UTC."""
    already_running: bool = False
    """This call found the hub running and attached to it."""
