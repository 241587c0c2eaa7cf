"""An agent that the leaf runs: a program in the worktree, its output line by line, its end."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from foundation.errors import Refused
from foundation.process import signal_group
from foundation.spawn import spawn_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Lines = Callable[[bytes, int], None]

GRACE_S = 5.0
"""How long an agent may take to obey SIGTERM."""
MESSAGE_BYTES = 64 * 1024
LINE_BYTES = 16 * 1024
"""A longer line comes in parts, each a line of its own."""
LINGER_S = 0.05
"""How long a line may wait for others to travel with."""
_DRAIN_S = 0.5
_TERM, _KILL = 15, 9


class Agent:
    """A running agent. It dies with the leaf: the kernel sees to that."""

    def __init__(
        self,
        argv: list[str],
        *,
        environment: Mapping[str, str],
        umask: int,
        directory: str,
        lines: Lines,
    ) -> None:
        """Start *argv* in *directory*.

        *lines* is given its output as whole lines, standard output and error as they come, and
        the number of the first one, from 1: at most :data:`MESSAGE_BYTES` at once.

        Raises:
            Refused: it cannot be executed (``not-executable``).
        """
        self._loop = asyncio.get_running_loop()
        self._lines = lines
        self._rest = b""
        self._whole: list[bytes] = []
        self._whole_bytes = 0
        self._number = 1
        self._lingering: asyncio.TimerHandle | None = None
        self._killing: asyncio.TimerHandle | None = None
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._drained: asyncio.Future[None] = self._loop.create_future()
        self._read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        before = os.umask(umask)
        try:
            child = spawn_child(
                argv, env=environment, cwd=directory, files={0: null, 1: write, 2: write}
            )
        except (OSError, ValueError) as error:
            os.close(self._read)
            raise Refused(f"{argv[0]} cannot be run: {error}", reason="not-executable") from None
        finally:
            os.umask(before)
            os.close(null)
            os.close(write)
        self.pid = child.pid
        self._pidfd = child.pidfd
        os.set_blocking(self._read, False)
        self._loop.add_reader(self._read, self._readable)
        self._loop.add_reader(self._pidfd, self._ended)

    def end(self) -> None:
        """Have it end: SIGTERM to its process group, SIGKILL after :data:`GRACE_S`."""
        if self._killing is None and not self._exited.done():
            signal_group(self.pid, _TERM)
            self._killing = self._loop.call_later(GRACE_S, signal_group, self.pid, _KILL)

    async def wait(self) -> int:
        """Wait for its end; return its exit status, negative for a signal.

        What it has left running in its process group ends with it.
        """
        await asyncio.shield(self._exited)
        signal_group(self.pid, _TERM)
        try:
            async with asyncio.timeout(_DRAIN_S):
                await asyncio.shield(self._drained)
        except TimeoutError:
            pass
        return self._reap()

    def kill(self) -> None:
        """End it at once and reap it."""
        signal_group(self.pid, _KILL)
        if not self._exited.done():
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
            self._ended()
        self._reap()

    def _reap(self) -> int:
        if self._pidfd < 0:
            return 0
        if self._killing is not None:
            self._killing.cancel()
        # Until it is reaped nobody else can have this group's number.
        signal_group(self.pid, _KILL)
        self._drain()
        self._flush()
        _pid, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1
        return os.waitstatus_to_exitcode(status)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._exited.set_result(None)

    def _drain(self) -> None:
        """Take what is in the pipe, and close it."""
        while not self._drained.done():
            if not self._take():
                break
        if not self._drained.done():
            self._close()
        if self._rest:
            self._add([self._rest])
            self._rest = b""

    def _readable(self) -> None:
        self._take()
        if self._whole_bytes >= MESSAGE_BYTES:
            self._flush()
        elif self._whole and self._lingering is None:
            self._lingering = self._loop.call_later(LINGER_S, self._flush)

    def _take(self) -> bool:
        """Take one piece of output; return whether there may be more."""
        try:
            chunk = os.read(self._read, MESSAGE_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._close()
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        whole = len(self._rest) // LINE_BYTES * LINE_BYTES
        if whole:
            lines.append(self._rest[:whole])
            self._rest = self._rest[whole:]
        self._add(lines)
        return True

    def _add(self, lines: list[bytes]) -> None:
        for line in lines:
            for at in range(0, max(1, len(line)), LINE_BYTES):
                part = line[at : at + LINE_BYTES] + b"\n"
                if self._whole_bytes + len(part) > MESSAGE_BYTES:
                    self._flush()
                self._whole.append(part)
                self._whole_bytes += len(part)

    def _flush(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._whole:
            first, self._number = self._number, self._number + len(self._whole)
            whole, self._whole, self._whole_bytes = b"".join(self._whole), [], 0
            self._lines(whole, first)

    def _close(self) -> None:
        self._loop.remove_reader(self._read)
        os.close(self._read)
        self._drained.set_result(None)
