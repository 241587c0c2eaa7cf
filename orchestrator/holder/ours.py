"""What our holders are put together from: QEMU, and a network of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foundation.errors import Refused, Unavailable
from orchestrator import cache
from orchestrator.backends.qemu import ability
from orchestrator.backends.qemu.backend import QemuBackend
from orchestrator.holder.launch import egress_of
from orchestrator.holder.log import note
from orchestrator.holder.onbus import OnBus
from orchestrator.holder.parts import Parts
from orchestrator.net.addresses import GATEWAY, NAME_SERVER
from orchestrator.net.network import Network
from orchestrator.packages import Packages
from orchestrator.store import cluster_of
from orchestrator.turns import Turns

if TYPE_CHECKING:
    import socket

    from orchestrator.backends.base import Progress
    from orchestrator.holder.launch import Launch
    from orchestrator.holder.parts import Announce


async def assemble(launch: Launch) -> Parts:
    """Return the parts of the holder that was launched so; nothing is started yet.

    Raises:
        Refused: its settings are not understood (``bad-setting``).
    """
    network = LateNetwork(
        cluster_of(launch.names[0]), _ports(launch.settings), egress=egress_of(launch)
    )
    parts = join_bus(
        launch, Parts(backend=QemuBackend(note=_noted), network=network, announce=announce)
    )
    network.announce = parts.announce
    return parts


def join_bus(launch: Launch, parts: Parts) -> Parts:
    """Return *parts*, on the bus of the workspace that *launch* names, if it names one.

    Raises:
        Refused: the setting is not understood (``bad-setting``).
        OSError: the store cannot be written.
    """
    root = launch.settings.get("workspace", "")
    if not isinstance(root, str):
        raise Refused(f"workspace={root!r}: a path is needed", reason="bad-setting")
    if not root:
        return parts
    bus = OnBus(root, launch, parts.network)

    def both(member: str, kind: str, data: dict[str, Any]) -> None:
        parts.announce(member, kind, data)
        bus.announce(member, kind, data)

    return parts.replace(announce=both, bus=bus)


class LateNetwork:
    """A network whose gateway is a QEMU: it is opened when the first member boots."""

    gateway = GATEWAY
    name_server = NAME_SERVER

    def __init__(self, cluster: str, allowed: list[int], *, egress: bool) -> None:
        """Let guests reach the ports *allowed* of this host's loopback; *egress*: and outside."""
        self._cluster = cluster
        self._allowed = allowed
        self._egress = egress
        self.announce: Announce = announce
        """Told what befalls the network of members."""
        self._opening = Turns()
        self._network: Network | None = None

    @property
    def trouble(self) -> str:
        """As the interface has it."""
        return self._network.trouble if self._network is not None else ""

    async def open(self, progress: Progress) -> None:
        """Have a QEMU and a gateway; see :class:`orchestrator.holder.parts.Network`."""
        async with self._opening.taken(progress) as tell:
            if self._network is not None:
                await self._network.revive()
            else:
                qemu = await Packages(cache.directory()).qemu(tell)
                able = await ability.ask(qemu)  # one that is too old would fail in its own words
                network = Network(
                    self._cluster,
                    qemu=qemu.program,
                    egress=self._egress,
                    env=qemu.environment(),
                    confined=able.confined,
                    told=self._told,
                )
                network.allow(*self._allowed)
                await network.open()
                self._network = network

    def reserve(self, member: str) -> tuple[str, str]:
        """As the interface has it."""
        return self._open().reserve(member)

    def port(self, member: str) -> socket.socket:
        """As the interface has it."""
        return self._open().port(member)

    def admit(self, member: str) -> None:
        """As the interface has it."""
        self._open().admit(member)

    def release(self, member: str) -> None:
        """As the interface has it; of one that was never opened nobody has anything."""
        if self._network is not None:
            self._network.release(member)

    async def forward(self, member: str, port: int, host_port: int = 0) -> int:
        """As the interface has it."""
        return await self._open().forward(member, port, host_port)

    def forwards(self, member: str) -> dict[int, int]:
        """As the interface has it."""
        return self._network.forwards(member) if self._network is not None else {}

    async def unforward(self, member: str, host_port: int) -> bool:
        """As the interface has it."""
        return self._network is not None and await self._network.unforward(member, host_port)

    def allow(self, *tcp_ports: int) -> None:
        """As the interface has it."""
        self._open().allow(*tcp_ports)

    def disallow(self, *tcp_ports: int) -> None:
        """As the interface has it."""
        self._open().disallow(*tcp_ports)

    def close(self) -> None:
        """As the interface has it."""
        if self._network is not None:
            self._network.close()

    def _told(self, event: str, details: dict[str, Any]) -> None:
        note(event, **details)
        members = self._network.members() if self._network is not None else []
        for member in [details["member"]] if "member" in details else members:
            self.announce(member, event, details)

    def _open(self) -> Network:
        if self._network is None:
            raise Unavailable("the cluster's network is not up yet", reason="not-running")
        return self._network


def _ports(settings: dict[str, Any]) -> list[int]:
    ports = settings.get("allow_ports", [])
    if not isinstance(ports, list) or not all(
        type(port) is int and 0 < port < 1 << 16 for port in ports
    ):
        raise Refused(f"allow_ports={ports!r}: a list of ports is needed", reason="bad-setting")
    return ports


def _noted(words: str) -> None:
    note("backend", words=words)


def announce(member: str, kind: str, data: dict[str, Any]) -> None:
    """Write an event to the log."""
    note("announced", member=member, kind=kind, data=data)
