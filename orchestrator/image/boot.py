"""What a guest does first: a list of system calls, and no program but what makes them. Pure.

A shell with `mount` and `insmod` took 0.7 s of a boot, by emulation, where this takes 0.1.
"""

from __future__ import annotations

from orchestrator.image import caller, calls
from orchestrator.image.modules import NEEDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orchestrator.image.modules import Modules

NAME = "init"
"""What the kernel runs."""
_TOKEN = bytes(16)


def program(modules: Modules) -> bytes:
    """Return it: it mounts, loads the modules that are NEEDED, and becomes busybox's init.

    Raises:
        HubError: the kernel lacks a module (``no-module``).
    """
    wanted = [
        *calls.mount("proc", "/proc"),
        *calls.mount("sysfs", "/sys"),
        *calls.mount("devtmpfs", "/dev"),
        *calls.directory("/dev/pts"),
        *calls.directory("/dev/shm"),  # noqa: S108 - the guest's
        *calls.mount("devpts", "/dev/pts"),
        *calls.mount("tmpfs", "/dev/shm", "mode=1777"),  # noqa: S108 - the guest's
        *calls.mount("tmpfs", "/run", "mode=755"),
        *calls.mount("tmpfs", "/tmp", "mode=1777"),  # noqa: S108 - the guest's
        *calls.link("/dev/fd", "/proc/self/fd"),
    ]
    for _name, content in modules.in_order(NEEDED):
        wanted += calls.module(content)
    wanted += calls.become("/bin/init", "init")
    made = [(one.number, one.arguments) for one in wanted]
    return caller.program(caller.unbounded(_TOKEN, made))
