"""What the public key of a user of the bus looks like."""

from __future__ import annotations

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_AS_PYTHON = str.maketrans(_LETTERS, "0123456789abcdefghijklmnopqrstuv")
_LENGTH = 56
_BYTES = 35
"""A prefix, the 32 bytes of the key, its checksum."""


def has_form(text: object) -> bool:
    """Tell whether *text* has the form of a user's public nkey; it may be mistyped."""
    return (
        isinstance(text, str)
        and len(text) == _LENGTH
        and text[0] == "U"
        and not text.strip(_LETTERS)
    )


def is_public_key(text: object) -> bool:
    """Tell whether *text* is a user's public nkey, its checksum included.

    A server refuses its whole configuration for one key that is none.

    Source: nkeys: base32 of prefix, key and CRC-16/XMODEM, little-endian; ``U`` is the prefix.
    """
    from binascii import crc_hqx  # noqa: PLC0415 - 0.2 ms that a start without slots saves

    if not isinstance(text, str) or not has_form(text):
        return False
    decoded = int(text.translate(_AS_PYTHON), 32).to_bytes(_BYTES, "big")
    return crc_hqx(decoded[:-2], 0) == int.from_bytes(decoded[-2:], "little")
