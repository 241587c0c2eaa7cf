"""The verb ``bones vm doctor``: what VMs need on this machine, and what is wrong with them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from foundation.errors import HubError
from foundation.filesystem import kind_of
from hub import output
from hub.doctor import count, lines, summary
from hub.doctor.finding import Finding, Verdict, ok, problem, warning
from hub.wording import several, size
from orchestrator import cache, control, packages
from orchestrator.backends.qemu import ability, kvm
from orchestrator.packages import Packages
from orchestrator.vm_shared import status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.packages import Qemu
    from orchestrator.store import Store

_FORCED = "down --force"
_LEAST_FREE = 512 << 20
"""Bytes: what is fetched, an image and two templates take most of it."""


def doctor(store: Store, *, as_json: bool = False) -> int:
    """Print what was found; return 1 if there is a problem."""
    findings = [Finding.of(name, verdict) for name, verdict in examine(store)]
    problems, warnings = count(findings)
    if as_json:
        told = [finding.as_dict() for finding in findings]
        output.print_data(
            "bones.vm.doctor", {"findings": told, "problems": problems, "warnings": warnings}
        )
    else:
        output.line("\n".join([*lines(findings), summary(findings)]))
    return 1 if problems else 0


def examine(store: Store) -> Iterator[tuple[str, Verdict]]:
    """Yield the findings. Nothing is fetched, and nothing started but a trial of KVM."""
    parts = Packages(cache.directory(), fetch=False)
    try:
        qemu = asyncio.run(parts.qemu(_nobody))
    except HubError as error:
        yield "qemu", _missing(error, packages.QEMU)
    else:
        yield "qemu", _qemu(qemu)
        yield "kvm", _kvm(qemu)
    try:
        guest = asyncio.run(parts.guest(_nobody))
    except HubError as error:
        yield "guest", _missing(error, packages.KERNEL)
    else:
        yield "guest", ok(guest.kernel)
    yield "cache", _cache()
    yield "members", _members(store)


def _nobody(_words: str) -> None:
    """Nobody is told."""


def _missing(error: HubError, variable: str) -> Verdict:
    if error.reason == "not-fetched":
        return ok("fetched by the first `bones vm up`")
    return problem(str(error), f"{variable}=PATH bones vm up")


def _qemu(qemu: Qemu) -> Verdict:
    try:
        able = asyncio.run(ability.ask(qemu))
    except (HubError, OSError) as error:
        return problem(str(error), f"{packages.QEMU}=PATH bones vm up")
    return ok(f"{qemu.program}, version {able.version}")


def _kvm(qemu: Qemu) -> Verdict:
    try:
        accel = asyncio.run(kvm.accel(cache.directory(), qemu, _nobody))
    except HubError as error:
        if error.reason == "bad-accel":
            return problem(str(error), f"unset {kvm.ACCEL}")
        return problem(str(error), "XDG_CACHE_HOME=DIR bones vm up")
    if accel == "kvm":
        return ok("VMs run by KVM")
    why = "does not start a guest" if os.access(kvm.DEVICE, os.R_OK | os.W_OK) else "cannot be used"
    return ok(f"{kvm.DEVICE} {why}: VMs are emulated (TCG)")


def _cache() -> Verdict:
    directory = cache.directory()
    there = directory
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    stat = os.statvfs(there)
    free = stat.f_bavail * stat.f_frsize
    words = f"{directory} on {kind_of(there)}, {size(free)} free"
    if free < _LEAST_FREE:
        return warning(words, f"df {there}")
    return ok(words)


def _members(store: Store) -> Verdict:
    names = store.members()
    for name in names:
        try:
            status = status_of(store, name)
        except HubError as error:
            hangs = error.reason == "no-answer"
            return problem(f"{name}: {error}", f"bones vm {_FORCED if hangs else 'down'} {name}")
        if status.error and status.reason != "holder-killed":
            why = status.error.partition("\n")[0]
            is_paused = status.reason == "paused"  # it goes on when the disk has room
            return warning(
                f"{name}: {why}", f"df {store.directory}" if is_paused else f"bones vm up {name}"
            )
    killed = [
        name for name in names if store.holder_of(name) and not control.is_running(store, name)
    ]
    if killed:
        return warning(f"their holders were killed: {several(killed)}", "bones vm prune")
    if half := store.half_removed():
        return warning(f"half removed: {several(half)}", "bones vm prune")
    return ok(f"{len(names)} VMs")
