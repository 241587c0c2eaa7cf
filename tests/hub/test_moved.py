"""Workspaces that are copied or moved while their hub runs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub.supervisor import HEALTH_EVERY_S
from tests.support import Hub, accepts, copy_workspace, eventually, is_gone, port_of, run_python

pytestmark = [pytest.mark.real, pytest.mark.faults]


@pytest.fixture
def copied(hub: Hub) -> Iterator[Hub]:
    """Return a copy of the workspace of *hub*, taken while that runs."""
    hub.start()
    hub.wait_ready()
    copy_workspace(hub.root, hub.root.parent / "copy")
    copy = Hub(hub.root.parent / "copy")
    yield copy
    copy.stop("--force")


def test_a_copy_has_no_hub_until_it_starts_its_own(hub: Hub, copied: Hub) -> None:
    info = hub.status()["info"]
    assert copied.status()["state"] == "stopped"
    own = copied.start()
    assert not own["already_running"]
    assert own["pid"] != info["pid"]
    assert own["root"] == str(copied.root)
    assert {own["fossil_url"], own["nats_url"]}.isdisjoint({info["fossil_url"], info["nats_url"]})
    assert hub.status()["info"] == info


def test_stopping_a_copy_does_not_touch_the_original(hub: Hub, copied: Hub) -> None:
    pids = hub.pids()
    for _turn in range(2):
        assert copied.stop("--force")["was_running"] is False
    assert not copied.pids()
    copied.start()
    copied.stop("--force")
    assert hub.pids() == pids
    assert not any(is_gone(pid) for pid in pids.values())
    assert hub.status()["state"] == "running"


STOP_HELD = """
import fcntl, sys
from hub.stop import stop
from foundation.errors import HubError
lock = open(sys.argv[1] + "/.orchestrator/hub.lock")
fcntl.flock(lock, fcntl.LOCK_EX)
try:
    print(stop(sys.argv[1], force=True, timeout_s=0.2))
except HubError as error:
    print(error.reason)
"""


def test_a_copy_whose_start_is_under_way_is_not_mistaken_for_the_original(
    hub: Hub, copied: Hub
) -> None:
    pids = hub.pids()
    assert run_python(STOP_HELD, str(copied.root)).stdout == "not-provable\n"
    assert not any(is_gone(pid) for pid in pids.values())


def test_a_moved_workspace_ends_its_hub_and_starts_in_its_new_place(hub: Hub) -> None:
    info = hub.start()
    place = hub.root.parent / "moved"
    hub.root.rename(place)
    moved = Hub(place)
    try:
        again = moved.start()
        assert again["root"] == str(place)
        assert not again["already_running"]
        assert is_gone(info["pid"])
        assert is_gone(info["nats_pid"])
        moved.wait_ready()
    finally:
        moved.stop("--force")


def test_a_moved_workspace_ends_its_hub_by_itself(hub: Hub) -> None:
    info = hub.start()
    place = hub.root.parent / "moved"
    hub.root.rename(place)
    eventually(lambda: is_gone(info["pid"]), 15)
    assert not accepts(port_of(info["nats_url"]))
    assert Hub(place).stop()["was_running"] is False


def test_a_child_that_ends_after_a_move_is_not_started_in_the_old_place(hub: Hub) -> None:
    info = hub.start()
    hub.wait_ready()
    trunk = hub.pids()["trunk"]
    place = hub.root.parent / "moved"
    hub.root.rename(place)
    os.kill(trunk, signal.SIGKILL)
    began_s = time.monotonic()
    eventually(lambda: is_gone(info["pid"]), 15)
    assert time.monotonic() - began_s < HEALTH_EVERY_S, "it was not the next look at its health"
    lines = (place / ".orchestrator/logs/hub.log").read_text().splitlines()
    told = [json.loads(line)["event"] for line in lines]
    assert told.index("stopping") == told.index("child-exited") + 1


def test_a_moved_workspace_whose_hub_was_killed_starts_again(hub: Hub) -> None:
    info = hub.start()
    os.kill(info["pid"], signal.SIGKILL)
    place = hub.root.parent / "moved"
    hub.root.rename(place)
    moved = Hub(place)
    assert moved.start()["epoch"] == info["epoch"] + 1
    moved.stop()


def test_a_new_workspace_in_the_place_of_a_moved_one_is_not_the_old_one(
    hub: Hub, seeded: Path
) -> None:
    info = hub.start()
    hub.wait_ready()  # nothing of it is to make its directories in the midst of the copy
    aside = hub.root.parent / "aside"
    hub.root.rename(aside)
    copy_workspace(aside, seeded)
    again = hub.start()
    assert again["pid"] != info["pid"]
    eventually(lambda: is_gone(info["pid"]), 15)
    assert hub.status()["info"]["pid"] == again["pid"]
