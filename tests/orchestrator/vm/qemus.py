"""Real guests, for tests."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.backends.base import Spec
from orchestrator.backends.qemu.backend import QemuBackend
from orchestrator.packages import Guest, Packages
from tests.support import CODE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.backends.qemu.machine import QemuMachine

CACHE = CODE / ".tools/cache/bones/vm"
"""Outlives the tests: packages are downloaded, an image and a template made, once."""
READY_S = 55


def spec(place: Path, number: int = 1, **changes: Any) -> Spec:
    """Return a small VM that is kept in *place*, which is made."""
    directory = place / f"web-{number}"
    directory.mkdir(parents=True, exist_ok=True)
    made = Spec(
        name=f"web-{number}",
        directory=str(directory),
        cpus=1,
        memory_mb=128,
        disk_mb=0,
        mac=f"52:54:00:00:00:{10 + number:02x}",
        ip=f"10.77.0.{10 + number}/24",
        gateway="10.77.0.1",
        name_server="10.77.0.3",
    )
    return made.replace(**changes)


@asynccontextmanager
async def running(
    wanted: Spec,
    backend: QemuBackend | None = None,
    *,
    prepare: bool = True,
    port: socket.socket | None = None,
) -> AsyncIterator[QemuMachine]:
    """Yield a guest that is ready; it is gone afterwards."""
    backend = backend or QemuBackend(str(CACHE))
    if prepare:
        await backend.prepare(wanted, quiet)
    machine = await backend.start(wanted, port)
    try:
        async with asyncio.timeout(READY_S):
            await machine.ready()
        yield machine
    finally:
        machine.kill()
        await machine.wait()


async def guest() -> Guest:
    """Return what guests are made of."""
    return await Packages(str(CACHE)).guest(quiet)


async def shell(machine: QemuMachine, script: str) -> str:
    """Return what *script* prints in the guest, in which it must succeed."""
    done = await machine.execute(["sh", "-ec", script])
    assert done.status == 0, done
    return done.stdout.decode()


def quiet(_words: str) -> None:
    """Nobody is told."""


def content(path: str) -> bytes:
    """Return what is in a file."""
    return Path(path).read_bytes()
