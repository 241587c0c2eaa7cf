"""One member, from its boot to its end."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from foundation.errors import HubError, Unavailable
from foundation.failpoint import hit
from orchestrator import protocol
from orchestrator.backends.base import Spec
from orchestrator.holder.life import step
from orchestrator.protocol import OVER, Status

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from orchestrator.backends.base import Machine, Neighbours
    from orchestrator.holder.life import Event
    from orchestrator.holder.parts import Parts
    from orchestrator.protocol import State, Stopped
    from orchestrator.store import Options

_BEGUN_WITHIN_S = 5.0
"""A start that is given up may go on for this long, if nobody is in a hurry."""
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
        turns: asyncio.Semaphore,
    ) -> None:
        """Boot nothing yet; *on_up* is called when it is running, *on_over* at its end.

        *neighbours* tells the other members' names and addresses when it boots, which it does with
        one of *turns*; the time until it has that is not counted as its boot's.
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
        self._turns = turns
        self._ip = ""
        self._note = ""
        self._killed = False
        self._start_patience_s = _BEGUN_WITHIN_S
        self._changed = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        """Never cancelled: it leaves nothing behind."""
        self._booting: asyncio.Task[Machine] | None = None
        self._starting: asyncio.Future[Machine] | None = None
        self._stopping: asyncio.Task[None] | None = None

    # --- what others see -------------------------------------------------------------------

    def status(self) -> Status:
        """Return its state."""
        why, reason = "", ""
        if self.error is not None:
            why, reason = str(self.error), self.error.reason
        elif self.machine is not None and self.machine.trouble:
            why, reason = self.machine.trouble, "paused"
        elif self.state == protocol.RUNNING and (trouble := self._parts.network.trouble):
            why, reason = trouble, "gateway"
        return Status(
            name=self.name,
            pid=self.machine.pid if self.machine is not None else 0,
            running=self.state not in OVER,
            ip=self._ip.partition("/")[0],
            state=self.state,
            error=why,
            reason=reason,
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
        self._announce(data)

    def _announce(self, data: dict[str, Any]) -> None:
        try:
            self._parts.announce(self.name, self.state, data)
        except Exception as error:  # noqa: BLE001 - whoever is told must not break off a life
            self._complain(f"{self.name} is {self.state}, which could not be announced", error)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # --- its life --------------------------------------------------------------------------

    def begin(self) -> None:
        """Boot; again is no error."""
        if self._life is None:
            loop = asyncio.get_running_loop()
            self._booting = loop.create_task(self._boot())
            self._life = loop.create_task(self._live(self._booting))

    async def _live(self, booting: asyncio.Task[Machine]) -> None:
        try:
            await asyncio.wait({booting})
            machine = booting.result()
            ended = await machine.wait()
            self._fail(HubError(f"it ended by itself: {ended.reason}", reason="vm-died"))
        except asyncio.CancelledError:
            self._fail(HubError("its boot was given up", reason="killed"))
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
        self._announce({"pid": 0, "ip": ""})
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
        if self._turns.locked():
            self._takes_long("waiting until others have booted")
        async with self._turns:
            return await self._boot_now(spec)

    async def _boot_now(self, spec: Spec) -> Machine:
        parts = self._parts
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
        """Start the VM. Given up meanwhile, it is not lost: :meth:`_end` ends what comes of it."""
        port = self._parts.network.port(self.name)
        self._starting = asyncio.ensure_future(self._parts.backend.start(spec, port))
        self._starting.add_done_callback(partial(self._started, port))
        return await asyncio.shield(self._starting)

    def _started(self, port: socket.socket | None, starting: asyncio.Future[Machine]) -> None:
        if starting.cancelled() and port is not None:
            port.close()  # it may not have begun, and then it is not the backend's
        if starting.cancelled() or starting.exception() is not None:
            return
        self.machine = starting.result()
        if self.state in OVER:  # nobody waits for it any more
            self._complain(f"{self.name} was started too late", TimeoutError())
            self.machine.kill()

    async def _end(self) -> None:
        """Leave no process and no port; then say how it went."""
        await self._end_start()
        machine = self.machine
        if machine is not None:
            machine.kill()
            try:
                async with asyncio.timeout(_REAPED_WITHIN_S):
                    await machine.wait()
            except TimeoutError as error:
                self._complain(f"the VM of {self.name} (pid {machine.pid}) does not end", error)
                await machine.wait()  # its disk is nobody else's before
        if self._stopping is not None:  # it knows how the VM went
            await asyncio.wait({self._stopping}, timeout=_REAPED_WITHIN_S)
        self.machine = None
        self._parts.network.release(self.name)
        hit("member.ended")
        if self.state == protocol.STOPPING:
            self.error = None  # it had failed, and was stopped before that was told
        self._step("ended")
        self._on_over(self)

    async def _end_start(self) -> None:
        """Wait for what comes of a start that was given up; it may take its time."""
        starting = self._starting
        if starting is None:
            return
        await asyncio.wait({starting}, timeout=self._start_patience_s)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting}, timeout=_REAPED_WITHIN_S)
        await asyncio.sleep(0)  # its callback, which takes the VM, may come a turn later

    async def stop(self, gentle_s: float) -> Stopped:
        """Stop it, gently for up to *gentle_s*; return how it went, once it is over."""
        self.begin()
        assert self._booting is not None
        assert self._life is not None
        if self.state == protocol.STOPPING:  # another asked before, who may have more time
            asyncio.get_running_loop().call_later(gentle_s, self.kill)
        elif self.state not in OVER:
            booted = self.state == protocol.RUNNING
            self._step("stop")
            hit("stop.asked")
            if booted and self.machine is not None:
                stopping = self._stop(self.machine, gentle_s)
                self._stopping = asyncio.get_running_loop().create_task(stopping)
            else:
                self._start_patience_s = min(gentle_s, self._start_patience_s)
                self._booting.cancel()
        await asyncio.wait({self._life})
        return self.how

    async def over(self) -> None:
        """Return when it is over; nobody is hastened."""
        if self._life is not None:
            await asyncio.wait({self._life})

    async def _stop(self, machine: Machine, gentle_s: float) -> None:
        how: Any = "killed"
        try:
            async with asyncio.timeout(gentle_s + _REAPED_WITHIN_S):
                how = await machine.stop(gentle_s)
        except TimeoutError:
            self._complain(f"the VM of {self.name} does not stop", TimeoutError())
        except HubError as error:
            self._complain(f"the VM of {self.name} does not stop", error)
        finally:
            machine.kill()
            self.how = "killed" if self._killed else how

    def kill(self) -> None:
        """End it at once; nothing is waited for."""
        self._start_patience_s = 0.0
        if self._starting is not None:
            self._starting.cancel()
        if self.machine is not None:
            self._killed = True
            self.machine.kill()
