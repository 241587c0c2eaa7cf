"""A holder's side of the bus: events out, requests in, and guests that find the hub.

Without a hub nothing here waits or fails. With one, each guest has in ``/run/bones`` what it needs
to reach it (:meth:`orchestrator.guest_access.GuestAccess.files`), and the cluster's gateway lets
through the hub's two ports, for as long as they are the hub's.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from typing import TYPE_CHECKING, Any

from foundation.errors import Refused
from orchestrator import protocol
from orchestrator.buses import Buses
from orchestrator.epochs import next_epoch
from orchestrator.holder.log import complain, note
from orchestrator.holder.telling import Telling
from orchestrator.store import Options, check_name

if TYPE_CHECKING:
    from orchestrator.backends.base import Machine
    from orchestrator.holder.holder import Holder
    from orchestrator.holder.launch import Launch
    from orchestrator.holder.parts import Network

PLACE = "/run/bones"


class OnBus:
    """The buses of one holder, and its guests' way to the hub. Of one running loop."""

    def __init__(self, root: str, launch: Launch, network: Network) -> None:
        """Look for the hub of workspace *root* from now on; guests get there by *network*.

        Raises:
            OSError: the store cannot be written.
        """
        self._network = network
        self._allowed: set[int] = set()
        self._kept = set(launch.settings.get("allow_ports", ()))
        self._tellings: dict[str, Telling] = {}
        """By member, its guest."""
        self._ports = Telling("guests cannot reach the hub", self._let_through, complain)
        self._making: asyncio.Task[object] | None = None
        epoch = next_epoch(launch.store)
        self._buses = Buses(
            root,
            epoch,
            on_hub=self._hub_changed,
            complain=lambda what, why: note("bus", what=what, why=why),
        )

    def announce(self, member: str, kind: str, data: dict[str, Any]) -> None:
        """Have an event published, when a hub is there."""
        self._buses.announce(member, kind, data)
        if kind in protocol.OVER:
            telling = self._tellings.pop(member, None)
            if telling is not None:
                telling.close()

    def serve(self, holder: Holder) -> None:
        """Answer for *holder* what is asked over the bus."""
        self._buses.serve(Requests(holder).answer)
        # What a guest is told takes a thread a while to make: it can while the first one boots.
        making = self._buses.guest_access(next(iter(holder.launch.names)))
        self._making = asyncio.get_running_loop().create_task(making)

    async def welcome(self, member: str, machine: Machine) -> None:
        """Tell a guest that is ready where the hub is, and again whenever that changes.

        Returns when that guest has been told, or could not be for once; others are not waited for.
        """

        async def tell() -> None:
            await self._ports.first()  # or it would be told of what it cannot reach
            access = await self._buses.guest_access(member)
            files = access.files(self._network.gateway, member)
            await machine.put(_archive(files), PLACE)

        telling = Telling(f"{member} could not be told where the hub is", tell, complain)
        self._tellings[member] = telling
        self._ports.change()
        telling.change()
        await telling.first()

    async def close(self) -> None:
        """Publish what waits, for a moment; the guests' keys are revoked."""
        for telling in (self._ports, *self._tellings.values()):
            telling.close()
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        await self._buses.close()

    def _hub_changed(self) -> None:
        for telling in (self._ports, *self._tellings.values()):
            telling.change()

    async def _let_through(self) -> None:
        """Let guests reach the hub's ports of this host's loopback, and no longer those of before.

        Without a guest there is no network to be told yet; :meth:`welcome` asks again.
        """
        member = next(iter(self._tellings), "")
        if not member:
            return
        access = await self._buses.guest_access(member)
        ports = {access.nats_port, access.fossil_port} - {0}
        self._network.disallow(*self._allowed - ports - self._kept)
        self._network.allow(*ports)
        self._allowed = ports


class Requests:
    """What a holder answers over the bus: what a person may ask on its sockets, but no guest."""

    def __init__(self, holder: Holder) -> None:
        """Answer for *holder*."""
        self._holder = holder

    async def answer(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return what ``vm.<cluster>.request.<verb>`` is answered; the same twice does no harm.

        ``list {}`` → ``{"members": [STATUS, …]}``; ``status {"member"}`` and ``add {"member",
        "options"}`` → STATUS; ``stop {"member", "timeout_s"}`` → ``{"how", "last", "pid"}``; as in
        :mod:`orchestrator.protocol`.

        Raises:
            HubError: it is refused.
        """
        if verb == protocol.LIST:
            return {"members": [status.as_dict() for status in self._holder.statuses()]}
        member = request.get("member")
        if not isinstance(member, str):
            raise Refused(f"{verb}: a member is to be named", reason="protocol")
        check_name(member)
        if verb == protocol.STATUS:
            return self._holder.member(member).status().as_dict()
        if verb == protocol.ADD_MEMBER:
            options = Options.from_json(request.get("options", {}))
            return (await self._holder.add(member, options)).status().as_dict()
        if verb == protocol.STOP:
            timeout_s = request.get("timeout_s", protocol.STOP_WITHIN_S)
            return await self._holder.stop(member, protocol.seconds(timeout_s))
        raise Refused(f"a holder answers no {verb!r} over the bus", reason="unknown-verb")


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        top = tarfile.TarInfo("bones")
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(top)
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"bones/{name}")
            entry.mode, entry.size = 0o600, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
