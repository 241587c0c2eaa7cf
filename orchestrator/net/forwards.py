"""Which ports of this host's loopback lead to which members, and that a gateway has just these."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foundation.errors import Refused, Unavailable
from foundation.record import Record
from hub import ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.net.gateway import Gateway

ATTEMPTS = 5
"""How many host ports are tried for a forward that names none."""


class Forward(Record):
    """A port of this host's loopback whose connections are a guest's."""

    host_port: int
    member: str
    ip: str
    port: int


class Forwards:
    """The forwards of one network. What asks a gateway is for one caller at a time."""

    def __init__(
        self, *, changed: Callable[[], None], lost: Callable[[Forward, str], None]
    ) -> None:
        """Have none yet.

        *changed* is called at every change of :attr:`wanted`, *lost* with a forward that a new
        gateway could not have, and why.
        """
        self.wanted: dict[int, Forward] = {}
        """By their host port."""
        self._changed = changed
        self._lost = lost
        self._unwanted: set[int] = set()
        """Where the gateway may listen, or is about to, though nobody wants that."""

    async def make(self, gateway: Gateway, asked: Forward, is_there: Callable[[], bool]) -> int:
        """Have what is *asked*, with host port 0 by any that is free; return the host's port.

        One that is there already is left as it is. *is_there*: whether its member still is.

        Raises:
            Refused: the host's port is taken (``port-taken``).
            Unavailable: the gateway has ended (``gateway``), or does not answer
                (``gateway-silent``); the member has ended (``not-running``).
        """
        await self.tidy(gateway)
        if not is_there():
            raise _ended(asked)
        for port, forward in self.wanted.items():
            if asked.host_port in (0, port) and forward.replace(host_port=asked.host_port) == asked:
                return port
        if asked.host_port:
            await self._make(gateway, asked)
            return asked.host_port
        for _attempt in range(ATTEMPTS - 1):
            try:
                return await self._make(gateway, asked.replace(host_port=ports.any_free()))
            except Refused:
                continue
        return await self._make(gateway, asked.replace(host_port=ports.any_free()))

    async def _make(self, gateway: Gateway, forward: Forward) -> int:
        port = forward.host_port
        if port in self.wanted:
            other = self.wanted[port]
            raise Refused(
                f"port {port} leads to port {other.port} of {other.member} already: "
                f"`bones vm forward {other.member} --end {port}` ends that",
                reason="port-taken",
            )
        # Before it is asked for: then it ends with its member, whenever that is.
        self.wanted[port] = forward
        self._changed()
        try:
            await gateway.forward(port, forward.ip, forward.port)
        except Refused:
            self.wanted.pop(port, None)
            self._changed()
            raise
        except BaseException:
            self.forget([port])  # it may have heard of it, and would do it later
            raise
        if self.wanted.get(port) is not forward:
            raise _ended(forward)
        return port

    def forget(self, host_ports: list[int]) -> None:
        """Let nothing be answered by these from now on; :meth:`tidy` ends that anybody listens."""
        for port in host_ports:
            if self.wanted.pop(port, None) is not None:
                self._unwanted.add(port)
        self._changed()

    async def tidy(self, gateway: Gateway) -> None:
        """Have *gateway* listen on no port that nobody wants.

        Raises:
            Unavailable: it does not answer (``gateway-silent``): it has heard it, and does that
                before anything else.
        """
        while self._unwanted:
            try:
                await gateway.unforward(self._unwanted.pop())
            except Unavailable as error:
                if error.reason != "gateway":
                    raise
                return  # they went with it

    async def again(self, gateway: Gateway) -> None:
        """Give a new *gateway* all that there are.

        Raises:
            Unavailable: it has ended (``gateway``), or does not answer (``gateway-silent``).
        """
        self._unwanted.clear()
        for port, forward in list(self.wanted.items()):
            try:
                await gateway.forward(port, forward.ip, forward.port)
            except Refused as error:
                self.forget([port])
                self._lost(forward, str(error))


def _ended(forward: Forward) -> Unavailable:
    return Unavailable(
        f"VM {forward.member} ended before its port could be forwarded", reason="not-running"
    )
