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
    """The addresses of one cluster: a name keeps its own while this lives, whoever comes or goes.

    Which it is does not depend on who comes first where names have numbers: ``web-3`` has
    ``10.77.0.13``, if that is nobody's. One without a number has the lowest that is nobody's, one
    whose number's is another's the highest, where it is in the way of the fewest.
    """

    def __init__(self, cluster: str) -> None:
        """Nobody has one yet; *cluster* is part of every MAC."""
        self._cluster = cluster
        self._numbers: dict[str, int] = {}
        self._left: dict[str, None] = {}
        """Who is gone, in the order of their going, and has an address still."""

    def reserve(self, member: str) -> Address:
        """Return the address of *member*: the one it has, or had, else a new one.

        Where all have been given, one goes over whose member is gone: the longest gone one's.

        Raises:
            Refused: there is none left (``network-full``).
        """
        if not member:
            raise ValueError("a member needs a name")
        if member not in self._numbers:
            self._numbers[member] = self._free(member)
        self._left.pop(member, None)
        return Address(ip=f"10.77.0.{self._numbers[member]}", mac=mac_of(self._cluster, member))

    def release(self, member: str) -> None:
        """Take note that *member* is gone; again is no error."""
        if member in self._numbers:
            self._left.setdefault(member)

    def _free(self, member: str) -> int:
        free = set(range(FIRST, LAST + 1)) - set(self._numbers.values())
        if not free:
            longest_gone = next(iter(self._left), "")
            if not longest_gone:
                raise Refused(
                    f"{member}: cluster {self._cluster} has {len(self._numbers)} members, and no "
                    "address is left in its network: begin another cluster",
                    reason="network-full",
                )
            del self._left[longest_gone]
            return self._numbers.pop(longest_gone)
        number = _number_of(member)
        if number is None:
            return min(free)
        own = FIRST - 1 + number
        return own if own in free else max(free)


def mac_of(cluster: str, member: str) -> str:
    """Return the MAC of *member*: 40 bits of a hash of both names."""
    digest = hashlib.sha256(f"{cluster}\0{member}".encode(errors="surrogateescape")).digest()
    return ":".join(f"{byte:02x}" for byte in b"\x02" + digest[:5])


def _number_of(member: str) -> int | None:
    """Return the number at the end of *member*, None if it has none."""
    _name, dash, number = member.rpartition("-")
    return int(number) if dash and number.isascii() and number.isdigit() else None
