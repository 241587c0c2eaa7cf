"""Merging two versions of a text that come from one. Pure."""

from __future__ import annotations

from itertools import chain

from merge3 import Merge3

LARGEST_BYTES = 4 * 2**20
"""The longest text that is merged."""

TOO_LARGE = "too large to merge"
BINARY = "both changed it, and it is binary"
SAME_LINES = "both changed the same lines"


class CannotMerge(Exception):
    """The two versions do not go together; ``reason`` says why, in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def merge(base: bytes, mine: bytes, theirs: bytes) -> bytes:
    """Return *base* with the changes of both *mine* and *theirs*.

    Raises:
        CannotMerge: they change the same lines or neighbouring ones, it is no text, or too long.
    """
    if mine in (theirs, base):
        return theirs
    if theirs == base:
        return mine
    lines = _merger(base, mine, theirs)
    merged = []
    for group in lines.merge_groups():
        if group[0] == "conflict":
            raise CannotMerge(SAME_LINES)
        merged.append(group[1])
    return b"".join(chain.from_iterable(merged))


def _merger(base: bytes, mine: bytes, theirs: bytes) -> Merge3[bytes]:
    texts = (base, mine, theirs)
    if any(b"\0" in text for text in texts):
        raise CannotMerge(BINARY)
    if max(map(len, texts)) > LARGEST_BYTES:
        raise CannotMerge(TOO_LARGE)
    return Merge3(_lines(base), _lines(mine), _lines(theirs))


def _lines(text: bytes) -> list[bytes]:
    """Return the lines of *text* with their ends; only a line feed ends one, as for git."""
    lines = [line + b"\n" for line in text.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines
