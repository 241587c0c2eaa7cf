"""Slots with leaves of every kind, for tests of judging and of ending."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.process import Identity
from foundation.workspace import MARK, SLOT_MARK, Workspace
from slotgc.leaf import write_record
from tests.support import CODE

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAF = """
import os, sys
sys.path.insert(0, sys.argv[1])
from foundation.process import Identity
from foundation.workspace import Workspace
from slotgc.hold import Claim
from slotgc.leaf import write_record
workspace = Workspace(sys.argv[2])
with Claim(workspace, sys.argv[3]) as claim:
    claim.take()
write_record(f"{workspace.swarm}/{sys.argv[3]}", Identity.of(os.getpid()))
print(os.getpid(), flush=True)
sys.stdin.read()
"""
"""A leaf as far as cleaning up is concerned: it lives until its standard input ends."""

STUBBORN = ("sh", "-c", "trap '' TERM; echo ready; exec sleep 1000")


def make_slot(root: Path, name: str = "a", pid: bytes | int | None = None) -> Path:
    """Make a slot, and its leaf.pid if *pid* says what is in it."""
    slot = root / ".bones/swarm" / name
    slot.mkdir(parents=True)
    if pid is not None:
        content = pid if isinstance(pid, bytes) else b"%d\n" % pid
        (slot / "leaf.pid").write_bytes(content)
    return slot


def identity_of(pid: int) -> Identity:
    """Return the identity of a living process."""
    identity = Identity.of(pid)
    assert identity is not None
    return identity


def sign(slot: Path, pid: int) -> Identity:
    """Have *slot* say that the living process *pid* is its leaf."""
    identity = identity_of(pid)
    write_record(str(slot), identity)
    return identity


def mark(root: Path, slot: str = "") -> dict[str, str]:
    """Return the variables that a process of ours carries."""
    return {MARK: str(root)} | ({SLOT_MARK: slot} if slot else {})


@contextmanager
def process(
    *argv: str, variables: dict[str, str] | None = None, ready: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with *variables*; *ready*: it says a line first. Killed at the end."""
    running = subprocess.Popen(
        argv or ("sleep", "1000"),
        env={**os.environ, **(variables or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        if ready:
            assert running.stdout is not None
            assert running.stdout.readline()
        yield running
    finally:
        running.kill()
        running.communicate()


@contextmanager
def leaf(root: Path, slot: str = "a") -> Iterator[subprocess.Popen[bytes]]:
    """Run the leaf of a slot that has been made."""
    argv = (sys.executable, "-c", LEAF, str(CODE), str(root), slot)
    with process(*argv, variables=mark(root, slot), ready=True) as running:
        yield running


def workspace_of(root: Path) -> Workspace:
    """Return the workspace at *root*."""
    return Workspace(str(root))


def in_pid_namespace(*argv: str) -> list[str]:
    """Return the command that runs *argv* where pids are its own, and can be chosen."""
    prefix = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    return [*prefix, "--mount-proc", *argv]


def has_pid_namespaces() -> bool:
    """Tell whether that is permitted here."""
    done = subprocess.run(
        in_pid_namespace("sh", "-c", "echo 300 > /proc/sys/kernel/ns_last_pid"),
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
