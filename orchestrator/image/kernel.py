"""The kernel inside a bzImage: QEMU starts it directly, 0.2 s sooner than the bzImage."""

from __future__ import annotations

import ctypes
import struct

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_BLOCK_BYTES = 8 << 20
"""What a block of lz4's legacy form unpacks to, at most."""
_LARGEST = 256 << 20
_ELF = b"\x7fELF"


def unpacked(bzimage: bytes) -> bytes | None:
    """Return the ELF kernel that *bzimage* unpacks itself to, None if we cannot tell.

    It is one if it was packed by lz4, whose library is there, and not for 32 bits. Source of the
    header: https://www.kernel.org/doc/html/latest/arch/x86/boot.html, payload_offset and
    payload_length.
    """
    if bzimage[0x202:0x206] != b"HdrS":
        return None
    sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if not payload.startswith(_LZ4_LEGACY):
        return None
    kernel = _lz4_legacy(payload[len(_LZ4_LEGACY) :])
    return kernel if kernel and kernel.startswith(_ELF) else None


def _lz4_legacy(packed: bytes) -> bytes | None:
    try:
        library = ctypes.CDLL("liblz4.so.1")
    except OSError:
        return None
    unpack = library.LZ4_decompress_safe
    block = ctypes.create_string_buffer(_BLOCK_BYTES)
    parts: list[bytes] = []
    at = size = 0
    while at + 4 <= len(packed):
        (length,) = struct.unpack_from("<I", packed, at)
        at += 4
        # The last four bytes of a bzImage's payload are the length of the whole, not a block's.
        if at + length > len(packed):
            break
        got = unpack(packed[at : at + length], block, length, _BLOCK_BYTES)
        size += max(0, got)
        if got < 0 or size > _LARGEST:
            return None
        parts.append(block.raw[:got])
        at += length
    return b"".join(parts)
