"""What a holder was launched with: its arguments, its environment and its descriptors."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.errors import Refused
from foundation.record import Record
from orchestrator import protocol
from orchestrator.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence


class Launch(Record):
    """A launch, as :mod:`orchestrator.spawning` makes one."""

    names: tuple[str, ...]
    store: str
    """The store's directory."""
    parent: int
    """The pid of the client that a bound holder ends with; 0: it is detached."""
    clusters: dict[str, int]
    """By cluster, a descriptor that holds its network."""
    locks: dict[str, int]
    """By member, a descriptor that holds it."""
    listeners: dict[str, int]
    """By member, its socket, which listens."""
    settings: dict[str, Any]


def egress_of(launch: Launch) -> bool:
    """Return whether the network of what *launch* is of reaches the internet: all of it may."""
    store = Store(launch.store)
    return all(store.egress(cluster) for cluster in launch.clusters)


def is_runner(argv: Sequence[str] | None = None) -> bool:
    """Tell whether this process (or one with arguments *argv*, from its program on) is a holder."""
    arguments = sys.argv if argv is None else argv
    return protocol.RUNNER_FLAG in arguments[1:2]


def get_runner_vm_names(argv: Sequence[str] | None = None) -> list[str]:
    """Return the members that this holder was launched for; none if it is no holder."""
    arguments = sys.argv if argv is None else argv
    if not is_runner(arguments):
        return []
    return [name for name in "".join(arguments[2:3]).split(",") if name]


def read_launch() -> Launch:
    """Return how this process was launched; the variables are taken from its environment.

    Raises:
        Refused: it was not launched as a holder.
    """
    text = os.environ.pop(protocol.OPTIONS_VARIABLE, "")
    parent = os.environ.pop(protocol.PARENT_VARIABLE, "0")
    names = get_runner_vm_names()
    try:
        options = codec.loads_object(text)
        protocol.check_version(options, "whoever launched this holder")
        members = options["members"]
        if not names or set(members) != set(names):
            raise ValueError("no members")
        return Launch(
            names=tuple(names),
            store=str(options["store"]),
            parent=int(parent),
            clusters={name: int(fd) for name, fd in options["clusters"].items()},
            locks={name: int(members[name][0]) for name in names},
            listeners={name: int(members[name][1]) for name in names},
            settings=dict(options["settings"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Refused(
            f"this process was not launched as a holder ({error!r}): `bones vm up` launches one",
            reason="not-launched",
        ) from None
