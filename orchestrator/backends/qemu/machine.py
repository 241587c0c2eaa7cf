"""A VM, once QEMU runs it: what a holder asks of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from foundation.errors import HubError, Unavailable
from orchestrator.backends.base import Execution, Exit
from orchestrator.backends.qemu import identity, terminal, transfer
from orchestrator.image import calls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from orchestrator.backends.base import Neighbours, Spec, Window
    from orchestrator.backends.qemu.running import Running

_QUIT_S = 1.0
_LEAST_S = 0.05
_SHUTS_DOWN_S = 1.0


class QemuMachine:
    """One VM; :class:`orchestrator.backends.base.Machine` says what each method does."""

    def __init__(self, spec: Spec, running: Running) -> None:
        """Take over what has just been started."""
        self.pid = running.child.pid
        self._spec = spec
        self._running = running
        self._asked_to_end = False
        self._over = asyncio.ensure_future(self._until_over())
        self._identified: asyncio.Future[None] | None = None

    @property
    def trouble(self) -> str:
        """Why it does not run on for now; see the interface."""
        return self._running.trouble

    async def _until_over(self) -> Exit:
        status = await self._running.child.wait()
        reason = "it was stopped" if self._asked_to_end else self._running.describe(status)
        await self._running.release()
        return Exit(status=status, reason=reason)

    async def ready(self) -> None:
        """Return when the agent answers and the guest is who its spec says; see the interface."""
        if self._identified is None:
            self._identified = asyncio.ensure_future(self._identify())
        try:
            await asyncio.shield(self._identified)
        except HubError as error:
            raise await self._explained(error) from error

    async def _identify(self) -> None:
        caller = self._running.caller
        await caller.make([])  # once it answers: the time is what it is then
        now_s = time.clock_gettime(time.CLOCK_REALTIME)
        try:
            await caller.make(identity.become(self._spec, now_s, os.urandom(32)))
        except HubError as error:
            if error.reason != "guest":
                raise
            raise HubError(
                f"the guest could not become {self._spec.name}: {error}", reason="guest"
            ) from error

    @property
    def is_busy(self) -> bool:
        """Whether one more command would wait; see the interface."""
        return self._running.agent.is_busy

    async def execute(
        self,
        argv: list[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        output: Callable[[int, bytes], None] | None = None,
    ) -> Execution:
        """Run *argv* in the guest; see the interface."""
        return await self._execute(argv, stdin=stdin, env=env, cwd=cwd, output=output)

    async def _execute(self, argv: list[str], **more: Any) -> Execution:
        if self.trouble:
            raise Unavailable(f"{self._spec.name}: {self.trouble}", reason="paused")
        try:
            return await self._running.agent.execute(argv, **more)
        except HubError as error:
            raise await self._explained(error) from error

    async def _copy(self, argv: list[str], *, stdin: bytes = b"") -> Execution:
        """Run *argv*, which copies: however many commands run already."""
        return await self._execute(argv, stdin=stdin, copies=True)

    async def terminal(
        self,
        argv: list[str],
        *,
        window: Window,
        keys: AsyncIterator[bytes | Window],
        output: Callable[[bytes], None],
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run *argv* on a terminal of the guest's; see the interface."""
        failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with (
            terminal.used(self._running, self._spec.name) as console,
            console.shown(output, failed),
        ):
            on = terminal.on(console.device, window, argv)
            running = asyncio.ensure_future(self.execute(on, env=env))
            feeding = asyncio.ensure_future(console.feed(keys))
            feeding.add_done_callback(partial(_pass_failure, failed))
            try:
                await asyncio.wait((running, failed), return_when=asyncio.FIRST_COMPLETED)
                return running.result().status if running.done() else failed.result()
            finally:
                for task in (running, feeding, failed):
                    task.cancel()
                await asyncio.gather(running, feeding, return_exceptions=True)

    async def introduce(self, neighbours: Neighbours) -> None:
        """Have the guest know *neighbours* by name; see the interface."""
        hosts = identity.hosts(self._spec, neighbours)
        try:
            await self._running.caller.make(calls.replacement(identity.HOSTS, hosts))
        except HubError as error:
            raise await self._explained(error) from error

    async def put(self, tar: bytes, path: str) -> None:
        """Unpack *tar* in the guest; see :func:`orchestrator.backends.qemu.transfer.put`."""
        await transfer.put(self._copy, self._spec.name, tar, path)

    async def get(self, path: str) -> bytes:
        """Return a tar archive of *path*; see :func:`orchestrator.backends.qemu.transfer.get`."""
        return await transfer.get(self._copy, self._spec.name, path)

    async def stop(self, timeout_s: float) -> str:
        """End it, gently at first; see the interface.

        Half of *timeout_s* is the guest's, then QEMU is told to end, then it is killed.
        """
        child = self._running.child
        if child.has_ended:
            return "agent"
        self._asked_to_end = True
        asking = asyncio.ensure_future(self._leave(timeout_s / 4))
        try:
            if await child.ends_within(timeout_s / 2):
                return "agent"
            quitting = asyncio.ensure_future(self._running.quit())
            try:
                if await child.ends_within(max(_LEAST_S, min(_QUIT_S, timeout_s / 4))):
                    return "quit"
            finally:
                quitting.cancel()
            child.kill()
            await child.wait()
            return "killed"
        finally:
            asking.cancel()
            with suppress(HubError, asyncio.CancelledError):
                await asking

    async def _leave(self, grace_s: float) -> None:
        """Have the guest end; who uses its disk has *grace_s* to let go of it."""
        caller = self._running.caller
        until = time.monotonic() + grace_s
        unmount = calls.unmount(identity.DISK_PLACE)
        (_sent, result) = await caller.make(calls.terminate(signal.SIGTERM) + unmount)
        while calls.is_in_use(result) and time.monotonic() < until:
            await asyncio.sleep(_LEAST_S)
            (result,) = await caller.make(unmount)
        if calls.is_in_use(result):
            killed = await caller.make(calls.terminate(signal.SIGKILL) + unmount)
            if calls.is_in_use(killed[-1]):
                await caller.make(calls.freeze(identity.DISK_PLACE))
        await caller.make(calls.reset())

    def kill(self) -> None:
        """End it at once; see the interface."""
        self._asked_to_end = True
        self._running.child.kill()

    async def wait(self) -> Exit:
        """Return how it ended, when it has; see the interface."""
        return await asyncio.shield(self._over)

    async def _explained(self, error: HubError) -> HubError:
        """Return *error*, and how the VM ended if that is what is wrong."""
        if error.reason == "agent":
            # Its agents are the first to go when a guest shuts down.
            if not await self._running.child.ends_within(_SHUTS_DOWN_S):
                return error
        elif error.reason != "vm-ended":
            return error
        ended = await self.wait()
        return HubError(f"{self._spec.name} ended: {ended.reason}", reason="vm-ended")


def _pass_failure(to: asyncio.Future[int], done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None and not to.done():
        to.set_exception(error)
