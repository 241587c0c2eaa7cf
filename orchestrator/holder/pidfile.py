"""holder.pid: which process has a member. The lock decides; the pidfile names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foundation import codec
from foundation.atomic import remove, write_file
from foundation.process import Identity

if TYPE_CHECKING:
    from orchestrator.store import Store


def write_pidfile(store: Store, name: str) -> None:
    """Write this process's identity for member *name*, whose lock it has.

    Raises:
        OSError: it cannot be written.
    """
    identity = Identity.own()
    assert identity is not None, "/proc does not show this process"
    text = codec.dumps(identity.as_dict())
    write_file(store.place(name).pidfile, text.encode() + b"\n", durable=False)


def remove_pidfile(store: Store, name: str) -> None:
    """Remove the pidfile of member *name*, whose lock this process has; none is no error."""
    remove(store.place(name).pidfile)
