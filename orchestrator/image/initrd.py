"""The guest's initramfs, which is its root: what it boots by, busybox, the caller, the agents."""

from __future__ import annotations

import os

from orchestrator.image import boot, caller
from orchestrator.image.cpio import Archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orchestrator.image.modules import Modules

CHANNELS = 9
"""Agents, each with a channel of its own; the first is for copies alone."""
TERMINALS = 2
"""The guest's hvc0 and hvc1."""

_HERE = os.path.dirname(os.path.abspath(__file__))
_DIRECTORIES = (
    *("bin", "data", "dev", "etc", "mnt", "proc"),
    *("root", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "var", "var/log"),
)
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n",
    "profile": 'export PATH=/usr/bin:/bin:/sbin\nPS1="$(hostname):\\w# "\n',
}


def sources() -> list[str]:
    """Return the files of ours that an image is made of, this one among them."""
    names = (
        "call",
        "agent",
        "boot.py",
        "calls.py",
        "initrd.py",
        "modules.py",
        "cpio.py",
        "kernel.py",
        "caller.py",
    )
    return [f"{_HERE}/{name}" for name in names]


def build(busybox: bytes, applets: list[str], modules: Modules) -> bytes:
    """Return the archive; *applets*: what this busybox can be called as.

    Raises:
        HubError: the kernel lacks a module that a guest needs (``no-module``).
    """
    archive = Archive()
    for path in _DIRECTORIES:
        archive.directory(path, 0o1777 if path == "tmp" else 0o755)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in applets:
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    archive.file(f"bin/{caller.NAME}", caller.program(), 0o755)
    archive.file(boot.NAME, boot.program(modules), 0o755)
    for name in ("call", "agent"):
        archive.file(f"etc/{name}", _own(name), 0o755)
    for name, text in (_ETC | {"inittab": _inittab()}).items():
        archive.file(f"etc/{name}", text.encode())
    return archive.to_bytes()


def _inittab() -> str:
    agents = "".join(f"::respawn:/etc/agent {channel}\n" for channel in range(CHANNELS))
    return f"::respawn:/etc/call\n{agents}"


def _own(name: str) -> bytes:
    with open(f"{_HERE}/{name}", "rb") as file:
        return file.read()
