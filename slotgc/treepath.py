"""Paths of files in a worktree: bytes, relative, and never leading out of it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GIT = b".git"
CHECKOUT_FILES = (b".fslckout", b"_FOSSIL_")
"""Fossil's database of a check-out, under either of its names. Source: fossil's db.c."""

BOOKKEEPING = frozenset(
    {GIT} | {name + end for name in CHECKOUT_FILES for end in (b"", b"-journal", b"-wal", b"-shm")}
)
"""What git and Fossil keep at the top of a worktree, which is nobody's file in it."""

_SHOWN = 200
_NO_NAMES = frozenset((b"", b".", b".."))


def is_sound(path: bytes) -> bool:
    """Tell whether *path* names a file inside a worktree, and none of :data:`BOOKKEEPING`."""
    names = path.split(b"/")
    return (
        _NO_NAMES.isdisjoint(names)
        and b"\0" not in path
        and names[0] != GIT
        and path not in BOOKKEEPING
    )


def to_json(path: bytes) -> str | dict[str, str]:
    """Return *path* for JSON: a string, or ``{"b64": …}`` if it is not UTF-8."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        import binascii  # noqa: PLC0415 - hardly ever

        return {"b64": binascii.b2a_base64(path, newline=False).decode()}


def from_json(value: Any) -> bytes:
    """Return the path that :func:`to_json` wrote.

    Raises:
        ValueError: it is none, or leads out of the worktree.
    """
    if isinstance(value, str):
        path = value.encode()  # of a lone surrogate: UnicodeEncodeError, a ValueError
    elif isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        import binascii  # noqa: PLC0415

        path = binascii.a2b_base64(value["b64"], strict_mode=True)
    else:
        raise ValueError(f"{value!r:.80} is no path")
    if not is_sound(path):
        raise ValueError(f"{path!r:.80} is no path inside a worktree")
    return path


def show(path: bytes) -> str:
    """Return *path* for a person, cut short; what would harm a terminal or a line is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    if len(text) > _SHOWN:
        text = text[: _SHOWN - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
