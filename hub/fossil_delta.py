"""Fossil's delta format: a content told as pieces of another one.

Pure. A delta is the size of what it makes and a newline, then pieces one after another, then a
checksum: ``LEN@OFFSET,`` copies from the source, ``LEN:`` and so many bytes are new, ``SUM;`` ends
it. Numbers are in base 64. Source: fossil 2.21 delta.c, and its "Delta Format" page.
"""

from __future__ import annotations

import re

_DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
_VALUE = {digit: value for value, digit in enumerate(_DIGITS)}
_NUMBER = re.compile(rb"([0-9A-Z_a-z~]+)(.)", re.DOTALL)


def apply(source: bytes, delta: bytes) -> bytes:
    """Return what *delta* makes of *source*.

    The checksum is not computed, which takes longer than all the rest: whoever asks knows the
    content by its hash.

    Raises:
        ValueError: *delta* is none, or is not one of *source*.
    """
    size, mark, at = _number(delta, 0)
    _require(mark == b"\n", "it does not begin with a size")
    pieces = []
    while True:
        count, mark, at = _number(delta, at)
        if mark == b"@":
            offset, mark, at = _number(delta, at)
            _require(mark == b",", "a copy does not end")
            _require(offset + count <= len(source), "a copy is from beyond the source")
            pieces.append(source[offset : offset + count])
        elif mark == b":":
            _require(at + count <= len(delta), "new bytes are missing")
            pieces.append(delta[at : at + count])
            at += count
        else:
            _require(mark == b";", "a piece is none")
            break
    made = b"".join(pieces)
    _require(len(made) == size, "the pieces are not as long as it says")
    return made


def _number(delta: bytes, at: int) -> tuple[int, bytes, int]:
    """Return the number at *at*, the byte that ends it, and where the rest begins."""
    found = _NUMBER.match(delta, at)
    if found is None:
        raise ValueError(f"no Fossil delta: no number at byte {at}")
    value = 0
    for digit in found[1]:
        value = value * 64 + _VALUE[digit]
    return value, found[2], found.end()


def _require(sound: bool, fault: str) -> None:
    if not sound:
        raise ValueError(f"no Fossil delta: {fault}")
