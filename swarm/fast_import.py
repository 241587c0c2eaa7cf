"""What `git fast-import` reads: contents, commits, and what they change, as bytes.

Pure. Source: git-fast-import(1).
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Change = tuple[bytes, bytes, int]
    """Path, git mode, mark of the content; mode b"" deletes."""

DONE = b"done\n"

MODES = {"file": b"100644", "exec": b"100755", "link": b"120000"}
"""Kinds, as trunk names them, as git does."""

_TO_QUOTE = re.compile(rb'[\x00-\x1f"\\\x7f]')
_IN_NO_NAME = re.compile(r"[\x00-\x1f<>\x7f]+")
_IN_NO_ADDRESS = re.compile(r"[^A-Za-z0-9.+_-]+")
_CRUD = " .,:;\"'\\"
"""What git itself strips off the ends of a name. Source: git's ident.c."""
NO_DOMAIN = "bones.invalid"
"""Of users who have no address: RFC 2606 reserves ``.invalid``."""


def quoted(path: bytes) -> bytes:
    """Return *path* between quotes, what could end a line or a quote as three octal digits."""
    return b'"%s"' % _TO_QUOTE.sub(lambda found: b"\\%03o" % found[0][0], path)


def person(name: str, address: str = "") -> bytes:
    """Return ``NAME <ADDRESS>`` for a commit; without an *address*, ``NAME@bones.invalid``."""
    shown = _IN_NO_NAME.sub(" ", name).strip(_CRUD) or "unknown"
    if not address:
        address = f"{_IN_NO_ADDRESS.sub('-', shown).strip('-.') or 'unknown'}@{NO_DOMAIN}"
    return f"{shown} <{_IN_NO_NAME.sub('', address)}>".encode("utf-8", "replace")


def blob(mark: int, content: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the parts of the command that stores *content*, which may be big, as *mark*."""
    return b"blob\nmark :%d\ndata %d\n" % (mark, len(content)), content, b"\n"


def commit(
    ref: str,
    mark: int,
    author: bytes,
    at_s: int,
    message: str,
    changes: Iterable[Change],
    parent: str = "",
) -> bytes:
    """Return the command that puts a commit on *ref*, as *mark*.

    *author*, who is the committer too, as :func:`person` makes one; *at_s* in seconds since the
    epoch, UTC. Its parent is *parent*, or without one what this stream has put on *ref* before.
    """
    text = message.encode("utf-8", "replace")
    when = max(0, at_s)
    lines = [
        b"commit %s\nmark :%d\n" % (ref.encode(), mark),
        b"author %s %d +0000\ncommitter %s %d +0000\n" % (author, when, author, when),
        b"data %d\n%s\n" % (len(text), text),
    ]
    if parent:
        lines.append(b"from %s\n" % parent.encode())
    # Deletions first: what was a file may be a directory now.
    changes = sorted(changes, key=lambda change: bool(change[1]))
    for path, mode, content in changes:
        if mode:
            lines.append(b"M %s :%d %s\n" % (mode, content, quoted(path)))
        else:
            lines.append(b"D %s\n" % quoted(path))
    lines.append(b"\n")
    return b"".join(lines)
