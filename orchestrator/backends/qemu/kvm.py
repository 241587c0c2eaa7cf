"""Whether KVM works here: tried once a boot, with a program of three instructions.

That /dev/kvm opens, and even that it makes a VM, says little: there are hosts on which QEMU's
firmware hangs in it for ever.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from foundation import codec
from foundation.atomic import write_file
from foundation.errors import HubError, Refused, ToolFailed
from foundation.process import boot_id
from orchestrator import cache
from orchestrator.child import run

if TYPE_CHECKING:
    from orchestrator.backends.base import Progress
    from orchestrator.packages import Qemu

ACCEL = "BONES_VM_ACCEL"
"""``kvm`` or ``tcg``: no trial."""
DEVICE = "/dev/kvm"
_DEADLINE_S = 2.0
_VALUE = 0x10
_STATUS = _VALUE << 1 | 1  # isa-debug-exit
_CODE = bytes([0xB0, _VALUE, 0xE6, 0xF4, 0xF4])  # mov al, 0x10; out 0xf4, al; hlt
_SECTOR = _CODE.ljust(510, b"\0") + b"\x55\xaa"


async def accel(directory: str, qemu: Qemu, progress: Progress) -> str:
    """Return ``kvm`` or ``tcg``; the verdict is kept in the cache *directory* until the next boot.

    Raises:
        Refused: the variable holds something else (``bad-accel``).
    """
    if named := os.environ.get(ACCEL):
        if named not in ("kvm", "tcg"):
            raise Refused(f"{ACCEL}={named}: kvm or tcg", reason="bad-accel")
        return named
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    room = f"{directory}/kvm"
    question = {"boot": boot_id(), "qemu": qemu.program}
    verdict = _known(f"{room}/verdict", question)
    if verdict is None:
        async with cache.making(room, "waiting for another trial of KVM", progress) as new:
            verdict = _known(f"{room}/verdict", question)
            if verdict is None:
                progress("trying whether KVM works here")
                write_file(f"{new}/sector", _SECTOR, durable=False)
                verdict = await works(qemu, f"{new}/sector", "kvm", _DEADLINE_S)
                answer = codec.dumps(question | {"works": verdict})
                write_file(f"{room}/verdict", answer.encode(), durable=False)
    return "kvm" if verdict else "tcg"


async def works(qemu: Qemu, sector: str, accelerator: str, within_s: float) -> bool:
    """Tell whether QEMU's firmware starts our boot *sector* by *accelerator* in time."""
    argv = qemu.argv(
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", f"pc,accel={accelerator}", "-m", "16M"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
        *("-drive", f"file={sector.replace(',', ',,')},format=raw,if=ide"),
    )
    try:
        await run(argv, cwd="/", env=qemu.environment(), within_s=within_s)
    except ToolFailed as error:
        return error.status == _STATUS
    except HubError:
        return False  # it hung: it has been killed
    return False


def _known(path: str, question: dict[str, str]) -> bool | None:
    try:
        with open(path, encoding="utf-8") as file:
            answer = codec.loads_object(file.read().encode())
    except (OSError, codec.DecodeError):
        return None
    verdict = answer.pop("works", None)
    return verdict if answer == question and isinstance(verdict, bool) else None
