"""Leaves of real slots, for tests."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.control import encode
from foundation.workspace import Workspace
from hub.events import read
from slotgc import ending
from slotgc.leaf import LIVE, look_all
from tests.support import CODE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hub.events import Event

LEAF = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from swarm.leaf.process import begin
sys.exit(begin(sys.argv[2], socket.socket(fileno=int(sys.argv[3]))))
"""
"""A leaf without the nursery, for one that is to be killed at a step."""

FREEZING = (
    """
import os, signal
at = "freeze:owner.renew.guarded"
signal.signal(signal.SIGUSR1, lambda *_: os.environ.__setitem__("HUB_FAILPOINT", at))
"""
    + LEAF
)
"""The same; after SIGUSR1 it stops itself as it renews its lease."""

LOADED = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from swarm.leaf.process import begin
before = set(sys.modules)
begin(sys.argv[2], socket.socket(fileno=int(sys.argv[3])))
with open(sys.argv[4], "w") as file:
    file.write(" ".join(sorted(set(sys.modules) - before)))
"""
"""The same; in the end it says which modules it has loaded since its birth."""


def end_leaves(root: Path) -> None:
    """End every leaf of the workspace *root*, stopped ones too."""
    for leaf in look_all(Workspace(str(root))):
        if leaf.state == LIVE:
            assert ending.end(leaf.pid, workspace_dir=root).gone


@contextmanager
def lone_leaf(
    root: Path, slot: str, *arguments: str, program: str = LEAF, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """Have a process of our own join *slot*; yield it, and what it answered."""
    ours, its = socket.socketpair()
    with ours:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(CODE), str(root), str(its.fileno()), *arguments],
            pass_fds=[its.fileno()],
            env={**os.environ, **environment},
        )
        its.close()
        try:
            ours.sendall(encode({"verb": "join", "slot": slot, "task": "", "timeout_s": 20}))
            yield process, b"".join(iter(lambda: ours.recv(65536), b""))
        finally:
            process.kill()
            process.wait()


def join_and_die(root: Path, slot: str, failpoint: str) -> None:
    """Have a leaf join *slot* and be killed at *failpoint*."""
    with lone_leaf(root, slot, HUB_FAILPOINT=failpoint) as (process, answer):
        assert process.wait(30) == -9, f"it was not killed at {failpoint}: {answer!r}"


def say(root: Path, slot: str, line: bytes) -> dict[str, Any]:
    """Send the raw *line* to the leaf of *slot* and return its answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        directory = os.open(root / ".bones/swarm" / slot, os.O_PATH)
        try:
            sock.connect(f"/proc/self/fd/{directory}/leaf.sock")
        finally:
            os.close(directory)
        sock.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = sock.recv(65536)
            assert chunk, "it closed without an answer"
            answer += chunk
        return codec.loads_object(answer.splitlines()[-1])


def events_of(root: Path, slot: str) -> list[Event]:
    """Return the events of *slot* in the stream."""

    async def ask() -> list[Event]:
        return [event async for event in read(Workspace(str(root)))]

    return [one for one in asyncio.run(ask()) if one.subject.startswith(f"slot.{slot}.event.")]
