"""The backend: what VMs need is had once, then each is started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from foundation.errors import HubError, Refused
from foundation.record import Record
from orchestrator import cache
from orchestrator.backends.qemu import ability, console, disk, kvm
from orchestrator.backends.qemu.argv import Parts, Shape
from orchestrator.backends.qemu.machine import QemuMachine
from orchestrator.backends.qemu.running import Running
from orchestrator.backends.qemu.templates import SLOW, Templates
from orchestrator.image import images
from orchestrator.packages import Packages
from orchestrator.turns import Turns

if TYPE_CHECKING:
    import socket

    from orchestrator.backends.base import Progress, Spec
    from orchestrator.backends.qemu.ability import Ability
    from orchestrator.image.images import Image
    from orchestrator.packages import Qemu


class _Had(Record):
    """What all VMs of this machine are made from."""

    qemu: Qemu
    ability: Ability
    image: Image
    accel: str
    templates: Templates

    def shape(self, spec: Spec) -> Shape:
        """Return what *spec* has in common with its template."""
        return Shape(
            accel=self.accel,
            cpus=spec.cpus,
            memory_mb=spec.memory_mb,
            disk_bytes=disk.size(spec),
            image=self.image,
        )


class QemuBackend:
    """VMs by QEMU; :class:`orchestrator.backends.base.Backend` says what each method does."""

    name = "qemu"

    def __init__(
        self, directory: str = "", *, templates: bool = True, note: Progress | None = None
    ) -> None:
        """Use the cache *directory*, the machine's by default; boot each VM if not *templates*.

        *note* is told why a VM was booted that should have started from a template.
        """
        self._note = note or _silent
        self._directory = os.path.abspath(directory or cache.directory())
        self._templates = templates
        self._preparing = Turns()
        self._had: _Had | None = None
        self._failed: set[Shape] = set()
        self._slow: set[Shape] = set()

    async def prepare(self, spec: Spec, progress: Progress) -> None:
        """Have what *spec* needs; see the interface.

        A template that cannot be made is told, and is no failure: its VMs boot.
        """
        if spec.memory_mb > (most := _memory_mb()):
            raise Refused(
                f"{spec.name} is to have {spec.memory_mb} MB of memory; this machine has {most}",
                reason="too-large",
            )
        async with self._preparing.taken(progress) as tell:
            had = await self._have(tell)
            shape = had.shape(spec)
            if not self._templates or shape in self._failed:
                return
            try:
                await had.templates.make(shape, tell)
            except (HubError, OSError, TimeoutError) as error:
                self._failed.add(shape)
                words = f"no template: {error}; VMs are booted instead"
                tell(words)
                self._note(words)

    async def _have(self, progress: Progress) -> _Had:
        # What is in the cache may go at any time, as when another version makes its own.
        if self._had is None or not cache.has(os.path.dirname(self._had.image.kernel)):
            packages = Packages(self._directory)
            qemu = await packages.qemu(progress)
            able = await ability.ask(qemu)
            guest = await packages.guest(progress)
            self._had = _Had(
                qemu=qemu,
                ability=able,
                image=await images.have(self._directory, guest, progress),
                accel=await kvm.accel(self._directory, qemu, progress),
                templates=Templates(self._directory, qemu, confined=able.confined),
            )
        return self._had

    async def start(self, spec: Spec, port: socket.socket | None) -> QemuMachine:
        """Start a VM; see the interface."""
        try:
            had = self._had
            if had is None:
                async with self._preparing.taken(_silent) as tell:
                    had = await self._have(tell)
            path = await disk.have(spec)
            shape = had.shape(spec)
            parts = Parts(
                name=spec.name,
                mac=spec.mac,
                console=f"{spec.directory}/{console.NAME}",
                disk=path,
                network=port is not None,
                memory=None,
                incoming=False,
                confined=had.ability.confined,
            )
            return QemuMachine(spec, await self._begin(had, shape, parts, port))
        finally:
            if port is not None:
                port.close()

    async def _begin(
        self, had: _Had, shape: Shape, parts: Parts, port: socket.socket | None
    ) -> Running:
        """Start a VM from its template, or boot it."""
        template = had.templates.find(shape) if self._templates else None
        if template is None:
            return await Running.start(had.qemu, shape, parts, port=port)
        try:
            return await had.templates.start(shape, template, parts, port)
        except (HubError, OSError, TimeoutError) as error:
            # If it cannot be booted either, the fault is not the template's.
            running = await Running.start(had.qemu, shape, parts, port=port)
            self._note(f"{parts.name} is booted, its template does not work: {error}")
            if not self._is_slow(shape, error):
                had.templates.discard(shape)
            return running

    def _is_slow(self, shape: Shape, error: Exception) -> bool:
        """Whether a template had no time to answer, for the first time: the machine may be busy."""
        slow = isinstance(error, HubError) and error.reason == SLOW and shape not in self._slow
        self._slow.add(shape)
        return slow

    async def close(self) -> None:
        """Let go of what all VMs shared; see the interface."""


def _memory_mb() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def _silent(_words: str) -> None:
    """Nobody is told."""
