"""Images in the cache: made once per kernel, busybox and version of ours."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

from foundation.atomic import write_file
from foundation.errors import HubError
from foundation.failpoint import hit
from foundation.record import Record
from orchestrator import cache
from orchestrator.child import run
from orchestrator.image import initrd, kernel
from orchestrator.image.modules import Modules

if TYPE_CHECKING:
    from orchestrator.backends.base import Progress
    from orchestrator.packages import Guest

_KEPT = 3
_ASK_S = 20.0


class Image(Record):
    """What QEMU is given to boot: absolute paths of files that never change."""

    key: str
    kernel: str
    initrd: str


async def have(directory: str, guest: Guest, progress: Progress) -> Image:
    """Return the image of *guest* in the cache *directory*, which is made if it is not there.

    Raises:
        HubError: it cannot be made (``no-module``, ``image``).
    """
    room = f"{directory}/images"
    key = _key(guest)
    path = f"{room}/{key}"
    image = Image(key=key, kernel=f"{path}/kernel", initrd=f"{path}/initrd")
    if cache.has(path):
        return image
    async with cache.making(room, "waiting for another image", progress) as new:
        if cache.has(path):
            return image
        listed = await run(
            [guest.busybox, "--list"], cwd="/", env={"PATH": "/usr/bin:/bin"}, within_s=_ASK_S
        )
        os.mkdir(f"{new}/image", 0o700)
        try:
            await asyncio.to_thread(_make, f"{new}/image", guest, listed.split())
            hit("image.made")
            os.rename(f"{new}/image", path)
        except OSError as error:
            raise HubError(f"no image can be made: {error}", reason="image") from error
        cache.keep_newest(room, _KEPT)
    return image


def _make(path: str, guest: Guest, applets: list[str]) -> None:
    with open(guest.busybox, "rb") as file:
        busybox = file.read()
    with open(guest.kernel, "rb") as file:
        bzimage = file.read()
    root = initrd.build(busybox, applets, Modules(guest.modules))
    write_file(f"{path}/initrd", root)
    write_file(f"{path}/kernel", kernel.unpacked(bzimage) or bzimage)


def _key(guest: Guest) -> str:
    """Hash what the image is made of, by identity and time: reading it all would take 50 ms."""
    digest = hashlib.sha256()
    for path in (guest.kernel, guest.modules, guest.busybox, *initrd.sources()):
        status = os.stat(path)
        digest.update(f"{status.st_ino} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
