"""The agents of the swarm's benchmarks; each kind is one way to get work onto a trunk."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import owner
from swarm.slot import Slot

_GRACE_S = 30.0
"""So much longer a push may take that was begun in time: p99 of git's at 16 is 23 s."""
_LETTERS = bytes(ord("a") + byte % 26 for byte in range(256))


def main(arguments: list[str]) -> None:
    """Get ready, say so, wait for a line, work, report an object per agent, wait for the end."""
    kind, root, text = arguments
    options = json.loads(text)
    agents = [_KINDS[kind](root, name, options) for name in options["names"]]
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    if len(agents) == 1:
        agents[0].work()
    else:
        threads = [threading.Thread(target=agent.work) for agent in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for agent in agents:
        print(json.dumps(agent.report()), flush=True)  # noqa: T201
    sys.stdin.readline()  # who is done stays: the end of a process would cost the others


class Agent(ABC):
    """One agent and what it measured."""

    def __init__(self, root: str, name: str, options: dict[str, Any]) -> None:
        """Prepare; work() does the rest."""
        self.root, self.name, self.options = root, name, options
        self.dice = random.Random(f"{options.get('seed', 1)}-{name}")
        self.took_ms: list[float] = []
        self.failed: list[str] = []
        self.retries = 0
        self.began_s = 0.0
        self.last_s = 0.0

    @abstractmethod
    def work(self) -> None:
        """Do it."""

    def timed(self, act: Any) -> bool:
        """Do *act*, note how long it took, and whether it was refused."""
        began = time.monotonic()
        self.began_s = self.began_s or began
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a benchmark counts what fails
            self.failed.append(f"{type(error).__name__}: {error}"[:300])
            return False
        self.last_s = time.monotonic()
        self.took_ms.append((self.last_s - began) * 1000)
        return True

    def some_bytes(self) -> bytes:
        """Return 50 to 2,000 random letters."""
        return self.dice.randbytes(50 + self.dice.randrange(1950)).translate(_LETTERS)

    def report(self) -> dict[str, Any]:
        """Return what was measured, for JSON."""
        return {
            "name": self.name,
            "took_ms": [round(one, 3) for one in self.took_ms],
            "failed": self.failed,
            "retries": self.retries,
            "began_s": self.began_s,
            "last_s": self.last_s,
        }


class Herd(Agent):
    """Ten tasks: claim, think, write, commit, close."""

    def __init__(self, root: str, name: str, options: dict[str, Any]) -> None:
        super().__init__(root, name, options)
        self.slot = Slot.open(root, name)
        self.top = Path(self.slot.worktree)
        self.claim = owner.join  # the first look at it imports what it needs

    def work(self) -> None:
        self.began_s = time.monotonic()
        for task in range(self.options["tasks"]):
            path = f"{self.root}/.orchestrator/leases/task-{self.name}-{task}"
            with self.claim(path, ttl_s=30) as claim:
                if not claim.is_owner:
                    self.failed.append("not claimed")
                    continue
                time.sleep(0.01 + self.dice.randrange(90) / 1000)
                names = []
                for number in range(1 + self.dice.randrange(4)):
                    name = f"{self.name}/task-{task}/file-{number}.txt"
                    (self.top / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.top / name).write_bytes(self.some_bytes())
                    names.append(name.encode())
                self.timed(lambda: self.slot.commit(f"task {self.name}-{task}", names))  # noqa: B023


class Loop(Agent):
    """One small file after another, as fast as they land."""

    def __init__(self, root: str, name: str, options: dict[str, Any]) -> None:
        super().__init__(root, name, options)
        self.slot = Slot.open(root, name)
        self.top = Path(self.slot.worktree) / name

    def work(self) -> None:
        self.top.mkdir(exist_ok=True)
        until = time.monotonic() + self.options["seconds"]
        turn = 0
        while time.monotonic() < until:
            turn += 1
            file = self.top / f"f{turn % 20}.txt"
            file.write_bytes(b"%d %s\n" % (turn, self.some_bytes()))
            path = f"{self.name}/{file.name}".encode()
            self.timed(lambda: self.slot.commit(f"turn {turn}", [path]))  # noqa: B023


class Git(Agent):
    """What people do: commit, then pull --rebase and push until it lands."""

    def __init__(self, root: str, name: str, options: dict[str, Any]) -> None:
        super().__init__(root, name, options)
        self.top = Path(options["places"][name])

    def git(self, *arguments: str, check: bool = True) -> int:
        """Run git in the clone."""
        return subprocess.run(
            ["git", *arguments], cwd=self.top, check=check, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ).returncode  # fmt: skip

    def work(self) -> None:
        self.began_s = time.monotonic()
        until = self.began_s + self.options["seconds"]
        turn = 0
        while turn < self.options.get("turns", 1 << 30) and time.monotonic() < until:
            turn += 1
            if "think" in self.options:
                time.sleep(0.01 + self.dice.randrange(90) / 1000)
            (self.top / f"{self.name}-{turn % 20}.txt").write_bytes(self.some_bytes())
            self.timed(lambda: self.land(until))

    def land(self, until: float) -> None:
        """Commit, and push until it lands."""
        self.git("add", "-A")
        self.git("commit", "--quiet", "-m", "x")
        while self.git("push", "--quiet", check=False) != 0:
            self.retries += 1
            if self.git("pull", "--quiet", "--rebase", check=False) != 0:
                self.git("rebase", "--abort", check=False)
            if time.monotonic() > until + _GRACE_S:
                raise TimeoutError("time is up")


class Stock(Agent):
    """Stock fossil in a check-out of its own: update and commit until it lands."""

    def __init__(self, root: str, name: str, options: dict[str, Any]) -> None:
        super().__init__(root, name, options)
        self.top = Path(options["places"][name])
        self.fossil = options["fossil"]

    def run(self, *arguments: str) -> int:
        """Run fossil in the check-out."""
        return subprocess.run(
            [self.fossil, *arguments], cwd=self.top, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ).returncode  # fmt: skip

    def work(self) -> None:
        self.began_s = time.monotonic()
        until = self.began_s + self.options["seconds"]
        turn = 0
        while turn < self.options.get("turns", 1 << 30) and time.monotonic() < until:
            turn += 1
            file = self.top / f"{self.name}-{turn % 20}.txt"
            file.write_bytes(self.some_bytes())
            self.run("add", file.name)
            self.timed(lambda: self.land(until))

    def land(self, until: float) -> None:
        """Commit, and update and commit again until it lands."""
        while self.run("commit", "--no-warnings", "--user-override", "bench", "-m", "x") != 0:
            self.retries += 1
            self.run("update")
            if time.monotonic() > until:
                raise TimeoutError("time is up")


_KINDS: dict[str, type[Agent]] = {"herd": Herd, "loop": Loop, "git": Git, "stock": Stock}
