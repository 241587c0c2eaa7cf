"""What a QEMU can do: whether it is new enough, and whether it can be confined."""

from __future__ import annotations

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


async def ask(qemu: Qemu) -> Ability:
    """Return what *qemu* can do.

    Raises:
        HubError: it is too old, or no QEMU (``qemu-version``).
    """
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
    return Ability(version=found[0].removeprefix("version "), confined=confined)


async def _ask(qemu: Qemu, *arguments: str) -> str:
    argv = qemu.argv(*arguments)
    return await run(argv, cwd="/", env=qemu.environment(), within_s=_ASK_S)
