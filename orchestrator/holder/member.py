"""One member, from its boot to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from foundation.errors import HubError, Unavailable
from foundation.failpoint import hit
from orchestrator import protocol
from orchestrator.backends.base import Spec
from orchestrator.holder.life import step
from orchestrator.protocol import OVER, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from orchestrator.backends.base import Machine, Neighbours
    from orchestrator.holder.life import Event
    from orchestrator.holder.parts import Parts
    from orchestrator.protocol import State, Stopped
    from orchestrator.store import Options

_BEGUN_WITHIN_S = 5.0
"""A start that is given up may go on for this long: what it makes is to be ended, not lost."""
_REAPED_WITHIN_S = 5.0


class Member:
    """A VM of the cluster. All of it belongs to the holder's loop."""

    def __init__(
        self,
        name: str,
        directory: str,
        options: Options,
        parts: Parts,
        *,
        neighbours: Callable[[Member], Neighbours],
        on_up: Callable[[Member], None],
        on_over: Callable[[Member], None],
        complain: Callable[[str, BaseException], None],
        boot_within_s: float,
    ) -> None:
        """Boot nothing yet; *on_up* is called when it is running, *on_over* at its end.

        *neighbours* tells the other members' names and addresses when it boots.
        """
        self.name = name
        self.state: State = "starting"
        self.how: Stopped = "not-booted"
        self.error: HubError | None = None
        self.machine: Machine | None = None
        self._knows: Neighbours | None = ()
        """Whom its guest can call by name; None while that is not certain."""
        self._directory = directory
        self._options = options
        self._parts = parts
        self._neighbours = neighbours
        self._on_up = on_up
        self._on_over = on_over
        self._complain = complain
        self._boot_within_s = boot_within_s
        self._ip = ""
        self._note = ""
        self._killed = False
        self._changed = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    # --- what others see -------------------------------------------------------------------

    def status(self) -> Status:
        """Return its state."""
        return Status(
            name=self.name,
            pid=self.machine.pid if self.machine is not None else 0,
            running=self.state not in OVER,
            ip=self._ip.partition("/")[0],
            state=self.state,
            error=str(self.error) if self.error is not None else "",
            reason=self.error.reason if self.error is not None else "",
        )

    async def changes(self) -> AsyncIterator[tuple[Status, str]]:
        """Yield its state, and what takes long, now and at each change; the end is the last."""
        while True:
            changed = self._changed
            status = self.status()
            yield status, self._note
            if status.state in OVER:
                return
            await changed.wait()

    def running(self) -> Machine:
        """Return its VM.

        Raises:
            Unavailable: it is not up (``not-running``).
        """
        if self.state != protocol.RUNNING or self.machine is None:
            raise Unavailable(f"VM {self.name} is {self.state}", reason="not-running")
        return self.machine

    def _step(self, event: Event) -> None:
        before, self.state = self.state, step(self.state, event)
        self._tell()
        if self.state == before:
            return
        status = self.status()
        data: dict[str, Any] = {"pid": status.pid, "ip": status.ip}
        if self.error is not None:
            data.update(error=status.error, reason=status.reason, was=before)
        self._parts.announce(self.name, self.state, data)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- its life --------------------------------------------------------------------------

    def begin(self) -> None:
        """Boot; again is no error."""
        if self._life is None:
            self._life = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        try:
            machine = await self._boot()
            ended = await machine.wait()
            self._fail(HubError(f"it ended by itself: {ended.reason}", reason="vm-died"))
        except asyncio.CancelledError:
            pass  # stopped while it booted
        except HubError as error:
            self._fail(error)
        except OSError as error:
            self._fail(HubError(f"it could not be booted: {error}", reason="system"))
        except Exception as error:  # noqa: BLE001 - one member's bug must not end the others
            self._complain(f"a bug in the boot of {self.name}", error)
            self._fail(HubError(f"a bug in its holder: {error!r}", reason="bug"))
        finally:
            await self._end()

    def _fail(self, error: HubError) -> None:
        if self.state != protocol.STOPPING:
            self.error = error

    async def _boot(self) -> Machine:
        parts, options = self._parts, self._options
        parts.announce(self.name, self.state, {"pid": 0, "ip": ""})
        try:
            async with asyncio.timeout(protocol.DOWNLOAD_WITHIN_S):
                await parts.network.open(self._takes_long)
                mac, self._ip = parts.network.reserve(self.name)
                self._knows = neighbours = self._neighbours(self)
                spec = Spec(
                    name=self.name,
                    directory=self._directory,
                    cpus=options.cpus,
                    memory_mb=options.memory_mb,
                    disk_mb=options.disk_mb,
                    mac=mac,
                    ip=self._ip,
                    gateway=parts.network.gateway,
                    name_server=parts.network.name_server,
                    neighbours=neighbours,
                )
                await parts.backend.prepare(spec, self._takes_long)
        except TimeoutError:
            raise HubError(
                f"what it needs was not there after {protocol.DOWNLOAD_WITHIN_S:g} s "
                f"({self._note or 'nothing was said'})",
                reason="download-timeout",
            ) from None
        self._note = ""
        self._step("prepared")
        hit("member.prepared")
        try:
            async with asyncio.timeout(self._boot_within_s):
                self.machine = await self._start(spec)
                hit("member.started")
                await self.machine.ready()
                parts.network.admit(self.name)
                if parts.bus is not None:
                    await parts.bus.welcome(self.name, self.machine)
        except TimeoutError:
            raise HubError(
                f"it did not answer within {self._boot_within_s:g} s of its start",
                reason="boot-timeout",
            ) from None
        self._step("ready")
        hit("member.ready")
        self._on_up(self)
        return self.machine

    async def introduce(self, neighbours: Neighbours) -> None:
        """Have its guest know *neighbours*, all others, by name; one that is not up needs not.

        Raises:
            HubError: it could not be told.
        """
        if self.state != protocol.RUNNING or neighbours == self._knows:
            return
        self._knows = None
        await self.running().introduce(neighbours)
        self._knows = neighbours

    def _takes_long(self, words: str) -> None:
        self._note = words
        self._step("long")

    async def _start(self, spec: Spec) -> Machine:
        """Start the VM; given up meanwhile, the VM that comes of it is kept, to be ended."""
        port = self._parts.network.port(self.name)
        starting = asyncio.ensure_future(self._parts.backend.start(spec, port))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait({starting}, timeout=_BEGUN_WITHIN_S)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting}, timeout=_REAPED_WITHIN_S)
            elif not starting.cancelled() and starting.exception() is None:
                self.machine = starting.result()
            raise

    async def _end(self) -> None:
        """Leave no process and no port; then say how it went."""
        machine = self.machine
        if machine is not None:
            machine.kill()
            try:
                async with asyncio.timeout(_REAPED_WITHIN_S):
                    await machine.wait()
            except TimeoutError as error:
                self._complain(f"the VM of {self.name} (pid {machine.pid}) does not end", error)
        if self.state in OVER:  # two who stop it have found it without a life
            return
        self.machine = None
        self._parts.network.release(self.name)
        hit("member.ended")
        if self.state == protocol.STOPPING:
            self.error = None  # it had failed, and was stopped before that was told
        self._step("ended")
        self._on_over(self)

    async def stop(self, gentle_s: float) -> Stopped:
        """Stop it, gently for up to *gentle_s*; return how it went, once it is over."""
        if self._life is None:
            self.begin()
        if self.state == protocol.STOPPING:  # another asked before, who may have more time
            asyncio.get_running_loop().call_later(gentle_s, self.kill)
        elif self.state not in OVER:
            booted = self.state == protocol.RUNNING
            self._step("stop")
            hit("stop.asked")
            if booted and self.machine is not None:
                await self._stop(self.machine, gentle_s)
            elif self._life is not None:
                self._life.cancel()
        if self._life is not None:
            await asyncio.wait({self._life})
        if self.state not in OVER:  # cancelled before its first step
            await self._end()
        return self.how

    async def over(self) -> None:
        """Return when it is over; nobody is hastened."""
        if self._life is not None:
            await asyncio.wait({self._life})

    async def _stop(self, machine: Machine, gentle_s: float) -> None:
        self.how = "killed"
        try:
            async with asyncio.timeout(gentle_s + _REAPED_WITHIN_S):
                how: Any = await machine.stop(gentle_s)
            self.how = "killed" if self._killed else how
        except TimeoutError:
            self._complain(f"the VM of {self.name} does not stop", TimeoutError())
        except HubError as error:
            self._complain(f"the VM of {self.name} does not stop", error)
        finally:
            machine.kill()

    def kill(self) -> None:
        """End it at once; nothing is waited for."""
        if self.machine is not None:
            self._killed = True
            self.machine.kill()
