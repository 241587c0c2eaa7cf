"""A QEMU that has been started: its process, its monitor, its guest's agent."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from foundation.errors import HubError
from foundation.spawn import describe_exit
from orchestrator.backends.qemu import argv, console
from orchestrator.backends.qemu.agent import Agent
from orchestrator.backends.qemu.caller import Caller
from orchestrator.backends.qemu.channel import Pair
from orchestrator.child import Child
from orchestrator.image.initrd import CHANNELS, TERMINALS
from orchestrator.qmp import Qmp

if TYPE_CHECKING:
    from orchestrator.backends.qemu.argv import Parts, Shape
    from orchestrator.packages import Qemu

_GREETING_S = 30.0
_SAID_BYTES = 2000
_LAST_LINES = 10
_CUT_EVERY_S = 10.0
_RESUME_S = 1.0
_WHY = {
    "guest-shutdown": "the guest shut down",
    "guest-reset": "the guest restarted, or its kernel panicked",
    "guest-panic": "the guest's kernel panicked",
}


class Running:
    """One QEMU. All of it belongs to one loop."""

    def __init__(self, child: Child, said: int, console_log: str) -> None:
        """Take a process that has just been started; :meth:`start` does that."""
        self.child = child
        self._said = said
        self._console = console_log
        self._why = ""
        self.qmp: Qmp
        self.caller: Caller
        self.agent: Agent
        self.consoles: dict[str, socket.socket] = {}
        """Our ends of the guest's terminals that nobody uses, by their device."""
        self.trouble = ""
        """Why the guest does not run on for now, in words; "" if it does."""
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(_CUT_EVERY_S, self._cut)
        self._resuming = loop.call_later(0, lambda: None)

    @classmethod
    async def start(
        cls,
        qemu: Qemu,
        shape: Shape,
        parts: Parts,
        *,
        port: socket.socket | None = None,
        files: dict[int, int] | None = None,
    ) -> Running:
        """Start QEMU; return once its monitor answers, which says nothing of the guest.

        *port* stays the caller's, as do *files*, further descriptors for it.

        Raises:
            HubError: it cannot be started (``qemu``), in its own words.
        """
        console.begin(parts.console)
        ours: list[socket.socket] = []
        theirs: list[socket.socket] = []
        said = os.memfd_create("qemu")
        null = os.open(os.devnull, os.O_RDWR)
        try:
            for _ in ("qmp", *argv.PORTS):
                for end, ends in zip(socket.socketpair(), (ours, theirs), strict=True):
                    ends.append(end)
                    end.setblocking(False)
            qmp, *ports = [end.fileno() for end in theirs]
            given = {0: null, 1: said, 2: said, argv.QMP_FD: qmp, **(files or {})}
            given[argv.NET_FD] = null if port is None else port.fileno()
            given |= {argv.FIRST_PORT_FD + number: fd for number, fd in enumerate(ports)}
            child = Child(
                qemu.argv(*argv.arguments(shape, parts)),
                files=given,
                cwd="/",
                env=qemu.environment(),
            )
        except BaseException as error:
            for end in ours:
                end.close()
            os.close(said)
            if isinstance(error, OSError):
                raise HubError(f"QEMU cannot be started: {error}", reason="qemu") from error
            raise
        finally:
            os.close(null)
            for end in theirs:
                end.close()
        running = cls(child, said, parts.console)
        monitor, port_of = ours[0], dict(zip(argv.PORTS, ours[1:], strict=True))
        try:
            for name in [f"hvc{number}" for number in range(TERMINALS)]:
                running.consoles[f"/dev/{name}"] = port_of[name]
            running.caller = await Caller.over(port_of[argv.CALLER])
            pairs = [Pair(port_of[f"a{n}"], port_of[f"b{n}"]) for n in range(CHANNELS)]
            running.agent = await Agent.over(pairs, running.caller)
            running.qmp = await Qmp.open(monitor, on_event=running._event, timeout_s=_GREETING_S)
        except BaseException as error:
            for end in ours:
                end.close()
            await running.child.end()
            words = running.words()
            await running.release()
            if isinstance(error, HubError):
                raise HubError(f"QEMU did not start: {words or error}", reason="qemu") from error
            raise
        return running

    def _event(self, name: str, data: dict[str, Any]) -> None:
        if name == "SHUTDOWN":
            self._why = str(data.get("reason", ""))
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            self.trouble = "this machine has no room for its disk: it is paused until there is some"
            self._resuming.cancel()
            self._resuming = asyncio.get_running_loop().call_later(_RESUME_S, self._resume)
        elif name == "RESUME":
            self.trouble = ""
        elif name == "VSERPORT_CHANGE" and not data.get("open", True):
            port = str(data.get("id"))
            if port == argv.CALLER:
                self.caller.lost()
            elif port.startswith("a"):  # of the two of a channel the first speaks for both
                self.agent.lost(int(port[1:]))

    def _resume(self) -> None:
        # What could not be written is tried again then; if there is no room yet it stops again.
        going = asyncio.ensure_future(self.qmp.execute("cont"))
        going.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _cut(self) -> None:
        console.cut(self._console)
        self._watching = asyncio.get_running_loop().call_later(_CUT_EVERY_S, self._cut)

    def words(self) -> str:
        """Return the end of what QEMU itself said."""
        size = os.fstat(self._said).st_size
        return (
            os.pread(self._said, _SAID_BYTES, max(0, size - _SAID_BYTES))
            .decode("utf-8", "replace")
            .strip()
        )

    def describe(self, status: int) -> str:
        """Return how it ended, given its exit *status*, and its last words."""
        words = [_WHY.get(self._why, f"QEMU {describe_exit(status)}")]
        if status and (said := self.words()):
            words.append(said)
        if lines := console.last_lines(self._console, _LAST_LINES):
            words.append(f"the last lines of its console:\n{lines}")
        return "; ".join(words)

    async def quit(self) -> None:
        """Ask QEMU to end, its disks flushed; the guest is not asked."""
        with suppress(HubError):
            await self.qmp.execute("quit")

    async def end(self) -> None:
        """Kill it, reap it, let go of it."""
        await self.child.end()
        await self.release()

    async def release(self) -> None:
        """Let go of what belonged to it; it has ended, and been described. Again is no error."""
        self._watching.cancel()
        self._resuming.cancel()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1
        for console_port in self.consoles.values():
            console_port.close()
        for had in ("caller", "agent"):
            if hasattr(self, had):
                getattr(self, had).close()
        if hasattr(self, "qmp"):
            await self.qmp.close()
