"""The caller: the guest's program that makes system calls for the host, and how it is asked.

It waits in the template that VMs wake from and needs no shell, fork or exec, which is most of what
a guest would do otherwise until it is who it should be: code that has not been run yet is slow.

A request is one message on standard input, at most ``LONGEST`` bytes, read to ``ADDRESS``::

    16 bytes  any token
     u32      the message's length, this header included
     u32      the number of calls
    7 x u64   each call: its number and six arguments
     ...      what the arguments point to

The answer is the same message as it is then in memory: each call's result is in place of its
number, and what a call has written is where it was to write. Little-endian. All calls are made,
whatever the ones before returned.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    Argument = int | bytes | tuple[bytes, ...]

NAME = "caller"
ADDRESS = 0x500000
LONGEST = 65_536
HEADER = struct.Struct("<16sII")
CALL = struct.Struct("<Q6Q")
RESULT = struct.Struct("<q")

_BASE = 0x400000
_HEADERS = 64 + 2 * 56  # ELF's and two program headers
_PAGE = 0x1000
# Where a message that is in memory already is carried out: ebp = ADDRESS, on to its calls.
_AT_ONCE = bytes.fromhex("bd00005000eb24")
_CODE = bytes.fromhex(
    "bd00005000"  # ebp = ADDRESS
    # next:
    "89ee"  # esi = ebp
    "ba18000000"  # edx = 24
    "e85e000000"  # fill(): the header
    "8b5510"  # edx = its length
    "83ea18"  # less 24
    "81fae8ff0000"  # more than LONGEST - 24, or negative:
    "7765"  # fail
    "e84b000000"  # fill(): the rest
    "448b6514"  # r12d = the number of calls
    "8d5d18"  # ebx = the first
    # each:
    "41ffcc"  # r12d -= 1
    "7825"  # negative: answer
    "488b03"  # rax = the call's number
    "488b7b08"  # rdi, rsi, rdx, r10, r8, r9 = its arguments
    "488b7310"
    "488b5318"
    "4c8b5320"
    "4c8b4328"
    "4c8b4b30"
    "0f05"  # syscall
    "488903"  # its result, in place of its number
    "83c338"  # ebx += 56
    "ebd6"  # each
    # answer:
    "89ee"  # esi = ebp
    "8b5510"  # edx = the length
    # more:
    "b801000000"  # write(0, rsi, edx)
    "31ff"
    "0f05"
    "85c0"  # none, or an error:
    "7e1d"  # fail
    "01c6"  # esi += eax
    "29c2"  # edx -= eax
    "75ed"  # not 0: more
    "eb96"  # next
    # fill:
    "85d2"  # edx is 0:
    "7410"  # return
    "31c0"  # read(0, rsi, edx)
    "31ff"
    "0f05"
    "85c0"  # an error:
    "7807"  # fail
    "01c6"  # esi += eax: none, if the port does not know yet that there is a host
    "29c2"  # edx -= eax
    "ebec"  # fill
    "c3"  # return
    # fail: exit(1); the guest's init starts another one, which is in step
    "bf01000000"
    "b83c000000"
    "0f05"
)


def program(message: bytes = b"") -> bytes:
    """Return it: an ELF executable for x86-64 Linux that needs nothing.

    With a *message* of any length it begins by carrying that out.
    """
    code = (_AT_ONCE if message else b"") + _CODE
    size = _HEADERS + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(
        *("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    rest = bytes(-size % _PAGE) + message if message else b""
    begin, room = size + len(rest) - len(message), max(LONGEST, len(message))
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, _PAGE) + struct.pack(
        *("<IIQQQQQQ", 1, 6, begin if message else 0, ADDRESS, ADDRESS, len(message), room, _PAGE)
    )
    return header + segments + code + rest


def request(token: bytes, calls: list[tuple[int, tuple[Argument, ...]]]) -> bytes:
    """Return the message that asks for *calls*, each a number and arguments.

    Bytes are placed in the message and pointed to; so are tuples of them, with a null behind.

    Raises:
        ValueError: it is too long, or *token* is not 16 bytes.
    """
    message = unbounded(token, calls)
    if len(message) > LONGEST:
        raise ValueError(f"{len(message)} bytes, {LONGEST} at most")
    return message


def unbounded(token: bytes, calls: list[tuple[int, tuple[Argument, ...]]]) -> bytes:
    """Return :func:`request`'s message, of any length, for :func:`program`."""
    if len(token) != HEADER.size - 8:
        raise ValueError(f"{token!r} is not 16 bytes")
    begin = HEADER.size + CALL.size * len(calls)
    made, placed = bytearray(), bytearray()

    def place(content: bytes) -> int:
        at = ADDRESS + begin + len(placed)
        placed.extend(content + bytes(-len(content) % 8))
        return at

    for number, arguments in calls:
        values = []
        for argument in arguments:
            if isinstance(argument, bytes):
                values.append(place(argument))
            elif isinstance(argument, tuple):
                pointers = [*map(place, argument), 0]
                values.append(place(struct.pack(f"<{len(pointers)}Q", *pointers)))
            else:
                values.append(argument & 0xFFFF_FFFF_FFFF_FFFF)
        made += CALL.pack(number, *values, *[0] * (6 - len(values)))
    return HEADER.pack(token, begin + len(placed), len(calls)) + bytes(made + placed)


def results(answer: bytes) -> list[int]:
    """Return what each call has returned, a negative error number if it failed."""
    _token, _length, count = HEADER.unpack_from(answer)
    return [RESULT.unpack_from(answer, HEADER.size + CALL.size * n)[0] for n in range(count)]


def written(answer: bytes, call: int, argument: int) -> bytes:
    """Return the message from where *argument* (from 0) of *call* points."""
    values = CALL.unpack_from(answer, HEADER.size + CALL.size * call)
    return answer[values[1 + argument] - ADDRESS :]
