"""What a slot asks trunk to land, and what trunk answers: the wire of ``trunk.request.commit``.

A request is one line of JSON and then the contents that travel with it, end to end::

    {"v":1, "id":ID, "slot":NAME, "epoch":N, "base":HASH, "message":TEXT,
     "changes":[[PATH, KIND, HASH, BASE_KIND, BASE_HASH], …],
     "contents":[[HASH, SIZE], …], "spooled":[HASH, …]}

PATH as :func:`slotgc.treepath.to_json` writes it. KIND is ``file``, ``exec`` or ``link``, "" for a
file that is not there; HASH is Fossil's SHA3-256 name of a content (of a link: its target). What
is neither among the contents nor spooled (``.orchestrator/spool/HASH``) must be on trunk already.

An answer is one JSON object, ``{"v":1, …}`` with one of ``landed``, ``conflicts`` and ``error``
(:func:`foundation.errors.to_wire`). Of conflicts there may be more than fit: ``left_out`` is how
many are not told.

A request or an answer that is too long for a message is a *parcel*: a file in the spool, named by
its SHA3-256 (:mod:`hub.spool`), of which the message says name and size, and whose request it is::

    {"v":1, "parcel":[NAME, SIZE], "id":ID, "slot":NAME, "epoch":N}
    {"v":1, "parcel":[NAME, SIZE]}
"""

from __future__ import annotations

from foundation import codec
from foundation.errors import HubError, from_wire, to_wire
from foundation.record import Record
from slotgc import artifact, treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
SUBJECT = "trunk.request.commit"
"""Followed by the name of whoever asks: ``trunk.request.commit.auth``."""
STARTED = "trunk.started"
"""Published, with nothing in it, by a trunk that begins to serve: ask again at once."""

MESSAGE_BYTES = (1 << 20) - 4096
"""What is longer goes by the spool. The bus carries 1 MiB, headers included."""
PARCEL_BYTES = 64 << 20
"""The largest request or answer that goes by the spool: some 300,000 paths."""
INLINE_BYTES = 512 * 1024
"""The most contents that travel in a request; what is more is spooled."""
LARGEST_BYTES = 100 * 2**20
"""The largest content that trunk takes: Fossil holds three copies of one while it stores it."""

TOLD_BYTES = 512 * 1024
"""Of conflicts: who has more of them has to look at the whole."""

KINDS = frozenset(("", "file", "exec", "link"))
_PARCEL = b'{"v":%d,"parcel":' % VERSION
_ID_DIGITS = 32
_LONGEST_MESSAGE = 65_536


class Change(Record):
    """What a slot made of one path."""

    path: bytes
    kind: str
    """``file``, ``exec``, ``link``; "": deleted."""
    hash: str
    """Of its content now; "" if deleted."""
    base_kind: str
    """What the slot had started from; "": there was no such file."""
    base_hash: str


class Proposal(Record):
    """A commit that a slot asks for."""

    id: str
    """32 hex digits, which name this commit for ever: asked for twice, it lands once."""
    slot: str
    epoch: int
    base: str
    """The check-in of the slot's worktree, for people: what counts is each change's base."""
    message: str
    changes: tuple[Change, ...]
    contents: dict[str, bytes]
    """By hash; those that travel with the request."""
    spooled: tuple[str, ...] = ()


class Parcel(Record):
    """What a message says of a request in the spool."""

    name: str
    size: int
    id: str
    slot: str
    epoch: int


class Landed(Record):
    """A commit that is on trunk, on disk."""

    checkin: str
    parent: str
    time: str
    """ISO 8601, UTC, milliseconds: the D card."""
    slot: str
    message: str
    merged: tuple[tuple[bytes, str, str], ...] = ()
    """Path, kind and hash of each file that landed as something else than was asked for, because
    trunk had moved on and both went together."""
    new: bool = True
    """False: trunk had all of it already, and no check-in was made."""


class Conflict(Record):
    """Why one path of a commit cannot land."""

    path: bytes
    reason: str
    """In words: ``both changed the same lines``, ``deleted there, changed here``, …"""
    base_hash: str
    mine_hash: str
    theirs_hash: str
    """Contents: the slot's base, the slot's, trunk's; "" where there is no file."""
    theirs_checkin: str
    theirs_slot: str
    """Who made it trunk's."""


class Conflicted(HubError):
    """Trunk refuses a commit because others have changed the same; ``conflicts`` says where."""

    exit_code = 1

    def __init__(self, conflicts: tuple[Conflict, ...], left_out: int = 0) -> None:
        """Say where; *left_out* more are not among *conflicts*."""
        shown = "; ".join(
            f"{treepath.show(one.path)}: {one.reason} ({one.theirs_slot or 'trunk'}, "
            f"{one.theirs_checkin[:10]})"
            for one in conflicts[:5]
        )
        others = max(0, len(conflicts) - 5) + left_out
        more = f" and {others} more" if others else ""
        super().__init__(
            f"{shown}{more}. Nothing was committed or touched: `bones swarm update --markers` "
            "brings trunk's version in, with markers where both changed",
            reason="conflict",
        )
        self.conflicts = conflicts
        self.left_out = left_out


def encode(proposal: Proposal) -> bytes:
    """Return *proposal* as a request."""
    head = {
        "v": VERSION,
        "id": proposal.id,
        "slot": proposal.slot,
        "epoch": proposal.epoch,
        "base": proposal.base,
        "message": proposal.message,
        "changes": [
            [treepath.to_json(one.path), one.kind, one.hash, one.base_kind, one.base_hash]
            for one in proposal.changes
        ],
        "contents": [[name, len(content)] for name, content in proposal.contents.items()],
        "spooled": list(proposal.spooled),
    }
    return b"".join([codec.dumps(head).encode(), b"\n", *proposal.contents.values()])


def decode(request: bytes) -> Proposal:
    """Return the proposal that *request* is. Contents are not compared with their names.

    Raises:
        ValueError: it is none, or of another version.
    """
    line, newline, rest = request.partition(b"\n")
    head = codec.loads_object(line)
    _require(bool(newline) and head.get("v") == VERSION, f"version {head.get('v')!r:.20}")
    text: dict[str, Any] = {name: head.get(name) for name in ("id", "slot", "base", "message")}
    _require(all(isinstance(value, str) for value in text.values()), "a text is none")
    _require(is_id(text["id"]), "id is none")
    _require(len(text["message"]) <= _LONGEST_MESSAGE, "the message is too long")
    epoch: Any = head.get("epoch")
    _require(type(epoch) is int and epoch >= 0, "epoch is no number")
    for name in ("changes", "contents", "spooled"):
        _require(isinstance(head.get(name), list), f"{name} is no list")
    changes = tuple(_change(row) for row in head["changes"])
    _require(len({one.path for one in changes}) == len(changes), "a path stands twice")
    contents: dict[str, bytes] = {}
    at = 0
    for row in head["contents"]:
        _require(isinstance(row, list) and len(row) == 2, "a content is no pair")  # noqa: PLR2004
        name, size = row
        _require(artifact.is_name(name) and type(size) is int and size >= 0, "a content is none")
        contents[name] = rest[at : at + size]
        at += size
    _require(at == len(rest), "the contents are not as long as they say")
    _require(all(map(artifact.is_name, head["spooled"])), "spooled holds what is no hash")
    return Proposal(
        **text, epoch=epoch, changes=changes, contents=contents, spooled=tuple(head["spooled"])
    )


def encode_parcel(proposal: Proposal, name: str, size: int) -> bytes:
    """Return the request that stands for that of *proposal*, *size* bytes spooled as *name*."""
    body = {
        "v": VERSION,
        "parcel": [name, size],
        "id": proposal.id,
        "slot": proposal.slot,
        "epoch": proposal.epoch,
    }
    return codec.dumps(body).encode()


def request_parcel(request: bytes) -> Parcel | None:
    """Return what *request* says of another in the spool, None if it is one itself.

    Raises:
        ValueError: it says nothing sound.
    """
    if not request.startswith(_PARCEL):
        return None
    body = codec.loads_object(request)
    name, size = _parcel(body)
    slot: Any = body.get("slot")
    epoch: Any = body.get("epoch")
    _require(is_id(body.get("id")), "id is none")
    _require(isinstance(slot, str) and type(epoch) is int and epoch >= 0, "a parcel is nobody's")
    return Parcel(name=name, size=size, id=body["id"], slot=slot, epoch=epoch)


def encode_answer_parcel(name: str, size: int) -> bytes:
    """Return the answer that stands for one of *size* bytes spooled as *name*."""
    return codec.dumps({"v": VERSION, "parcel": [name, size]}).encode()


def answer_parcel(answer: bytes) -> tuple[str, int] | None:
    """Return name and size of the spooled answer that *answer* stands for, None if it is one.

    Raises:
        ValueError: it says nothing sound.
    """
    return _parcel(codec.loads_object(answer)) if answer.startswith(_PARCEL) else None


def is_id(text: object) -> bool:
    """Tell whether *text* names a commit: 32 lower-case hex digits."""
    return (
        isinstance(text, str)
        and len(text) == _ID_DIGITS
        and frozenset("0123456789abcdef").issuperset(text)
    )


def new_id() -> str:
    """Return a new name for a commit."""
    import os  # noqa: PLC0415

    return os.urandom(_ID_DIGITS // 2).hex()


def encode_answer(answer: Landed | tuple[Conflict, ...] | HubError) -> bytes:
    """Return *answer* as it travels."""
    body: dict[str, Any] = {"v": VERSION}
    if isinstance(answer, Landed):
        merged = [[treepath.to_json(path), kind, name] for path, kind, name in answer.merged]
        body["landed"] = {**answer.as_dict(), "merged": merged}
    elif isinstance(answer, HubError):
        body["error"] = to_wire(answer)
    else:
        room, told = TOLD_BYTES, []
        for one in answer:
            value = conflict_json(one)
            room -= len(codec.dumps(value)) + 1
            if room < 0:
                break
            told.append(value)
        body |= {"conflicts": told, "left_out": len(answer) - len(told)}
    return codec.dumps(body).encode()


def decode_answer(answer: bytes) -> Landed:
    """Return what has landed.

    Raises:
        Conflicted: nothing has, others changed the same.
        HubError: nothing has; the error that trunk answered.
        ValueError: this is no answer.
    """
    body = codec.loads_object(answer)
    _require(body.get("v") == VERSION, f"version {body.get('v')!r:.20}")
    if "error" in body:
        raise from_wire(body["error"])
    if "conflicts" in body:
        told = tuple(conflict_from_json(one) for one in body["conflicts"])
        raise Conflicted(told, int(body.get("left_out", 0)))
    fields = dict(body["landed"])
    merged = tuple((treepath.from_json(row[0]), row[1], row[2]) for row in fields.pop("merged"))
    return Landed(**fields, merged=merged)


def conflict_json(conflict: Conflict) -> dict[str, Any]:
    """Return *conflict* for JSON."""
    return {**conflict.as_dict(), "path": treepath.to_json(conflict.path)}


def conflict_from_json(value: Any) -> Conflict:
    """Return what :func:`conflict_json` wrote."""
    fields = dict(value)
    return Conflict(**{**fields, "path": treepath.from_json(fields["path"])})


def _parcel(body: dict[str, Any]) -> tuple[str, int]:
    parcel: Any = body.get("parcel")
    _require(isinstance(parcel, list) and len(parcel) == 2, "a parcel is no pair")  # noqa: PLR2004
    name, size = parcel
    _require(artifact.is_name(name) and type(size) is int, "a parcel is none")
    _require(0 < size <= PARCEL_BYTES, f"a parcel of {size} bytes is too large")
    return name, size


def _change(row: Any) -> Change:
    _require(isinstance(row, list) and len(row) == 5, "a change is no row")  # noqa: PLR2004
    path = treepath.from_json(row[0])
    kind, name, base_kind, base_hash = row[1:]
    for one, content in ((kind, name), (base_kind, base_hash)):
        _require(isinstance(one, str) and one in KINDS, "a kind is none")
        _require(artifact.is_name(content) if one else content == "", "a hash is none")
    _require(bool(kind or base_kind), "a change changes nothing")
    return Change(path=path, kind=kind, hash=name, base_kind=base_kind, base_hash=base_hash)


def _require(sound: bool, fault: str) -> None:
    if not sound:
        raise ValueError(fault)
