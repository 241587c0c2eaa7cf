"""A program for the guest that makes its kernel's randomness another at once, as no shell can.

VMs of one template wake with the same random numbers to come; what is written to /dev/urandom is
heeded only later. In C, on 64 hexadecimal digits of standard input, which are 256 random bits
(random(4)):

    int fd = open("/dev/urandom", O_WRONLY);
    struct { int bits, size; char text[64]; } seed = {256, 64};
    return read(0, seed.text, 64) != 64 || fd < 0
        || ioctl(fd, RNDADDENTROPY, &seed) || ioctl(fd, RNDRESEEDCRNG, 0);
"""

from __future__ import annotations

import struct

NAME = "reseed"

_BASE = 0x400000
_HEADERS = 64 + 56  # ELF's and one program header
_CODE = (
    bytes.fromhex(
        "4883ec50"  # sub rsp, 80
        "c7042400010000"  # mov dword [rsp], 256
        "c744240440000000"  # mov dword [rsp+4], 64
        "31c031ff488d742408ba400000000f05"  # read(0, rsp+8, 64)
        "83f8407546"  # not 64: fail
        "b802000000488d3d46000000be010000000f05"  # open(path, O_WRONLY)
        "85c0782f"  # negative: fail
        "89c389c7b810000000be035208404889e20f05"  # ioctl(fd, RNDADDENTROPY, rsp)
        "85c07518"  # not 0: fail
        "89dfb810000000be0752000031d20f05"  # ioctl(fd, RNDRESEEDCRNG, 0)
        "85c07504"  # not 0: fail
        "31ffeb05"  # status 0
        "bf01000000"  # fail: status 1
        "b83c0000000f05"  # exit(status)
    )
    + b"/dev/urandom\0"
)


def program() -> bytes:
    """Return it: an ELF executable for x86-64 Linux that needs nothing."""
    size = _HEADERS + len(_CODE)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        *("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + _CODE
