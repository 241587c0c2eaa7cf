"""`bin/bench vm-cycles`: VMs go up and down again and again; nothing of them may be left.

``members``: one holder lives, and a second VM joins it and leaves, once a cycle. ``holders``: every
cycle is a holder of its own with its network, from its launch to its end. What there was after the
first few cycles is compared with what there is after the last one: processes, descriptors by kind
(sockets among them), threads, files, and memory (RSS), which may grow by ALLOWED_KB in all. The
packages, an image and a template are made first and do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator import control
from orchestrator.control import SpawnConfig
from orchestrator.store import Options, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARK = "BONES_VM_CYCLES"
"""In the environment of every process that a campaign starts: which campaign."""
WARM = 10
"""Cycles that come before the first look: logs are rotated, an allocator takes what it keeps."""
ALLOWED_KB = 2048
UP_WITHIN_S = 120.0
SETTLED_WITHIN_S = 5.0


class Footprint(NamedTuple):
    """What there is of a campaign at one moment."""

    processes: int
    """That carry the campaign's mark."""
    descriptors: dict[str, int]
    """Of the process that lives through it, by kind: ``socket``, ``pipe``, ``file``, …"""
    threads: int
    """Of that process."""
    files: tuple[str, ...]
    """In the store, and in the directory for temporary files."""
    rss_kb: int
    """Of that process."""

    def leaks(self, before: Footprint) -> list[str]:
        """Return what is more, or other, than *before*, in words."""
        found = [
            f"{name}: {was} before, {now} after"
            for name, was, now in zip(self._fields[:3], before[:3], self[:3], strict=True)
            if was != now
        ]
        if self.files != before.files:
            odd = sorted(set(self.files) ^ set(before.files))
            found.append(f"files that there were only before, or only after: {', '.join(odd)}")
        grown = self.rss_kb - before.rss_kb
        if grown > ALLOWED_KB:
            found.append(f"memory: {before.rss_kb} kB before, {self.rss_kb} kB after")
        return found


class Found(NamedTuple):
    """What a kind of cycles has left."""

    kind: str
    cycles: int
    took_s: float
    before: Footprint
    after: Footprint

    @property
    def leaks(self) -> list[str]:
        """Return what was left, in words."""
        return self.after.leaks(self.before)


def look(store: Store, pid: int, mark: str) -> Footprint:
    """Return the footprint of the campaign *mark* whose long-lived process is *pid*."""
    places = (store.directory, tempfile.gettempdir())
    return Footprint(
        processes=sum(1 for _pid in _marked(mark)),
        descriptors=dict(sorted(Counter(_kinds(pid)).items())),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        files=tuple(sorted({str(path) for place in places for path in Path(place).rglob("*")})),
        rss_kb=_rss_kb(pid),
    )


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{MARK}={mark}".encode()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                yield int(entry)
        except OSError:
            continue


def _kinds(pid: int) -> Iterator[str]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:  # ours, with which the directory was read
            continue
        yield target.partition(":")[0] if not target.startswith("/") else "file"


def _rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no VmRSS")


def run(
    kind: str, cycle: Callable[[], None], see: Callable[[], Footprint], cycles: int, warm: int
) -> Found:
    """Do *cycle* so many times after *warm* others; *see* what there is before and after."""
    for _turn in range(warm):
        cycle()
    before = _settled(see)
    began = time.monotonic()
    for _turn in range(cycles):
        cycle()
    took_s = time.monotonic() - began
    after = _settled(see, before)
    return Found(kind, cycles, took_s, before, after)


def _settled(see: Callable[[], Footprint], like: Footprint | None = None) -> Footprint:
    """Return what is seen when nothing changes any more, at once if it is as before.

    A connection that was closed a moment ago is still being closed at its other end.
    """
    deadline_s = time.monotonic() + SETTLED_WITHIN_S
    seen = see()
    while time.monotonic() < deadline_s:
        again = see()
        if again[:-1] == seen[:-1] and (like is None or not again.leaks(like)):
            return again
        time.sleep(0.05)
        seen = again
    return seen


def members(store: Store, config: SpawnConfig, cycles: int, warm: int, mark: str) -> Found:
    """Have a VM join the holder of *config*'s one member, work and leave, *cycles* times."""
    (first,) = config.names
    second = f"{first}-2"

    def cycle() -> None:
        control.add_member(store, first, second, options=config.options, timeout_s=UP_WITHIN_S)
        if control.execute(store, second, ["true"]).status:
            raise RuntimeError("the guest cannot even do nothing")
        _stop(store, second)

    control.spawn(store, config).close()
    control.wait_members(store, config.names, UP_WITHIN_S)
    try:
        holder = store.holder_of(first)
        assert holder is not None
        pid = holder.pid
        return run("members", cycle, lambda: look(store, pid, mark), cycles, warm)
    finally:
        _stop(store, first)


def holders(store: Store, config: SpawnConfig, cycles: int, warm: int, mark: str) -> Found:
    """Have a holder of *config* up and down, *cycles* times; what lives through it are we."""

    def cycle() -> None:
        control.spawn(store, config).close()
        control.wait_members(store, config.names, UP_WITHIN_S)
        for name in config.names:
            _stop(store, name)

    return run("holders", cycle, lambda: look(store, os.getpid(), mark), cycles, warm)


def _stop(store: Store, name: str) -> None:
    how = control.stop(store, name)
    if how not in ("agent", "quit"):
        raise RuntimeError(f"{name} did not stop by itself: {how}")


def main(arguments: list[str]) -> int:
    """Run the campaign; print a table; return 1 if something is left."""
    parser = argparse.ArgumentParser(prog="bin/bench vm-cycles", description=__doc__)
    parser.add_argument("--cycles", type=int, default=100, help="of each kind")
    parser.add_argument("--smoke", action="store_true", help="one of each kind")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    small = SpawnConfig(names=("cycle",), bound=False, options=Options(disk_mb=16))
    cycles, warm = (1, 2) if options.smoke else (options.cycles, WARM)
    with tempfile.TemporaryDirectory(prefix="bench-vm-cycles-") as place:
        os.environ["TMPDIR"] = place
        tempfile.tempdir = None
        store = Store(f"{place}/vms")
        found = [
            members(store, small, cycles, warm, mark),
            holders(store, small, cycles, 1 if options.smoke else warm, mark),
        ]
        left = sum(1 for _pid in _marked(mark) if _pid != os.getpid())
    _print(found, left, as_json=options.json)
    return 1 if left or any(one.leaks for one in found) else 0


def _print(found: list[Found], left: int, *, as_json: bool) -> None:
    if as_json:
        told = [
            {
                "kind": one.kind,
                "cycles": one.cycles,
                "seconds_per_cycle": round(one.took_s / one.cycles, 3),
                "before": one.before._asdict(),
                "after": one.after._asdict(),
                "leaks": one.leaks,
            }
            for one in found
        ]
        sys.stdout.write(json.dumps({"kinds": told, "processes_left": left}) + "\n")
        return
    for one in found:
        words = f"{one.kind}: {one.cycles} cycles, {one.took_s / one.cycles * 1000:.0f} ms each\n"
        sys.stdout.write(words)
        for name, was, now in zip(Footprint._fields, one.before, one.after, strict=True):
            sys.stdout.write(f"  {name:12} {_short(was)} before, {_short(now)} after\n")
        for leak in one.leaks:
            sys.stdout.write(f"  LEFT  {leak}\n")
    sys.stdout.write(f"processes left at the end: {left}\n")


def _short(figure: object) -> object:
    return len(figure) if isinstance(figure, tuple) else figure
