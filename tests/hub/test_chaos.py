"""Many hands on one hub: starting, stopping, killing, for a while."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from foundation.process import Identity
from tests.support import Hub, data_of, eventually, is_gone

pytestmark = [pytest.mark.real, pytest.mark.faults, pytest.mark.slow]

SECONDS = float(os.environ.get("HUB_TEST_CHAOS_S", "5"))
CLIENTS = 4


class Hand(threading.Thread):
    """One who starts, stops and kills at random; what must never happen goes to ``wrong``."""

    def __init__(self, hub: Hub, seed: int, until_s: float, wrong: list[str]) -> None:
        super().__init__()
        self.hub = hub
        self.random = random.Random(seed)
        self.until_s = until_s
        self.wrong = wrong
        self.done = {"start": 0, "stop": 0, "kill": 0, "kill_client": 0, "junk": 0}

    def run(self) -> None:
        try:
            while time.monotonic() < self.until_s:
                what = self.random.choices(
                    ["start", "stop", "kill", "kill_client", "junk"], [8, 3, 2, 2, 2]
                )[0]
                self.done[what] += 1
                getattr(self, f"do_{what}")()
        except Exception as error:  # noqa: BLE001 - to be shown by the test
            self.wrong.append(f"{type(error).__name__}: {error}")

    def _check(self, verb: str, done: subprocess.CompletedProcess[str]) -> None:
        # A start that another's stop or kill overtakes may fail, in words.
        allowed = {0, 1, 75} if verb == "start" else {0}
        if done.returncode not in allowed or "Traceback" in done.stderr:
            self.wrong.append(f"{verb}: {done.returncode} {done.stdout} {done.stderr}")

    def do_start(self) -> None:
        done = self.hub.run("start", "--detach", "--json")
        self._check("start", done)
        if done.returncode == 0:
            data_of(done.stdout)

    def do_stop(self) -> None:
        self._check("stop", self.hub.run("stop", "--json"))

    def do_kill(self) -> None:
        """Kill a process of the hub, if it still is the one that the file names."""
        try:
            name = self.random.choice(["hub", "fossil", "nats", "trunk"])
            pid = int((Path(self.hub.workspace.pids) / f"{name}.pid").read_text())
            pidfd = os.pidfd_open(pid)
            identity = Identity.of_pidfd(pid, pidfd)
            words = Path(f"/proc/{pid}/environ").read_bytes()
            if identity is not None and os.fsencode(self.hub.root) in words:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        except (OSError, ValueError):
            pass

    def do_kill_client(self) -> None:
        process = self.hub.begin(self.random.choice(["start", "stop"]), "--detach")
        try:
            process.wait(self.random.random() * 0.05)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()

    def do_junk(self) -> None:
        directory = os.open(self.hub.workspace.state, os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f"/proc/self/fd/{directory}/hub.sock")
                sock.sendall(self.random.randbytes(self.random.randrange(1, 5000)))
        except OSError:
            pass
        finally:
            os.close(directory)


def servers_of(hub: Hub) -> dict[str, list[int]]:
    """Return the living servers that run on this workspace's files, by program."""
    found: dict[str, list[int]] = {"fossil": [], "nats": []}
    files = {
        os.fsencode(hub.workspace.repository): "fossil",
        os.fsencode(f"{hub.workspace.nats}/nats.conf"): "nats",
    }
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")[:-1]
            if words and words[-1] in files and os.getpgid(int(entry)) == int(entry):
                found[files[words[-1]]].append(int(entry))
        except OSError:
            continue
    return found


@pytest.mark.timeout(120 + 2 * SECONDS)
def test_chaos(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("HUB_TEST_SEED", "0")) or random.SystemRandom().randrange(10**6)
    with capsys.disabled():
        sys.stderr.write(f"\nHUB_TEST_SEED={seed} HUB_TEST_CHAOS_S={SECONDS:g}\n")
    wrong: list[str] = []
    until_s = time.monotonic() + SECONDS
    hands = [Hand(hub, seed + number, until_s, wrong) for number in range(CLIENTS)]
    for hand in hands:
        hand.start()
    while any(hand.is_alive() for hand in hands):
        running = servers_of(hub)
        for name, pids in running.items():
            living = [pid for pid in pids if not is_gone(pid)]
            if len(living) > 1 and set(living) <= set(servers_of(hub)[name]):
                # Two for longer than a death takes are one too many.
                try:
                    eventually(lambda living=living: any(is_gone(p) for p in living), 1)  # type: ignore[misc]
                except AssertionError:
                    wrong.append(f"two {name}: {living}")
        hands[0].join(0.02)
    for hand in hands:
        hand.join()
    assert not wrong, wrong[:5]
    done = {what: sum(hand.done[what] for hand in hands) for what in hands[0].done}
    assert sum(done.values()) > CLIENTS, done
    info = hub.start()
    assert hub.status()["info"]["pid"] == info["pid"]
    hub.stop("--force")
    eventually(lambda: servers_of(hub) == {"fossil": [], "nats": []})
    _before, _found, trace = hub.log("hub").partition("Traceback")
    assert not trace, trace[:3000]
