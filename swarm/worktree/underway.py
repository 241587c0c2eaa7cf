"""What an update brings, written down before the first file is touched.

One that stops halfway, by a kill or a full disk, leaves files of trunk's in the worktree that the
base does not know. Were trunk then taken back, they would count as the slot's own work. So whoever
comes next asks here what they are, and the base learns of each file that is as it was to become.
"""

from __future__ import annotations

import os

from foundation import atomic, codec
from slotgc import artifact, base, treepath
from swarm.worktree import going_back
from swarm.worktree.updating import differing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from hub.repository import Repository
    from slotgc.base import Base, Row

_NAME = "update.json"
_KINDS = (base.FILE, base.EXEC, base.LINK)


class Underway:
    """An update that has begun."""

    def __init__(
        self,
        checkin: str,
        merged: Mapping[bytes, tuple[str, str]],
        *,
        paths: Collection[bytes] = (),
        seen_ns: int = 0,
    ) -> None:
        """Update to *checkin*; *merged*: kind and hash of what gets more than trunk's content.

        *paths*: where trunk differed from the base before; *seen_ns*: when that was looked at.
        """
        self.checkin = checkin
        self.seen_ns = seen_ns
        self.at = b""
        """What is being done now; b"": none."""
        self.placed: dict[bytes, Row | None] = {}
        """What the base shall say of what was done for certain, None: nothing."""
        self.is_noted = False
        """The base in memory knows all that there is to know."""
        self._merged = merged
        self._paths = paths

    def write(self, scratch: str) -> None:
        """Write it into the directory *scratch*, which is made if need be.

        Raises:
            OSError: it cannot be written.
        """
        merged = [[treepath.to_json(path), *one] for path, one in self._merged.items()]
        value = {"checkin": self.checkin, "merged": merged}
        os.makedirs(scratch, 0o700, exist_ok=True)
        atomic.write_file(f"{scratch}/{_NAME}", codec.dumps(value).encode(), durable=False)

    @classmethod
    def read(cls, scratch: str) -> Underway | None:
        """Return the one that was begun and not ended, None if there is none to be made out."""
        try:
            value = codec.loads_object(atomic.read_bounded(f"{scratch}/{_NAME}", base.LIMIT_BYTES))
            return _parse(value)
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def brought(
        self, worktree: str, known: Base, repository: Repository
    ) -> tuple[dict[bytes, Row], list[bytes]]:
        """Return what the base, now *known*, shall say of what was brought: its rows, what went.

        Raises:
            HubError: trunk cannot be read.
            OSError: *worktree* cannot be looked at.
        """
        wanted = repository.files(self.checkin)
        waiting = dict(differing(known, dict(wanted)))
        found = going_back.there(worktree, known, waiting.keys() - self.placed.keys())
        rows: dict[bytes, Row] = {}
        removed = []
        for path in {*waiting, *self._paths}:
            entry = wanted.get(path)
            row: Row | None
            if path in self.placed:
                row = self.placed[path]
            elif path not in waiting:  # the base knows already
                row = known.files.get(path)
            elif path in found and found[path] in (entry, self._merged.get(path, entry)):
                size = 0 if entry is None else repository.size(entry.hash)
                row = None if entry is None else (entry.kind, size, entry.hash, 0, 0, 0)
            else:
                continue
            if row is None:
                removed.append(path)
            else:
                rows[path] = row
        repository.forget()
        return rows, removed


def forget(scratch: str) -> None:
    """Let the update be over.

    Raises:
        OSError: what is written of it in *scratch* cannot be removed.
    """
    if atomic.remove(f"{scratch}/{_NAME}"):
        try:
            os.rmdir(scratch)
        except OSError:
            pass  # what a killed one left; the next opening of the slot removes it


def _parse(value: dict[str, Any]) -> Underway:
    merged = {}
    for path, kind, name in value["merged"]:
        if kind not in _KINDS or not artifact.is_name(name):
            raise ValueError(f"{kind!r:.20} {name!r:.80} is no file")
        merged[treepath.from_json(path)] = kind, name
    if not artifact.is_name(value["checkin"]):
        raise ValueError(f"{value['checkin']!r:.80} is no check-in")
    return Underway(value["checkin"], merged)
