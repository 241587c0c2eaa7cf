"""`bin/bench vm`: what a VM costs, each figure beside the limit that it must keep.

Wall time, on a quiet machine: ``--any`` takes rounds of a busy one too. The packages, an image and
a template are made first and do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.measure import Quiet, Row, report
from orchestrator import cache
from orchestrator.backends.base import Spec
from orchestrator.backends.qemu.backend import QemuBackend

if TYPE_CHECKING:
    from orchestrator.backends.qemu.machine import QemuMachine

LIMITS = {
    "cold boot to an agent that answers": (2500.0, "ms"),
    "from a template to an agent that answers": (150.0, "ms"),
    "from a template to a guest that is who it should be": (350.0, "ms"),
    "a second command": (50.0, "ms"),
    "stop": (150.0, "ms"),
    "eight at once, the last of them ready": (2000.0, "ms"),
    "memory (PSS) of one of eight": (80.0, "MB"),
    "its VMs gone after kill -9 of a holder": (50.0, "ms"),
    "its VMs gone after kill -9 of a bound client": (50.0, "ms"),
}
_CLIENT = """
import sys
from orchestrator import control
from orchestrator.store import Options, Store
store, names = Store(sys.argv[1]), ("web-1", "web-2")
session = control.spawn(store, control.SpawnConfig(names=names, options=Options(disk_mb=0)))
found = control.wait_members(store, names, 120)
print(session.pid, *(status.pid for status in found.values()), flush=True)
sys.stdin.readline()
"""
_MANY, _FEW = 8, 2
_WAITS_FOR_QUIET = 40


class Figures(NamedTuple):
    """What was measured, by name."""

    found: dict[str, list[float]]

    def add(self, name: str, figure: float) -> None:
        """Note one more."""
        self.found.setdefault(name, []).append(figure)

    def rows(self) -> list[Row]:
        """Return each figure's median beside its limit."""
        return [
            Row(
                name=name,
                ours=statistics.median(self.found[name]),
                floor=limit,
                unit=unit,
                limit=1.0,
                rounds=len(self.found[name]),
            )
            for name, (limit, unit) in LIMITS.items()
        ]


def main(arguments: list[str]) -> int:
    """Measure; print a table."""
    parser = argparse.ArgumentParser(prog="bin/bench vm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--smoke", action="store_true", help="one round of fewer VMs, however busy it is"
    )
    parser.add_argument("--any", action="store_true", help="rounds of a busy machine count too")
    parser.add_argument("--cache", default=cache.directory())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet = None if options.smoke or options.any else Quiet()
    rounds = 1 if options.smoke else options.rounds
    figures = Figures({})
    with tempfile.TemporaryDirectory(prefix="bench-vm-") as place:
        many = _FEW if options.smoke else _MANY
        asyncio.run(measure(figures, Path(place), options.cache, rounds, quiet, many))
    return report(figures.rows(), as_json=options.json)


async def measure(
    figures: Figures, place: Path, directory: str, rounds: int, quiet: Quiet | None, many: int
) -> None:
    """Take *rounds* of each figure; *many* VMs are started at once."""
    booting = QemuBackend(directory, templates=False)
    cloning = QemuBackend(directory)
    await cloning.prepare(spec(place, 0), lambda _words: None)
    for _turn in range(rounds):
        _await_quiet(quiet)
        began = time.monotonic()
        machine = await booting.start(spec(place, 0), None)
        try:
            await machine.ready()
            figures.add("cold boot to an agent that answers", _ms(began))
        finally:
            await _end(machine)
        _await_quiet(quiet)
        await _one(figures, cloning, spec(place, 0))
        _await_quiet(quiet)
        await _several(figures, cloning, place, many)
        for victim in ("holder", "bound client"):
            _await_quiet(quiet)
            gone_ms = _death_ms(place / "vms", directory, victim)
            figures.add(f"its VMs gone after kill -9 of a {victim}", gone_ms)


async def _one(figures: Figures, backend: QemuBackend, wanted: Spec) -> None:
    began = time.monotonic()
    machine = await backend.start(wanted, None)
    try:
        figures.add("from a template to an agent that answers", _ms(began))
        await machine.ready()
        figures.add("from a template to a guest that is who it should be", _ms(began))
        await machine.execute(["true"])
        began = time.monotonic()
        await machine.execute(["true"])
        figures.add("a second command", _ms(began))
        began = time.monotonic()
        if await machine.stop(10) != "agent":
            raise RuntimeError("the guest did not stop by itself")
        figures.add("stop", _ms(began))
    finally:
        await _end(machine)


async def _several(figures: Figures, backend: QemuBackend, place: Path, many: int) -> None:
    machines: list[QemuMachine] = []

    async def start(number: int) -> None:
        machine = await backend.start(spec(place, number), None)
        machines.append(machine)
        await machine.ready()

    began = time.monotonic()
    try:
        await asyncio.gather(*map(start, range(many)))
        figures.add("eight at once, the last of them ready", _ms(began))
        for machine in machines:
            figures.add("memory (PSS) of one of eight", _pss_mb(machine.pid))
    finally:
        await asyncio.gather(*map(_end, machines))


def _death_ms(store: Path, directory: str, victim: str) -> float:
    """Return how long VMs live on after the *victim*, which holds two of them, was killed."""
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "XDG_CACHE_HOME": str(Path(directory).parents[1]),
        },
    )
    try:
        assert client.stdout is not None
        holder, *vms = map(int, client.stdout.readline().split())
        pidfds = [os.pidfd_open(pid) for pid in vms]
        began = time.monotonic()
        os.kill(holder if victim == "holder" else client.pid, signal.SIGKILL)
        for pidfd in pidfds:
            select.select([pidfd], [], [])
        gone_ms = _ms(began)
        for pidfd in pidfds:
            os.close(pidfd)
        return gone_ms
    finally:
        client.kill()
        client.communicate()


async def _end(machine: QemuMachine) -> None:
    machine.kill()
    await machine.wait()


def spec(place: Path, number: int) -> Spec:
    """Return a VM of the default size, without a disk."""
    directory = place / f"vm-{number}"
    directory.mkdir(exist_ok=True)
    return Spec(
        name=f"vm-{number}",
        directory=str(directory),
        cpus=1,
        memory_mb=128,
        disk_mb=0,
        mac=f"52:54:00:00:00:{16 + number:02x}",
        ip=f"10.77.0.{11 + number}/24",
        gateway="10.77.0.1",
        name_server="10.77.0.3",
    )


def _await_quiet(quiet: Quiet | None) -> None:
    for _turn in range(_WAITS_FOR_QUIET if quiet else 0):
        if quiet is not None and quiet.now() is not None:
            return
        time.sleep(0.1)


def _ms(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss")
