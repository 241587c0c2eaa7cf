"""The tip of trunk in memory: what every path is there, and how it grows by a check-in.

Moving on costs what a check-in changes, not what trunk holds: the next manifest names only the
paths that are not as they are in the *baseline*, the latest check-in with a full manifest.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from hub import manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hub.manifest import Checkin
    from hub.trees import Entry


AHEAD_MS = 3_600_000
"""A check-in that is further ahead of the clock than an hour has a wrong date, or the clock is
wrong."""


class Holder(NamedTuple):
    """Who made a path what it is."""

    checkin: str
    slot: str


class Step(NamedTuple):
    """One move of a tip, with all that it takes to go back."""

    checkin: str
    before: tuple[str, str, int, str, int, dict[bytes, Entry | None]]
    paths: list[tuple[bytes, Entry | None, Entry | None, bool, Holder | None]]
    """Path; its entry before; the baseline's, and whether that differed; its holder before."""


def keeps_delta(departed: int, baseline_files: int) -> bool:
    """Tell whether the next check-in is still better told by its difference from the baseline.

    *departed* paths differ from the *baseline_files* there are. A delta is read together with
    its baseline, a full manifest costs a line per file: stock's own balance of the two.
    Source: fossil 2.21 checkin.c.
    """
    return (departed + 1) ** 2 < 3 * baseline_files - 9


class Tip:
    """The newest check-in of trunk and its whole tree.

    Read its attributes, change none: :meth:`extend`, :meth:`follow` and :meth:`take_back` do.
    """

    def __init__(
        self,
        *,
        checkin: str,
        parent: str,
        time_ms: int,
        files: dict[bytes, Entry],
        baseline: str,
        baseline_files: Mapping[bytes, Entry],
    ) -> None:
        """Take the check-in (*parent* "" for the root), its tree *files*, and its baseline.

        *baseline* is a check-in with a full manifest, the tip itself or an earlier one, and
        *baseline_files* its tree. *files* is kept and changed.
        """
        self.checkin = checkin
        self.parent = parent
        self.time_ms = time_ms
        self.files = files
        self.baseline = baseline
        self.baseline_count = len(baseline_files)
        self.departed: dict[bytes, Entry | None] = {}
        """What each path that is not as in the baseline is there."""
        if baseline != checkin:
            self.departed = {
                path: baseline_files.get(path)
                for path in {*files, *baseline_files}
                if files.get(path) != baseline_files.get(path)
            }
        self._below: Counter[bytes] = Counter()
        for path in files:
            self._below.update(directories_of(path))
        self._holders: dict[bytes, Holder] = {}
        self._known_cards: dict[bytes, bytes] = {}

    def files_below(self, path: bytes) -> int:
        """Return how many files are below *path*: none if it is no directory."""
        return self._below.get(path, 0)

    def holder(self, path: bytes) -> Holder | None:
        """Return who made *path* what it is, None if that was before this tip was read."""
        return self._holders.get(path)

    def extend(
        self,
        changes: Mapping[bytes, Entry | None],
        *,
        slot: str,
        message: str,
        commit_id: str,
        now_ms: int,
    ) -> tuple[Checkin, Step]:
        """Make the check-in that changes the tip so, and move on to it.

        Its time is later than its parent's, for people who order by it; but not if that is far
        ahead of the clock (:data:`AHEAD_MS`): somebody's wrong date is nobody else's. Fossil goes
        by ancestry, and knows no year 10000.
        """
        step = self._move(changes)
        is_far_ahead = self.time_ms > now_ms + AHEAD_MS
        self.time_ms = now_ms if is_far_ahead else max(self.time_ms + 1, now_ms)
        delta = keeps_delta(len(self.departed), self.baseline_count)
        made = manifest.delta_checkin(
            baseline=self.baseline if delta else None,
            cards=self._cards(self.departed if delta else self.files),
            comment=message,
            date=manifest.date_of(self.time_ms),
            user=slot,
            parent=self.checkin,
            commit_id=commit_id,
        )
        if not delta:
            self.baseline, self.baseline_count, self.departed = made.hash, len(self.files), {}
        return made, self._arrive(made.hash, slot, step)

    def follow(
        self, checkin: str, *, time_ms: int, user: str, changes: Mapping[bytes, Entry | None]
    ) -> Step:
        """Move on to *checkin*, a child of the tip that somebody else made."""
        step = self._move(changes)
        self.time_ms = time_ms
        return self._arrive(checkin, user, step)

    def take_back(self, step: Step) -> None:
        """Undo *step*, the latest that is not undone.

        Raises:
            ValueError: it is not the latest.
        """
        if step.checkin != self.checkin:
            raise ValueError(f"{step.checkin[:10]} is not the tip, {self.checkin[:10]} is")
        self.checkin, self.parent, self.time_ms, self.baseline, self.baseline_count, departed = (
            step.before
        )
        self.departed = departed
        for path, entry, original, had_departed, holder in reversed(step.paths):
            self._put(path, entry)
            if had_departed:
                departed[path] = original
            else:
                departed.pop(path, None)
            if holder is None:
                self._holders.pop(path, None)
            else:
                self._holders[path] = holder

    def _move(self, changes: Mapping[bytes, Entry | None]) -> Step:
        """Change the tree; the check-in itself is :meth:`_arrive`'s."""
        before = (
            self.checkin,
            self.parent,
            self.time_ms,
            self.baseline,
            self.baseline_count,
            self.departed,
        )
        paths = []
        for path, entry in changes.items():
            current = self.files.get(path)
            had_departed = path in self.departed
            original = self.departed[path] if had_departed else current
            paths.append((path, current, original, had_departed, self._holders.get(path)))
            self._put(path, entry)
            if entry == original:
                self.departed.pop(path, None)
            else:
                self.departed[path] = original
        return Step("", before, paths)

    def _arrive(self, checkin: str, slot: str, step: Step) -> Step:
        holder = Holder(checkin, slot)
        for path, *_rest in step.paths:
            self._holders[path] = holder
        self.parent, self.checkin = self.checkin, checkin
        return step._replace(checkin=checkin)

    def _put(self, path: bytes, entry: Entry | None) -> None:
        self._known_cards.pop(path, None)
        if entry is None:
            if self.files.pop(path, None) is not None:
                for directory in directories_of(path):
                    if self._below[directory] == 1:
                        del self._below[directory]
                    else:
                        self._below[directory] -= 1
        else:
            if path not in self.files:
                self._below.update(directories_of(path))
            self.files[path] = entry

    def _cards(self, paths: Iterable[bytes]) -> Iterator[bytes]:
        for path in sorted(paths):
            card = self._known_cards.get(path)
            if card is None:
                card = manifest.file_card(path, *self.files.get(path, ()))
                self._known_cards[path] = card
            yield card


def directories_of(path: bytes) -> Iterator[bytes]:
    """Yield the directories above *path*, the deepest first."""
    end = path.rfind(b"/")
    while end > 0:
        yield path[:end]
        end = path.rfind(b"/", 0, end)
