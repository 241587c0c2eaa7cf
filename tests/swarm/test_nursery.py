"""The nursery: it serves whoever asks, waits for nobody, and ends with trunk."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import swarm
from foundation.errors import HubError
from foundation.process import children_of
from hub.trunk.nursery import NAME
from tests.support import eventually, is_gone, kill

if TYPE_CHECKING:
    from tests.support import Hub

pytestmark = pytest.mark.real


def nursery_of(trunk: int) -> int:
    """Return the pid of trunk's nursery."""
    children = children_of(trunk)
    for pidfd in children.values():
        os.close(pidfd)
    named = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == NAME]
    assert len(named) == 1, children
    return named[0]


def trunk_of(hub: Hub) -> int:
    hub.wait_ready()
    return int(hub.child("trunk")["pid"])


@pytest.mark.faults
def test_it_ends_with_trunk_however_that_ends(swarm_hub: Hub) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        trunk = trunk_of(swarm_hub)
        nursery = nursery_of(trunk)
        kill(trunk, number)
        eventually(lambda pid=nursery: is_gone(pid))  # type: ignore[misc]
        eventually(lambda pid=trunk: swarm_hub.child("trunk")["pid"] not in (0, pid))  # type: ignore[misc]


@pytest.mark.faults
def test_trunk_does_not_go_on_without_it(swarm_hub: Hub) -> None:
    trunk = trunk_of(swarm_hub)
    kill(nursery_of(trunk))
    eventually(lambda: swarm_hub.child("trunk")["pid"] not in (0, trunk))
    assert swarm.join(swarm_hub.root, "alpha").info["joined"]


@pytest.mark.faults
def test_that_it_ends_when_all_of_trunk_is_told_to_is_no_error(swarm_hub: Hub) -> None:
    trunk = trunk_of(swarm_hub)
    kill(nursery_of(trunk), signal.SIGTERM)  # as a stop does, which tells the process group
    eventually(lambda: swarm_hub.child("trunk")["pid"] not in (0, trunk))
    assert "nursery-ended" not in swarm_hub.log("trunk")


def test_leaves_outlive_it(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    trunk = trunk_of(swarm_hub)
    kill(trunk)
    eventually(lambda: is_gone(trunk))
    assert slot.status()["pid"] == slot.info["pid"]


def test_whoever_says_nothing_or_nonsense_keeps_nobody_waiting(swarm_hub: Hub) -> None:
    swarm_hub.wait_ready()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    try:
        for number, sock in enumerate(silent):
            sock.connect(swarm_hub.workspace.leaves_socket)
            sock.send(b"x" * number)
        for line, reason in NONSENSE:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(swarm_hub.workspace.leaves_socket)
                sock.sendall(line)
                assert b'"reason":"%b"' % reason in sock.recv(65536), line
        assert swarm.join(swarm_hub.root, "alpha").info["joined"]
    finally:
        for sock in silent:
            sock.close()
    assert Path(swarm_hub.workspace.leaves_socket).stat().st_mode & 0o777 == 0o600
    assert Path(swarm_hub.workspace.state).stat().st_mode & 0o777 == 0o700


NONSENSE = (
    (b"no json\n", b"protocol"),
    (b'{"v":1,"verb":"dance"}\n', b"unknown-verb"),
    (b'{"v":1,"verb":"join","slot":"../x"}\n', b"slot-name"),
    (b'{"v":1,"verb":"join"}\n', b"slot-name"),
    (b'{"v":9,"verb":"join","slot":"x"}\n', b"protocol-version"),
)


def test_a_hub_that_has_just_started_is_waited_for_and_one_that_stopped_is_not(
    lone_hub: Hub,
) -> None:
    lone_hub.start()
    slot = swarm.join(lone_hub.root, "alpha")
    assert slot.close(artifact=False).outcome == "removed"
    lone_hub.stop()
    with pytest.raises(HubError) as caught:
        swarm.join(lone_hub.root, "alpha")
    assert caught.value.reason == "not-running"
