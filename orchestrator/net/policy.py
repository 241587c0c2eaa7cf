"""Which frames pass, and why the others do not. Pure; nothing here raises, whatever the bytes.

slirp makes a connection of this host out of whatever it is sent, and what is addressed to its own
network it sends to 127.0.0.1: the gateway's address, the name server's (but for what the host's
resolver takes), every address that no member has, and broadcasts. It looks at no MAC, and opens a
connection for a segment with SYN and none of ACK, RST, FIN. So it is told nothing that is not
allowed here. Source: libslirp 4.7: slirp_input, tcp_input, udp_input, icmp_input, sotranslate_out.

A filter takes an Ethernet frame and returns "" if it passes, else a slug.
"""

from __future__ import annotations

from foundation.record import Record
from orchestrator.net.addresses import (
    GATEWAY_IP,
    GATEWAY_MAC,
    MTU,
    NAME_SERVER_IP,
    NAME_SERVER_MAC,
    PREFIX,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Filter = Callable[[bytes], str]

ETHERNET = 14
"""The length of a frame's header, in bytes: to, from, what is inside."""
FRAME_LIMIT = ETHERNET + MTU
IPV4, ARP = b"\x08\x00", b"\x08\x06"
BROADCAST = b"\xff" * 6
ICMP, TCP, UDP = 1, 6, 17
DNS_PORT = 53

_IP, _TCP, _UDP, _ICMP = 20, 20, 8, 8
"""The least that a header takes, in bytes."""
_PLAIN = 0x45
"""The first byte of an IPv4 header without options."""
_WHOLE = (b"\x00\x00", b"\x40\x00")
"""Flags and offset of a packet that is no fragment; slirp takes the reserved bit for one."""
_ARP_HEAD = b"\x00\x01\x08\x00\x06\x04"
_ARP_END = ETHERNET + 28
_ARP_REQUEST, _ARP_REPLY = b"\x00\x01", b"\x00\x02"
_ACK_OR_RST = 0x14
_ECHO = b"\x08\x00"
_UNSET = bytes(4)
_GATEWAY_MACS = (GATEWAY_MAC, NAME_SERVER_MAC)
_GATEWAY_IPS = (GATEWAY_IP, NAME_SERVER_IP)

_NEVER = ((0x00000000, 8), (0x7F000000, 8), (0xA9FE0000, 16), (0xE0000000, 3))
"""This host under every name: 0/8 and 127/8; what no router passes on: link-local addresses, where
clouds hand out a machine's credentials; multicast and what is above it, broadcast included."""


class Rules(Record):
    """What a cluster's guests may reach by way of the gateway, and it them."""

    ports: frozenset[int] = frozenset()
    """TCP ports of this host's loopback that are open to guests, at the gateway's address."""
    forwarded: frozenset[tuple[bytes, int]] = frozenset()
    """(IPv4, TCP port) in guests, to which this host's own connections are forwarded."""
    own: tuple[tuple[int, int], ...] = ()
    """(network, prefix length) of every address that is this host's."""
    egress: bool = True
    """Whether the internet may be reached; without it names are not resolved either, since a
    question to a name server goes out to whom it asks about."""

    def to_gateway(self, frame: bytes) -> str:
        """Filter what guests send to the gateway; that it is theirs :func:`guest_source` says."""
        kind = frame[12:14]
        if kind == ARP:
            if not _arp_is_whole(frame):
                return "malformed"
            return "" if frame[38:42] in _GATEWAY_IPS else "not-for-gateway"
        if kind != IPV4:
            return "protocol"
        if frame[:6] not in _GATEWAY_MACS:
            return "not-for-gateway"
        return _shape(frame) or self._reach(frame)

    def _reach(self, frame: bytes) -> str:
        """Filter a packet of good shape by where it goes."""
        protocol, to = frame[23], frame[30:34]
        port = int.from_bytes(frame[36:38], "big")
        if to == GATEWAY_IP:
            if protocol == ICMP or (protocol == TCP and port in self.ports):
                return ""
            if protocol == TCP and frame[47] & _ACK_OR_RST:
                answers = (frame[26:30], int.from_bytes(frame[34:36], "big")) in self.forwarded
                return "" if answers else "port"
            return "port"
        if to == NAME_SERVER_IP:
            if protocol == ICMP or port != DNS_PORT:
                return "port"
            return "" if self.egress else "egress"
        if to[:3] == PREFIX:
            return "not-for-gateway"
        if not self.egress:
            return "egress"
        number = int.from_bytes(to, "big")
        if _within(number, _NEVER):
            return "address"
        return "this-host" if _within(number, self.own) else ""


def guest_source(mac: bytes, ip: bytes) -> Filter:
    """Return the filter for what a guest sends: only as itself, and nothing but IPv4 and ARP."""
    as_ip, as_arp = mac + IPV4, mac + ARP

    def refusal(frame: bytes) -> str:
        head = frame[6:14]
        if head == as_ip:
            return "" if frame[26:30] == ip and frame[14] >> 4 == 4 else "spoofed"  # noqa: PLR2004 - IPv4
        if head == as_arp:
            if not _arp_is_whole(frame):
                return "malformed"
            sender, request = frame[28:32], frame[20:22] == _ARP_REQUEST
            if frame[22:28] != mac or (sender != ip and not (request and sender == _UNSET)):
                return "spoofed"
            return ""
        return "protocol" if head[:6] == mac else "spoofed"

    return refusal


def from_gateway(frame: bytes) -> str:
    """Filter what the gateway sends: only as itself or from outside, and only to members."""
    kind, source = frame[12:14], frame[6:12]
    if source not in _GATEWAY_MACS:
        return "spoofed"
    if kind == ARP:
        if not _arp_is_whole(frame):
            return "malformed"
        as_itself = frame[22:28] == source == b"\x52\x55" + frame[28:32]
        return "" if as_itself else "spoofed"
    if kind != IPV4 or len(frame) < ETHERNET + _IP or frame[14] >> 4 != 4:  # noqa: PLR2004 - IPv4
        return "protocol"
    sender, to = frame[26:30], frame[30:34]
    if sender[:3] == PREFIX and sender not in _GATEWAY_IPS:
        return "spoofed"
    return "" if to[:3] == PREFIX and to not in _GATEWAY_IPS else "address"


def _within(number: int, networks: tuple[tuple[int, int], ...]) -> bool:
    for network, length in networks:  # noqa: SIM110 - `any` of a generator takes twice the time
        if (number ^ network) >> (32 - length) == 0:
            return True
    return False


def _arp_is_whole(frame: bytes) -> bool:
    return (
        len(frame) >= _ARP_END
        and frame[14:20] == _ARP_HEAD
        and frame[20:22] in (_ARP_REQUEST, _ARP_REPLY)
    )


def _shape(frame: bytes) -> str:
    """Filter by form: IPv4 in one piece, without options, with a whole header of what it carries.

    Fragments are reassembled by slirp, whose code for that has had the worst of its holes; nobody
    needs them on a network of one MTU.
    """
    if len(frame) > FRAME_LIMIT:
        return "oversized"
    if len(frame) < ETHERNET + _IP or frame[14] != _PLAIN:
        return "malformed"
    length = int.from_bytes(frame[16:18], "big")
    carried = length - _IP
    if length > len(frame) - ETHERNET or carried < 0:
        return "malformed"
    if frame[20:22] not in _WHOLE:
        return "fragment"
    protocol = frame[23]
    if protocol == TCP:
        header = frame[46] >> 4 << 2 if carried >= _TCP else 0
        return "" if _TCP <= header <= carried else "malformed"
    if protocol == UDP:
        said = int.from_bytes(frame[38:40], "big") if carried >= _UDP else 0
        return "" if _UDP <= said <= carried else "malformed"
    if protocol == ICMP:
        if carried < _ICMP:
            return "malformed"
        return "" if frame[34:36] == _ECHO else "protocol"
    return "protocol"
