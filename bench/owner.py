"""`bin/bench owner`: what a lease costs, and how soon its end is known.

The floor of a renewal is a file renamed under a flock in plain system calls. A takeover and a
lost lease are held against the limits that were promised.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.measure import Quiet, Row, paired, report
from foundation import failpoint
from owner import join, store
from owner.boottime import Boottime

ROOT = Path(__file__).resolve().parent.parent
RENEWAL_LIMIT_MS = 1.0
TAKEOVER_LIMIT_MS = 10.0
BATCH = 50
LOST_TTL_S = 1.0

MEMBER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from owner import join, watch
for holder in watch(sys.argv[2]):
    if holder is None and (me := join(sys.argv[2], ttl_s=10)).is_owner:
        print(time.monotonic_ns(), flush=True)
        sys.stdin.read()
    elif holder is not None:
        print("follows", flush=True)
"""


def main(arguments: list[str]) -> int:
    """Measure; print a table."""
    parser = argparse.ArgumentParser(prog="bin/bench owner", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--losses", type=int, default=1000, help="leases whose renewal blocks")
    parser.add_argument("--smoke", action="store_true", help="three rounds, no verdict")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rounds, losses = (3, BATCH) if options.smoke else (options.rounds, options.losses)
    quiet = Quiet()
    with tempfile.TemporaryDirectory(prefix="bench-owner-") as directory:
        place = Path(directory)
        rows = [
            *renewal(place, rounds, quiet),
            takeover(place, rounds, quiet),
            *lost(place, losses),
        ]
    status = report(rows, as_json=options.json)
    return 0 if options.smoke else status


def renewal(place: Path, rounds: int, quiet: Quiet) -> list[Row]:
    """Return what a renewal takes, beside its floor and beside its limit; medians of medians."""
    with join(place / "renewed.owner", ttl_s=3600) as me:
        tenure = me._tenure
        assert tenure is not None
        content = (place / "renewed.owner").read_bytes()
        beside_floor = paired(
            "a renewal",
            rounds,
            partial(_median_ms, partial(plain_rename, place / "plain", content)),
            partial(_median_ms, tenure._renew),
            quiet=quiet,
            limit=None,
        )
    beside_limit = Row(
        name="a renewal, beside its limit",
        ours=beside_floor.ours,
        floor=RENEWAL_LIMIT_MS,
        unit="ms",
        limit=1.0,
        rounds=beside_floor.rounds,
    )
    return [beside_floor, beside_limit]


def plain_rename(path: Path, content: bytes) -> None:
    """Replace the file at *path* under a lock, with nothing checked."""
    guard = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(guard, fcntl.LOCK_EX)
    fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, content)
    os.close(fd)
    os.rename(f"{path}.tmp", path)
    os.close(guard)


def _median_ms(call: Callable[[], object]) -> float:
    took = []
    for _turn in range(25):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def takeover(place: Path, rounds: int, quiet: Quiet) -> Row:
    """Return how long after the owner's kill -9 a follower that watches is the owner."""
    took: list[float] = []
    busy: list[float] = []
    owner, _since = _member(place, "owns")
    for _turn in range(4 * rounds):
        follower, _word = _member(place, "follows")
        counts = quiet.now() is not None
        killed_ns = time.monotonic_ns()
        os.kill(owner.pid, signal.SIGKILL)
        assert follower.stdout is not None
        owned_ns = int(follower.stdout.readline())
        (took if counts else busy).append((owned_ns - killed_ns) / 1e6)
        _end(owner)
        owner = follower
        if len(took) == rounds:
            break
    _end(owner)
    figures = took if len(took) >= max(3, rounds // 4) else took + busy
    return Row(
        name="takeover after kill -9, ttl 10 s",
        ours=statistics.median(figures),
        floor=TAKEOVER_LIMIT_MS,
        unit="ms",
        limit=1.0,
        rounds=len(figures),
    )


def _member(place: Path, word: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process that owns the lease or follows its owner; wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(ROOT), str(place / "taken.owner")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if (said == "follows") != (word == "follows"):
        process.kill()
        raise RuntimeError(f"a member was to say {word} and said {said!r}")
    if word == "follows":
        _wait_for_pidfd(process.pid)
    return process, said


def _wait_for_pidfd(pid: int) -> None:
    """Wait until the follower *pid* waits for its owner's end; between two looks it does not."""
    poll = select.poll()
    for _turn in range(1000):
        for entry in os.scandir(f"/proc/{pid}/fdinfo"):
            try:
                if "\nPid:" in Path(entry.path).read_text():
                    return
            except OSError:
                continue
        poll.poll(1)
    raise RuntimeError("a follower does not wait for its owner")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def lost(place: Path, count: int) -> list[Row]:
    """Return when *count* owners whose renewals block for ever learn that they lost.

    The worst of them, as a part of the ttl: the deadline is at 1. One that never learns it, or
    learns it too late, misses the limit.
    """
    margins: list[float] = []
    hit = failpoint.hit
    for start in range(0, count, BATCH):
        stuck = threading.Event()

        def blocks(point: str, stuck: threading.Event = stuck) -> None:
            if point == "owner.renew.guarded":
                stuck.wait()

        vars(store)["hit"] = blocks
        try:
            batch = min(BATCH, count - start)
            margins += _lose(place, batch)
        finally:
            stuck.set()
            vars(store)["hit"] = hit
    ttl_ms = LOST_TTL_S * 1000
    smallest = min(margins)
    in_time = sum(margin > 0 for margin in margins)
    return [
        Row(
            name=f"lost before the deadline: {in_time} of {count}, the latest",
            ours=ttl_ms - smallest,
            floor=ttl_ms,
            unit="ms",
            limit=1.0,
            rounds=count,
        ),
        Row(
            name="what is left until the deadline, median",
            ours=max(statistics.median(margins), 0.001),
            floor=ttl_ms / 5,
            unit="ms",
            limit=None,
            rounds=count,
        ),
    ]


def _lose(place: Path, count: int) -> list[float]:
    """Return by how many milliseconds *count* owners were told before their deadline."""
    clock = Boottime.here()
    owners = [join(place / f"lost{number}.owner", ttl_s=LOST_TTL_S) for number in range(count)]
    told_ns = [0] * count

    def wait(number: int) -> None:
        if owners[number].lost.wait(10 * LOST_TTL_S):
            told_ns[number] = clock.now_ns()

    waiting = [threading.Thread(target=wait, args=(number,)) for number in range(count)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join()
    margins = []
    for owner, at_ns in zip(owners, told_ns, strict=True):
        assert owner._tenure is not None
        deadline_ns = owner._tenure.belief.lease.deadline_ns
        margins.append((deadline_ns - at_ns) / 1e6 if at_ns else -1e9)
    for number in range(count):
        (place / f"lost{number}.owner").unlink()
        (place / f"lost{number}.owner.lock").unlink()
    return margins
