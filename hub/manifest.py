"""What goes into a Fossil repository, as bytes: packed contents, manifests, what cannot be there.

Pure. Sources are named where Fossil's own code decides.
"""

from __future__ import annotations

import hashlib
import zlib

from foundation import clock
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PGP = b"-----BEGIN PGP SIGNED MESSAGE-----"
_PGP_END = b"\n-----BEGIN PGP SIGNATURE-----"
HEAD_BYTES, TAIL_BYTES = len(_PGP), 35
"""As much of both ends of a content as :func:`may_be_artifact` asks for: a Z card at the last."""

LEVEL = 1  # 6 makes a 1-3 % smaller repository and takes 1.1 to 1.4 times as long

Row = tuple[int, bytes, bytes]
"""(size, SHA3-256 digest, packed content) of one content."""

PERMISSIONS = {b"100644": b"", b"100755": b" x", b"120000": b" l"}
"""What a git mode is in a manifest; any other regular mode counts as 100644."""

PERMISSION_OF = {"file": b"", "exec": b" x", "link": b" l"}
"""What a kind (:mod:`slotgc.base`) is in a manifest."""

COMMIT_ID = "commit-id"
"""The tag on a check-in that names the commit which became it (:mod:`hub.commits`)."""

_LONGEST_NAME, _LONGEST_PATH = 255, 3500
"""Bytes. NAME_MAX; PATH_MAX is 4096, and a worktree is somewhere."""


class Checkin(Record):
    """A check-in ready to be stored: its manifest, the artifact that names its files."""

    hash: str
    manifest: bytes


def pack(content: bytes) -> Row:
    """Return the row for *content*."""
    size = len(content)
    return (
        size,
        hashlib.sha3_256(content).digest(),
        size.to_bytes(4, "big") + zlib.compress(content, LEVEL),
    )


def is_artifact(content: bytes) -> bool:
    """Return whether Fossil would take *content* for one of its own control artifacts.

    Then it would act on it when it is received or at the next rebuild: make check-ins, edit
    comments, add tags. Source: fossil 2.21 manifest.c ``manifest_parse``: after an optional
    PGP signature is taken off, the first line starts with a card letter and a space, and the
    last is ``Z`` with the MD5 of all before it.
    """
    content = without_signature(content)
    return (
        _has_ends(content[:2], content[-TAIL_BYTES:])
        and hashlib.md5(content[:-TAIL_BYTES], usedforsecurity=False).hexdigest().encode()
        == content[-33:-1]
    )


def may_be_artifact(head: bytes, tail: bytes) -> bool:
    """Return whether a content could be a control artifact, signed or not.

    *head* are its first :data:`HEAD_BYTES`, *tail* its last :data:`TAIL_BYTES`. Its MD5 is not
    looked at: what has both ends of one is suspicious enough.
    """
    return head.startswith(_PGP) or _has_ends(head, tail)


def _has_ends(first: bytes, last: bytes) -> bool:
    """Return whether the ends are those of an unsigned control artifact."""
    return (
        len(last) == TAIL_BYTES
        and last.startswith(b"Z ")
        and last.endswith(b"\n")
        and first[1:2] == b" "
        and b"A" <= first[:1] <= b"Z"
    )


def without_signature(content: bytes) -> bytes:
    """Return what a PGP clear-signature encloses; *content* if there is none.

    Source: fossil 2.21 manifest.c ``remove_pgp_signature``.
    """
    if not content.startswith(_PGP):
        return content
    start = content.find(b"\n\n")
    end = content.find(_PGP_END, start)
    return content if start < 0 or end < 0 else content[start + 2 : end + 1]


def unfit_name(path: bytes) -> str | None:
    """Return why a file of that name cannot be in a check-in; None if it can."""
    if b"\0" in path:
        return "not a simple path"
    if len(path) > _LONGEST_PATH:
        return f"longer than {_LONGEST_PATH} bytes"
    parts = path.split(b"/")
    if parts[0] in (b".orchestrator", b".bones"):
        return "the hub's own directory"
    for part in parts:
        if part in (b"", b".", b".."):
            return "not a simple path"
        if part == b".git":
            return "git's own name"
        if part.lower().removesuffix(b"-journal").removesuffix(b"-wal").removesuffix(b"-shm") in (
            b".fslckout",
            b"_fossil_",
        ):
            return "Fossil's own name"
        if len(part) > _LONGEST_NAME:
            return f"a name longer than {_LONGEST_NAME} bytes"
    return None


def checkin(
    *,
    files: Iterable[tuple[bytes, bytes, bytes]],
    comment: str,
    date: str,
    user: str,
    parent: str | None,
    commit_id: str = "",
) -> Checkin:
    """Return the check-in of *files*: (path, permission, digest of the content), sorted by path.

    *date* is :func:`date_of` it; without a *parent* it is the root of trunk. *commit_id* becomes
    the value of its tag :data:`COMMIT_ID`.
    """
    text = bytearray(b"C %s\nD %s\n" % (_escaped(comment.encode()), date.encode()))
    for path, permission, digest in files:
        text += b"F %s %s%s\n" % (_escaped(path), digest.hex().encode(), permission)
    return _sealed(text, user, parent, commit_id)


def delta_checkin(
    *,
    baseline: str | None,
    cards: Iterable[bytes],
    comment: str,
    date: str,
    user: str,
    parent: str,
    commit_id: str = "",
) -> Checkin:
    """Return a check-in told by its difference from *baseline*, one with a full manifest.

    *cards*: a :func:`file_card` for every path that is not as it is in the baseline (None: as in
    an empty tree, which makes the manifest a full one), sorted by path. The rest as in
    :func:`checkin`.
    """
    told_against = b"" if baseline is None else b"B %s\n" % baseline.encode()
    head = told_against + b"C %s\nD %s\n" % (_escaped(comment.encode()), date.encode())
    text = bytearray(b"".join((head, *cards)))
    return _sealed(text, user, parent, commit_id)


def file_card(path: bytes, kind: str = "", name: str = "") -> bytes:
    """Return the line for *path* in a manifest; without *kind* and hash: it is not there."""
    if not kind:
        return b"F %s\n" % _escaped(path)
    return b"F %s %s%s\n" % (_escaped(path), name.encode(), PERMISSION_OF[kind])


def date_of(at_ms: int) -> str:
    """Return a moment, in milliseconds since the epoch, as a D card has it: ISO 8601, UTC."""
    return clock.utc(at_ms * 1_000_000)[:-1]


def _sealed(text: bytearray, user: str, parent: str | None, commit_id: str) -> Checkin:
    """Return the check-in whose first cards are *text*.

    Cards come in the order of their letters, and T cards in that of their tags: Fossil stores
    what does not keep it as a file that means nothing. Source: manifest.c.
    """
    if parent is None:
        text += b"T *branch * trunk\nT *sym-trunk *\n"
    else:
        text += b"P %s\n" % parent.encode()
    if commit_id:
        text += b"T +%s * %s\n" % (COMMIT_ID.encode(), _escaped(commit_id.encode()))
    text += b"U %s\n" % _escaped(user.encode())
    text += b"Z %s\n" % hashlib.md5(text, usedforsecurity=False).hexdigest().encode()
    return Checkin(hash=hashlib.sha3_256(text).hexdigest(), manifest=bytes(text))


_ESCAPES = {
    b"\\": b"\\\\",
    b" ": b"\\s",
    b"\n": b"\\n",
    b"\t": b"\\t",
    b"\r": b"\\r",
    b"\v": b"\\v",
    b"\f": b"\\f",
    b"\0": b"\\0",
}
_ESCAPED = frozenset(b"".join(_ESCAPES))


def _escaped(token: bytes) -> bytes:
    """Return *token* as a card takes it. Source: fossil 2.21 encode.c ``fossilize``."""
    if _ESCAPED.isdisjoint(token):
        return token
    for char, escape in _ESCAPES.items():  # the backslash first
        if char in token:
            token = token.replace(char, escape)
    return token
