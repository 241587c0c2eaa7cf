"""Showing differences of files: on a terminal, into a pipe, as JSON."""

from __future__ import annotations

import os
import sys

from hub import output
from slotgc import treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from swarm.history import FileChange


def print_diff(
    verb: str, head: dict[str, Any], found: Iterable[FileChange], *, as_json: bool
) -> int:
    """Print *found*, in JSON with *head* before it; return how many files that are.

    Into a pipe or a file go the bytes as they are, for `git apply`. On a terminal what could
    steer it is escaped.
    """
    if as_json:
        told = [_json(one) for one in found]
        output.print_data(verb, {**head, "files": told})
        return len(told)
    count = 0
    escape = sys.stdout is not None and sys.stdout.isatty()
    for one in found:
        count += 1
        _write(_visible(one.diff) if escape else one.diff)
    return count


def _json(one: FileChange) -> dict[str, Any]:
    fields = one.as_dict()
    for name in ("path", "diff"):
        fields[name] = treepath.to_json(fields[name])
    return fields


def _visible(diff: bytes) -> bytes:
    text = diff.decode("utf-8", "backslashreplace")
    shown = (c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return "".join(shown).encode()


def _write(diff: bytes) -> None:
    """Write to stdout; who has read enough ends it without a word."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.buffer.write(diff)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
