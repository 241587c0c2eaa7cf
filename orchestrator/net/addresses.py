"""Who has which address in a cluster's network. Pure.

Every cluster has the same network: it exists between the processes of one cluster alone, and can
collide with nothing.
"""

from __future__ import annotations

import hashlib

from foundation.errors import Refused
from foundation.record import Record

PREFIX = bytes((10, 77, 0))
NETWORK = "10.77.0.0/24"
GATEWAY_IP = PREFIX + b"\x01"
NAME_SERVER_IP = PREFIX + b"\x03"
GATEWAY = "10.77.0.1"
NAME_SERVER = "10.77.0.3"
FIRST, LAST = 11, 254
"""Of the members, by the last number."""
MTU = 1500

# slirp has a MAC for each of its addresses, made of them, and sends IP from the gateway's alone.
# Source: libslirp, special_ethaddr in slirp.c
GATEWAY_MAC = b"\x52\x55" + GATEWAY_IP
NAME_SERVER_MAC = b"\x52\x55" + NAME_SERVER_IP


class Address(Record):
    """A member's place in the network."""

    ip: str
    """``10.77.0.11``"""
    mac: str
    """``02:xx:xx:xx:xx:xx``: ours to give, as the 2 says; the same for a name for ever."""

    @property
    def interface(self) -> str:
        """Return the address with the network's prefix length, as an interface is given it."""
        return f"{self.ip}/24"

    @property
    def packed(self) -> tuple[bytes, bytes]:
        """Return (MAC, IPv4) as they stand in a frame."""
        return bytes.fromhex(self.mac.replace(":", "")), bytes(map(int, self.ip.split(".")))


class Addresses:
    """The addresses of one cluster: a known name keeps its own, a new one gets the lowest free."""

    def __init__(self, cluster: str) -> None:
        """Nobody has one yet; *cluster* is part of every MAC."""
        self._cluster = cluster
        self._numbers: dict[str, int] = {}
        self._former: dict[str, int] = {}

    def reserve(self, member: str, hint: str = "") -> Address:
        """Return the address of *member*: the one it has, else *hint* or the one it had, if free.

        Raises:
            Refused: there is none left (``network-full``).
        """
        if not member:
            raise ValueError("a member needs a name")
        if member not in self._numbers:
            taken = set(self._numbers.values())
            liked = (_number(hint), self._former.get(member, 0))
            free = (n for n in (*liked, *range(FIRST, LAST + 1)) if n and n not in taken)
            number = next(free, 0)
            if not number:
                raise Refused(
                    f"{member}: cluster {self._cluster} has {len(taken)} members, and no address "
                    "is left in its network: begin another cluster",
                    reason="network-full",
                )
            self._numbers[member] = number
        return Address(ip=f"10.77.0.{self._numbers[member]}", mac=mac_of(self._cluster, member))

    def release(self, member: str) -> None:
        """Let the address of *member* be given to others; again is no error."""
        if member in self._numbers:
            self._former[member] = self._numbers.pop(member)


def mac_of(cluster: str, member: str) -> str:
    """Return the MAC of *member*: 40 bits of a hash of both names."""
    digest = hashlib.sha256(f"{cluster}\0{member}".encode(errors="surrogateescape")).digest()
    return ":".join(f"{byte:02x}" for byte in b"\x02" + digest[:5])


def _number(hint: str) -> int:
    """Return the last number of the address *hint*, 0 if no member can have that address."""
    network, _dot, last = hint.rpartition(".")
    if network != "10.77.0" or not (last.isascii() and last.isdigit() and len(last) <= 3):  # noqa: PLR2004 - digits of a byte
        return 0
    return int(last) if FIRST <= int(last) <= LAST else 0
