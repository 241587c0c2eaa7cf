"""Telling a guest who it is: the same after a boot and after a start from a template. Pure.

A template's VMs all wake as the template: with its clock, its randomness, its address, and with
their network card down, so that nothing of that can get out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.backends.qemu.shell import quoted

if TYPE_CHECKING:
    from orchestrator.backends.base import Spec

POWEROFF = "leave"
"""What the agent runs to end its guest."""


def script(spec: Spec, now_s: int, seed: bytes) -> str:
    """Return what the agent runs; it fails if any of it does.

    *now_s* is the time in seconds since the epoch, *seed* 32 random bytes.
    """
    words = [spec.name, str(now_s), seed.hex()]
    if spec.ip:
        words += [spec.mac, spec.ip]
        if spec.gateway:
            words += [spec.gateway, spec.name_server or spec.gateway]
    said = f"become {_words(words)}"
    if spec.neighbours:
        said += f" && know {_words([word for one in spec.neighbours for word in one])}"
    return said + (" && have_disk" if spec.disk_mb else "")


def _words(words: list[str]) -> str:
    return b" ".join(map(quoted, words)).decode("utf-8", "surrogateescape")
