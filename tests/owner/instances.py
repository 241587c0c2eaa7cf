"""Owners and followers in processes of their own, told what to do line by line."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from tests.support import CODE, kill

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, resource, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from foundation.errors import HubError
from owner import inspect, join, watch

path = sys.argv[2]

def attempt(call):
    try:
        return call()
    except HubError as error:
        return type(error).__name__, error.reason

def become(ttl_s, **options):
    global o
    o = join(path, ttl_s=ttl_s, **options)
    return o.role, o.epoch

def take_over(ttl_s):
    for holder in watch(path):
        if holder is None and become(ttl_s)[0] == "owner":
            return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

def fence_on():
    while True:
        with o.fenced():
            pass

print("ready", flush=True)
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class Instance:
    """A process that may own the lease at a path; ended at the end of a ``with``."""

    def __init__(self, path: Path, *prefix: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM, CODE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self._line() == "ready"

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, expression: str) -> Any:
        """Evaluate *expression* there; the owner is called ``o``."""
        self.tell(expression)
        return self.answer()

    def tell(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        line = self._line()
        assert line, f"pid {self.pid} ended: {self.process.wait(10)}"
        return ast.literal_eval(line)

    def become(self, ttl_s: float = 10.0, renew_interval_s: float | None = None) -> tuple[str, int]:
        """Join; return role and epoch."""
        role, epoch = self.ask(f"become({ttl_s}, renew_interval_s={renew_interval_s})")
        return role, epoch

    def freeze(self) -> None:
        """Stop it and see that it is stopped."""
        kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would; it stays a zombie."""
        kill(self.pid)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def wait(self) -> int:
        return self.process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()
