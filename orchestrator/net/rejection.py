"""What a guest is told of a packet that was refused, so that it need not wait for an answer. Pure.

A connection that may not be is reset, as by a host where nobody listens; a datagram is answered
with ICMP. Source: RFC 9293 3.5.2, RFC 792, RFC 1812 5.2.7.1
"""

from __future__ import annotations

import struct

from orchestrator.net.addresses import GATEWAY_IP
from orchestrator.net.policy import ETHERNET, ICMP, IPV4, TCP, UDP

TOLD = frozenset(("port", "egress", "address", "this-host"))
"""The reasons that are told; what is malformed or not for the gateway is not answered."""

_IP_END = ETHERNET + 20
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_TTL = 64
_PROHIBITED = b"\x03\x0d"
_QUOTED = 28
"""Of the packet: its header, and the ports behind it."""


def rejection(frame: bytes, reason: str) -> bytes:
    """Return the frame that answers *frame*, b"" if none does.

    *frame* was refused by :meth:`orchestrator.net.policy.Rules.to_gateway` for *reason*, so that
    its headers are whole if the reason is one of :data:`TOLD`.
    """
    if reason not in TOLD:
        return b""
    protocol, asker, asked = frame[23], frame[26:30], frame[30:34]
    if protocol == TCP and not frame[47] & _RST:
        packet = _ip(_reset(frame, asker, asked), asked, asker, TCP)
    elif protocol == UDP:
        quoted = frame[ETHERNET : ETHERNET + _QUOTED]
        said = _PROHIBITED + bytes(6) + quoted
        said = said[:2] + _checksum(said) + said[4:]
        packet = _ip(said, GATEWAY_IP, asker, ICMP)
    else:
        return b""
    return frame[6:12] + frame[:6] + IPV4 + packet


def _reset(frame: bytes, asker: bytes, asked: bytes) -> bytes:
    """Return the segment that resets what the one in *frame* would open or go on with."""
    sport, dport, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", frame, _IP_END)
    if flags & _ACK:
        seq, ack, flags = ack, 0, _RST
    else:
        end = ETHERNET + int.from_bytes(frame[16:18], "big")
        data = end - _IP_END - (offset >> 4 << 2)
        counted = data + bool(flags & _SYN) + bool(flags & _FIN)
        seq, ack, flags = 0, (seq + counted) & 0xFFFFFFFF, _RST | _ACK
    segment = struct.pack("!HHIIBBHHH", dport, sport, seq, ack, 5 << 4, flags, 0, 0, 0)
    covered = asked + asker + struct.pack("!BBH", 0, TCP, len(segment)) + segment
    return segment[:16] + _checksum(covered) + segment[18:]


def _ip(carried: bytes, source: bytes, to: bytes, protocol: int) -> bytes:
    length = 20 + len(carried)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, _TTL, protocol, 0) + source + to
    return head[:10] + _checksum(head) + head[12:] + carried


def _checksum(data: bytes) -> bytes:
    """Return the internet checksum of an even number of bytes. Source: RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ((total + (total >> 16)) & 0xFFFF ^ 0xFFFF).to_bytes(2, "big")
