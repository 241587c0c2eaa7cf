"""A child of this process on its asyncio loop: spawned, watched through its pidfd, reaped."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from foundation.errors import HubError, ToolFailed
from foundation.process import send_signal
from foundation.spawn import spawn_child

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAID_BYTES = 65_536


class Child:
    """One process; it dies with the thread that made this, which must be the loop's own."""

    def __init__(
        self, argv: list[str], *, files: Mapping[int, int], cwd: str, env: Mapping[str, str]
    ) -> None:
        """Start *argv*; *files* maps its descriptors to ours, everything else is closed in it.

        Raises:
            OSError: it could not be executed.
        """
        loop = asyncio.get_running_loop()
        spawned = spawn_child(argv, env=env, cwd=cwd, files=files)
        self.pid = spawned.pid
        self._pidfd = spawned.pidfd
        self._ended: asyncio.Future[int] = loop.create_future()
        loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        _pid, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._ended.set_result(os.waitstatus_to_exitcode(status))

    @property
    def has_ended(self) -> bool:
        """Whether it has been reaped."""
        return self._ended.done()

    async def wait(self) -> int:
        """Return its exit status, negative for a signal, once it has been reaped."""
        return await asyncio.shield(self._ended)

    async def ends_within(self, timeout_s: float) -> bool:
        """Wait until it has been reaped; return False if that takes longer than *timeout_s*."""
        done, _pending = await asyncio.wait((self._ended,), timeout=max(0.0, timeout_s))
        return bool(done)

    def kill(self) -> None:
        """End it at once; nothing is waited for."""
        if not self._ended.done():
            send_signal(self._pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """End it at once and reap it."""
        self.kill()
        await self.wait()


async def run(argv: list[str], *, cwd: str, env: Mapping[str, str], within_s: float) -> str:
    """Run a program to its end; return what it wrote, on either output, its end if it is much.

    Cancelled, it is killed.

    Raises:
        ToolFailed: it exited with another status than 0.
        HubError: it cannot be executed, or took longer than *within_s* (``tool``).
    """
    said = os.memfd_create("said")
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        try:
            child = Child(argv, files={0: null, 1: said, 2: said}, cwd=cwd, env=env)
        except OSError as error:
            raise HubError(f"{argv[0]} cannot be executed: {error}", reason="tool") from error
        try:
            if not await child.ends_within(within_s):
                raise HubError(f"{argv[0]} took longer than {within_s:g} s", reason="tool")
            status = await child.wait()
        finally:
            await child.end()
        text = _end_of(said)
    finally:
        os.close(null)
        os.close(said)
    if status:
        raise ToolFailed(argv, status, text)
    return text


def _end_of(fd: int) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, _SAID_BYTES, max(0, size - _SAID_BYTES)).decode("utf-8", "replace")
