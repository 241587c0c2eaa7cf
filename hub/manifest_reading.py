"""Reading a check-in's manifest, the artifact that names its files.

Pure. Source: fossil 2.21 manifest.c, "Fossil File Formats". A *full* manifest names every file; a
*delta* manifest names its baseline, which is full, and the files that differ from it.
"""

from __future__ import annotations

import hashlib
import re

from foundation.errors import Corrupt
from foundation.record import Record
from hub.manifest import without_signature
from slotgc import artifact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FILE, EXEC, LINK = "file", "exec", "link"

Row = tuple[bytes, str, str]
"""Path, hash of the content, kind: ``file``, ``exec``, ``link``. Of a file that the baseline has
and the check-in has not, hash and kind are ""."""

_CARDS = frozenset(b"BCDFNPQRTUZ")
_NEEDED = frozenset(b"CDZ")
_Z_BYTES = 35
_KINDS = {b"": FILE, b"w": FILE, b"x": EXEC, b"l": LINK}

_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_MEANT = {b"s": b" ", b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"0": b"\0"}


class Manifest(Record):
    """What a check-in's manifest says."""

    baseline: str
    """The check-in that ``files`` is told against; "" if it names every file."""
    comment: str
    date: str
    """The D card: ISO 8601, UTC, mostly with milliseconds."""
    files: list[Row]
    """In the order of the manifest, which is that of the paths' bytes."""
    parents: tuple[str, ...]
    """The primary one first; none: the root."""
    tags: tuple[tuple[str, str, str], ...]
    """Sign and name (``+commit-id``), target (``*``: this check-in) and value of each T card."""
    user: str


def parse(content: bytes) -> Manifest:
    """Return what the manifest *content* says.

    Raises:
        Corrupt: it is no check-in's manifest.
    """
    content = without_signature(content)
    seal = b"Z %s\n" % (
        hashlib.md5(content[:-_Z_BYTES], usedforsecurity=False).hexdigest().encode()
    )
    if not content.endswith(seal):
        raise _none("its last line is not the Z card that seals it")
    lines = content.split(b"\n")
    lines.pop()
    _check_cards(lines)
    try:
        files = rows([line for line in lines if line.startswith(b"F ")])
        cards = {}
        tags = []
        for line in lines:
            if line.startswith(b"T "):
                tags.append(_tag(line))
            elif not line.startswith(b"F "):
                cards[line[:1]] = line[2:]
        baseline = cards.get(b"B", b"").decode("ascii")
        parents = tuple(cards.get(b"P", b"").decode("ascii").split())
        date = cards[b"D"].decode("ascii")
    except UnicodeDecodeError:
        raise _none("a hash or a date is not ASCII") from None
    if not all(map(artifact.is_name, parents if not baseline else (baseline, *parents))):
        raise _none("a parent or the baseline is no hash")
    if not baseline and not all(name for _path, name, _kind in files):
        raise _none("it has no baseline, yet it names a file that is not there")
    return Manifest(
        baseline=baseline,
        comment=_text(cards[b"C"]),
        date=date,
        files=files,
        parents=parents,
        tags=tuple(tags),
        user=_text(cards.get(b"U", b"")),
    )


def _check_cards(lines: list[bytes]) -> None:
    if not all(line[1:2] == b" " for line in lines):
        raise _none("a line is no card")
    letters = {line[0] for line in lines}
    if not letters <= _CARDS or not letters >= _NEEDED:
        raise _none(f"its cards are {bytes(sorted(letters)).decode('ascii', 'replace')}")


def rows(lines: Iterable[bytes]) -> list[Row]:
    """Return the files that the F cards *lines* name.

    Raises:
        Corrupt: one is none.
    """
    files = []
    for line in lines:
        card = line.split(b" ")  # F NAME [HASH [PERMISSION [FORMER-NAME]]]
        path = card[1]
        if b"\\" in path:
            path = unescaped(path)
        if len(card) == 3:  # noqa: PLR2004
            files.append((path, card[2].decode("ascii"), FILE))
        elif len(card) == 2:  # noqa: PLR2004
            files.append((path, "", ""))
        else:
            kind = _KINDS.get(card[3])
            if kind is None or len(card) > 5:  # noqa: PLR2004
                raise _none(f"{line[:200]!r} is no file")
            files.append((path, card[2].decode("ascii"), kind))
    return files


def _tag(line: bytes) -> tuple[str, str, str]:
    _letter, name, target, *value = line.split(b" ") + [b""] * (2 - line.count(b" "))
    return _text(name), _text(target), _text(value[0]) if value else ""


def unescaped(token: bytes) -> bytes:
    """Return what a card's *token* stands for. Source: encode.c ``defossilize``."""
    return _ESCAPE.sub(lambda found: _MEANT.get(found[1], found[1]), token)


def _text(token: bytes) -> str:
    return unescaped(token).decode("utf-8", "replace")


def _none(fault: str) -> Corrupt:
    return Corrupt(f"this is no check-in's manifest: {fault}", reason="not-a-manifest")
