"""The files of check-ins, from their manifests; what differs between two of them.

Manifests of neighbours are mostly told against one baseline, so what differs is read off the few
files that they name, not off the whole trees.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Trees:
    """The trees of one repository's check-ins; the latest few asked for are kept."""

    def __init__(self, manifest: Callable[[str], Manifest], *, kept: int = _KEPT_OVERLAYS) -> None:
        """Get manifests, by the check-in's hash, from *manifest*; keep *kept* deltas at most."""
        self._manifest = manifest
        self._kept_overlays = kept
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

    def everything(self, checkin: str) -> list[Difference]:
        """Return all files of *checkin* as differences from nothing."""
        return [(path, None, entry) for path, entry in sorted(self.files(checkin).items())]

    def learn(self, checkin: str, manifest: Manifest) -> None:
        """Keep what *manifest* of *checkin* says, for the questions to come."""
        if manifest.baseline:
            overlay = {path: _entry(name, kind) for path, name, kind in manifest.files}
            self._overlays[checkin] = manifest.baseline, overlay
            while len(self._overlays) > self._kept_overlays:
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
            self.learn(checkin, self._manifest(checkin))
        return self._overlays.get(checkin, (checkin, {}))

    def _baseline(self, name: str) -> dict[bytes, Entry]:
        if name not in self._full:
            self.learn(name, self._manifest(name))
        # The latest asked for goes last: who is dropped is who was not asked for.
        self._full[name] = files = self._full.pop(name)
        return files


def _files(rows: list[Row]) -> dict[bytes, Entry]:
    return {path: Entry(kind, name) for path, name, kind in rows}


def _entry(name: str, kind: str) -> Entry | None:
    return Entry(kind, name) if name else None
