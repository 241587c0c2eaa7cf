"""Stopping: all of ours is gone when it returns, and nobody else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from foundation.process import Identity
from hub.stop import stop
from tests.support import Hub, accepts, eventually, is_gone, port_of, run_python, stranger

pytestmark = pytest.mark.real


def identity_of(pid: int) -> dict[str, Any]:
    identity = Identity.of(pid)
    assert identity is not None
    return identity.as_dict()


def test_when_it_returns_all_is_gone(hub: Hub) -> None:
    info = hub.start()
    hub.wait_ready()
    pids = hub.pids()
    stopped = hub.stop()
    assert stopped["was_running"]
    assert not stopped["killed"]
    assert set(pids.values()) == set(stopped["pids"])
    assert all(is_gone(pid) for pid in pids.values())
    assert not accepts(port_of(info["fossil_url"]))
    assert not accepts(port_of(info["nats_url"]))
    assert os.listdir(hub.workspace.pids) == []
    assert hub.status()["state"] == "stopped"
    assert "Traceback" not in hub.log("hub")
    assert [len(hub.logged(event)) for event in ("stopping", "stopped")] == [1, 1]
    assert Path(hub.workspace.nats_url).exists()
    assert Path(hub.workspace.repository).exists()


def test_a_second_stop_is_no_error(hub: Hub) -> None:
    assert hub.stop()["was_running"] is False
    hub.start()
    hub.stop()
    assert hub.stop()["was_running"] is False
    shutil.rmtree(hub.workspace.state)
    assert hub.stop()["was_running"] is False
    assert not Path(hub.workspace.state).exists(), "a stop makes nothing"


def test_many_stops_at_once_all_succeed(hub: Hub) -> None:
    hub.start()
    stops = [hub.begin("stop", "--json") for _turn in range(10)]
    ends = [(stop.communicate(timeout=30), stop.returncode) for stop in stops]
    assert {status for _words, status in ends} == {0}, ends
    assert hub.status()["state"] == "stopped"
    assert not hub.pids()
    assert len(hub.logged("stopping")) == 1


def test_a_start_during_a_stop_gets_a_hub(hub: Hub) -> None:
    first = hub.start()
    stopping = hub.begin("stop")
    second = hub.start()
    stopping.communicate()
    assert stopping.returncode == 0
    if second["already_running"]:
        assert second["pid"] == first["pid"]  # it came first
    else:
        assert second["pid"] != first["pid"]
        assert hub.start()["pid"] == second["pid"]


@pytest.mark.faults
def test_a_request_in_flight_holds_neither_the_stop_nor_the_port(hub: Hub) -> None:
    info = hub.start()
    port = port_of(info["fossil_url"])
    with socket.create_connection(("127.0.0.1", port)) as request:
        request.sendall(b"GET / HTTP")
        eventually(lambda: len(group(info["fossil_pid"])) > 1)
        members = group(info["fossil_pid"])
        hub.stop()
        assert all(is_gone(pid) for pid in members)
    assert hub.start()["fossil_url"] == info["fossil_url"]


def group(leader: int) -> list[int]:
    """Return the living members of the process group of *leader*."""
    members = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getpgid(int(entry)) == leader and not is_gone(int(entry)):
                members.append(int(entry))
        except ProcessLookupError:
            continue
    return members


@pytest.mark.faults
def test_a_killed_supervisor_with_a_request_in_flight_leaves_nothing_after_the_next_verb(
    hub: Hub,
) -> None:
    info = hub.start()
    port = port_of(info["fossil_url"])
    with socket.create_connection(("127.0.0.1", port)) as request:
        request.sendall(b"GET / HTTP")
        eventually(lambda: len(group(info["fossil_pid"])) > 1)
        members = group(info["fossil_pid"])
        os.kill(info["pid"], signal.SIGKILL)
        eventually(lambda: is_gone(info["fossil_pid"]))
        again = hub.start()
        assert again["fossil_url"] == info["fossil_url"], "the port is held by a request's process"
        assert all(is_gone(pid) for pid in members)


# --- hostile state -------------------------------------------------------------------------


HOSTILE = [
    b"",
    b"\0" * 100,
    b"\xff\xfe",
    b"1",
    b"0",
    b"-1",
    b"4194305",
    b"2147483648",
    b"1e3",
    b"{}",
    b"[" * 5000,
    b"x" * 100_000,
    b"\xef\xbb\xbf42",
    b"None",
    b" 42 43",
]


@pytest.mark.parametrize("content", HOSTILE)
def test_junk_in_every_file_is_no_error_and_signals_nobody(hub: Hub, content: bytes) -> None:
    hub.start()
    hub.stop()
    with stranger():
        Path(hub.workspace.discovery).write_bytes(content)
        for name in ("hub", "fossil", "nats", "trunk", "other"):
            (Path(hub.workspace.pids) / f"{name}.pid").write_bytes(content)
        for path in (hub.workspace.fossil_url, hub.workspace.nats_url):
            Path(path).write_bytes(content)
        assert hub.stop()["was_running"] is False
        assert hub.status()["state"] == "stopped"
        hub.start()


def accuse(hub: Hub, pid: int) -> None:
    """Name the process *pid* wherever a process of the hub is named, as exactly as can be."""
    record = json.loads(Path(hub.workspace.discovery).read_text())
    record["identity"] = identity_of(pid)
    record["children"] = {name: identity_of(pid) for name in ("fossil", "nats", "trunk")}
    Path(hub.workspace.discovery).write_text(json.dumps(record))
    for name in ("hub", "fossil", "nats", "trunk", "other"):
        (Path(hub.workspace.pids) / f"{name}.pid").write_text(f"{pid}\n")


def test_a_stranger_that_is_named_everywhere_survives(hub: Hub) -> None:
    hub.start()
    hub.stop()
    with stranger() as victim:
        accuse(hub, victim.pid)
        assert hub.stop()["was_running"] is False
        assert os.listdir(hub.workspace.pids) == []
        accuse(hub, victim.pid)
        hub.start()
        accuse(hub, victim.pid)
        hub.stop("--force")


@pytest.mark.faults
def test_a_stranger_named_while_the_hub_hangs_survives_and_the_stop_says_why(hub: Hub) -> None:
    info = hub.start()
    os.kill(info["pid"], signal.SIGSTOP)
    try:
        with stranger() as victim:
            accuse(hub, victim.pid)
            done = run_python(STOP, str(hub.root), "0.2")
            assert done.stdout.startswith("Unavailable not-provable"), done.stdout
    finally:
        os.kill(info["pid"], signal.SIGCONT)
    hub.stop()


STOP = """
import sys
from foundation.errors import HubError
from hub.stop import stop
try:
    print(stop(sys.argv[1], timeout_s=float(sys.argv[2])))
except HubError as error:
    print(type(error).__name__, error.reason, error)
"""


@pytest.mark.faults
def test_a_hub_that_hangs_is_unknown_and_is_killed_by_its_proven_identity(hub: Hub) -> None:
    info = hub.start()
    hub.wait_ready()
    pids = hub.pids()
    os.kill(info["pid"], signal.SIGSTOP)
    done = run_python(
        "import hub.status as s, sys; s.ANSWER_WITHIN_S = 0.1; now = s.status(sys.argv[1]); "
        "print(now.state, now.exit_code)",
        str(hub.root),
    )
    assert done.stdout == "unknown 4\n"
    stopped = stop(str(hub.root), timeout_s=0.1)
    assert stopped.killed
    assert stopped.was_running
    assert info["pid"] in stopped.pids
    assert all(is_gone(pid) for pid in pids.values()), "it returned before its servers were gone"
    assert not accepts(port_of(info["nats_url"]))
    assert not accepts(port_of(info["fossil_url"]))
    assert not hub.pids()
    hub.start()


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["absent", "torn", "of-another-boot", "reused"])
def test_a_hub_that_hangs_and_cannot_be_proven_is_left_alone(hub: Hub, damage: str) -> None:
    info = hub.start()
    path = Path(hub.workspace.discovery)
    content = path.read_text()
    record = json.loads(content)
    if damage == "absent":
        path.unlink()
    elif damage == "torn":
        path.write_text(content[:-10])
    else:
        fields: dict[str, dict[str, Any]] = {
            "of-another-boot": {"boot": "x"},
            "reused": {"start": 1, "inode": 0},
        }
        field = fields[damage]
        path.write_text(json.dumps({**record, "identity": {**record["identity"], **field}}))
    os.kill(info["pid"], signal.SIGSTOP)
    done = run_python(STOP, str(hub.root), "0.1")
    assert done.stdout.startswith("Unavailable not-provable"), done.stdout
    assert not is_gone(info["pid"])
    os.kill(info["pid"], signal.SIGCONT)
    hub.stop()


@pytest.mark.faults
def test_a_hub_that_does_not_drain_in_time_is_killed(hub: Hub) -> None:
    info = hub.start()
    os.kill(info["nats_pid"], signal.SIGSTOP)  # it will not obey SIGTERM
    stopped = stop(str(hub.root), timeout_s=0.3)
    assert stopped.killed
    assert is_gone(info["nats_pid"])
    assert is_gone(info["fossil_pid"])
    assert not accepts(port_of(info["nats_url"]))


@pytest.mark.faults
@pytest.mark.slow
def test_a_server_that_does_not_obey_is_killed_by_its_supervisor(hub: Hub) -> None:
    info = hub.start()
    os.kill(info["nats_pid"], signal.SIGSTOP)
    stopped = hub.stop()
    assert not stopped["killed"]
    assert is_gone(info["nats_pid"])


# --- files removed under it ----------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("name", ["hub.sock", "hub.json", "pids", "logs", "hub-nats-url"])
def test_a_hub_that_lost_a_file_can_be_stopped(hub: Hub, name: str) -> None:
    info = hub.start()
    hub.wait_ready()
    path = hub.root / ".orchestrator" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert hub.stop()["was_running"]
    for pid in (info["pid"], info["fossil_pid"], info["nats_pid"]):
        assert is_gone(pid)
    hub.start()


@pytest.mark.faults
def test_a_hub_that_lost_its_lock_file_can_be_stopped(hub: Hub) -> None:
    info = hub.start()
    Path(hub.workspace.lock).unlink()
    hub.stop()  # the first request it gets makes it notice, and end by itself
    eventually(lambda: is_gone(info["pid"]))
    hub.start()


# --- who may be stopped --------------------------------------------------------------------


def make_slot(hub: Hub, name: str, content: str) -> None:
    slot = Path(hub.workspace.swarm) / name
    slot.mkdir(parents=True)
    (slot / "leaf.pid").write_text(content)


def test_a_live_slot_refuses_a_stop_unless_forced(hub: Hub) -> None:
    info = hub.start()
    with stranger() as leaf:
        make_slot(hub, "auth", f"{leaf.pid}\n")
        done = hub.run("stop", "--json")
        assert done.returncode == 1
        error = json.loads(done.stdout)["error"]
        assert error["reason"] == "live-slots"
        assert f"auth (pid {leaf.pid})" in error["message"]
        assert not is_gone(info["pid"])
        hub.stop("--force")
        assert is_gone(info["pid"])


@pytest.mark.parametrize("content", ["", "junk", "0", "1", "-1", "4194304", "99999999999"])
def test_a_slot_with_junk_for_a_leaf_refuses_nothing(hub: Hub, content: str) -> None:
    hub.start()
    make_slot(hub, "auth", content)
    hub.stop()


def test_a_hub_may_not_be_stopped_from_within_its_own_process(hub: Hub) -> None:
    program = """
import os, sys
from hub.start import start
from hub.stop import stop
read, write = os.pipe()
def ready(info):
    stopped = stop(info.root, force=True, timeout_s=2)
    print(stopped.was_running, flush=True)
    os.write(write, b"x")
print(start(sys.argv[1], cancel=read, on_ready=ready))
"""
    # Within the callback nobody answers the control socket: it must not wait for ever either.
    done = subprocess.run(
        ["timeout", "20", *run_argv(program, str(hub.root))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(code())},
    )
    assert done.stdout == "False\nNone\n", done


def run_argv(program: str, *arguments: str) -> list[str]:
    import sys  # noqa: PLC0415

    return [sys.executable, "-c", program, *arguments]


def code() -> Path:
    from tests.support import CODE  # noqa: PLC0415

    return CODE


# --- data ----------------------------------------------------------------------------------


def test_what_was_served_is_served_after_stop_and_start(fresh_hub: Hub) -> None:
    first = fresh_hub.start()
    with urlopen(f"{first['fossil_url']}/json/version", timeout=5) as answer:
        assert answer.status == 200
    before = Path(fresh_hub.workspace.repository).stat().st_ino
    fresh_hub.stop()
    fresh_hub.start()
    assert Path(fresh_hub.workspace.repository).stat().st_ino == before, "it was seeded again"
