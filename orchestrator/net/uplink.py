"""A gateway that is there again when it has died, and its forwards with it."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from foundation.errors import HubError, Refused, Unavailable
from foundation.record import Record
from hub import ports
from hub.restart import History, after_exit
from orchestrator.net.gateway import Gateway
from orchestrator.net.policy import from_gateway
from orchestrator.net.rejection import rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from orchestrator.net.policy import Filter
    from orchestrator.net.switch import Counts, Port, Switch

    Told = Callable[[str, dict[str, Any]], None]
    """Told what happens by itself: ``gateway-restarted``, ``gateway-failed``, ``forward-lost``."""

ATTEMPTS = 5
"""How many host ports are tried for a forward that names none."""


class Forward(Record):
    """A port of this host's loopback whose connections are a guest's."""

    host_port: int
    member: str
    ip: str
    port: int


class Uplink:
    """The gateway of one switch, from :meth:`start` to :meth:`close`."""

    def __init__(
        self,
        switch: Switch,
        *,
        qemu: str,
        env: Mapping[str, str],
        outward: Filter,
        changed: Callable[[], None],
        told: Told,
    ) -> None:
        """Start nothing yet.

        *outward* filters what the gateway is sent, in the switch's thread; *changed* is told of
        every change of :attr:`forwards`.
        """
        self.forwards: dict[int, Forward] = {}
        """By their host port."""
        self._switch = switch
        self._qemu = qemu
        self._env = env
        self._outward = outward
        self._changed = changed
        self._told = told
        self._gateway: Gateway | None = None
        self._port: Port | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        """Held while forwards are made or unmade, and while a new gateway gets those there are."""

    async def start(self) -> None:
        """Start the gateway; from now on it is started again when it ends.

        Raises:
            HubError: it cannot be started (``gateway``).
        """
        await self._begin()
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    def close(self) -> None:
        """End the gateway; again is no error."""
        if self._keeping is not None:
            self._keeping.cancel()
        self._end()

    def counts(self) -> Counts:
        """Return what has gone through the present gateway's port; *in* is from the gateway.

        Raises:
            Unavailable: there is none just now (``gateway``).
        """
        if self._port is None:
            raise _no_gateway()
        return self._port.counts()

    async def forward(self, member: str, ip: str, port: int, host_port: int) -> int:
        """Forward *host_port*, 0: any that is free, to TCP *port* of *ip*; return which.

        It is kept when the gateway has to be started again.

        Raises:
            Refused: the host's port is taken (``port-taken``).
            Unavailable: there is no gateway just now (``gateway``).
        """
        async with self._changing:
            if self._gateway is None:
                raise _no_gateway()
            for attempt in range(1, ATTEMPTS + 1):
                chosen = host_port or ports.any_free()
                try:
                    await self._make(
                        self._gateway, Forward(host_port=chosen, member=member, ip=ip, port=port)
                    )
                except Refused:
                    if host_port or attempt == ATTEMPTS:
                        raise
                else:
                    break
        return chosen

    async def _make(self, gateway: Gateway, forward: Forward) -> None:
        if forward.host_port in self.forwards:
            raise Refused(
                f"port {forward.host_port} is forwarded already: end that first",
                reason="port-taken",
            )
        # Before it is asked for: if we are cancelled meanwhile, it ends with its member.
        self.forwards[forward.host_port] = forward
        self._changed()
        try:
            await gateway.forward(forward.host_port, forward.ip, forward.port)
        except HubError:
            self.forget([forward.host_port])
            raise

    def forget(self, host_ports: list[int]) -> list[int]:
        """Let nothing be answered by these forwards from now on; return those that there were."""
        known = [port for port in host_ports if self.forwards.pop(port, None) is not None]
        self._changed()
        return known

    async def unforward(self, host_ports: list[int]) -> None:
        """Have the gateway listen no more on *host_ports*, which are forgotten."""
        async with self._changing:
            for port in host_ports:
                if self._gateway is not None and port not in self.forwards:
                    try:
                        await self._gateway.unforward(port)
                    except Unavailable:
                        return  # they went with their gateway

    async def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._gateway = await Gateway.start(self._qemu, theirs, env=self._env)
        except BaseException:
            ours.close()
            raise
        self._port = self._switch.add(
            ours, inward=from_gateway, outward=self._outward, rejects=rejection
        )
        self._switch.open(self._port)

    def _end(self) -> None:
        gateway, port = self._gateway, self._port
        self._gateway = self._port = None
        if port is not None:
            self._switch.remove(port)
        if gateway is not None:
            gateway.kill()

    async def _keep(self) -> None:
        """Start the gateway again when it ends, until it ends too often."""
        loop = asyncio.get_running_loop()
        history = History()
        while self._gateway is not None:
            since_s = loop.time()
            status = await self._gateway.wait()
            said = self._gateway.said()
            self._end()
            ready_for_s: float | None = loop.time() - since_s
            while self._gateway is None:
                spread = int.from_bytes(os.urandom(2), "big") / 32768 - 1
                history, delay_s = after_exit(
                    history, now_s=loop.time(), ready_for_s=ready_for_s, spread=spread
                )
                if delay_s is None:
                    self._told("gateway-failed", {"status": status, "said": said})
                    return
                await asyncio.sleep(delay_s)
                try:
                    async with self._changing:
                        await self._begin()
                        await self._forward_again()
                except (HubError, OSError) as error:
                    said, ready_for_s = str(error), None
            self._told("gateway-restarted", {"status": status, "said": said})

    async def _forward_again(self) -> None:
        assert self._gateway is not None
        for forward in list(self.forwards.values()):
            try:
                await self._gateway.forward(forward.host_port, forward.ip, forward.port)
            except Refused as error:
                self.forget([forward.host_port])
                self._told("forward-lost", {**forward.as_dict(), "error": str(error)})
            except Unavailable:
                return  # it has ended again


def _no_gateway() -> Unavailable:
    return Unavailable("the network has no gateway just now", reason="gateway")
