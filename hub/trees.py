"""The files of check-ins, from their manifests; what differs between two of them.

Manifests of neighbours are mostly told against one baseline, so what differs is read off the few
files that they name, not off the whole trees.
"""

from __future__ import annotations

from typing import NamedTuple

from hub.manifest_reading import rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hub.manifest_reading import Manifest, Row

    Overlay = dict[bytes, "Entry | None"]
    """What a check-in has at a path, None: nothing; of any other path, what its baseline has."""

_KEPT = 2
_KEPT_OVERLAYS = 8


class Entry(NamedTuple):
    """What a check-in has at a path."""

    kind: str
    """``file``, ``exec`` or ``link``."""
    hash: str
    """Of its content, a link's is its target."""


Difference = tuple[bytes, "Entry | None", "Entry | None"]
"""Path, and what one and the other check-in have there, None: nothing."""


class Told(NamedTuple):
    """A delta manifest as it stands there: what of it is the same in another need not be parsed."""

    baseline: str
    cards: frozenset[bytes]
    """Its F cards, a line each."""

    @classmethod
    def by(cls, manifest: bytes) -> Told | None:
        """Return what the artifact *manifest* tells, None unless it is a delta manifest."""
        if not manifest.startswith(b"B "):
            return None
        lines = manifest.split(b"\n")
        cards = frozenset([line for line in lines if line.startswith(b"F ")])
        return cls(lines[0][2:].decode("ascii", "replace"), cards)


class Trees:
    """The trees of one repository's check-ins; the latest few asked for are kept."""

    def __init__(self, manifest: Callable[[str], Manifest]) -> None:
        """Get manifests, by the check-in's hash, from *manifest*."""
        self._manifest = manifest
        self._full: dict[str, dict[bytes, Entry]] = {}
        self._overlays: dict[str, tuple[str, Overlay]] = {}

    def files(self, checkin: str) -> dict[bytes, Entry]:
        """Return all files of *checkin* by path; the caller's to keep and change."""
        baseline, overlay = self._parts(checkin)
        files = dict(self._baseline(baseline))
        for path, entry in overlay.items():
            if entry is None:
                files.pop(path, None)
            else:
                files[path] = entry
        return files

    def difference(self, one: str, other: str) -> list[Difference]:
        """Return what differs between two check-ins, in the order of the paths' bytes."""
        baseline, overlay = self._parts(one)
        other_baseline, other_overlay = self._parts(other)
        if baseline == other_baseline:
            common = self._baseline(baseline)
            paths: Iterable[bytes] = sorted({*overlay, *other_overlay})
            befores: dict[bytes, Entry | None] = {
                path: overlay[path] if path in overlay else common.get(path) for path in paths
            }
            afters: dict[bytes, Entry | None] = {
                path: other_overlay[path] if path in other_overlay else common.get(path)
                for path in paths
            }
        else:
            before, after = self.files(one), self.files(other)
            paths = sorted({path for path, _entry in before.items() ^ after.items()})
            befores = {path: before.get(path) for path in paths}
            afters = {path: after.get(path) for path in paths}
        return [
            (path, befores[path], afters[path]) for path in paths if befores[path] != afters[path]
        ]

    def difference_as_told(self, one: Told, other: Told) -> list[Difference]:
        """Return what :meth:`difference` does, for two that are told against one baseline."""
        common = self._baseline(one.baseline)
        befores = _overlay(rows(one.cards - other.cards))
        afters = _overlay(rows(other.cards - one.cards))
        found = []
        for path in sorted({*befores, *afters}):
            # Who has no card of its own there has what the baseline has.
            before = befores[path] if path in befores else common.get(path)
            after = afters[path] if path in afters else common.get(path)
            if before != after:
                found.append((path, before, after))
        return found

    def everything(self, checkin: str) -> list[Difference]:
        """Return all files of *checkin* as differences from nothing."""
        return [(path, None, entry) for path, entry in sorted(self.files(checkin).items())]

    def _learn(self, checkin: str) -> None:
        manifest = self._manifest(checkin)
        if manifest.baseline:
            self._overlays[checkin] = manifest.baseline, _overlay(manifest.files)
            while len(self._overlays) > _KEPT_OVERLAYS:
                del self._overlays[next(iter(self._overlays))]
        else:
            self._full[checkin] = _files(manifest.files)
            while len(self._full) > _KEPT:
                del self._full[next(iter(self._full))]

    def forget(self) -> None:
        """Let go of what is kept."""
        self._full.clear()
        self._overlays.clear()

    def _parts(self, checkin: str) -> tuple[str, Overlay]:
        """Return the baseline of *checkin*, itself if its manifest is full, and what differs."""
        if checkin in self._full:
            return checkin, {}
        if checkin not in self._overlays:
            self._learn(checkin)
        return self._overlays.get(checkin, (checkin, {}))

    def _baseline(self, name: str) -> dict[bytes, Entry]:
        if name not in self._full:
            self._learn(name)
        # The latest asked for goes last: who is dropped is who was not asked for.
        self._full[name] = files = self._full.pop(name)
        return files


def _files(found: list[Row]) -> dict[bytes, Entry]:
    return {path: Entry(kind, name) for path, name, kind in found}


def _overlay(found: list[Row]) -> Overlay:
    return {path: Entry(kind, name) if name else None for path, name, kind in found}
