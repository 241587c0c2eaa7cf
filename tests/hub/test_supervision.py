"""What dies comes back or is given up by name; what must not outlive its supervisor does not."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from hub import outbox
from tests.support import CODE, Hub, accepts, delete, eventually, is_gone, port_of, stranger

pytestmark = [pytest.mark.real, pytest.mark.faults]


def events(hub: Hub, kind: str) -> list[dict[str, Any]]:
    return [
        entry.data for entry in outbox.read_after(hub.workspace.outbox, 0) if entry.kind == kind
    ]


def executable(path: Path, script: str) -> str:
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


# --- a child dies --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nats", "fossil", "trunk"])
def test_a_killed_child_is_back_and_announced(hub: Hub, name: str) -> None:
    info = hub.start()
    hub.wait_ready()
    before = hub.child(name)
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: hub.child(name)["restarts"] == 1)
    hub.wait_ready()
    after = hub.child(name)
    assert after["pid"] != before["pid"]
    assert after["last_exit"] == -9
    assert hub.pids()[name] == after["pid"]
    eventually(lambda: len(events(hub, "child-restarted")) == 1)
    assert [event["child"] for event in events(hub, "child-exited")] == [name]
    restarted = events(hub, "child-restarted")[0]
    assert restarted["child"] == name
    assert restarted["down_ms"] < (1000 if name != "trunk" else 10_000)
    now = hub.status()["info"]
    assert (now["fossil_url"], now["nats_url"]) == (info["fossil_url"], info["nats_url"])
    if name != "trunk":
        assert now[f"{name}_pid"] == after["pid"]
    assert now["pid"] == info["pid"]


def test_a_healthy_child_that_is_killed_again_and_again_is_never_given_up(hub: Hub) -> None:
    info = hub.start()
    for _turn in range(4):  # the fifth counted exit in 30 s would be the end; these live a while
        pid = hub.status()["info"]["fossil_pid"]
        eventually(lambda: hub.child("fossil")["uptime_s"] > 1.2, 5)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: hub.status()["info"]["fossil_pid"] != pid)  # type: ignore[misc]
        hub.wait_ready("fossil")
    assert hub.child("fossil")["restarts"] == 4
    assert hub.status()["info"]["fossil_url"] == info["fossil_url"]


def test_both_servers_killed_at_once_are_both_back(hub: Hub) -> None:
    info = hub.start()
    for name in ("fossil", "nats"):
        os.kill(info[f"{name}_pid"], signal.SIGKILL)
    eventually(lambda: min(hub.child(name)["restarts"] for name in ("fossil", "nats")) >= 1)
    hub.wait_ready()
    with urlopen(info["fossil_url"], timeout=5) as answer:
        assert answer.status == 200


def test_a_start_beside_a_restart_waits_for_it(hub: Hub) -> None:
    info = hub.start()
    os.kill(info["nats_pid"], signal.SIGKILL)
    again = hub.start()
    assert again["pid"] == info["pid"]
    assert accepts(port_of(again["nats_url"]))


@pytest.mark.parametrize("gone", ["pids", "logs", "hub.json", "outbox", "nats/nats.conf"])
def test_a_child_is_restarted_though_files_were_removed(hub: Hub, gone: str) -> None:
    info = hub.start()
    hub.wait_ready()
    path = hub.root / ".orchestrator" / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    for name in ("fossil", "nats"):
        os.kill(info[f"{name}_pid"], signal.SIGKILL)
    if gone != "nats/nats.conf":
        eventually(lambda: min(hub.child(name)["restarts"] for name in ("fossil", "nats")) >= 1)
        hub.wait_ready("fossil", "nats")
    else:  # without its configuration nats cannot run: named, and the others kept up
        eventually(lambda: hub.status()["state"] == "failed", 30)
        assert hub.child("fossil")["phase"] == "ready"
    assert hub.status()["info"]["pid"] == info["pid"]
    assert not is_gone(info["pid"])
    assert "Traceback" not in hub.log("hub")


def test_a_server_that_forks_away_and_writes_for_ever_does_not_hold_up_the_hub(
    hub: Hub, tmp_path: Path
) -> None:
    real = shutil.which("fossil")
    chatty = executable(
        tmp_path / "fossil",
        f"""#!{sys.executable}
import os, sys
if sys.argv[1] == "server" and os.fork() == 0:
    os.setsid()
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
    while True:
        os.write(1, b"x" * 1000 + b"\\n")
os.execv({real!r}, ["{real}", *sys.argv[1:]])
""",
    )
    info = hub.start(HUB_FOSSIL=chatty)
    try:
        os.kill(info["fossil_pid"], signal.SIGKILL)
        eventually(lambda: hub.child("fossil").get("restarts") == 1)
        hub.wait_ready("fossil")
        hub.stop()
    finally:
        for pid in [int(text) for text in (tmp_path / "pid").read_text().split()]:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["true"], check=True)


# --- crash loops ---------------------------------------------------------------------------


@pytest.fixture
def moody(tmp_path: Path) -> str:
    """Return a nats-server that refuses to run while a file exists."""
    from hub.nats import find_server  # noqa: PLC0415

    return executable(
        tmp_path / "nats-server",
        f"#!/bin/sh\n[ -e {tmp_path}/sulk ] && echo 'I sulk' >&2 && exit 3\n"
        f'exec {find_server()} "$@"\n',
    )


def test_a_crash_loop_is_given_up_by_name_and_a_start_clears_it(
    hub: Hub, moody: str, tmp_path: Path
) -> None:
    info = hub.start(HUB_NATS_SERVER=moody)
    hub.wait_ready()
    (tmp_path / "sulk").touch()
    os.kill(info["nats_pid"], signal.SIGKILL)
    eventually(lambda: hub.status()["state"] == "failed", 20)
    done = hub.run("status")
    assert done.returncode == 5
    assert "nats" in done.stdout
    assert hub.child("nats")["phase"] == "failed"
    assert hub.child("fossil")["phase"] == "ready"
    with urlopen(info["fossil_url"], timeout=5) as answer:
        assert answer.status == 200
    assert [event["child"] for event in events(hub, "failed")] == ["nats"]
    assert "I sulk" in events(hub, "failed")[0]["reason"]
    tries = [entry for entry in hub.logged("child-exited") if entry["status"] == 3]
    assert len(tries) <= 5
    # A start tries again, and says why if it fails again.
    error = hub.refused()
    assert error["reason"] == "child-failed"
    assert "I sulk" in error["message"]
    (tmp_path / "sulk").unlink()
    again = hub.start()
    assert again["pid"] == info["pid"]
    assert again["nats_url"] == info["nats_url"]
    hub.wait_ready()
    assert hub.status()["state"] == "running"


def test_a_failed_hub_can_be_stopped(hub: Hub, moody: str, tmp_path: Path) -> None:
    info = hub.start(HUB_NATS_SERVER=moody)
    (tmp_path / "sulk").touch()
    os.kill(info["nats_pid"], signal.SIGKILL)
    eventually(lambda: hub.status()["state"] in ("failed", "degraded"))
    hub.stop()
    assert is_gone(info["pid"])


def test_a_binary_that_went_away_is_a_crash_loop_too(hub: Hub, moody: str) -> None:
    info = hub.start(HUB_NATS_SERVER=moody)
    Path(moody).unlink()
    os.kill(info["nats_pid"], signal.SIGKILL)
    eventually(lambda: hub.status()["state"] == "failed", 20)
    assert moody in events(hub, "failed")[0]["reason"]
    assert not is_gone(info["pid"])


def test_a_port_that_was_stolen_while_its_server_was_down_is_named(
    hub: Hub, moody: str, tmp_path: Path
) -> None:
    info = hub.start(HUB_NATS_SERVER=moody)
    hub.wait_ready()
    (tmp_path / "sulk").touch()
    os.kill(info["nats_pid"], signal.SIGKILL)
    eventually(lambda: hub.status()["state"] == "failed", 20)
    (tmp_path / "sulk").unlink()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port_of(info["nats_url"])))
        thief.listen()
        error = hub.refused()
        assert "address already in use" in error["message"]
    hub.start()


# --- hangs ---------------------------------------------------------------------------------

PATIENT = """
import sys
from hub import child, supervisor
supervisor.HEALTH_EVERY_S = 0.3
child.HEALTH_TIMEOUT_S = 0.2
from hub.start import start
start(sys.argv[1], on_ready=lambda info: print("ready", flush=True))
"""


@contextmanager
def watchful(hub: Hub, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a hub in the foreground that asks after its children's health often."""
    with subprocess.Popen(
        [sys.executable, "-c", PATIENT, str(hub.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CODE), **environment},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", hub.log("hub")
        try:
            yield process
        finally:
            process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("name", ["nats", "fossil"])
def test_a_server_that_hangs_is_replaced(hub: Hub, name: str) -> None:
    with watchful(hub):
        pid = hub.pids()[name]
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: is_gone(pid), 20)
        eventually(lambda: hub.child(name)["restarts"] == 1)
        hub.wait_ready(name)
        assert hub.pids()[name] != pid
        other = "fossil" if name == "nats" else "nats"
        assert hub.child(other)["restarts"] == 0


def test_a_supervisor_that_was_asleep_blames_nobody(hub: Hub) -> None:
    with watchful(hub) as process:
        pids = hub.pids()
        for pid in (*pids.values(), process.pid):
            os.kill(pid, signal.SIGSTOP)
        read, write = os.pipe()
        select.select([read], [], [], 2.0)  # while the machine sleeps
        for pid in (process.pid, *pids.values()):
            os.kill(pid, signal.SIGCONT)
        os.close(read)
        os.close(write)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 1.5)
        assert all(not is_gone(pid) for pid in pids.values())
        assert hub.child("nats")["restarts"] == 0


def test_a_slow_answer_now_and_then_is_no_reason_to_kill(hub: Hub) -> None:
    with watchful(hub):
        pid = hub.pids()["nats"]
        for _turn in range(3):
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            eventually(lambda began=began: time.monotonic() - began > 0.35)  # type: ignore[misc]
            os.kill(pid, signal.SIGCONT)
            began = time.monotonic()
            eventually(lambda began=began: time.monotonic() - began > 0.5)  # type: ignore[misc]
        assert hub.pids()["nats"] == pid


# --- the supervisor dies -------------------------------------------------------------------


def test_a_killed_supervisor_takes_its_children_with_it_at_once(hub: Hub) -> None:
    info = hub.start()
    hub.wait_ready()
    pidfds = {name: os.pidfd_open(pid) for name, pid in hub.pids().items() if name != "hub"}
    assert set(pidfds) == {"fossil", "nats", "trunk"}
    poll = select.poll()
    for fd in pidfds.values():
        poll.register(fd, select.POLLIN)
    began = time.monotonic()
    os.kill(info["pid"], signal.SIGKILL)
    waiting = set(pidfds.values())
    while waiting:
        for fd, _events in poll.poll(1000):
            poll.unregister(fd)
            waiting.discard(fd)
    took_s = time.monotonic() - began
    for fd in pidfds.values():
        os.close(fd)
    assert took_s < 0.05 * (1 + os.getloadavg()[0]), f"{took_s * 1000:.0f} ms"
    assert hub.status()["state"] == "stopped"
    assert hub.run("status").returncode == 3
    assert not accepts(port_of(info["nats_url"]))


def test_after_a_killed_supervisor_the_next_start_is_as_before(hub: Hub) -> None:
    info = hub.start()
    for turn in range(3):
        os.kill(hub.pids()["hub"], signal.SIGKILL)
        again = hub.start()
        assert again["epoch"] == info["epoch"] + turn + 1
        assert (again["fossil_url"], again["nats_url"]) == (info["fossil_url"], info["nats_url"])
    assert "Traceback" not in hub.log("hub")


def test_after_a_killed_supervisor_a_stop_clears_the_rest(hub: Hub) -> None:
    info = hub.start()
    os.kill(info["pid"], signal.SIGKILL)
    hub.stop()
    assert not hub.pids()
    assert is_gone(info["nats_pid"])
    assert not accepts(port_of(info["nats_url"]))


def test_old_pid_files_are_gone_before_new_processes_are(hub: Hub, tmp_path: Path) -> None:
    with stranger() as victim:
        for name in ("hub", "fossil", "nats", "trunk", "other"):
            (Path(hub.workspace.pids) / f"{name}.pid").write_text(f"{victim.pid}\n")
        info = hub.start()
        assert victim.pid not in hub.pids().values()
        os.kill(info["pid"], signal.SIGKILL)
    assert tmp_path.exists()


# --- files removed or replaced under it ----------------------------------------------------


def test_a_removed_socket_is_made_anew(hub: Hub) -> None:
    with watchful(hub) as process:
        Path(hub.workspace.socket).unlink()
        eventually(lambda: hub.status()["state"] == "running")
        Path(hub.workspace.socket).unlink()
        Path(hub.workspace.socket).write_text("not a socket")
        eventually(lambda: hub.status()["state"] == "running")
        assert hub.start()["pid"] == process.pid


def test_a_start_while_the_socket_is_gone_finds_the_hub(hub: Hub) -> None:
    info = hub.start()
    Path(hub.workspace.socket).unlink()
    assert hub.start()["pid"] == info["pid"]  # it looks every few seconds


@pytest.mark.parametrize("kind", ["removed", "replaced"])
def test_a_lost_lock_file_makes_the_hub_give_way(hub: Hub, kind: str) -> None:
    info = hub.start()
    Path(hub.workspace.lock).unlink()
    if kind == "replaced":
        Path(hub.workspace.lock).touch()
    again = hub.start()
    assert again["pid"] != info["pid"]
    assert is_gone(info["nats_pid"])
    assert is_gone(info["fossil_pid"])


def test_a_deleted_workspace_ends_its_hub(hub: Hub) -> None:
    info = hub.start()
    delete(hub.workspace.state)
    delete(hub.root)
    eventually(lambda: is_gone(info["pid"]), 15)
    assert is_gone(info["nats_pid"])
