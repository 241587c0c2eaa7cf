"""Leaves of real slots, for tests."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.control import encode
from foundation.workspace import Workspace
from hub.events import read
from slotgc import ending
from slotgc.leaf import LIVE, look_all
from tests.support import CODE

if TYPE_CHECKING:
    from pathlib import Path

    from hub.events import Event

LEAF = """
import socket, sys
sys.path.insert(0, sys.argv[1])
from swarm.leaf.process import begin
sys.exit(begin(sys.argv[2], socket.socket(fileno=int(sys.argv[3]))))
"""
"""A leaf without the nursery, for one that is to be killed at a step."""


def end_leaves(root: Path) -> None:
    """End every leaf of the workspace *root*, stopped ones too."""
    for leaf in look_all(Workspace(str(root))):
        if leaf.state == LIVE:
            assert ending.end(leaf.pid, workspace_dir=root).gone


def join_and_die(root: Path, slot: str, failpoint: str) -> None:
    """Have a leaf join *slot* and be killed at *failpoint*."""
    ours, its = socket.socketpair()
    with ours, its:
        process = subprocess.Popen(
            [sys.executable, "-c", LEAF, str(CODE), str(root), str(its.fileno())],
            pass_fds=[its.fileno()],
            env={**os.environ, "HUB_FAILPOINT": failpoint},
        )
        its.close()
        ours.sendall(encode({"verb": "join", "slot": slot, "task": "", "timeout_s": 20}))
        answer = b"".join(iter(lambda: ours.recv(65536), b""))
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
