"""`bin/bench seed`: what it costs to make a workspace's trunk from its git repository.

The floor is what a person would type: ``fossil new``, ``open``, ``addremove`` and ``commit``
of the same files. Ours is the whole seeding process, interpreter and fsync included.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bench.measure import Quiet, Row, paired, report
from foundation.spawn import describe_exit
from foundation.workspace import Workspace
from hub import fossil as fossil_binary
from hub.creds import ensure_creds

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PREPARER = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from hub.preparation import main; main()"
)
MEMORY_LIMIT_MB = 150.0
GROWTH_LIMIT = 5.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """A tree to measure with."""

    files: int
    megabytes: float
    limit: float | None
    """Of ours to the floor."""
    memory_limit: float | None = 1.0
    """Of the peak to :data:`MEMORY_LIMIT_MB`; None: only shown."""


SIZES = {
    size.files: size
    for size in (
        Size(files=200, megabytes=2.4, limit=None),
        Size(files=2_000, megabytes=24, limit=1.0),
        Size(files=50_000, megabytes=106, limit=0.6),
        Size(files=200_000, megabytes=424, limit=None, memory_limit=None),
    )
}


def main(argv: list[str]) -> int:
    """Measure; print a table; return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(prog="bin/bench seed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--files", type=int, action="append", choices=SIZES, help="tree sizes (2000 and 50000)"
    )
    parser.add_argument("--smoke", action="store_true", help="a small tree, no verdict")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    files = [200] if options.smoke else sorted(options.files or [2_000, 50_000])
    rounds = 1 if options.smoke else options.rounds
    rows = []
    quiet = Quiet()
    for count in files:
        with tempfile.TemporaryDirectory(prefix="bench-seed-") as directory:
            rows += measure(SIZES[count], Path(directory), rounds, quiet)
    rows += growth(rows)
    status = report(rows, as_json=options.json)
    return 0 if options.smoke else status


def measure(size: Size, directory: Path, rounds: int, quiet: Quiet) -> list[Row]:
    """Return the rows for one tree: clean, with an uncommitted change, and memory."""
    tree = Tree(directory, size)
    name = f"seed {size.files} files"
    if size.limit is None and size.files > 200:
        took = statistics.median(tree.ours() for _ in range(rounds))
        rows = [Row(name=name, ours=took, floor=took, unit="s", limit=None, rounds=rounds)]
    else:
        rows = [
            paired(name, rounds, tree.floor, tree.ours, quiet=quiet, limit=size.limit, unit="s")
        ]
    clean = rows[0]
    rows.append(memory(f"{name}, memory", size, tree.ours_memory_mb()))
    tree.edit()
    dirty = statistics.median(tree.ours() for _ in range(rounds))
    rows.append(
        Row(name=f"{name}, one edited; clean", ours=dirty, floor=clean.ours, unit="s", limit=None,
            rounds=rounds)
    )  # fmt: skip
    rows.append(memory(f"{name}, one edited, memory", size, tree.ours_memory_mb()))
    return rows


def memory(name: str, size: Size, megabytes: float) -> Row:
    """Return the peak beside its limit."""
    return Row(
        name=name, ours=megabytes, floor=MEMORY_LIMIT_MB, unit="MB", limit=size.memory_limit,
        rounds=1,
    )  # fmt: skip


def growth(rows: list[Row]) -> Iterator[Row]:
    """Yield how much longer four times as many files take, if both were measured."""
    took = {row.name: row.ours for row in rows}
    small, large = took.get("seed 50000 files"), took.get("seed 200000 files")
    if small and large:
        yield Row(name="seed 200000 files; 50000", ours=large, floor=small, unit="s",
                  limit=GROWTH_LIMIT, rounds=1)  # fmt: skip


class Tree:
    """A git repository of generated text, and two ways to get it into Fossil."""

    def __init__(self, directory: Path, size: Size) -> None:
        """Make it below *directory*: packed, checked out, index in order."""
        self._directory = directory
        self._fossil = fossil_binary.find()
        self._env = {
            "HOME": str(directory),
            "USER": "bench",
            "FOSSIL_HOME": str(directory),
            "PATH": os.environ.get("PATH", os.defpath),
        }
        self._root = directory / "work"
        self._run("git", "init", "--quiet", "--initial-branch=main", str(self._root), cwd=directory)
        generate(self._root, size, self._env)
        self._run("git", "reset", "--quiet", "--hard")
        self._workspace = Workspace(str(self._root))
        self._workspace.make_state()
        ensure_creds(self._workspace)  # or it would make the keys of the bus, too
        self._stock = directory / "stock"
        shutil.copytree(self._root, self._stock, ignore=shutil.ignore_patterns(".git", ".orch*"))

    def _run(self, *argv: str, cwd: Path | None = None) -> None:
        subprocess.run(
            argv, cwd=cwd or self._root, env=self._env, check=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def edit(self) -> None:
        """Leave one uncommitted change in the work tree."""
        (self._root / "d0/d0/f0.txt").write_text("edited\n")

    def floor(self) -> float:
        """Do it with stock commands; return the seconds."""
        repository = str(self._directory / "stock.fossil")
        began = time.perf_counter()
        self._run(self._fossil, "new", repository, cwd=self._stock)
        self._run(self._fossil, "open", "--force", repository, cwd=self._stock)
        self._run(self._fossil, "addremove", "--dotfiles", cwd=self._stock)
        self._run(self._fossil, "commit", "--no-warnings", "-m", "x", cwd=self._stock)
        took = time.perf_counter() - began
        self._run(self._fossil, "close", "--force", cwd=self._stock)
        Path(repository).unlink()
        return took

    def ours(self) -> float:
        """Do it with our preparing process, whose keys are there; return the seconds."""
        began = time.perf_counter()
        with self._seeder() as process:
            status = process.wait()
        took = time.perf_counter() - began
        if status != 0:
            raise RuntimeError(f"seeding {describe_exit(status)}")
        Path(self._workspace.repository).unlink()
        return took

    def ours_memory_mb(self) -> float:
        """Seed again; return the peak of the sum of all resident sets, in megabytes."""
        peak = 0
        with self._seeder() as process:
            whole = psutil.Process(process.pid)
            while process.poll() is None:
                total = 0
                try:
                    for one in (whole, *whole.children(recursive=True)):
                        total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    pass
                peak = max(peak, total)
                time.sleep(0.002)
        Path(self._workspace.repository).unlink()
        return peak / 1e6

    def _seeder(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-I", "-c", PREPARER, str(ROOT), str(self._root), self._fossil]
        return subprocess.Popen(["sh", "-c", 'exec "$@" 3>/dev/null', "sh", *argv], env=self._env)


def generate(root: Path, size: Size, env: dict[str, str]) -> None:
    """Commit *size* files of English-like text, in one pack."""
    dice = random.Random(1)  # the same tree every time
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = [
        "".join(dice.choices(letters, range(26, 0, -1), k=dice.randint(2, 9))) for _ in range(4000)
    ]
    lines = [" ".join(dice.choices(words, k=9)) + "\n" for _ in range(40_000)]
    average = size.megabytes * 1e6 / size.files
    with subprocess.Popen(
        ["git", "fast-import", "--quiet"], cwd=root, env=env, stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        write = process.stdin.write
        write(b"commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 0\n")
        for number in range(size.files):
            wanted = max(1, int(dice.expovariate(1 / average) / 55))
            text = f"{number}\n{''.join(dice.choices(lines, k=wanted))}".encode()
            path = f"d{number % 37}/d{number % 211}/f{number}.txt"
            write(b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(text), text))
        process.stdin.close()
        if process.wait() != 0:
            raise RuntimeError("git fast-import failed")
