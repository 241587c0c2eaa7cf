"""Which slots may log in to the bus, and the epochs that they have reached: creds/slots.json.

``{"schema":1,"slots":{NAME:{"epoch":N,"public":"U…","joined":TIME}}}``. A slot that left has the
public key "" and keeps its entry for ever, since an epoch must never be given to two. Trunk alone
writes the file. The supervisor reads it when it starts the nats-server, so this module is lean.
"""

from __future__ import annotations

import os

from foundation import codec
from foundation.atomic import read_bounded, remove, write_file
from foundation.record import Record
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


class Entry(Record):
    """What is known of one slot."""

    epoch: int
    """The highest that was registered: what comes with a lower one is of a leaf of yesterday."""
    public: str
    """The key of its leaf; "": it left, or nobody knows the key."""
    joined: str
    """When that epoch was registered, RFC 3339; "": the file was damaged, the lease tells."""


class Loaded(Record):
    """The registry as it could be read."""

    slots: dict[str, Entry]
    damage: str
    """What is wrong with the file, "" if nothing is."""


def read(workspace: Workspace) -> Loaded:
    """Return what the file says: of a damaged one what is whole, of a missing one nothing."""
    place = slots_path(workspace)
    try:
        content = codec.loads_object(read_bounded(place, _LIMIT))
        listed = content.get("slots")
        if content.get("schema") != SCHEMA or not isinstance(listed, dict):
            raise ValueError(f"it is no registry of schema {SCHEMA}")
    except FileNotFoundError:
        return Loaded(slots={}, damage="")
    except (OSError, ValueError) as error:
        return Loaded(slots={}, damage=f"{place}: {error}")
    slots = {name: _entry(value) for name, value in listed.items() if is_name(name)}
    used: set[str] = set()
    whole: dict[str, Entry] = {}
    for name, entry in slots.items():
        # The server would take neither of two users with one key, nor anything else.
        if entry is not None and not (entry.public and entry.public in used):
            used.add(entry.public)
            whole[name] = entry
    wrong = sorted(set(listed) - set(whole))
    damage = f"{place}: no entry of a slot stands at {', '.join(wrong)[:200]}" if wrong else ""
    return Loaded(slots=whole, damage=damage)


def keys(slots: Mapping[str, Entry]) -> dict[str, str]:
    """Return the public keys that may log in, by slot."""
    return {name: entry.public for name, entry in slots.items() if entry.public}


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
    slots = dict(loaded.slots)
    for file in os.listdir(workspace.leases):
        name = file.removeprefix("slot-").removesuffix(".lock")
        if file.startswith("slot-") and is_name(name):
            epoch = leased_epoch(workspace, name)
            if epoch > (slots[name].epoch if name in slots else 0):
                slots[name] = Entry(epoch=epoch, public="", joined="")
    if loaded.damage and os.path.isfile(place) and not os.path.islink(place):
        os.replace(place, f"{place}.damaged")
    return loaded.replace(slots=slots)


def leased_epoch(workspace: Workspace, slot: str) -> int:
    """Return the newest epoch that the lease of *slot* tells of, 0 if it tells nothing."""
    from foundation.errors import HubError  # noqa: PLC0415 - the supervisor never gets here
    from owner import store  # noqa: PLC0415

    place = f"{workspace.leases}/slot-{slot}"
    epochs = [0]
    for reading in (store.read_copy, store.read_record):
        try:
            lease = reading(place)
        except HubError:  # damaged, or being written: the other one tells
            continue
        if lease is not None:
            epochs.append(lease.epoch)
    return max(epochs)


def write(workspace: Workspace, slots: Mapping[str, Entry]) -> None:
    """Replace the registry; on return it survives a power cut.

    Raises:
        OSError: it cannot be written.
    """
    entries = {name: entry.as_dict() for name, entry in slots.items()}
    content = codec.dumps({"schema": SCHEMA, "slots": entries})
    write_file(slots_path(workspace), content.encode() + b"\n")


def _entry(value: Any) -> Entry | None:
    fields = value if isinstance(value, dict) else {}
    epoch, public, joined = fields.get("epoch"), fields.get("public"), fields.get("joined")
    if type(epoch) is not int or epoch < 1:
        return None
    if not isinstance(public, str) or not isinstance(joined, str):
        return None
    if public and not is_public_key(public):
        return None
    return Entry(epoch=epoch, public=public, joined=joined)
