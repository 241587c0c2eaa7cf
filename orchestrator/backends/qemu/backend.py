"""The backend: what VMs need is had once, then each is started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from orchestrator import cache
from orchestrator.backends.qemu import disk
from orchestrator.backends.qemu.argv import Parts, Shape
from orchestrator.backends.qemu.machine import QemuMachine
from orchestrator.backends.qemu.running import Running
from orchestrator.image import images
from orchestrator.packages import Packages

if TYPE_CHECKING:
    import socket

    from orchestrator.backends.base import Progress, Spec
    from orchestrator.image.images import Image
    from orchestrator.packages import Qemu

CONSOLE = "console.log"


class QemuBackend:
    """VMs by QEMU; :class:`orchestrator.backends.base.Backend` says what each method does."""

    name = "qemu"

    def __init__(self, directory: str = "") -> None:
        """Use the cache *directory*, the machine's by default."""
        self._directory = directory or cache.directory()
        self._preparing = asyncio.Lock()
        self._had: tuple[Qemu, Image] | None = None

    async def prepare(self, spec: Spec, progress: Progress) -> None:  # noqa: ARG002 - templates
        """Have what *spec* needs; see the interface."""
        async with self._preparing:
            await self._have(progress)

    async def _have(self, progress: Progress) -> tuple[Qemu, Image]:
        if self._had is None:
            packages = Packages(self._directory)
            qemu = await packages.qemu(progress)
            guest = await packages.guest(progress)
            self._had = qemu, await images.have(self._directory, guest, progress)
        return self._had

    async def start(self, spec: Spec, port: socket.socket | None) -> QemuMachine:
        """Start a VM; see the interface."""
        try:
            async with self._preparing:
                qemu, image = await self._have(_silent)
            shape = Shape(
                accel="tcg",
                cpus=spec.cpus,
                memory_mb=spec.memory_mb,
                kernel=image.kernel,
                initrd=image.initrd,
            )
            parts = Parts(
                name=spec.name,
                mac=spec.mac,
                console=f"{spec.directory}/{CONSOLE}",
                disk=await disk.have(spec),
                network=port is not None,
                memory=None,
                incoming=False,
                confined=True,
            )
            return QemuMachine(spec, await Running.start(qemu, shape, parts, port=port))
        finally:
            if port is not None:
                port.close()

    async def close(self) -> None:
        """Let go of what all VMs shared; see the interface."""


def _silent(_words: str) -> None:
    """Nobody is told."""
