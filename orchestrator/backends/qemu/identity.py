"""Who a guest is: system calls, the same after a boot and after a start from a template. Pure.

A template's VMs all wake as the template: with its clock, its randomness, its address, and with
their network card down, so that nothing of that can get out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.image import calls

if TYPE_CHECKING:
    from orchestrator.backends.base import Neighbours, Spec
    from orchestrator.image.calls import Call

CARD = "eth0"
DISK = "/dev/vda"
DISK_PLACE = "/data"
HOSTS = "/etc/hosts"


def become(spec: Spec, now_s: float, seed: bytes) -> list[Call]:
    """Return the calls; *now_s*: the time in seconds since the epoch, *seed*: 32 random bytes."""
    made = calls.host_name(spec.name) + calls.clock(now_s) + calls.reseed(seed) + calls.loopback()
    if spec.ip:
        made += calls.network(CARD, spec.mac, spec.ip, spec.gateway)
        if spec.gateway:
            server = f"nameserver {spec.name_server or spec.gateway}\n"
            made += calls.file("/etc/resolv.conf", server.encode())
    made += calls.file(HOSTS, hosts(spec, spec.neighbours))
    return made + (calls.mount_disk(DISK, DISK_PLACE) if spec.disk_mb else [])


def hosts(spec: Spec, neighbours: Neighbours) -> bytes:
    """Return the file of the names that a guest knows: itself and *neighbours*."""
    lines = ["127.0.0.1 localhost"]
    if spec.ip:
        lines.append(f"{spec.ip.partition('/')[0]} {spec.name}")
    lines += [f"{address} {name}" for name, address in neighbours]
    return "".join(f"{line}\n" for line in lines).encode()
