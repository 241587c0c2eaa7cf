"""What can be asked of a guest's agents: several commands at once, each on a channel of its own."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from foundation.errors import HubError
from orchestrator.backends.base import Execution
from orchestrator.backends.qemu import shell
from orchestrator.backends.qemu.channel import Channel, Pair, new_token
from orchestrator.image import calls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.backends.qemu.caller import Caller
    from orchestrator.backends.qemu.channel import Sink

MOST_COLLECTED = 256 << 20
"""Bytes of output that are collected for who does not take them as they come."""
_KILL_AGAIN_S = 0.2
_NOTE_BYTES = 64
_COPIES = 0
_NONE = -1
"""In place of a channel's number: there will be none any more."""


class Agent:
    """The agents of one guest, one a channel."""

    def __init__(self, channels: list[Channel], caller: Caller) -> None:
        """Talk over *channels*, two at least; *caller* kills what runs."""
        self._channels = channels
        self._caller = caller
        self._copying: asyncio.Queue[int] = asyncio.Queue()
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for number in range(len(channels)):
            self._queue(number).put_nowait(number)
        self._others = set(range(1, len(channels)))
        self._lost_for_good: set[int] = set()
        self._freeing: set[asyncio.Task[None]] = set()

    @classmethod
    async def over(cls, pairs: list[Pair], caller: Caller) -> Agent:
        """Return the agent behind *pairs*."""
        return cls([await Channel.of(pair) for pair in pairs], caller)

    def close(self) -> None:
        """Let go: the guest has ended."""
        for channel in self._channels:
            channel.close()

    @property
    def is_busy(self) -> bool:
        """Whether all channels for commands are in use."""
        return self._free.empty()

    async def execute(
        self,
        argv: list[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        output: Sink | None = None,
        copies: bool = False,
    ) -> Execution:
        """Run *argv*, as :meth:`orchestrator.backends.base.Machine.execute` says.

        *copies*: it does not wait for other commands, but for other copies.
        """
        token = new_token()
        line = shell.run(token, argv, len(stdin), env or {}, cwd)
        free = self._copying if copies else self._free
        number = await free.get()
        if number == _NONE:
            free.put_nowait(_NONE)
            raise HubError("the guest's agents were all ended", reason="agent")
        collected = _Collected(argv[0], output)
        talking = asyncio.ensure_future(
            self._channels[number].talk(line, token, stdin, collected.take)
        )
        talking.add_done_callback(_retrieved)
        try:
            await asyncio.wait((talking, collected.failed), return_when=asyncio.FIRST_COMPLETED)
            if collected.failed.done():
                collected.failed.result()
            status = talking.result()
        finally:
            collected.stop()
            freeing = asyncio.ensure_future(
                self._set_free(number, token, talking, has_input=bool(stdin))
            )
            self._freeing.add(freeing)
            freeing.add_done_callback(self._freeing.discard)
        return Execution(status=status, stdout=collected.of(1), stderr=collected.of(2))

    async def _set_free(
        self, number: int, token: str, talking: asyncio.Task[int], *, has_input: bool
    ) -> None:
        """Kill what runs on a channel if it is not over, and have the channel used again."""
        in_step = True
        try:
            while not talking.done():
                await self._kill(number, token)
                await asyncio.wait((talking,), timeout=_KILL_AGAIN_S)
            talking.result()
        except HubError as error:
            # Input that an agent did not live to read would be lines to the next one.
            in_step = error.reason != "agent" or not has_input
        if in_step:
            self._queue(number).put_nowait(number)
            return
        self._lost_for_good.add(number)
        for queue, among in ((self._copying, {_COPIES}), (self._free, self._others)):
            if among <= self._lost_for_good:
                queue.put_nowait(_NONE)

    def _queue(self, number: int) -> asyncio.Queue[int]:
        return self._copying if number == _COPIES else self._free

    async def _kill(self, number: int, token: str) -> None:
        # A command leaves its number, before it is the leader of a group.
        said = await self._caller.read(f"/run/channel{number}", _NOTE_BYTES)
        told, _space, pid = said.decode("ascii", "replace").strip().partition(" ")
        if told == token and pid.isdecimal() and int(pid) > 1:
            group = calls.terminate(signal.SIGKILL, -int(pid))
            await self._caller.make(group + calls.terminate(signal.SIGKILL, int(pid)))

    def lost(self, number: int) -> None:
        """Be told that the agent of channel *number* has let go of a port."""
        self._channels[number].lost()


def _retrieved(done: asyncio.Future[int]) -> None:
    """Whoever asked may have given up meanwhile: then nobody wants to know how it failed."""
    if not done.cancelled():
        done.exception()


class _Collected:
    """A command's output: handed on, or kept up to a bound."""

    def __init__(self, name: str = "", output: Sink | None = None) -> None:
        self._name = name
        self._output = output
        self._parts: dict[int, list[bytes]] = {1: [], 2: []}
        self._size = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, which: int, data: bytes) -> None:
        if self.failed.done():
            return
        if self._output is not None:
            try:
                self._output(which, data)
            except Exception as error:  # noqa: BLE001 - the caller's own: it goes back to him
                self.failed.set_exception(error)
            return
        self._size += len(data)
        if self._size <= MOST_COLLECTED:
            self._parts[which].append(data)
            return
        self.failed.set_exception(
            HubError(
                f"{self._name} wrote more than {MOST_COLLECTED >> 20} MiB: have it write to a "
                "file, or take its output as it comes",
                reason="too-much-output",
            )
        )

    def stop(self) -> None:
        """Take nothing more."""
        self.failed.cancel()

    def of(self, which: int) -> bytes:
        return b"".join(self._parts[which])
