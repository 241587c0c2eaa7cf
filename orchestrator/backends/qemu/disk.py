"""A member's disk: a sparse ext4 file system, made once and never again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from foundation.atomic import remove, sync_directory
from foundation.errors import HubError
from foundation.failpoint import hit
from foundation.spawn import find_program
from orchestrator.backends.qemu import console
from orchestrator.child import run

if TYPE_CHECKING:
    from orchestrator.backends.base import Spec

NAME = "disk.raw"
_MAKE_S = 120.0
_EXTENDED = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
_OPTIONS = ("-q", "-F", "-t", "ext4", "-m", "0", "-L", "data", "-E", _EXTENDED)
_PLACES = ("mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs")


async def have(spec: Spec) -> str:
    """Return the path of the member's disk, which is made if there is none; "" if it has none.

    One that is there stays as it is, whatever *spec* says of its size; one that was there, which a
    console's log tells, is not replaced by an empty one.

    Raises:
        HubError: it cannot be made (``no-mke2fs``, ``disk``), or is gone (``disk-missing``).
    """
    if not spec.disk_mb:
        return ""
    path = f"{spec.directory}/{NAME}"
    if _is_there(path):
        return path
    if _is_there(f"{spec.directory}/{console.NAME}"):
        raise HubError(
            f"{path} is gone, which {spec.name} had: put it back, or `bones vm rm {spec.name}`",
            reason="disk-missing",
        )
    program = next(filter(None, map(find_program, _PLACES)), None)
    if program is None:
        raise HubError(
            "mke2fs is missing, which makes a VM's disk: install e2fsprogs", reason="no-mke2fs"
        )
    new = f"{path}.new"
    try:
        remove(new)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, spec.disk_mb << 20)
            await run(
                [program, *_OPTIONS, new],
                cwd="/",
                env=dict(os.environ),
                within_s=_MAKE_S,
            )
            os.fsync(fd)
        finally:
            os.close(fd)
        hit("disk.made")
        os.rename(new, path)
        sync_directory(spec.directory)
    except OSError as error:
        raise HubError(f"{path} cannot be made: {error}", reason="disk") from error
    return path


def size(spec: Spec) -> int:
    """Return how many bytes the member's disk has, or will have; 0: it has none."""
    if not spec.disk_mb:
        return 0
    try:
        return os.stat(f"{spec.directory}/{NAME}").st_size
    except FileNotFoundError:
        return spec.disk_mb << 20


def _is_there(path: str) -> bool:
    return os.path.lexists(path)
