"""`bin/bench join`: what a slot costs: to make, a hundred at once, to keep.

The floor of one join is stock ``fossil clone`` and ``open``; of a hundred at once, as many bare
interpreters and as many plain copies of the template; of a leaf's memory, an empty process with
nats-py and uvloop connected to the bus.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.measure import INTERPRETER, Quiet, Row, paired, report
from bench.swarming import ROOT, Place, running
from hub import fossil as fossil_binary

LIMITS = {2_000: 0.35, 50_000: 0.3}
AT_ONCE_LIMIT = 2.0
MEMORY_LIMIT = 1.3
IDLE_LIMIT_PERCENT = 0.1

EMPTY = """
import asyncio, sys
import nats, uvloop
async def main():
    client = await nats.connect(sys.argv[1], nkeys_seed_str=open(sys.argv[2]).read().strip(),
                                inbox_prefix=b"_INBOX_operator")
    print("ready", flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""


def main(arguments: list[str]) -> int:
    """Measure; print a table; return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(prog="bin/bench join", description=__doc__)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--idle-s", type=float, default=30.0)
    parser.add_argument("--smoke", action="store_true", help="a small tree, no verdict")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.files, options.rounds, options.at_once, options.idle_s = 50, 1, 4, 0.5
    with (
        tempfile.TemporaryDirectory(prefix="bench-join-") as directory,
        running(Path(directory), options.files) as place,
    ):
        rows = [
            *alone(place, options.files, options.rounds),
            *kept(place, options.idle_s),
            at_once(place, options.at_once),
        ]
    status = report(rows, as_json=options.json)
    return 0 if options.smoke else status


def alone(place: Place, files: int, rounds: int) -> list[Row]:
    """Return what one join takes: the first, which makes the template, and those after it."""
    turn = iter(range(1_000_000))

    def ours() -> float:
        began = time.perf_counter()
        place.bones("swarm", "join", "--slot", f"join-{next(turn)}")
        return time.perf_counter() - began

    fossil = fossil_binary.find()
    url = Path(place.workspace.fossil_url).read_text().strip()
    password = Path(f"{place.workspace.creds}/fossil-operator").read_text().strip()
    login = url.replace("http://", f"http://operator:{password}@")

    def stock() -> float:
        where = place.directory / "clone"
        where.mkdir()
        began = time.perf_counter()
        place.run(fossil, "clone", "--once", login, str(where / "c.fossil"), cwd=where)
        place.run(fossil, "open", "--nested", "--workdir", str(where / "wt"), "c.fossil", cwd=where)
        took = time.perf_counter() - began
        shutil.rmtree(where)
        return took

    first = ours()
    row = paired(f"join, {files} files; stock clone and open", rounds, stock, ours,
                 quiet=Quiet(), limit=LIMITS.get(files), unit="s")  # fmt: skip
    return [
        row,
        Row(
            name="the very first join", ours=first, floor=row.floor, unit="s", limit=None, rounds=1
        ),
    ]


def kept(place: Place, idle_s: float) -> list[Row]:
    """Return what a leaf costs while nobody asks it: memory and time."""
    place.bones("swarm", "join", "--slot", "idle")
    leaf = psutil.Process(int((place.root / ".bones/swarm/idle/leaf.pid").read_text()))
    url = Path(place.workspace.nats_url).read_text().strip()
    seed = f"{place.workspace.creds}/nats-operator.nk"
    with subprocess.Popen(
        [sys.executable, "-c", EMPTY, url, seed], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as empty:
        try:
            assert empty.stdout is not None
            empty.stdout.readline()
            before = sum(leaf.cpu_times()[:2])
            time.sleep(idle_s)
            busy = (sum(leaf.cpu_times()[:2]) - before) / idle_s * 100
            ours, floor = (
                leaf.memory_full_info().uss,
                psutil.Process(empty.pid).memory_full_info().uss,
            )
        finally:
            empty.kill()
    return [
        Row(name="a leaf's memory (USS)", ours=ours / 1e6, floor=floor / 1e6, unit="MB",
            limit=MEMORY_LIMIT, rounds=1),
        Row(name="a leaf that idles", ours=busy, floor=IDLE_LIMIT_PERCENT, unit="%", limit=1.0,
            rounds=1),
    ]  # fmt: skip


def at_once(place: Place, count: int) -> Row:
    """Return what *count* joins at once take, beside as many interpreters and copies at once."""
    names = [f"once-{number}" for number in range(count)]
    template = place.root / ".bones/swarm/idle/wt"
    copies = place.directory / "copies"
    copies.mkdir()
    began = time.perf_counter()
    _all([INTERPRETER for _name in names], place)
    _all([["cp", "-a", str(template), str(copies / name)] for name in names], place)
    floor = time.perf_counter() - began
    shutil.rmtree(copies)
    began = time.perf_counter()
    _all([[str(ROOT / "bin/bones"), "swarm", "join", "--slot", name] for name in names], place)
    ours = time.perf_counter() - began
    return Row(name=f"{count} joins at once; interpreters and copies", ours=ours, floor=floor,
               unit="s", limit=AT_ONCE_LIMIT, rounds=1)  # fmt: skip


def _all(commands: list[list[str]], place: Place) -> None:
    running_ = [
        subprocess.Popen(argv, cwd=place.root, env=place.env, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL)
        for argv in commands
    ]  # fmt: skip
    for process in running_:
        if process.wait() != 0:
            raise RuntimeError(f"{process.args!r} exited with status {process.returncode}")
    os.sync()
