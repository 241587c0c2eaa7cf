"""Differences between two versions of a file, as git prints them, so that `git apply` takes them.

Pure: versions in, bytes out. What is binary, or too large to be worth a person's time, is named and
not shown.
"""

from __future__ import annotations

from typing import NamedTuple

from hub.wording import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_BYTES = 2 * 2**20
"""A longer content is not shown."""
CONTEXT = 3

_MODES = {"file": b"100644", "exec": b"100755", "link": b"120000"}
_LOOKED_AT = 8000  # as git's buffer_is_binary
_MATCHED_AT_MOST = 4_000_000
"""Pairs of lines that are compared; a stretch with more of them is shown as replaced whole."""
_NO_END = b"\n\\ No newline at end of file\n"
_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\')
_LETTERS = {7: b"a", 8: b"b", 9: b"t", 10: b"n", 11: b"v", 12: b"f", 13: b"r", 34: b'"', 92: b"\\"}


class Version(NamedTuple):
    """A file as it is in one state of the tree: ``file``, ``exec`` or ``link``, and its bytes."""

    kind: str
    content: bytes


def quoted(path: bytes) -> bytes:
    """Return *path* as git writes it: with odd bytes, in quotes. Source: git's quote.c."""
    if _PLAIN.issuperset(path):
        return path
    return b'"' + b"".join(_escaped(byte) for byte in path) + b'"'


def _escaped(byte: int) -> bytes:
    if byte in _LETTERS:
        return b"\\" + _LETTERS[byte]
    return bytes((byte,)) if byte in _PLAIN else b"\\%03o" % byte


def is_binary(content: bytes) -> bool:
    """Tell whether *content* is no text, by git's rule: a NUL near its beginning."""
    return b"\0" in content[:_LOOKED_AT]


def difference(path: bytes, old: Version | None, new: Version | None) -> bytes:
    """Return what turns *old* into *new* at *path*; None is no file there; b"" if they are equal.

    A link and a file are not turned into each other, but one removed and the other added.
    """
    if old == new:
        return b""
    if old and new and (old.kind == "link") != (new.kind == "link"):
        return difference(path, old, None) + difference(path, None, new)
    before, after = quoted(b"a/" + path), quoted(b"b/" + path)
    lines = [b"diff --git %s %s\n" % (before, after)]
    if old is None:
        assert new is not None
        lines.append(b"new file mode %s\n" % _MODES[new.kind])
        before = b"/dev/null"
    elif new is None:
        lines.append(b"deleted file mode %s\n" % _MODES[old.kind])
        after = b"/dev/null"
    elif old.kind != new.kind:
        lines.append(b"old mode %s\nnew mode %s\n" % (_MODES[old.kind], _MODES[new.kind]))
    was, now = (b"" if one is None else one.content for one in (old, new))
    if was != now:
        lines += _contents(before, after, was, now)
    return b"".join(lines)


def _contents(before: bytes, after: bytes, was: bytes, now: bytes) -> Iterator[bytes]:
    if is_binary(was) or is_binary(now):
        yield b"Binary files %s and %s differ\n" % (before, after)
        return
    if max(len(was), len(now)) > LARGEST_BYTES:
        sizes = f"{size(len(was))} and {size(len(now))}"
        yield b"Files %s and %s differ (%s: too large to be shown)\n" % (
            before,
            after,
            sizes.encode(),
        )
        return
    # A tab ends a name with a space in it, for patch(1). Source: git's diff.c.
    ends = (b"\t" if b" " in name and name[:1] != b'"' else b"" for name in (before, after))
    yield b"--- %s%s\n+++ %s%s\n" % (before, next(ends), after, next(ends))
    yield from _hunks(_lines(was), _lines(now))


def _lines(content: bytes) -> list[bytes]:
    """Return the lines of *content* with their ends; only a newline ends one."""
    *lines, last = content.split(b"\n")
    return [line + b"\n" for line in lines] + ([last] if last else [])


Block = tuple[int, int, int, int]
"""A stretch that differs: first line and the one after the last, of the old, then of the new."""


def _hunks(was: list[bytes], now: list[bytes]) -> Iterator[bytes]:
    for hunk in _grouped(_blocks(was, now)):
        start = max(0, hunk[0][0] - CONTEXT)
        offset = hunk[0][2] - hunk[0][0]
        end = min(len(was), hunk[-1][1] + CONTEXT)
        new_end = end + hunk[-1][3] - hunk[-1][1]
        old_range, new_range = _range(start, end), _range(start + offset, new_end)
        yield b"@@ -%s +%s @@\n" % (old_range, new_range)
        at = start
        for first, last, new_first, new_last in hunk:
            yield from (_line(b" ", line) for line in was[at:first])
            yield from (_line(b"-", line) for line in was[first:last])
            yield from (_line(b"+", line) for line in now[new_first:new_last])
            at = last
        yield from (_line(b" ", line) for line in was[at:end])


def _line(sign: bytes, line: bytes) -> bytes:
    return sign + line if line.endswith(b"\n") else sign + line + _NO_END


def _range(start: int, end: int) -> bytes:
    """Return lines *start* to *end* as a hunk's head has them: an empty one is a line before."""
    count = end - start
    first = start + 1 if count else start
    return b"%d" % first if count == 1 else b"%d,%d" % (first, count)


def _grouped(blocks: list[Block]) -> list[list[Block]]:
    """Put blocks into one hunk whose contexts touch."""
    groups: list[list[Block]] = []
    for block in blocks:
        if groups and block[0] - groups[-1][-1][1] <= 2 * CONTEXT:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _blocks(was: list[bytes], now: list[bytes]) -> list[Block]:
    """Return where *was* and *now* differ, in order."""
    head = 0
    shorter = min(len(was), len(now))
    while head < shorter and was[head] == now[head]:
        head += 1
    tail = 0
    while tail < shorter - head and was[-1 - tail] == now[-1 - tail]:
        tail += 1
    old, new = was[head : len(was) - tail], now[head : len(now) - tail]
    if not old and not new:
        return []
    if not old or not new or len(old) * len(new) > _MATCHED_AT_MOST:
        return [(head, head + len(old), head, head + len(new))]
    from difflib import SequenceMatcher  # noqa: PLC0415 - it loads re

    matcher = SequenceMatcher(None, old, new)
    return [
        (head + a, head + b, head + c, head + d)
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    ]
