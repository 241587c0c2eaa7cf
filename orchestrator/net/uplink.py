"""A gateway that is there again when it has died, and its forwards with it.

One that dies too often is left alone, which is told, until somebody needs it again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from foundation.errors import HubError, Unavailable
from foundation.spawn import describe_exit
from hub.restart import History, after_exit
from orchestrator.net.forwards import Forwards
from orchestrator.net.policy import from_gateway
from orchestrator.net.rejection import rejection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from orchestrator.net.forwards import Forward
    from orchestrator.net.gateway import Gateway
    from orchestrator.net.policy import Filter
    from orchestrator.net.switch import Counts, Port, Switch

    Told = Callable[[str, dict[str, Any]], None]
    """Told what happens by itself: ``gateway-failed``, which is for good, ``gateway-restarted``
    (both ``{"status", "error"}``: how it had ended, and why in words) and ``forward-lost``
    (a :class:`Forward` and ``"error"``)."""

_RESTARTING = "the network's gateway has ended, and is being started again: try again in a moment"
_FAILED = (
    "the network's gateway has failed for good, so there is neither internet nor hub, and no "
    "forward, until `bones vm up` or `bones vm forward` starts it anew: {}"
)


class Uplink:
    """The gateway of one switch, from :meth:`start` to :meth:`close`."""

    def __init__(
        self,
        switch: Switch,
        *,
        gateway: Callable[[socket.socket], Awaitable[Gateway]],
        outward: Filter,
        changed: Callable[[], None],
        told: Told,
    ) -> None:
        """Start nothing yet.

        *gateway* starts one whose frames go through a socket. *outward* filters what it is sent,
        in the switch's thread; *changed* is told of every change of :attr:`forwards`.
        """
        self.trouble = ""
        """Why there is no gateway, in words; "" if there is one."""
        self._forwards = Forwards(changed=changed, lost=self._lost)
        self._switch = switch
        self._start = gateway
        self._outward = outward
        self._told = told
        self._gateway: Gateway | None = None
        self._port: Port | None = None
        self._failed: dict[str, Any] | None = None
        """How it ended, once it is left alone."""
        self._keeping: asyncio.Task[None] | None = None
        self._tidying: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        """Held while forwards are made or unmade, and while a new gateway gets those there are."""

    async def start(self) -> None:
        """Start the gateway; from now on it is started again when it ends.

        Raises:
            HubError: it cannot be started (``gateway``).
        """
        await self._begin()
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def revive(self) -> None:
        """Start the gateway anew if it was left alone.

        Raises:
            HubError: it cannot be started (``gateway``).
        """
        async with self._changing:
            await self._revive()

    def close(self) -> None:
        """End the gateway; again is no error."""
        for task in (self._keeping, *self._tidying):
            if task is not None:
                task.cancel()
        self._end()

    def counts(self) -> Counts:
        """Return what has gone through the present gateway's port; *in* is from the gateway.

        Raises:
            Unavailable: there is none just now (``gateway``).
        """
        if self._port is None:
            raise Unavailable(self.trouble, reason="gateway")
        return self._port.counts()

    # --- forwards --------------------------------------------------------------------------

    @property
    def forwards(self) -> list[Forward]:
        """Return what is forwarded."""
        return list(self._forwards.wanted.values())

    async def forward(self, asked: Forward, is_there: Callable[[], bool]) -> int:
        """Have what is *asked*, as :meth:`Forwards.make`; it is there again with a new gateway.

        Raises:
            Refused: the host's port is taken (``port-taken``).
            Unavailable: there is no gateway just now (``gateway``), or it does not answer
                (``gateway-silent``); the member has ended (``not-running``).
            HubError: the gateway had been left alone, and cannot be started (``gateway``).
        """
        try:
            async with self._changing:
                await self._revive()
                if self._gateway is None:
                    raise Unavailable(self.trouble, reason="gateway")
                return await self._forwards.make(self._gateway, asked, is_there)
        except BaseException:
            self._tidy_soon()  # of what was asked in vain
            raise

    def forget(self, host_ports: list[int]) -> None:
        """Let nothing be answered by these forwards from now on; soon nobody listens there."""
        self._forwards.forget(host_ports)
        self._tidy_soon()

    async def unforward(self, host_port: int) -> None:
        """Forward *host_port* no longer; again is no error.

        Raises:
            Unavailable: the gateway does not answer (``gateway-silent``).
        """
        self._forwards.forget([host_port])
        await self._tidy()

    async def _tidy(self) -> None:
        async with self._changing:
            if self._gateway is not None:
                await self._forwards.tidy(self._gateway)

    def _tidy_soon(self) -> None:
        async def tidy() -> None:
            with suppress(HubError):  # one that does not answer does it later
                await self._tidy()

        task = asyncio.get_running_loop().create_task(tidy())
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    def _lost(self, forward: Forward, why: str) -> None:
        self._told("forward-lost", {**forward.as_dict(), "error": why})

    # --- the gateway's life ----------------------------------------------------------------

    async def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._gateway = await self._start(theirs)
            self._port = self._switch.add(
                ours, inward=from_gateway, outward=self._outward, rejects=rejection
            )
            self._switch.open(self._port)
            await self._forwards.again(self._gateway)
        except BaseException:
            if self._port is None:
                ours.close()
            self._end()
            raise
        self.trouble = ""

    def _end(self) -> None:
        gateway, port = self._gateway, self._port
        self._gateway = self._port = None
        self.trouble = self.trouble or _RESTARTING
        if gateway is not None:
            gateway.kill()
        if port is not None:
            self._switch.remove(port)

    async def _keep(self) -> None:
        """Start the gateway again when it ends, until it ends too often."""
        loop = asyncio.get_running_loop()
        history = History()
        status, why = 0, ""
        try:
            while self._gateway is not None:
                since_s = loop.time()
                status = await self._gateway.wait()
                why = _words(status, self._gateway.said())
                self._end()
                ready_for_s: float | None = loop.time() - since_s
                while self._gateway is None:
                    spread = int.from_bytes(os.urandom(2), "big") / 32768 - 1
                    history, delay_s = after_exit(
                        history, now_s=loop.time(), ready_for_s=ready_for_s, spread=spread
                    )
                    if delay_s is None:
                        self._give_up(status, why)
                        return
                    await asyncio.sleep(delay_s)
                    try:
                        async with self._changing:
                            await self._begin()
                    except (HubError, OSError) as error:
                        why, ready_for_s = str(error), None
                self._told("gateway-restarted", {"status": status, "error": why})
        except Exception as error:  # noqa: BLE001 - a bug must not end it in silence
            with suppress(RuntimeError):  # of a switch that is closed
                self._end()
            self._give_up(status, repr(error))

    def _give_up(self, status: int, why: str) -> None:
        self._leave_alone(status, why)
        self._told("gateway-failed", {"status": status, "error": why})

    def _leave_alone(self, status: int, why: str) -> None:
        self._failed = {"status": status, "error": why}
        self.trouble = _FAILED.format(why.strip().rpartition("\n")[2])

    async def _revive(self) -> None:
        """As :meth:`revive`, with the lock."""
        if self._failed is None:
            return
        failed = self._failed
        try:
            await self._begin()
        except (HubError, OSError) as error:
            self._leave_alone(failed["status"], str(error))
            raise HubError(
                f"the network's gateway had failed, and could not be started anew: {error}",
                reason="gateway",
            ) from None
        self._failed = None
        self._keeping = asyncio.get_running_loop().create_task(self._keep())
        self._told("gateway-restarted", failed)


def _words(status: int, said: str) -> str:
    return f"it {describe_exit(status)}" + (f": {said}" if said else "")
