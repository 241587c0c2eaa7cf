"""A guest without a machine: ARP, ping and as much TCP as a test needs, in frames."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.orchestrator.net.frames import (
    ACK,
    ALL,
    FIN,
    ICMP,
    PSH,
    RST,
    SYN,
    TCP,
    arp,
    echo,
    ethernet,
    ipv4,
    packed,
    tcp,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.net.network import Network

SOON_S = 10.0
IPV4 = b"\x08\x00"


class Segment(NamedTuple):
    """What a guest has been sent over TCP."""

    source: bytes
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    data: bytes


class Guest:
    """The guest of a member's port."""

    def __init__(self, network: Network, member: str) -> None:
        """Plug it in as *member*, its port still closed."""
        mac, interface = network.reserve(member)
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self.address = interface.partition("/")[0]
        self.ip = packed(self.address)
        self.socket = network.port(member)
        self.socket.settimeout(SOON_S)
        self._neighbours: dict[bytes, bytes] = {}
        self._port = 40000

    def __enter__(self) -> Self:
        """Unplug it at the end."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Unplug it."""
        self.socket.close()

    def hears(self, wanted: Callable[[bytes], bool]) -> bytes:
        """Return the next frame that is *wanted*; answer who asks for us meanwhile."""
        deadline_s = time.monotonic() + SOON_S
        while time.monotonic() < deadline_s:
            frame = self.socket.recv(1 << 16)
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == self.ip:
                asker, ip = frame[22:28], frame[28:32]
                answer = arp(2, mac=self.mac, ip=self.ip, asked=ip, to=asker, target=asker)
                self.socket.send(answer)
            if wanted(frame):
                return frame
        raise TimeoutError("nothing of the kind was heard")

    def resolve(self, ip: bytes) -> bytes:
        """Return the MAC that answers for *ip*."""
        if ip not in self._neighbours:
            self.socket.send(arp(1, mac=self.mac, ip=self.ip, asked=ip))
            answer = self.hears(lambda f: f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2")
            assert answer[28:32] == ip
            self._neighbours[ip] = answer[22:28]
        return self._neighbours[ip]

    def sends(self, carried: bytes, to: bytes, protocol: int, *, mac: bytes = b"") -> None:
        """Send a packet, by way of *mac* if that is given."""
        packet = ipv4(carried, source=self.ip, to=to, protocol=protocol)
        at = mac or self.resolve(to)
        self.socket.send(ethernet(packet, to=at, source=self.mac, kind=0x0800))

    def pings(self, ip: str) -> None:
        """Ping *ip*, and wait for the answer: then all that we sent before has arrived too."""
        self.sends(echo(), packed(ip), ICMP)
        self.hears(lambda f: f[12:14] == IPV4 and f[23] == ICMP and f[34] == 0)

    def knocks(self, to: str, port: int, *, mac: bytes = b"", sport: int = 39999) -> None:
        """Send a SYN, and wait for nothing."""
        segment = tcp(self.ip, packed(to), sport, port, flags=SYN)
        self.sends(segment, packed(to), TCP, mac=mac)

    def connects(self, to: str, port: int) -> Connection:
        """Return a connection to *port*.

        Raises:
            ConnectionRefusedError: it was answered with a reset.
        """
        self._port += 1
        connection = Connection(self, packed(to), self._port, port)
        connection.opens()
        return connection

    def accepts(self, port: int) -> Connection:
        """Return the next connection that somebody makes to our *port*."""
        asked = self.segment(lambda s: s.dport == port and s.flags & (SYN | ACK) == SYN)
        connection = Connection(self, asked.source, port, asked.sport)
        connection.answers(asked)
        return connection

    def segment(self, wanted: Callable[[Segment], bool]) -> Segment:
        """Return the next segment that is *wanted*."""
        found: list[Segment] = []

        def is_it(frame: bytes) -> bool:
            if frame[12:14] != IPV4 or frame[23] != TCP:
                return False
            segment = _segment(frame)
            if wanted(segment):
                found.append(segment)
            return bool(found)

        self.hears(is_it)
        return found[0]


class Connection:
    """A TCP connection of a guest, over a network that loses nothing."""

    def __init__(self, guest: Guest, peer: bytes, sport: int, dport: int) -> None:
        """Name the two ends."""
        self._guest = guest
        self._peer = peer
        self._sport = sport
        self._dport = dport
        self._seq = 1000
        self._ack = 0

    def opens(self) -> None:
        """Shake hands."""
        self._says(SYN)
        self._seq += 1
        answer = self._hears(lambda s: bool(s.flags & (SYN | RST)))
        if answer.flags & RST:
            raise ConnectionRefusedError
        self._ack = answer.seq + 1
        self._says(ACK)

    def answers(self, asked: Segment) -> None:
        """Take the hand that was offered."""
        self._ack = asked.seq + 1
        self._says(SYN | ACK)
        self._seq += 1
        self._hears(lambda s: bool(s.flags & ACK))

    def says(self, data: bytes) -> None:
        """Send *data*, which fits a segment."""
        self._says(PSH | ACK, data)
        self._seq += len(data)

    def hears(self, size: int) -> bytes:
        """Return the next *size* bytes, or what comes before the end."""
        heard = b""
        while len(heard) < size:
            segment = self._hears(lambda s: s.seq == self._ack and bool(s.data or s.flags & FIN))
            heard += segment.data
            self._ack += len(segment.data)
            self._says(ACK)
            if segment.flags & FIN:
                break
        return heard

    def _says(self, flags: int, data: bytes = b"") -> None:
        guest = self._guest
        segment = tcp(
            guest.ip,
            self._peer,
            self._sport,
            self._dport,
            flags=flags,
            seq=self._seq,
            ack=self._ack,
            data=data,
        )
        guest.sends(segment, self._peer, TCP)

    def _hears(self, wanted: Callable[[Segment], bool]) -> Segment:
        ends = (self._peer, self._dport, self._sport)
        return self._guest.segment(
            lambda s: (s.source, s.sport, s.dport) == ends and wanted(s),
        )


def _segment(frame: bytes) -> Segment:
    head, end = frame[34:54], 14 + int.from_bytes(frame[16:18], "big")
    return Segment(
        source=frame[26:30],
        sport=int.from_bytes(head[0:2], "big"),
        dport=int.from_bytes(head[2:4], "big"),
        seq=int.from_bytes(head[4:8], "big"),
        ack=int.from_bytes(head[8:12], "big"),
        flags=head[13],
        data=frame[34 + (head[12] >> 4 << 2) : end],
    )


def listening() -> socket.socket:
    """Return a server on this host's loopback, whose backlog takes connections by itself."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(SOON_S)
    return server


__all__ = ["ALL", "Connection", "Guest", "listening"]
