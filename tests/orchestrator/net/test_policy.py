"""Which frames pass the gateway, and why the others do not."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.net.addresses import GATEWAY_MAC, NAME_SERVER_MAC, Addresses
from orchestrator.net.policy import Rules, from_gateway, guest_source
from orchestrator.net.rejection import rejection
from tests.orchestrator.net.frames import (
    ACK,
    ALL,
    FIN,
    ICMP,
    RST,
    SYN,
    TCP,
    UDP,
    arp,
    checksum,
    echo,
    ethernet,
    ipv4,
    packed,
    tcp,
    to_gateway,
    udp,
)

ADDRESSES = Addresses("c")
MAC, IP = ADDRESSES.reserve("me").packed
OTHER_MAC, OTHER_IP = ADDRESSES.reserve("other").packed
GATEWAY, DNS, OUTSIDE = packed("10.77.0.1"), packed("10.77.0.3"), packed("93.184.216.34")
RULES = Rules(
    ports=frozenset({4222}),
    forwarded=frozenset({(IP, 22)}),
    own=((int(ipaddress.ip_address("192.0.2.7")), 32), (int(ipaddress.ip_address("127.0.0.0")), 8)),
)
CLOSED = RULES.replace(egress=False)


def words(value: object) -> str:
    """Name a case by its words, not by its bytes."""
    return value if isinstance(value, str) else ""


def segment(to: bytes, port: int, *, flags: int = SYN, sport: int = 40000) -> bytes:
    """Return a TCP segment from us to the gateway's MAC."""
    carried = tcp(IP, to, sport, port, flags=flags)
    return to_gateway(ipv4(carried, source=IP, to=to, protocol=TCP), mac=MAC)


def datagram(to: bytes, port: int) -> bytes:
    """Return a UDP datagram from us to the gateway's MAC."""
    return to_gateway(ipv4(udp(40000, port, b"?"), source=IP, to=to, protocol=UDP), mac=MAC)


def ping(to: bytes) -> bytes:
    """Return a ping from us to the gateway's MAC."""
    return to_gateway(ipv4(echo(), source=IP, to=to, protocol=ICMP), mac=MAC)


def asking(ip: bytes) -> bytes:
    """Return our question who has *ip*."""
    return arp(1, mac=MAC, ip=IP, asked=ip)


@pytest.mark.parametrize(
    ("sentence", "frame"),
    [
        ("the hub's port on the host, at the gateway's address", segment(GATEWAY, 4222)),
        ("an answer in a forwarded connection", segment(GATEWAY, 50000, flags=SYN | ACK, sport=22)),
        ("the end of a forwarded connection", segment(GATEWAY, 50000, flags=RST, sport=22)),
        ("a ping of the gateway", ping(GATEWAY)),
        ("a name, over UDP", datagram(DNS, 53)),
        ("a name, over TCP", segment(DNS, 53)),
        ("a web server", segment(OUTSIDE, 443)),
        ("a datagram to the internet", datagram(OUTSIDE, 123)),
        ("a ping of the internet", ping(OUTSIDE)),
        ("who has the gateway's address", asking(GATEWAY)),
        ("who has the name server's address", asking(DNS)),
        ("an answer to the gateway's question", arp(2, mac=MAC, ip=IP, asked=GATEWAY)),
    ],
    ids=words,
)
def test_a_guest_reaches(sentence: str, frame: bytes) -> None:
    assert RULES.to_gateway(frame) == "", sentence
    assert guest_source(MAC, IP)(frame) == ""


@pytest.mark.parametrize(
    ("sentence", "frame", "reason"),
    [
        ("any other port of the host", segment(GATEWAY, 22), "port"),
        ("the allowed port over UDP", datagram(GATEWAY, 4222), "port"),
        ("slirp's TFTP", datagram(GATEWAY, 69), "port"),
        ("slirp's DHCP", datagram(GATEWAY, 67), "port"),
        (
            "a host's port, by a SYN from a forwarded port",
            segment(GATEWAY, 50000, sport=22),
            "port",
        ),
        (
            "a host's port, by an answer from one that is not",
            segment(GATEWAY, 50000, flags=ACK, sport=23),
            "port",
        ),
        ("the name server's other ports over TCP", segment(DNS, 4222), "port"),
        ("the name server's other ports over UDP", datagram(DNS, 5353), "port"),
        ("the name server by ping", ping(DNS), "port"),
        ("an address that nobody has", segment(packed("10.77.0.2"), 4222), "not-for-gateway"),
        ("another member, by way of the host", segment(OTHER_IP, 4222), "not-for-gateway"),
        ("itself, by way of the host", segment(IP, 4222), "not-for-gateway"),
        ("the network's broadcast", datagram(packed("10.77.0.255"), 4222), "not-for-gateway"),
        ("the network's own address", segment(packed("10.77.0.0"), 4222), "not-for-gateway"),
        ("the host as 127.0.0.1", segment(packed("127.0.0.1"), 4222), "address"),
        ("the host as 127.9.9.9", segment(packed("127.9.9.9"), 4222), "address"),
        ("the host as 0.0.0.0", segment(packed("0.0.0.0"), 4222), "address"),
        ("the host as 0.1.2.3", segment(packed("0.1.2.3"), 4222), "address"),
        ("the host by its address on its network", segment(packed("192.0.2.7"), 22), "this-host"),
        ("credentials of a cloud", segment(packed("169.254.169.254"), 80), "address"),
        ("everybody", datagram(packed("255.255.255.255"), 67), "address"),
        ("a group", datagram(packed("224.0.0.251"), 5353), "address"),
        ("reserved addresses", segment(packed("240.0.0.1"), 80), "address"),
        ("who has another member's address", asking(OTHER_IP), "not-for-gateway"),
        ("who has an address outside", asking(OUTSIDE), "not-for-gateway"),
        ("ARP cut short", asking(GATEWAY)[:41], "malformed"),
        ("reverse ARP", arp(3, mac=MAC, ip=IP, asked=GATEWAY), "malformed"),
        ("IPv6", ethernet(bytes(60), to=GATEWAY_MAC, source=MAC, kind=0x86DD), "protocol"),
        ("a VLAN", ethernet(bytes(60), to=GATEWAY_MAC, source=MAC, kind=0x8100), "protocol"),
        ("slirp's NC-SI", ethernet(bytes(60), to=ALL, source=MAC, kind=0x88F8), "protocol"),
        ("nothing", b"", "protocol"),
    ],
    ids=words,
)
def test_a_guest_does_not_reach(sentence: str, frame: bytes, reason: str) -> None:
    assert RULES.to_gateway(frame) == reason, sentence


def _raw(to: bytes, carried: bytes, protocol: int, **fields: int | bytes) -> bytes:
    packet = ipv4(carried, source=IP, to=to, protocol=protocol, **fields)  # type: ignore[arg-type]
    return to_gateway(packet, mac=MAC)


SYN_SEGMENT = tcp(IP, OUTSIDE, 40000, 443)


@pytest.mark.parametrize(
    ("sentence", "frame", "reason"),
    [
        ("more fragments follow", _raw(OUTSIDE, SYN_SEGMENT, TCP, flags=0x2000), "fragment"),
        ("a later fragment", _raw(OUTSIDE, SYN_SEGMENT, TCP, flags=0x0001), "fragment"),
        ("the reserved bit", _raw(OUTSIDE, SYN_SEGMENT, TCP, flags=0xC000), "fragment"),
        (
            "options",
            _raw(OUTSIDE, SYN_SEGMENT, TCP, options=b"\x83\x07\x04" + GATEWAY + b"\0"),
            "malformed",
        ),
        ("longer than the frame", _raw(OUTSIDE, SYN_SEGMENT, TCP, length=41), "malformed"),
        ("shorter than its header", _raw(OUTSIDE, SYN_SEGMENT, TCP, length=19), "malformed"),
        ("a segment cut short", _raw(OUTSIDE, SYN_SEGMENT[:19], TCP), "malformed"),
        (
            "a segment of no header",
            _raw(OUTSIDE, SYN_SEGMENT[:12] + b"\x40" + SYN_SEGMENT[13:], TCP),
            "malformed",
        ),
        (
            "a segment of more header than there is",
            _raw(OUTSIDE, SYN_SEGMENT[:12] + b"\x60" + SYN_SEGMENT[13:], TCP),
            "malformed",
        ),
        ("a datagram cut short", _raw(DNS, udp(40000, 53)[:7], UDP), "malformed"),
        (
            "a datagram that says it is longer",
            _raw(DNS, b"\x9c@\x005\x00\x09\0\0", UDP),
            "malformed",
        ),
        (
            "a datagram that says it is shorter",
            _raw(DNS, b"\x9c@\x005\x00\x07\0\0", UDP),
            "malformed",
        ),
        ("a ping cut short", _raw(GATEWAY, echo()[:7], ICMP), "malformed"),
        ("a redirect", _raw(OUTSIDE, echo(kind=5), ICMP), "protocol"),
        ("another protocol", _raw(OUTSIDE, bytes(40), 47), "protocol"),
        ("more than the network takes", _raw(OUTSIDE, udp(1, 2, bytes(1473)), UDP), "oversized"),
        ("only an Ethernet header", _raw(OUTSIDE, b"", TCP)[:14], "malformed"),
        ("a frame to everybody", ALL + segment(OUTSIDE, 443)[6:], "not-for-gateway"),
        ("a frame to another member", OTHER_MAC + segment(OUTSIDE, 443)[6:], "not-for-gateway"),
    ],
    ids=words,
)
def test_nothing_of_bad_shape_reaches_slirp(sentence: str, frame: bytes, reason: str) -> None:
    assert RULES.to_gateway(frame) == reason, sentence


def test_the_largest_packet_passes() -> None:
    assert RULES.to_gateway(_raw(OUTSIDE, udp(1, 2, bytes(1472)), UDP)) == ""


def test_without_egress_only_the_allowed_ports_are_left() -> None:
    assert CLOSED.to_gateway(segment(GATEWAY, 4222)) == ""
    assert CLOSED.to_gateway(ping(GATEWAY)) == ""
    assert CLOSED.to_gateway(segment(GATEWAY, 50000, flags=ACK, sport=22)) == ""
    for frame in (segment(OUTSIDE, 443), datagram(OUTSIDE, 1), ping(OUTSIDE), datagram(DNS, 53)):
        assert CLOSED.to_gateway(frame) == "egress"


@pytest.mark.parametrize(
    ("sentence", "frame", "reason"),
    [
        (
            "to another member",
            ethernet(
                ipv4(echo(), source=IP, to=OTHER_IP, protocol=ICMP),
                to=OTHER_MAC,
                source=MAC,
                kind=0x0800,
            ),
            "",
        ),
        ("whether somebody has its address already", arp(1, mac=MAC, ip=bytes(4), asked=IP), ""),
        ("that it has its address", arp(1, mac=MAC, ip=IP, asked=IP), ""),
        ("from another's MAC", segment(OUTSIDE, 443).replace(MAC, OTHER_MAC), "spoofed"),
        (
            "from another's address",
            to_gateway(ipv4(b"", source=OTHER_IP, to=OUTSIDE, protocol=TCP), mac=MAC),
            "spoofed",
        ),
        (
            "from the gateway's address",
            to_gateway(ipv4(b"", source=GATEWAY, to=OTHER_IP, protocol=TCP), mac=MAC),
            "spoofed",
        ),
        (
            "from no address",
            to_gateway(ipv4(b"", source=bytes(4), to=OTHER_IP, protocol=UDP), mac=MAC),
            "spoofed",
        ),
        (
            "IPv4 of version 6",
            segment(OUTSIDE, 1)[:14] + b"\x65" + segment(OUTSIDE, 1)[15:],
            "spoofed",
        ),
        (
            "that it has the gateway's address",
            arp(2, mac=MAC, ip=GATEWAY, asked=OTHER_IP),
            "spoofed",
        ),
        (
            "that another has its address",
            arp(2, mac=OTHER_MAC, ip=IP, asked=GATEWAY, source=MAC),
            "spoofed",
        ),
        ("that it has no address", arp(2, mac=MAC, ip=bytes(4), asked=IP), "spoofed"),
        ("ARP as another", arp(1, mac=MAC, ip=IP, asked=GATEWAY, source=OTHER_MAC), "spoofed"),
        ("ARP cut short", asking(GATEWAY)[:30], "malformed"),
        ("IPv6", ethernet(bytes(60), to=OTHER_MAC, source=MAC, kind=0x86DD), "protocol"),
        ("next to nothing", MAC, "spoofed"),
    ],
    ids=words,
)
def test_a_guest_sends_only_as_itself(sentence: str, frame: bytes, reason: str) -> None:
    assert guest_source(MAC, IP)(frame) == reason, sentence


def _back(source: bytes, to: bytes, *, mac: bytes = GATEWAY_MAC) -> bytes:
    packet = ipv4(tcp(source, to, 443, 40000), source=source, to=to, protocol=TCP)
    return ethernet(packet, to=MAC, source=mac, kind=0x0800)


@pytest.mark.parametrize(
    ("sentence", "frame", "reason"),
    [
        ("an answer from outside", _back(OUTSIDE, IP), ""),
        ("a forwarded connection", _back(GATEWAY, IP), ""),
        ("an answer of the name server", _back(DNS, IP), ""),
        ("who has an address", arp(1, mac=GATEWAY_MAC, ip=GATEWAY, asked=IP), ""),
        ("where the name server is", arp(2, mac=NAME_SERVER_MAC, ip=DNS, asked=IP), ""),
        ("as a member", _back(OTHER_IP, IP), "spoofed"),
        ("from a member's MAC", _back(OUTSIDE, IP, mac=OTHER_MAC), "spoofed"),
        (
            "that it has a member's address",
            arp(2, mac=GATEWAY_MAC, ip=OTHER_IP, asked=IP),
            "spoofed",
        ),
        ("to whom it likes", _back(OUTSIDE, OUTSIDE), "address"),
        ("to itself", _back(OUTSIDE, GATEWAY), "address"),
        ("ARP cut short", arp(1, mac=GATEWAY_MAC, ip=GATEWAY, asked=IP)[:40], "malformed"),
        ("IPv6", ethernet(bytes(60), to=MAC, source=GATEWAY_MAC, kind=0x86DD), "protocol"),
        ("IPv4 cut short", _back(OUTSIDE, IP)[:33], "protocol"),
    ],
    ids=words,
)
def test_the_gateway_sends_only_as_itself_and_for_those_outside(
    sentence: str, frame: bytes, reason: str
) -> None:
    assert from_gateway(frame) == reason, sentence


# --- what a guest is told -------------------------------------------------------------------


def _told(frame: bytes, rules: Rules = RULES) -> bytes:
    return rejection(frame, rules.to_gateway(frame))


def _is_whole(frame: bytes) -> bool:
    """Tell whether *frame* is for us, and its checksums are right."""
    packet = frame[14:]
    source, to, carried = packet[12:16], packet[16:20], packet[20:]
    covered = carried
    if packet[9] == TCP:
        covered = source + to + bytes((0, TCP)) + len(carried).to_bytes(2, "big") + carried
    return (
        frame[:6] == MAC
        and to == IP
        and int.from_bytes(packet[2:4], "big") == len(packet)
        and checksum(packet[:20]) == checksum(covered) == 0
    )


@pytest.mark.parametrize(
    ("to", "port", "flags", "counted"),
    [
        ("10.77.0.1", 22, SYN, 1),
        ("127.0.0.1", 80, SYN, 1),
        ("93.184.216.34", 443, SYN | FIN, 2),
        ("93.184.216.34", 443, 0, 0),
    ],
)
def test_a_connection_that_may_not_be_is_reset(
    to: str, port: int, flags: int, counted: int
) -> None:
    answer = _told(segment(packed(to), port, flags=flags), CLOSED)
    assert _is_whole(answer)
    assert answer[6:12] == GATEWAY_MAC
    assert answer[26:30] == packed(to)
    assert answer[34:38] == port.to_bytes(2, "big") + (40000).to_bytes(2, "big")
    assert answer[47] == RST | ACK
    assert int.from_bytes(answer[42:46], "big") == 1000 + counted


def test_a_connection_that_may_be_no_longer_is_reset_where_it_is() -> None:
    carried = tcp(IP, GATEWAY, 40000, 22, flags=ACK, seq=5, ack=0xFFFFFFF0, data=b"more")
    answer = _told(to_gateway(ipv4(carried, source=IP, to=GATEWAY, protocol=TCP), mac=MAC))
    assert _is_whole(answer)
    assert answer[47] == RST
    assert int.from_bytes(answer[38:42], "big") == 0xFFFFFFF0


def test_a_datagram_that_may_not_be_is_answered_by_the_gateway() -> None:
    frame = datagram(DNS, 53)
    answer = _told(frame, CLOSED)
    assert _is_whole(answer)
    assert answer[26:30] == GATEWAY
    assert answer[34:36] == b"\x03\x0d"
    assert answer[42:] == frame[14:42]


@pytest.mark.parametrize(
    ("sentence", "frame"),
    [
        ("a reset", segment(GATEWAY, 22, flags=RST)),
        ("a ping", ping(packed("127.0.0.1"))),
        ("an address that nobody has", segment(packed("10.77.0.2"), 22)),
        ("a fragment", _raw(GATEWAY, SYN_SEGMENT, TCP, flags=0x2000)),
        ("ARP", asking(OTHER_IP)),
        ("what passes", segment(GATEWAY, 4222)),
        ("nothing", b""),
    ],
    ids=words,
)
def test_nothing_else_is_answered(sentence: str, frame: bytes) -> None:
    assert _told(frame) == b"", sentence


# --- whatever the bytes ---------------------------------------------------------------------

HOSTS_OWN = [
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "192.0.2.7/32")
]


def refused_whatever_it_is(to: bytes) -> bool:
    """Tell whether no frame may be addressed to *to*, in the words of another library."""
    address = ipaddress.ip_address(to)
    inside = address in ipaddress.ip_network("10.77.0.0/24") and to not in (GATEWAY, DNS)
    return inside or any(address in network for network in HOSTS_OWN)


ADDRESS = st.one_of(
    st.binary(min_size=4, max_size=4),
    st.sampled_from([GATEWAY, DNS, OUTSIDE, OTHER_IP, packed("192.0.2.7"), packed("127.0.0.1")]),
    st.integers(0, 255).map(lambda last: packed(f"10.77.0.{last}")),
)
PORT = st.one_of(st.sampled_from([22, 53, 67, 69, 4222]), st.integers(0, 65535))
FRAME = st.one_of(
    st.binary(max_size=80),
    st.binary(max_size=80).map(lambda rest: GATEWAY_MAC + MAC + b"\x08\x00\x45" + rest),
    st.binary(max_size=80).map(lambda rest: ALL + MAC + b"\x08\x06" + rest),
    st.builds(
        lambda to, flags, sport, port: segment(to, port, flags=flags, sport=sport),
        ADDRESS,
        st.integers(0, 255),
        PORT,
        PORT,
    ),
    st.builds(datagram, ADDRESS, PORT),
    st.builds(ping, ADDRESS),
)
CHANGE = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3)


@given(frame=FRAME, changes=CHANGE, cut=st.integers(0, 90), egress=st.booleans())
@example(frame=segment(GATEWAY, 4222), changes=[(37, 22)], cut=90, egress=True)
@example(frame=datagram(DNS, 53), changes=[(33, 1)], cut=90, egress=True)
def test_whatever_passes_is_addressed_to_what_is_allowed(
    frame: bytes, changes: list[tuple[int, int]], cut: int, egress: bool
) -> None:
    changed = bytearray(frame)
    for at, value in changes:
        if at < len(changed):
            changed[at] = value
    frame = bytes(changed[:cut])
    as_itself = guest_source(MAC, IP)(frame) == ""
    from_gateway(frame)
    reason = RULES.replace(egress=egress).to_gateway(frame)
    answer = rejection(frame, reason)
    if reason:
        assert not (answer and as_itself) or from_gateway(answer) == ""
        return
    assert not answer
    if frame[12:14] == b"\x08\x06":
        assert frame[38:42] in (GATEWAY, DNS)
        return
    assert frame[12:14] == b"\x08\x00"
    assert frame[:6] in (GATEWAY_MAC, NAME_SERVER_MAC)
    assert frame[14] == 0x45
    assert frame[20] & 0xBF == frame[21] == 0
    protocol, to = frame[23], frame[30:34]
    sport, port = int.from_bytes(frame[34:36], "big"), int.from_bytes(frame[36:38], "big")
    assert not refused_whatever_it_is(to)
    if to == GATEWAY:
        opens = frame[47:48] != b"" and frame[47] & (SYN | ACK | RST) == SYN
        assert protocol == ICMP or (
            protocol == TCP and (port == 4222 or (not opens and (frame[26:30], sport) == (IP, 22)))
        )
    elif to == DNS:
        assert egress
        assert protocol in (TCP, UDP)
        assert port == 53
    else:
        assert egress
