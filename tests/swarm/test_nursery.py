"""The nursery: it serves whoever asks, waits for nobody, and ends with trunk."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import swarm
from foundation.errors import HubError
from foundation.process import children_of
from hub.trunk import wanted
from hub.trunk.nursery import NAME
from orchestrator.up import up as bring_up
from tests.support import eventually, git, is_gone, kill
from tests.swarm.leaves import end_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Hub

pytestmark = pytest.mark.real


def name_of(pid: int) -> str:
    """Return the name of process *pid*, "" if it has gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def nursery_of(trunk: int) -> int:
    """Return the pid of trunk's nursery."""
    children = children_of(trunk)
    for pidfd in children.values():
        os.close(pidfd)
    named = [pid for pid in children if name_of(pid) == NAME]
    assert len(named) == 1, children
    return named[0]


FILES = 1500
"""So many that whoever makes a template is met at it."""


def maker_of(nursery: int) -> int:
    """Return the pid of whoever makes a template ahead, 0 if nobody does."""
    children = children_of(nursery)
    for pidfd in children.values():
        os.close(pidfd)
    assert len(children) <= 1, children
    return next(iter(children), 0)


def templates_of(hub: Hub) -> list[str]:
    """Return the names of the templates that are whole, and of what is left of others."""
    names = os.listdir(hub.workspace.templates)
    return sorted(name for name in names if name.isdigit() or name.startswith("."))


def asked(hub: Hub, **environment: str) -> int:
    """Start the hub and have it asked for a template; return the pid of the nursery."""
    hub.start(**environment)
    nursery = nursery_of(trunk_of(hub))
    assert wanted.ask(hub.workspace)
    return nursery


@pytest.fixture
def large_hub(hub: Hub) -> Iterator[Hub]:
    """Return a hub whose template takes a while; it is for the test to start."""
    for number in range(FILES):
        (hub.root / f"f{number}").write_text(f"{number}\n")
    shutil.rmtree(hub.workspace.state)
    git(hub.root, "add", ".")
    git(hub.root, "commit", "-q", "-m", "large")
    yield hub
    end_leaves(hub.root)


def caught(hub: Hub, nursery: int) -> int:
    """Return the pid of the maker, stopped in the midst of its work."""
    found: list[int] = []

    def stopped() -> bool:
        maker = maker_of(nursery)
        if not maker:
            for name in templates_of(hub):
                if name.isdigit():  # it was faster: once more
                    shutil.rmtree(f"{hub.workspace.templates}/{name}")
            assert wanted.ask(hub.workspace)
            return False
        kill(maker, signal.SIGSTOP)
        eventually(lambda: state_of(maker) in ("T", "Z"))
        if any(name.startswith(".new-") for name in templates_of(hub)):
            found.append(maker)
            return True
        kill(maker, signal.SIGCONT)
        return False

    eventually(stopped)
    return found[0]


def state_of(pid: int) -> str:
    """Return the state of a process in one letter. Source: proc_pid_stat(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


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


# --- the template, made ahead ---------------------------------------------------------------


def test_up_has_the_template_made_and_a_plain_start_does_not(lone_hub: Hub) -> None:
    lone_hub.start()
    nursery = nursery_of(trunk_of(lone_hub))
    assert maker_of(nursery) == 0
    assert templates_of(lone_hub) == []
    bring_up(str(lone_hub.root))
    eventually(lambda: bool(templates_of(lone_hub)))
    eventually(lambda: maker_of(nursery) == 0)
    made = templates_of(lone_hub)
    bring_up(str(lone_hub.root))
    swarm.join(lone_hub.root, "alpha")
    eventually(lambda: maker_of(nursery) == 0)
    assert templates_of(lone_hub) == made, "there was one that did"
    worktree = Path(lone_hub.root, ".bones/swarm/alpha/wt")
    modes = {oct(one.stat().st_mode & 0o777) for one in worktree.iterdir() if one.is_file()}
    assert "0o644" in modes, "like anybody's files"
    assert modes <= {"0o644", "0o755", "0o600"}


def test_who_makes_it_gives_way_to_others_and_is_alone(large_hub: Hub) -> None:
    nursery = asked(large_hub)
    maker = caught(large_hub, nursery)
    assert os.getpriority(os.PRIO_PROCESS, maker) == 10
    for _again in range(3):
        assert wanted.ask(large_hub.workspace)
    assert maker_of(nursery) == maker
    kill(maker, signal.SIGCONT)
    eventually(lambda: maker_of(nursery) == 0)
    assert len(templates_of(large_hub)) == 1


@pytest.mark.faults
def test_a_stop_does_not_wait_for_it_and_the_next_start_removes_what_it_left(
    large_hub: Hub,
) -> None:
    maker = caught(large_hub, asked(large_hub))
    large_hub.stop()
    eventually(lambda: is_gone(maker))
    (left,) = templates_of(large_hub)
    assert left.startswith(".new-")
    large_hub.start()
    eventually(lambda: templates_of(large_hub) == [])


@pytest.mark.faults
def test_it_ends_with_the_nursery_and_the_next_one_makes_another(large_hub: Hub) -> None:
    nursery = asked(large_hub)
    maker = caught(large_hub, nursery)
    trunk = trunk_of(large_hub)
    kill(nursery)
    eventually(lambda: is_gone(maker))
    eventually(lambda: large_hub.child("trunk")["pid"] not in (0, trunk))
    asked(large_hub)
    eventually(lambda: len(templates_of(large_hub)) == 1 and templates_of(large_hub)[0].isdigit())


@pytest.mark.faults
@pytest.mark.parametrize(
    "point", ["template.begun", "template.file", "template.planted", "template.made"]
)
def test_killed_at_any_step_it_leaves_nothing_that_a_join_minds(large_hub: Hub, point: str) -> None:
    nursery = asked(large_hub, HUB_FAILPOINT=point)
    eventually(lambda: maker_of(nursery) == 0 and bool(templates_of(large_hub)))
    assert all(name.startswith(".new-") for name in templates_of(large_hub))
    large_hub.stop()
    large_hub.start()
    large_hub.wait_ready()
    assert swarm.join(large_hub.root, "alpha").info["joined"]
    (made,) = templates_of(large_hub)
    assert made.isdigit()


def test_a_join_that_comes_meanwhile_waits_for_it_and_tells_how_far_it_is(large_hub: Hub) -> None:
    maker = caught(large_hub, asked(large_hub))
    told: list[dict[str, Any]] = []

    def hear(progress: dict[str, Any]) -> None:
        told.append(progress)
        if len(told) == 3:
            kill(maker, signal.SIGCONT)

    slot = swarm.join(large_hub.root, "alpha", progress=hear)
    waiting = [one for one in told if "another" in str(one.get("phase"))]
    assert len(waiting) >= 3
    assert waiting[-1]["total"] in (0, FILES + 3)
    assert len(templates_of(large_hub)) == 1
    assert max(os.listdir(slot.worktree)) == "src"
