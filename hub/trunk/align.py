"""Which lines of two texts correspond: what git's diff finds, in bounded time. Pure.

The shortest edit script (Myers), then every run of changed lines that could as well stand higher
or lower is moved to where git puts it. A merge compares two such alignments, so where a run stands
decides whether two edits touch: taken from another diff (difflib), merges conflict where git's do
not, and the other way round.

Time is bounded by a budget of steps, about 0.1 µs each. Where it does not suffice, lines that are
unique on both sides divide the text; what even they leave undivided corresponds in nothing. So a
budget never makes an alignment wrong, only coarser: more is changed than need be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Lines = Sequence[bytes]
    Region = tuple[int, int, int, int]
    """From and to in one text, from and to in the other."""

Block = tuple[int, int, int]
"""Where equal lines begin in one text and in the other, and how many they are."""

STEPS = 200_000
"""Of a whole alignment."""
_STEPS_AT_ONCE = 60_000
"""Of one search for the shortest script; more and dividing is cheaper."""
_STEPS_TO_BEGIN = 100


class Alignment:
    """Two texts aligned; has what merge3 asks of a sequence matcher."""

    def __init__(
        self, _isjunk: object, a: Lines = (), b: Lines = (), _autojunk: object = None
    ) -> None:
        """Take both texts as lines."""
        self._a = a
        self._b = b

    def get_matching_blocks(self) -> list[Block]:
        """Return the equal runs in their order, and one of no lines at the end of both."""
        return matching_blocks(self._a, self._b)


def matching_blocks(a: Lines, b: Lines, steps: int = STEPS) -> list[Block]:
    """Return the equal runs of *a* and *b* in their order, and one of no lines at the end."""
    blocks = _Search(a, b, steps).blocks()
    gone, come = _gaps(blocks, len(a), len(b))
    _settle(a, gone, come, steps)
    _settle(b, come, gone, steps)
    return _blocks(gone, come, sum(size for *_at, size in blocks), (len(a), len(b)))


class _Search:
    """The search for a short edit script."""

    def __init__(self, a: Lines, b: Lines, steps: int) -> None:
        self._a = a
        self._b = b
        self._steps = steps

    def blocks(self) -> list[Block]:
        found: list[Block] = []
        pending: list[Region] = [(0, len(self._a), 0, len(self._b))]
        while pending:
            begin_a, end_a, begin_b, end_b = pending.pop()
            head, tail = self._common_ends(begin_a, end_a, begin_b, end_b)
            found += [(begin_a, begin_b, head), (end_a - tail, end_b - tail, tail)]
            region = begin_a + head, end_a - tail, begin_b + head, end_b - tail
            if region[0] == region[1] or region[2] == region[3]:
                continue
            shortest = self._shortest(*region)
            if shortest is None:
                anchors = self._anchors(*region)
                found += anchors
                pending += _between(anchors, region) if anchors else ()
            else:
                found += shortest
        return sorted(block for block in found if block[2])

    def _common_ends(self, begin_a: int, end_a: int, begin_b: int, end_b: int) -> tuple[int, int]:
        a, b = self._a, self._b
        most = min(end_a - begin_a, end_b - begin_b)
        head = 0
        while head < most and a[begin_a + head] == b[begin_b + head]:
            head += 1
        tail = 0
        while tail < most - head and a[end_a - 1 - tail] == b[end_b - 1 - tail]:
            tail += 1
        return head, tail

    def _shortest(self, begin_a: int, end_a: int, begin_b: int, end_b: int) -> list[Block] | None:
        """Return the blocks of a shortest edit script, None if it takes too many steps to find.

        E. W. Myers, "An O(ND) Difference Algorithm and Its Variations", 1986, the greedy form.
        ``furthest[k]`` is how far into *a* one gets on diagonal k with so many edits.
        """
        a, b = self._a[begin_a:end_a], self._b[begin_b:end_b]
        length_a, length_b = len(a), len(b)
        furthest = {1: 0}
        history: list[dict[int, int]] = []
        left = allowed = min(self._steps, _STEPS_AT_ONCE)
        left -= _STEPS_TO_BEGIN
        for edits in range(length_a + length_b + 1):
            history.append({k: furthest[k] for k in range(-edits - 1, edits + 2) if k in furthest})
            left -= 3 * edits + 1
            for k in range(-edits, edits + 1, 2):
                down = k == -edits or (k != edits and furthest[k - 1] < furthest[k + 1])
                x = since = furthest[k + 1] if down else furthest[k - 1] + 1
                y = x - k
                while x < length_a and y < length_b and a[x] == b[y]:
                    x += 1
                    y += 1
                left -= x - since
                furthest[k] = x
                if x >= length_a and y >= length_b:
                    self._steps -= allowed - left
                    return _walked_back(history, x, y, begin_a, begin_b)
            if left < 0:
                break
        self._steps -= allowed - left
        return None

    def _anchors(self, begin_a: int, end_a: int, begin_b: int, end_b: int) -> list[Block]:
        """Return the longest row of lines, in the same order, that stand once on both sides."""
        a, b = self._a, self._b
        self._steps -= end_a - begin_a + end_b - begin_b
        if self._steps < 0:
            return []
        often_a = Counter(a[begin_a:end_a])
        often_b = Counter(b[begin_b:end_b])
        where = {b[j]: j for j in range(begin_b, end_b)}
        unique = [
            (i, where[a[i]])
            for i in range(begin_a, end_a)
            if often_a[a[i]] == 1 and often_b[a[i]] == 1
        ]
        # Patience sorting: ends[n] is the least end of an increasing row of n + 1.
        ends: list[int] = []
        last: list[int] = []
        before: list[int] = []
        for number, (_i, j) in enumerate(unique):
            at = bisect_left(ends, j)
            before.append(last[at - 1] if at else -1)
            if at == len(ends):
                ends.append(j)
                last.append(number)
            else:
                ends[at], last[at] = j, number
        row: list[Block] = []
        number = last[-1] if last else -1
        while number >= 0:
            i, j = unique[number]
            number = before[number]
            if row and row[-1][:2] == (i + 1, j + 1):
                row[-1] = (i, j, row[-1][2] + 1)
            else:
                row.append((i, j, 1))
        return row[::-1]


def _between(anchors: list[Block], region: Region) -> list[Region]:
    """Return what lies before, between and after *anchors*."""
    begin_a, end_a, begin_b, end_b = region
    regions = []
    for i, j, size in [*anchors, (end_a, end_b, 0)]:
        regions.append((begin_a, i, begin_b, j))
        begin_a, begin_b = i + size, j + size
    return regions


def _walked_back(
    history: list[dict[int, int]], x: int, y: int, begin_a: int, begin_b: int
) -> list[Block]:
    """Return the blocks on the way that led to the end (*x*, *y*)."""
    blocks = []
    for edits in range(len(history) - 1, -1, -1):
        furthest = history[edits]
        k = x - y
        down = k == -edits or (k != edits and furthest[k - 1] < furthest[k + 1])
        from_x = furthest[k + 1] if down else furthest[k - 1]
        begin = from_x if down else from_x + 1
        if edits == 0:
            begin = from_x = 0
        if x > begin:
            blocks.append((begin_a + begin, begin_b + begin - k, x - begin))
        x, y = from_x, from_x - (k + 1 if down else k - 1)
    return blocks


# --- where runs of changed lines stand ---------------------------------------------------------
# A run is known by its gap: how many lines that are unchanged stand before it. What has no
# counterpart in the other text is a dict, gap → how many lines.


def _gaps(blocks: list[Block], length_a: int, length_b: int) -> tuple[dict[int, int], ...]:
    gone, come = {}, {}
    at_a = at_b = gap = 0
    for i, j, size in [*blocks, (length_a, length_b, 0)]:
        if i > at_a:
            gone[gap] = i - at_a
        if j > at_b:
            come[gap] = j - at_b
        at_a, at_b, gap = i + size, j + size, gap + size
    return gone, come


def _blocks(
    gone: dict[int, int], come: dict[int, int], unchanged: int, lengths: tuple[int, int]
) -> list[Block]:
    blocks = []
    at_a = at_b = at = 0
    for gap in sorted({*gone, *come, unchanged}):
        if gap > at:
            blocks.append((at_a, at_b, gap - at))
        at_a += gap - at + gone.get(gap, 0)
        at_b += gap - at + come.get(gap, 0)
        at = gap
    return [*blocks, (*lengths, 0)]


def _settle(lines: Lines, runs: dict[int, int], others: dict[int, int], steps: int) -> None:
    """Move the *runs* of changed *lines* to where git would have them.

    As low as they go, but beside a run of *others* in the other text if they pass one; runs that
    meet become one. Source: git 2.39 xdiff/xdiffi.c ``xdl_change_compact``.
    """
    settled: dict[int, int] = {}
    before = 0  # lines in the runs of settled
    for first_gap in sorted(runs):
        if first_gap not in runs:
            continue  # met by the one before it
        gap, size = first_gap, runs.pop(first_gap)
        start = gap + before
        while True:
            size_then = size
            beside = -1
            while start > 0 and lines[start - 1] == lines[start + size - 1] and steps > 0:
                steps -= 1
                start, gap = start - 1, gap - 1
                met = settled.pop(gap, 0)
                start, size, before = start - met, size + met, before - met
            highest = gap
            if gap in others:
                beside = gap
            while start + size < len(lines) and lines[start] == lines[start + size] and steps > 0:
                steps -= 1
                start, gap = start + 1, gap + 1
                size += runs.pop(gap, 0)
                if gap in others:
                    beside = gap
            if size == size_then:
                break
        if gap != highest and beside >= 0:
            gap = beside
        settled[gap] = size
        before += size
    runs.update(settled)
