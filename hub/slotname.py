"""What a slot may be called: its name is a directory, a NATS subject token and an author."""

from __future__ import annotations

from foundation.errors import Refused

LONGEST = 63
RESERVED = frozenset({"anonymous", "developer", "hub", "nobody", "operator", "reader", "sys"})
"""Logins of Fossil and of the bus that are somebody else's."""

_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_REST = _FIRST | frozenset("-_")


def is_name(text: object) -> bool:
    """Tell whether *text* may name a slot."""
    return has_form(text) and str(text).lower() not in RESERVED


def has_form(text: object) -> bool:
    """Tell whether *text* is spelled as names are: of slots, of clusters and of their members."""
    return (
        isinstance(text, str)
        and 0 < len(text) <= LONGEST
        and text[0] in _FIRST
        and _REST.issuperset(text)
    )


def check(text: str) -> str:
    """Return *text*, which may name a slot.

    Raises:
        Refused: it may not (``slot-name``).
    """
    if not is_name(text):
        raise Refused(
            f"{text[:80]!r} cannot name a slot: at most {LONGEST} letters, digits, - and _, the "
            f"first a letter or a digit, and none of {', '.join(sorted(RESERVED))}",
            reason="slot-name",
        )
    return text
