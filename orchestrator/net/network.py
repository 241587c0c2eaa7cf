"""The network of one cluster: a switch, a port and an address for each member, a gateway.

All of it belongs to the holder's loop, in its main thread.
"""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

from foundation.errors import HubError, Unavailable
from hub.ports import HIGHEST
from orchestrator.net.addresses import GATEWAY, NAME_SERVER, Addresses
from orchestrator.net.forwards import Forward
from orchestrator.net.gateway import Gateway
from orchestrator.net.host import drain, own_addresses, watch_addresses
from orchestrator.net.policy import Rules, guest_source
from orchestrator.net.switch import Switch
from orchestrator.net.uplink import Uplink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.net.switch import Counts, Port
    from orchestrator.net.uplink import Told

_EVERYTHING = ((0, 0),)


class Network:
    """One cluster's network, from :meth:`open` to :meth:`close`."""

    gateway = GATEWAY
    name_server = NAME_SERVER

    def __init__(
        self,
        cluster: str,
        *,
        qemu: str,
        egress: bool = True,
        env: Mapping[str, str] | None = None,
        confined: bool = True,
        told: Told = lambda _event, _details: None,
    ) -> None:
        """Start nothing yet.

        *qemu* is the path of ``qemu-system-x86_64``, *env* the gateway's environment (ours if
        None); *confined*: whether that QEMU can be. *egress*: whether guests reach the internet,
        and resolve names. *told* is called on the loop; it must not fail.
        """
        self._addresses = Addresses(cluster)
        environment = dict(os.environ if env is None else env)
        self._gateway = partial(Gateway.start, qemu, env=environment, confined=confined)
        self._told = told
        self._rules = Rules(egress=egress)
        self._members: dict[str, Port] = {}
        self._opened: tuple[Switch, Uplink] | None = None
        self._watching: socket.socket | None = None

    async def open(self) -> None:
        """Start the switch and the gateway.

        Raises:
            HubError: the gateway cannot be started (``gateway``), or it cannot be known which
                addresses are this host's (``addresses``). Nothing is left of it.
        """
        switch = Switch()
        uplink = Uplink(
            switch,
            gateway=self._gateway,
            outward=self._to_gateway,
            changed=self._forwards_changed,
            told=self._told,
        )
        self._opened = switch, uplink
        try:
            self._watch()
            await uplink.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all of it; guests that still run are cut off. Again is no error."""
        if self._watching is not None:
            asyncio.get_running_loop().remove_reader(self._watching.fileno())
            self._watching.close()
            self._watching = None
        if self._opened is not None:
            switch, uplink = self._opened
            self._opened = None
            uplink.close()
            switch.close()
        self._members.clear()

    async def revive(self) -> None:
        """Start the gateway anew if it had ended too often, and was left alone.

        Raises:
            HubError: it cannot be started (``gateway``).
        """
        await self._uplink.revive()

    @property
    def trouble(self) -> str:
        """Why guests have no way out for now, in words; "" if they have."""
        return self._opened[1].trouble if self._opened is not None else ""

    # --- members ---------------------------------------------------------------------------

    def members(self) -> list[str]:
        """Return who has a port."""
        return list(self._members)

    def reserve(self, member: str) -> tuple[str, str]:
        """Return the MAC of *member* and its address, with the network's prefix length.

        The same again and again, after a :meth:`release` too: see
        :class:`orchestrator.net.addresses.Addresses`.

        Raises:
            Refused: there is no address left (``network-full``).
        """
        address = self._addresses.reserve(member)
        return address.mac, address.interface

    def port(self, member: str) -> socket.socket:
        """Return the guest's end of a new port for *member*, which is closed until admitted.

        A port that it had before is taken away. Only its own address may send through it.
        """
        switch = self._switch
        self._unplug(member)
        mac, ip = self._addresses.reserve(member).packed
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._members[member] = switch.add(ours, inward=guest_source(mac, ip))
        return theirs

    def admit(self, member: str) -> None:
        """Open the port of *member*: its guest is by now who its address says.

        Raises:
            KeyError: it has none.
        """
        self._switch.open(self._members[member])

    def shut(self, member: str) -> None:
        """Close the port of *member* again: its guest hears nothing, and is not heard.

        Raises:
            KeyError: it has none.
        """
        self._switch.shut(self._members[member])

    def release(self, member: str) -> None:
        """Take the port of *member* away, and its forwards; its address waits for its return.

        None of these is no error.
        """
        self._unplug(member)
        if self._opened is not None and (mine := list(self.forwards(member))):
            self._uplink.forget(mine)
        self._addresses.release(member)

    def counts(self, member: str = "") -> Counts:
        """Return what has gone through the port of *member*, or the present gateway's.

        Raises:
            KeyError: *member* has none.
            Unavailable: there is no gateway just now (``gateway``).
        """
        return self._members[member].counts() if member else self._uplink.counts()

    # --- what may be reached ---------------------------------------------------------------

    def allow(self, *tcp_ports: int) -> None:
        """Let guests connect to these ports of this host's loopback, at the gateway's address."""
        for port in tcp_ports:
            _check(port)
        self._rules = self._rules.replace(ports=self._rules.ports | set(tcp_ports))

    def disallow(self, *tcp_ports: int) -> None:
        """Let guests connect there no longer; what is connected hears nothing more."""
        self._rules = self._rules.replace(ports=self._rules.ports - set(tcp_ports))

    async def forward(self, member: str, port: int, host_port: int = 0) -> int:
        """Forward a port of this host's loopback to TCP *port* of *member*; return which.

        *host_port* 0: any that is free, or the one that leads there already; asking again is no
        error. It is kept when the gateway has to be started again.

        Raises:
            Refused: the host's port is taken (``port-taken``).
            Unavailable: *member* has no port, or lost it meanwhile (``not-running``); there is no
                gateway just now (``gateway``), or it does not answer (``gateway-silent``).
            HubError: the gateway had been left alone, and cannot be started (``gateway``).
        """
        _check(port)
        if host_port:
            _check(host_port)
        asked_for = self._members.get(member)
        if asked_for is None:
            raise Unavailable(f"VM {member} is not on the network", reason="not-running")
        ip = self._addresses.reserve(member).ip
        return await self._uplink.forward(
            Forward(host_port=host_port, member=member, ip=ip, port=port),
            lambda: self._members.get(member) is asked_for,
        )

    async def unforward(self, member: str, host_port: int) -> bool:
        """Forward *host_port* to *member* no longer, and cut what is connected by it.

        Returns False if it did not lead there.

        Raises:
            Unavailable: the gateway does not answer (``gateway-silent``): it is cut all the same.
        """
        if host_port not in self.forwards(member):
            return False
        await self._uplink.unforward(host_port)
        return True

    def forwards(self, member: str) -> dict[int, int]:
        """Return which ports of this host lead to *member*, and to which of its ports each."""
        return {one.host_port: one.port for one in self._uplink.forwards if one.member == member}

    # ---------------------------------------------------------------------------------------

    @property
    def _switch(self) -> Switch:
        return self._parts[0]

    @property
    def _uplink(self) -> Uplink:
        return self._parts[1]

    @property
    def _parts(self) -> tuple[Switch, Uplink]:
        if self._opened is None:
            raise RuntimeError("the network is not open")
        return self._opened

    def _unplug(self, member: str) -> None:
        port = self._members.pop(member, None)
        if port is not None:
            self._switch.remove(port)

    def _to_gateway(self, frame: bytes) -> str:
        """Filter by the rules of this moment; called in the switch's thread."""
        return self._rules.to_gateway(frame)

    def _forwards_changed(self) -> None:
        forwarded = frozenset(
            (bytes(map(int, forward.ip.split("."))), forward.port)
            for forward in self._uplink.forwards
        )
        self._rules = self._rules.replace(forwarded=forwarded)

    def _watch(self) -> None:
        try:
            self._watching = watch_addresses()
            self._rules = self._rules.replace(own=own_addresses())
        except OSError as error:
            raise HubError(
                "the addresses of this host cannot be read, so guests could not be kept from them: "
                f"{error}",
                reason="addresses",
            ) from None
        asyncio.get_running_loop().add_reader(self._watching.fileno(), self._moved)

    def _moved(self) -> None:
        """Read this host's addresses again; where that fails nothing outside is reached."""
        assert self._watching is not None
        drain(self._watching)
        try:
            own = own_addresses()
        except OSError:
            own = _EVERYTHING
        self._rules = self._rules.replace(own=own)


def _check(port: int) -> None:
    if not 0 < port <= HIGHEST:
        raise ValueError(f"{port} is no port")
