"""Templates: a guest booted once and frozen, from which every VM of its shape starts in 0.1 s.

A template is a file that was its guest's memory, and QEMU's account of the rest (``state``). Every
VM maps that file privately: what VMs do not change they share. The file is never written again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
from typing import TYPE_CHECKING

from foundation.atomic import write_file
from foundation.errors import HubError
from foundation.failpoint import hit
from foundation.filesystem import kind_of
from foundation.record import Record
from orchestrator import cache
from orchestrator.backends.qemu import argv
from orchestrator.backends.qemu.argv import Memory, Parts
from orchestrator.backends.qemu.running import Running
from orchestrator.image.initrd import CHANNELS

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable

    from orchestrator.backends.base import Progress
    from orchestrator.backends.qemu.argv import Shape
    from orchestrator.packages import Qemu

SLOW = "template-slow"
"""The reason of a template that did not answer in time."""
_KEPT = 6
_BOOT_S = 180.0
_STATE_S = 60.0
_ANSWER_S = 20.0
_ASK_AGAIN_S = 0.003
_MAC = "52:54:00:00:00:01"
_CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}]
_SETTLES_S = 1.0
"""What the guest has put off until it has nothing else to do is done once, and not by each VM."""


class Template(Record):
    """One that was made; absolute path."""

    path: str

    @property
    def ram(self) -> str:
        """The file that was its guest's memory."""
        return f"{self.path}/ram"

    @property
    def state(self) -> str:
        """The file with the rest."""
        return f"{self.path}/state"


class Templates:
    """Those of one cache directory, for one QEMU."""

    def __init__(self, directory: str, qemu: Qemu, *, confined: bool) -> None:
        """Look at nothing yet; *confined*: whether that is how VMs run."""
        self._confined = confined
        self._room = f"{directory}/templates"
        self._qemu = qemu

    def find(self, shape: Shape) -> Template | None:
        """Return the template of *shape*, None if none was made."""
        template = self._template(shape)
        if not cache.has(template.path):
            return None
        cache.use(template.path)
        return template

    async def make(self, shape: Shape, progress: Progress) -> None:
        """Make the template of *shape* if there is none, and try it.

        Raises:
            HubError: it cannot be made, or does not work (``template`` and what QEMU says).
            OSError: the cache cannot be written.
        """
        path = self._template(shape).path
        if cache.has(path):
            return
        async with cache.making(self._room, "waiting for another template", progress) as new:
            if cache.has(path):
                return
            progress("booting a template, once; VMs of its size start from it")
            made = Template(path=f"{new}/template")
            _begin(made.path, shape)
            await self._freeze(shape, made, f"{new}/console.log")
            hit("template.frozen")
            _have_room(made.ram)
            await self._try(shape, made, f"{new}/console.log")
            hit("template.tried")
            os.rename(made.path, path)
            cache.keep_newest(self._room, _KEPT)

    def discard(self, shape: Shape) -> None:
        """Remove the template of *shape*: it does not work. Who runs from it is not disturbed."""
        cache.discard(self._template(shape).path)

    async def start(
        self, shape: Shape, template: Template, parts: Parts, port: socket.socket | None
    ) -> Running:
        """Start a VM from *template*, with *parts* in place of its own; its agent has answered.

        Raises:
            HubError: that did not work (SLOW, or another reason); nothing is left of it.
            OSError: the template cannot be read.
        """
        state = os.open(template.state, os.O_RDONLY)
        memory = Memory(path=template.ram, shared=False)
        parts = parts.replace(memory=memory, incoming=True)
        try:
            running = await Running.start(
                self._qemu, shape, parts, port=port, files={argv.STATE_FD: state}
            )
        finally:
            os.close(state)
        try:
            qmp = running.qmp
            await qmp.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
            await qmp.execute("migrate-incoming", {"uri": f"fd:{argv.STATE_FD}"})
            await _migrated(running)
            await qmp.execute("cont")
            await _within(_ANSWER_S, running.caller.make([]), "did not answer")
        except BaseException:
            await running.end()
            raise
        return running

    async def _freeze(self, shape: Shape, made: Template, console: str) -> None:
        memory = Memory(path=made.ram, shared=True)
        parts = _parts(console).replace(memory=memory, confined=False)  # it runs cat
        running = await Running.start(self._qemu, shape, parts)
        hit("template.booting")
        try:
            await _within(_BOOT_S, _warm(running), "did not boot")
            qmp = running.qmp
            await qmp.execute("stop")
            await qmp.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
            await qmp.execute("migrate", {"uri": f"exec:cat >{shlex.quote(made.state)}"})
            await _migrated(running)
        finally:
            await running.end()

    async def _try(self, shape: Shape, made: Template, console: str) -> None:
        parts = _parts(console).replace(confined=self._confined)
        running = await self.start(shape, made, parts, None)
        await running.end()

    def _template(self, shape: Shape) -> Template:
        digest = hashlib.sha256()
        status = os.stat(self._qemu.program)
        digest.update(f"{self._qemu.program}\0{status.st_size} {status.st_mtime_ns}\n".encode())
        # By its key, not its place: a cache may be moved.
        placeless = shape.replace(image=shape.image.replace(kernel="", initrd=""))
        digest.update(f"{shape.image.key}\0".encode())
        digest.update("\0".join(argv.arguments(placeless, _parts("console"))).encode())
        if shape.accel == "kvm":
            digest.update(_processor())
        return Template(path=f"{self._room}/{digest.hexdigest()}")


async def _warm(running: Running) -> None:
    await running.caller.make([])
    # Each channel's agent has opened its ports, and has run something.
    async with asyncio.TaskGroup() as group:
        for number in range(CHANNELS):
            group.create_task(running.agent.execute(["true"], copies=not number))
    await asyncio.sleep(_SETTLES_S)


async def _migrated(running: Running) -> None:
    """Wait until QEMU has written its state, or read it."""
    async with asyncio.timeout(_STATE_S):
        while True:
            said = await running.qmp.execute("query-migrate")
            status = said.get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                words = said.get("error-desc") or running.words()
                raise HubError(f"QEMU's state could not be moved: {words}", reason="template")
            await asyncio.sleep(_ASK_AGAIN_S)


async def _within(timeout_s: float, answer: Awaitable[object], words: str) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await answer
    except TimeoutError:
        raise HubError(f"the guest {words} within {timeout_s:g} s", reason=SLOW) from None


def _have_room(path: str) -> None:
    """Have all of a file that VMs map, holes too, where reading a hole takes room.

    On a tmpfs that has none left a VM that did so would be killed (SIGBUS).

    Raises:
        OSError: there is no room.
    """
    if kind_of(path) != "tmpfs":
        return
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _begin(path: str, shape: Shape) -> None:
    os.mkdir(path, 0o700)
    write_file(f"{path}/meta", f"{shape}\n".encode(), durable=False)


def _parts(console: str) -> Parts:
    return Parts(
        name="template",
        mac=_MAC,
        console=console,
        disk="",
        network=False,
        memory=None,
        incoming=False,
        confined=True,
    )


def _processor() -> bytes:
    """Return what makes this machine's processors another kind, as KVM shows them to a guest."""
    with open("/proc/cpuinfo", "rb") as file:
        first = file.read().partition(b"\n\n")[0]
    kept = (b"vendor_id", b"cpu family", b"model", b"stepping", b"flags", b"microcode")
    return b"\n".join(line for line in first.split(b"\n") if line.startswith(kept))
