"""Which slots and VM clusters may log in to the bus, and their epochs: creds/slots.json.

``{"schema":1,"slots":{NAME:{"epoch":N,"public":"U…","joined":TIME}},"clusters":{NAME:…}}``, for a
cluster with ``"guest":"U…"`` as well. Who left has the public key "" and keeps the entry (a slot
for ever), since an epoch must never be given to two. Trunk alone writes the file. The supervisor
reads it when it starts the nats-server, so this module is lean. In memory they stand by login.
"""

from __future__ import annotations

import os

from foundation import codec
from foundation.atomic import read_bounded, remove, write_file
from foundation.record import Record
from hub import logins
from hub.nats import slots_path
from hub.nkey import is_public_key
from hub.slotname import is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from foundation.workspace import Workspace

SCHEMA = 1
_LIMIT = 16 * 2**20
"""Bytes: an entry has about 140 of them."""
LEFT_KEPT = 256
"""Clusters that have left and whose epochs are remembered. Slots all are."""
_SECTIONS = {"slot": "slots", "cluster": "clusters"}


class Entry(Record):
    """What is known of one slot or cluster."""

    epoch: int
    """The highest that was registered: what comes with a lower one is of a process of yesterday."""
    public: str
    """The key of its leaf or holder; "": that left, or nobody knows the key."""
    joined: str
    """When that epoch was registered, RFC 3339; "": the file was damaged, the lease tells."""
    guest: str = ""
    """The key of a cluster's guests, "" if there is none."""


class Loaded(Record):
    """The registry as it could be read."""

    logins: dict[str, Entry]
    damage: str
    """What is wrong with the file, "" if nothing is."""


def read(workspace: Workspace) -> Loaded:
    """Return what the file says: of a damaged one what is whole, of a missing one nothing."""
    place = slots_path(workspace)
    try:
        content = codec.loads_object(read_bounded(place, _LIMIT))
        slots, clusters = content.get("slots"), content.get("clusters", {})
        if content.get("schema") != SCHEMA or not isinstance(slots, dict):
            raise ValueError(f"it is no registry of schema {SCHEMA}")
    except FileNotFoundError:
        return Loaded(logins={}, damage="")
    except (OSError, ValueError) as error:
        return Loaded(logins={}, damage=f"{place}: {error}")
    listed = dict(slots)
    if isinstance(clusters, dict):
        listed |= {logins.of_cluster(name): value for name, value in clusters.items()}
    used: set[str] = set()
    whole: dict[str, Entry] = {}
    for name, value in listed.items():
        entry = _entry(value) if logins.is_login(name) else None
        own = [] if entry is None else [key for key in (entry.public, entry.guest) if key]
        # The server would take neither of two users with one key, nor anything else.
        if entry is not None and len({*own} - used) == len(own):
            used.update(own)
            whole[name] = entry
    wrong = sorted(set(listed) - set(whole))
    damage = f"{place}: no entry of a slot stands at {', '.join(wrong)[:200]}" if wrong else ""
    if not isinstance(clusters, dict):
        damage = f"{place}: its clusters are none"
    return Loaded(logins=whole, damage=damage)


def keys(known: Mapping[str, Entry]) -> dict[str, str]:
    """Return the public keys that may log in, by login; those of guests among them."""
    found = {name: entry.public for name, entry in known.items() if entry.public}
    for name, entry in known.items():
        if entry.guest and (cluster := logins.cluster_of(name)):
            found[logins.of_guests(cluster)] = entry.guest
    return found


def without_oldest(known: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return *known* without the clusters that left longest ago: there is no end of their names.

    Their epochs are times (:mod:`orchestrator.epochs`), so none is given to two all the same.
    """
    left = [
        name for name, one in known.items() if logins.kind_of(name) == "cluster" and not one.public
    ]
    left.sort(key=lambda name: known[name].epoch)
    old = set(left[:-LEFT_KEPT])
    return {name: entry for name, entry in known.items() if name not in old}


def load(workspace: Workspace) -> Loaded:
    """Return what :func:`read` does, what it lost replaced by what the leases tell.

    What replaces it has an epoch and no key: its leaf registers again. Of a damaged file a copy
    is kept, ``slots.json.damaged``.

    Raises:
        OSError: the leases cannot be listed, or the copy not made.
    """
    loaded = read(workspace)
    place = slots_path(workspace)
    for name in os.listdir(workspace.creds):
        if name.startswith(os.path.basename(place)) and name.endswith(".tmp"):
            remove(f"{workspace.creds}/{name}")  # of a writer that was killed
    if not loaded.damage and os.path.lexists(place):
        return loaded
    known = dict(loaded.logins)
    for file in os.listdir(workspace.leases):
        name = file.removeprefix("slot-").removesuffix(".lock")
        if file.startswith("slot-") and is_name(name):
            epoch = leased_epoch(workspace, name)
            if epoch > (known[name].epoch if name in known else 0):
                known[name] = Entry(epoch=epoch, public="", joined="")
    if loaded.damage and os.path.isfile(place) and not os.path.islink(place):
        os.replace(place, f"{place}.damaged")
    return loaded.replace(logins=known)


def leased_epoch(workspace: Workspace, login: str) -> int:
    """Return the newest epoch that the lease of *login* tells of, 0 if it tells nothing.

    A cluster has none: the locks of its members, which the kernel frees, keep out a second holder.
    """
    if logins.cluster_of(login):
        return 0
    from foundation.errors import HubError  # noqa: PLC0415 - the supervisor never gets here
    from owner import store  # noqa: PLC0415

    place = f"{workspace.leases}/slot-{login}"
    epochs = [0]
    for reading in (store.read_copy, store.read_record):
        try:
            lease = reading(place)
        except HubError:  # damaged, or being written: the other one tells
            continue
        if lease is not None:
            epochs.append(lease.epoch)
    return max(epochs)


def write(workspace: Workspace, known: Mapping[str, Entry]) -> None:
    """Replace the registry; on return it survives a power cut.

    Raises:
        OSError: it cannot be written.
    """
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS.values()}
    for login, entry in known.items():
        fields = entry.as_dict()
        if not entry.guest:
            del fields["guest"]
        name = logins.cluster_of(login) or login
        sections[_SECTIONS[logins.kind_of(login)]][name] = fields
    content = codec.dumps({"schema": SCHEMA, **sections})
    write_file(slots_path(workspace), content.encode() + b"\n")


def _entry(value: Any) -> Entry | None:
    fields = value if isinstance(value, dict) else {}
    epoch, public, joined = fields.get("epoch"), fields.get("public"), fields.get("joined")
    guest = fields.get("guest", "")
    if type(epoch) is not int or epoch < 1:
        return None
    if not isinstance(public, str) or not isinstance(joined, str) or not isinstance(guest, str):
        return None
    if not all(is_public_key(key) for key in (public, guest) if key):
        return None
    return Entry(epoch=epoch, public=public, joined=joined, guest=guest)
