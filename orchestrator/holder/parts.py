"""What a holder is put together from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from foundation.record import Record

if TYPE_CHECKING:
    import socket

    from orchestrator.backends.base import Backend, Machine, Progress
    from orchestrator.holder.holder import Holder


class Network(Protocol):
    """A cluster's network."""

    gateway: str
    """The address of the gateway, "" if there is none."""
    name_server: str
    """The address of the name server, "" if there is none."""

    @property
    def trouble(self) -> str:
        """Why guests that run have no way out for now, in words; "" if they have."""

    async def open(self, progress: Progress) -> None:
        """Have what it needs, and start it, or again what of it has failed. First of all.

        Raises:
            HubError: it cannot be had, or not be started.
        """

    def reserve(self, member: str) -> tuple[str, str]:
        """Return the MAC and the address (with prefix length) of *member*; again, the same.

        Raises:
            Refused: there is none left (``network-full``).
        """

    def port(self, member: str) -> socket.socket | None:
        """Return the guest's end of a new port for *member*, which the caller owns."""

    def admit(self, member: str) -> None:
        """Open the port of *member*, whose guest is by now who its address says."""

    def release(self, member: str) -> None:
        """Take the port of *member* away, and its forwards; none is no error.

        Its address is nobody else's as long as there are others.
        """

    async def forward(self, member: str, port: int, host_port: int = 0) -> int:
        """Have a port of this host's loopback lead to TCP *port* of *member*; return which.

        The same again is no error, and no other.

        Raises:
            HubError: *host_port* is taken, or nothing can be forwarded now.
        """

    def forwards(self, member: str) -> dict[int, int]:
        """Return which ports of this host lead to *member*, and to which of its ports each."""

    async def unforward(self, member: str, host_port: int) -> bool:
        """Have *host_port* lead to *member* no longer; return False if it did not.

        Raises:
            HubError: it may be listened on for a while, though nobody answers.
        """

    def allow(self, *tcp_ports: int) -> None:
        """Let guests reach these ports of this host's loopback, at the gateway's address."""

    def disallow(self, *tcp_ports: int) -> None:
        """Let them no longer."""

    def close(self) -> None:
        """End what serves the network."""


class Announce(Protocol):
    """Whoever is told of what becomes of members; it must not fail and not wait."""

    def __call__(self, member: str, kind: str, data: dict[str, Any]) -> None:
        """Take note: *kind* is the state that *member* is in now, *data* what there is to say.

        ``{"pid", "ip"}`` and, of an error, ``{"error", "reason", "was"}``: the state before. Or it
        is news of its network: ``gateway-failed`` and ``gateway-restarted``, ``{"status",
        "error"}``; ``forward-lost``, ``{"host_port", "member", "ip", "port", "error"}``.
        """


class Bus(Protocol):
    """The hub's bus, be there a hub or not."""

    def serve(self, holder: Holder) -> None:
        """Answer for *holder* what is asked there."""

    async def welcome(self, member: str, machine: Machine) -> None:
        """Tell the guest of *member*, which is ready, where the hub is; it does not fail."""

    async def close(self) -> None:
        """Publish what waits, for a moment."""


class Parts(Record):
    """A backend, a network, who is told, and the bus of a workspace."""

    backend: Backend
    network: Network
    announce: Announce
    bus: Bus | None = None
