"""What the public key of a user of the bus looks like."""

from __future__ import annotations

from binascii import crc_hqx

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_AS_PYTHON = str.maketrans(_LETTERS, "0123456789abcdefghijklmnopqrstuv")
_LENGTH = 56
_BYTES = 35
"""A prefix, the 32 bytes of the key, its checksum."""


def is_public_key(text: object) -> bool:
    """Tell whether *text* is a user's public nkey, its checksum included.

    A server refuses its whole configuration for one key that is none.

    Source: nkeys: base32 of prefix, key and CRC-16/XMODEM, little-endian; ``U`` is the prefix.
    """
    if not isinstance(text, str) or len(text) != _LENGTH or text[0] != "U" or text.strip(_LETTERS):
        return False
    decoded = int(text.translate(_AS_PYTHON), 32).to_bytes(_BYTES, "big")
    return crc_hqx(decoded[:-2], 0) == int.from_bytes(decoded[-2:], "little")
