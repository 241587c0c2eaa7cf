"""``rescue.json``: what a rescue holds, in its own words.

One JSON object: ``{"schema": 1, "slot", "made_at", "checkin", "state", "reason", "apart": [TEXT,
…], "changes": [[PATH, CHANGE, KIND, MODE, SIZE, HASH], …]}``, the last as in
:class:`slotgc.work.Change`, the paths as in ``base.json``.
"""

from __future__ import annotations

import os

from foundation import atomic, codec
from foundation.errors import Corrupt
from foundation.record import Record
from slotgc import artifact, base, treepath, work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slotgc.work import Change

NAME = "rescue.json"
SCHEMA = 1
THINNING, DONE = "thinning", "done"
_LIMIT_BYTES = 256 << 20
_MODES = 0o7777


class Account(Record):
    """What ``rescue.json`` tells."""

    slot: str
    made_at: str
    checkin: str
    state: str
    reason: str
    apart: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    def count(self, *kinds: str) -> int:
        """Return how many of the changes are of *kinds*."""
        return sum(change.change in kinds for change in self.changes)


def read(place: str) -> Account | None:
    """Return what the rescue in the directory *place* tells of itself, None if nothing yet.

    Raises:
        Corrupt: that is damaged, or names a path that leads out of the worktree.
    """
    path = f"{place}/{NAME}"
    try:
        return _parse(codec.loads_object(atomic.read_bounded(path, _LIMIT_BYTES)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Corrupt(
            f"{path} cannot be used: {error}; what was rescued is in {place}/wt, to copy by hand",
            reason="rescue",
        ) from None


def disown(slot: str) -> None:
    """Rename what is called rescue.json in the *slot* directory, which is no rescue yet.

    Whoever put it there would have the last word on what the rescue holds.

    Raises:
        OSError: it cannot be renamed.
    """
    number = 1
    while os.path.lexists(f"{slot}/{NAME}"):
        other = f"{slot}/{NAME}.found-{number}"
        if not os.path.lexists(other):
            os.rename(f"{slot}/{NAME}", other)
        number += 1


def write(place: str, account: Account) -> None:
    """Put *account* into the rescue in the directory *place*; it survives a power cut.

    Raises:
        OSError: it cannot be written.
    """
    changes = [
        [treepath.to_json(c.path), c.change, c.kind, c.mode, c.size, c.hash]
        for c in account.changes
    ]
    value = {"schema": SCHEMA, **account.as_dict(), "changes": changes}
    atomic.write_file(f"{place}/{NAME}", codec.dumps(value).encode() + b"\n")


def _parse(value: dict[str, Any]) -> Account:
    """Return the account that *value* holds.

    Raises:
        ValueError: it is not sound.
    """
    if type(value.get("schema")) is not int or value["schema"] != SCHEMA:
        raise ValueError(f"schema {value.get('schema')!r:.20}, not {SCHEMA}")
    texts = [value.get(name) for name in ("slot", "made_at", "checkin", "state", "reason")]
    apart, rows = value.get("apart"), value.get("changes")
    if not all(isinstance(text, str) for text in texts) or texts[3] not in (THINNING, DONE):
        raise ValueError("a text is none")
    if not (isinstance(apart, list) and all(isinstance(text, str) for text in apart)):
        raise ValueError("apart is no list of texts")
    slot, made_at, checkin, state, reason = map(str, texts)
    changes = tuple(_parse_change(row) for row in _rows(rows))
    if len({change.path for change in changes}) != len(changes):
        raise ValueError("a path stands twice")
    return Account(
        slot=slot,
        made_at=made_at,
        checkin=checkin,
        state=state,
        reason=reason,
        apart=tuple(apart),
        changes=changes,
    )


def _rows(value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    raise ValueError("changes is no list")


def _parse_change(row: Any) -> Change:
    if not isinstance(row, list) or len(row) != len(work.Change.field_names()):
        raise ValueError("a change is none")
    path, change, kind, mode, size, name = row
    if not isinstance(change, str) or change not in work.CHANGES:
        raise ValueError("a change is of no kind")
    if kind not in (("",) if change == work.DELETED else (base.FILE, base.EXEC, base.LINK)):
        raise ValueError("a kind is none")
    if not all(type(number) is int and number >= 0 for number in (mode, size)) or mode > _MODES:
        raise ValueError("a number is none")
    if name != "" and not artifact.is_name(name):
        raise ValueError("a hash is none")
    return work.Change(
        path=treepath.from_json(path), change=change, kind=kind, mode=mode, size=size, hash=name
    )
