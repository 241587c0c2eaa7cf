"""What a holder in a test is put together from."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from orchestrator.backends.fake import FakeBackend
from orchestrator.holder.log import note
from orchestrator.holder.parts import Parts

if TYPE_CHECKING:
    from orchestrator.backends.base import Progress
    from orchestrator.holder.launch import Launch


class FakeNetwork:
    """Addresses in order, and ports that lead nowhere."""

    gateway = "10.77.0.1"
    name_server = "10.77.0.3"
    trouble = ""

    def __init__(self) -> None:
        """Nobody has an address yet."""
        self._addresses: dict[str, int] = {}
        self.ports: dict[str, socket.socket] = {}
        self._forwards: dict[str, dict[int, int]] = {}

    async def open(self, progress: Progress) -> None:
        """Nothing is needed."""

    def reserve(self, member: str) -> tuple[str, str]:
        """Return the next one."""
        number = self._addresses.setdefault(member, 11 + len(self._addresses))
        ip = ipaddress.ip_address("10.77.0.0") + number
        return f"52:54:00:00:00:{number:02x}", f"{ip}/24"

    def port(self, member: str) -> socket.socket:
        """Return one end."""
        self.ports[member], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        return theirs

    def admit(self, member: str) -> None:
        """It has a port, or this is a bug."""
        assert member in self.ports

    def release(self, member: str) -> None:
        """Take it away."""
        self._forwards.pop(member, None)
        port = self.ports.pop(member, None)
        if port is not None:
            port.close()

    async def forward(self, member: str, port: int, host_port: int = 0) -> int:
        """Say so."""
        assert member in self.ports
        host_port = host_port or 20000 + port
        self._forwards.setdefault(member, {})[host_port] = port
        return host_port

    def forwards(self, member: str) -> dict[int, int]:
        """Return what was said."""
        return self._forwards.get(member, {})

    async def unforward(self, member: str, host_port: int) -> bool:
        """Take it back."""
        return self._forwards.get(member, {}).pop(host_port, None) is not None

    def allow(self, *tcp_ports: int) -> None:
        """Write it to the log."""
        note("allowed", ports=sorted(tcp_ports))

    def disallow(self, *tcp_ports: int) -> None:
        """Write it to the log."""
        note("disallowed", ports=sorted(tcp_ports))

    def close(self) -> None:
        """Nothing is left to be closed."""
        assert not self.ports


def announce(member: str, kind: str, data: dict[str, Any]) -> None:
    """Write it to the log."""
    note("announced", member=member, kind=kind, data=data)


async def assemble(launch: Launch) -> Parts:
    """Return the parts."""
    parts = Parts(backend=FakeBackend(), network=FakeNetwork(), announce=announce)
    if "workspace" not in launch.settings:
        return parts
    from orchestrator.holder.ours import join_bus  # noqa: PLC0415 - most do without

    return join_bus(launch, parts)
