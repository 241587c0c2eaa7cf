"""Holders of fake VMs, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import control
from orchestrator.control import SpawnConfig
from orchestrator.store import Options, Store
from tests.support import CODE, eventually, is_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLDER = """
import os, sys
sys.path[:0] = [sys.argv.pop(1)]
from orchestrator.holder import run
from tests.orchestrator.vm.fake_parts import assemble
os._exit(run(assemble))
"""
PROGRAM = (sys.executable, "-c", HOLDER, str(CODE))
SMALL = Options(disk_mb=1)
BLIND = {"look_every_s": 3600}
"""Settings of a holder that does not notice what becomes of its files."""
_BUGS = ("AssertionError", "AttributeError", "NameError", "Task exception was never retrieved")


def config(*names: str, bound: bool = False, **more: Any) -> SpawnConfig:
    """Return the launch of a holder of fakes."""
    return SpawnConfig(names=names, bound=bound, options=SMALL, program=PROGRAM, **more)


def go_wrong(store: Store, name: str, **faults: Any) -> None:
    """Say what is to go wrong with the next boot of *name*."""
    directory = Path(store.place(name).directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "faults.json").write_text(json.dumps(faults))


def up(store: Store, *names: str, **more: Any) -> dict[str, control.Status]:
    """Have a detached holder of fakes up; return its members' states."""
    control.spawn(store, config(*names, **more)).close()
    return control.wait_members(store, names, 30)


def holder_pid(store: Store, name: str) -> int:
    """Return the pid of the holder of *name*."""
    identity = store.holder_of(name)
    assert identity is not None
    return identity.pid


def log_of(store: Store, name: str) -> str:
    """Return the log of the holder that was launched for *name*."""
    path = Path(store.place(name).log)
    return path.read_text() if path.exists() else ""


def events(store: Store, name: str) -> list[tuple[str, str]]:
    """Return what a holder, launched for *name* first, has announced: members and kinds."""
    lines = [json.loads(line) for line in log_of(store, name).splitlines() if line[:1] == "{"]
    return [(line["member"], line["kind"]) for line in lines if line["event"] == "announced"]


def end_holders(store: Store) -> None:
    """End every holder, stopped ones too, and see that each is gone."""
    for name in store.members():
        control.end_holder(store, name, grace_s=10)


def bugs(store: Store) -> list[str]:
    """Return the lines of holders' logs that are no condition: their exit status nobody sees."""
    logs = Path(store.directory).glob("*/*/holder.log")
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    return [line for line in lines if '"a bug in ' in line or line.startswith(_BUGS)]


def begin_client(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Run *program*, a client of holders, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=CODE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CODE), **environment},
    )


@contextmanager
def client(program: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """As :func:`begin_client`; it is ended with the ``with``."""
    process = begin_client(program, *arguments, **environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that *process* prints; its complaint, if it ends instead."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        process.kill()
        raise AssertionError(process.communicate()[1])
    return line


def gone(*pids: int) -> None:
    """Wait until none of *pids* lives."""
    eventually(lambda: all(is_gone(pid) for pid in pids))
