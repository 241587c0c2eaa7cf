"""What a QEMU can do: whether it is new enough, and whether it can be confined."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from foundation.errors import HubError, ToolFailed
from foundation.record import Record
from orchestrator.child import run

if TYPE_CHECKING:
    from orchestrator.packages import Qemu

OLDEST = (7, 2)
"""The first with networks over datagram sockets."""
_ASK_S = 20.0


class Ability(Record):
    """What was found out."""

    version: str
    confined: bool
    """Whether it can give up what a VM does not need; a build may lack that."""


_KNOWN: dict[tuple[str, int, int, int], Ability] = {}
"""What this process has asked already."""


async def ask(qemu: Qemu) -> Ability:
    """Return what *qemu* can do.

    Raises:
        HubError: it is too old, or no QEMU (``qemu-version``).
        OSError: it is not there.
    """
    asked = _identity(qemu)
    if asked in _KNOWN:
        return _KNOWN[asked]
    confined = True
    try:
        said = await _ask(qemu, "-sandbox", "on", "--version")
    except ToolFailed:
        confined = False
        said = await _ask(qemu, "--version")
    found = re.search(r"version (\d+)\.(\d+)(\.\d+)*", said)
    if found is None:
        raise HubError(f"{qemu.program} is no QEMU: {said.strip()}", reason="qemu-version")
    if (int(found[1]), int(found[2])) < OLDEST:
        raise HubError(
            f"{qemu.program} is QEMU {found[0].removeprefix('version ')}; VMs need "
            f"{'.'.join(map(str, OLDEST))} or newer",
            reason="qemu-version",
        )
    _KNOWN[asked] = Ability(version=found[0].removeprefix("version "), confined=confined)
    return _KNOWN[asked]


def _identity(qemu: Qemu) -> tuple[str, int, int, int]:
    status = os.stat(qemu.program)
    return qemu.program, status.st_ino, status.st_size, status.st_mtime_ns


async def _ask(qemu: Qemu, *arguments: str) -> str:
    argv = qemu.argv(*arguments)
    return await run(argv, cwd="/", env=qemu.environment(), within_s=_ASK_S)
