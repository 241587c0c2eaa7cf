"""Telling a guest who it is: the same script after a boot and after a start from a template. Pure.

A template's VMs all wake as the template: with its clock, its randomness, its address, and with
their network card down, so that nothing of that can get out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.backends.qemu.shell import quoted
from orchestrator.image import reseed

if TYPE_CHECKING:
    from orchestrator.backends.base import Spec

_DISK = """\
while read -r m; do insmod /lib/modules/$m.ko || fail; done </lib/modules/late
mount -t ext4 -o noatime /dev/vda /data || fail
"""

POWEROFF = """\
kill -TERM -1
if grep -q ' /data ' /proc/mounts; then
    sync
    umount /data || { usleep 100000; kill -KILL -1; umount /data || umount -r /data; }
fi
poweroff -f
"""
"""Ends the guest; its own processes are asked to end, its disk is unmounted."""


def script(spec: Spec, now_s: int, seed: bytes) -> str:
    """Return what the agent runs; it fails if any of it does.

    *now_s* is the time in seconds since the epoch, *seed* 32 random bytes.
    """
    lines = [
        "r=0; fail() { r=1; }",
        f"echo {_word(spec.name)} >/proc/sys/kernel/hostname || fail",
        f"date -s @{now_s} >/dev/null || fail",
        f"printf {_word(_octal(seed))} | {reseed.NAME} || fail",
    ]
    hosts = ["127.0.0.1 localhost"]
    if spec.ip:
        hosts.append(f"{spec.ip.partition('/')[0]} {spec.name}")
        lines += [
            f"ip link set eth0 address {_word(spec.mac)} || fail",
            f"ip addr add {_word(spec.ip)} dev eth0 || fail",
            "ip link set eth0 up || fail",
        ]
        if spec.gateway:
            resolv = f"nameserver {spec.name_server or spec.gateway}"
            lines += [
                f"ip route add default via {_word(spec.gateway)} || fail",
                f"echo {_word(resolv)} >/etc/resolv.conf || fail",
            ]
    lines.append(f"printf '%s\\n' {' '.join(map(_word, hosts))} >/etc/hosts || fail")
    if spec.disk_mb:
        lines.append(_DISK.strip())
    lines.append("[ $r = 0 ]")
    return "\n".join(lines)


def _octal(raw: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in raw)


def _word(text: str) -> str:
    return quoted(text).decode("utf-8", "surrogateescape")
