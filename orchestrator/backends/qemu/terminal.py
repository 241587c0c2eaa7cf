"""A terminal of a guest's: a console of its, which a command has while it runs."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from foundation.errors import Refused
from orchestrator.backends.base import Window
from orchestrator.image import calls

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator

    from orchestrator.backends.qemu.running import Running

_BLOCK = 65_536
# Its leader has no terminal yet: the first that it opens is its own. The size is forgotten with the
# last close, so it is set by who has it open.
_SCRIPT = (
    'tty=$1 rows=$2 columns=$3; shift 3; exec <"$tty" >"$tty" 2>&1; '
    'stty sane rows "$rows" cols "$columns"; exec "$@"'
)


def on(device: str, window: Window, argv: list[str]) -> list[str]:
    """Return what the guest runs for *argv* to have the terminal *device*."""
    return ["sh", "-c", _SCRIPT, "terminal", device, *map(str, window), *argv]


class Console:
    """One that is in use."""

    def __init__(self, running: Running, device: str, port: socket.socket) -> None:
        """Take *port*, our end of the guest's *device*."""
        self.device = device
        self._running = running
        self._port = port

    async def feed(self, keys: AsyncIterator[bytes | Window]) -> None:
        """Type *keys*, to their end."""
        loop = asyncio.get_running_loop()
        async for typed in keys:
            if isinstance(typed, Window):
                await self._running.caller.make(calls.window(self.device, *typed))
            else:
                await loop.sock_sendall(self._port, typed)

    @contextmanager
    def shown(self, output: Callable[[bytes], None], failed: asyncio.Future[int]) -> Iterator[None]:
        """Have *output* get what is written to it; *failed* gets what that raises."""
        loop = asyncio.get_running_loop()
        self.read()  # what nobody was there to see

        def pump() -> None:
            try:
                output(self.read())
            except Exception as error:  # noqa: BLE001 - the caller's own: it goes back to him
                loop.remove_reader(self._port)
                if not failed.done():
                    failed.set_exception(error)

        loop.add_reader(self._port, pump)
        try:
            yield
        finally:
            if loop.remove_reader(self._port):
                pump()  # what was written last

    def read(self) -> bytes:
        """Return what has come."""
        found = b""
        try:
            while data := self._port.recv(_BLOCK):
                found += data
        except OSError:
            pass  # no more for now, or for ever
        return found


@contextmanager
def used(running: Running, name: str) -> Iterator[Console]:
    """Have one that is free; *name*: whose they are.

    Raises:
        Refused: none is (``no-terminal``).
    """
    if not running.consoles:
        raise Refused(f"all terminals of {name} are in use", reason="no-terminal")
    device, port = running.consoles.popitem()
    try:
        yield Console(running, device, port)
    finally:
        if running.child.has_ended:
            port.close()
        else:
            running.consoles[device] = port
