"""Frames as guests send them, and the fields that tests read back."""

from __future__ import annotations

import socket
import struct

from orchestrator.net.addresses import GATEWAY_MAC

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ALL = b"\xff" * 6


def packed(ip: str) -> bytes:
    """Return an IPv4 address as it stands in a packet."""
    return socket.inet_aton(ip)


def checksum(data: bytes) -> int:
    """Return the internet checksum. Source: RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ethernet(payload: bytes, *, to: bytes, source: bytes, kind: int) -> bytes:
    """Return a frame."""
    return to + source + struct.pack("!H", kind) + payload


def arp(
    operation: int,
    *,
    mac: bytes,
    ip: bytes,
    asked: bytes,
    to: bytes = ALL,
    source: bytes = b"",
    target: bytes = bytes(6),
) -> bytes:
    """Return an ARP frame: 1 asks who has *asked*, 2 answers *asked* that *mac* has *ip*."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + ip + target + asked
    return ethernet(body, to=to, source=source or mac, kind=0x0806)


def ipv4(
    carried: bytes,
    *,
    source: bytes,
    to: bytes,
    protocol: int,
    flags: int = 0x4000,
    length: int | None = None,
    options: bytes = b"",
    ttl: int = 64,
) -> bytes:
    """Return a packet; *length* is what it says of itself, if not the truth."""
    words = 5 + len(options) // 4
    said = 4 * words + len(carried) if length is None else length
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | words, 0, said, 7, flags, ttl, protocol, 0, source, to
    )
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + carried


def _pseudo(source: bytes, to: bytes, protocol: int, length: int) -> bytes:
    return source + to + struct.pack("!BBH", 0, protocol, length)


def tcp(
    source: bytes,
    to: bytes,
    sport: int,
    dport: int,
    *,
    flags: int = SYN,
    seq: int = 1000,
    ack: int = 0,
    data: bytes = b"",
) -> bytes:
    """Return a segment."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 64240, 0, 0)
    total = checksum(_pseudo(source, to, TCP, len(head) + len(data)) + head + data)
    return head[:16] + struct.pack("!H", total) + head[18:] + data


def udp(sport: int, dport: int, data: bytes = b"") -> bytes:
    """Return a datagram without a checksum, as IPv4 allows."""
    return struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data


def echo(number: int = 1, *, kind: int = 8) -> bytes:
    """Return a ping."""
    body = struct.pack("!BBHHH", kind, 0, 0, 77, number) + b"ping" * 8
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def to_gateway(packet: bytes, *, mac: bytes, to: bytes = GATEWAY_MAC) -> bytes:
    """Return *packet* in a frame from *mac* to the gateway."""
    return ethernet(packet, to=to, source=mac, kind=0x0800)
