"""Lines of shell for the guest's agent. Pure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from foundation.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

HOME = "/root"
"""Where a command runs that does not say where."""
_LONGEST_LINE = 120_000
"""The kernel takes 128 KiB an argument; a line is read byte by byte."""
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")


def quoted(text: str) -> bytes:
    """Return *text* as one word on one line.

    Raises:
        ValueError: it holds a NUL, which no word can.
    """
    raw = os.fsencode(text)
    if b"\0" in raw:
        raise ValueError(f"{text!r} holds a NUL")
    if raw and _PLAIN.issuperset(raw):
        return raw
    if b"\n" not in raw:
        return b"'" + raw.replace(b"'", b"'\\''") + b"'"
    escaped = raw.replace(b"\\", b"\\\\").replace(b"'", b"\\'").replace(b"\n", b"\\n")
    return b"$'" + escaped + b"'"


def run(token: str, argv: list[str], stdin: int, env: Mapping[str, str], cwd: str) -> bytes:
    """Return the line that runs *argv* on *stdin* bytes of input.

    Raises:
        Refused: it is too long, or names an environment variable that cannot be
            (``bad-command``).
        ValueError: *argv* is empty, or something holds a NUL.
    """
    if not argv:
        raise ValueError("no command: argv is empty")
    exports = b"; ".join(
        b"export " + _name(name).encode() + b"=" + quoted(value) for name, value in env.items()
    )
    words = [
        b"run",
        token.encode(),
        b"%d" % stdin,
        quoted(cwd or HOME),
        quoted(os.fsdecode(exports)),
        *map(quoted, argv),
    ]
    line = b" ".join(words)
    if len(line) > _LONGEST_LINE:
        raise Refused(
            f"{argv[0]}: {len(line)} bytes of arguments and environment, {_LONGEST_LINE} at most: "
            "put them in a file of the guest, or on its standard input",
            reason="bad-command",
        )
    return line


def _name(name: str) -> str:
    if not name or name[0].isdigit() or not all(c in _LETTERS or c in "0123456789" for c in name):
        raise Refused(f"{name!r} cannot be an environment variable", reason="bad-command")
    return name
