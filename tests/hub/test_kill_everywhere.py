"""Kill -9 at every step of start and stop: the next command converges."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.support import CODE, Hub, accepts, eventually, is_gone, port_of, run_python

pytestmark = [pytest.mark.real, pytest.mark.faults]

SOURCES = ["hub/start.py", "hub/daemon.py", "hub/supervisor.py", "hub/stop.py", "hub/discovery.py"]


def failpoints(prefix: str) -> list[str]:
    """Return the failpoints that stand in the code, so that a new one is tested by itself."""
    found = set()
    for source in SOURCES:
        text = (CODE / source).read_text()
        found |= set(re.findall(r'hit\(f?"([^"]+)"\)', text))
    spelled = {
        name.replace("{name}", server) for name in found for server in ("fossil", "nats", "trunk")
    }
    return sorted(name for name in spelled if name.startswith(prefix))


def test_the_list_of_failpoints_is_not_empty() -> None:
    assert len(failpoints("start.")) >= 5
    assert len(failpoints("stop.")) >= 3


def nothing_runs(hub: Hub) -> bool:
    root = os.fsencode(f"BONES_WORKSPACE={hub.root}")
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and root in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                return False
        except OSError:
            continue
    return True


def converges(hub: Hub) -> None:
    """See that a hub can be started, is one, serves, and can be stopped."""
    info = hub.start()
    assert hub.status()["state"] == "running"
    assert hub.start()["pid"] == info["pid"]
    with urlopen(f"{info['fossil_url']}/json/version", timeout=5) as answer:
        assert answer.status == 200
    assert accepts(port_of(info["nats_url"]))
    hub.stop()
    assert is_gone(info["pid"])
    assert not hub.pids()
    assert not [name for name in os.listdir(hub.workspace.pids) if name.endswith(".tmp")]
    assert "Traceback" not in hub.log("hub")
    eventually(lambda: nothing_runs(hub))


@pytest.mark.parametrize("after", ["start", "stop"])
@pytest.mark.parametrize("point", failpoints("start."))
def test_a_start_that_is_killed_anywhere(hub: Hub, point: str, after: str) -> None:
    done = hub.run("start", "--detach", HUB_FAILPOINT=point)
    # Killed as the starter, as the supervisor before it was ready, or after: all may be.
    assert done.returncode in (-9, 137, 1, 0, 75), done
    assert "Traceback" not in done.stderr
    if after == "stop":
        hub.stop()
        assert not hub.pids()
        eventually(lambda: nothing_runs(hub))
    converges(hub)


def test_a_fossil_that_was_killed_as_it_made_its_configuration_fails_nobody(fresh_hub: Hub) -> None:
    fresh_hub.workspace.make_state()
    program = """
import os, sqlite3, sys
made = sqlite3.connect(sys.argv[1], isolation_level=None)
made.execute("PRAGMA cache_size = 1")
made.execute("BEGIN EXCLUSIVE")
made.execute("CREATE TABLE global_config(name TEXT PRIMARY KEY, value TEXT)")
made.executemany("INSERT INTO global_config VALUES(?, ?)", ((n, "x" * 900) for n in range(99)))
os.kill(os.getpid(), 9)
"""
    path = f"{fresh_hub.workspace.state}/.fossil"
    run_python(program, path, check=False)
    assert os.path.getsize(path) > 3 * 1024, "fossil takes it for made"
    assert os.path.getsize(f"{path}-journal")
    fresh_hub.start()


@pytest.mark.parametrize("point", failpoints("start."))
def test_a_first_start_that_is_killed_anywhere(fresh_hub: Hub, point: str) -> None:
    fresh_hub.run("start", "--detach", HUB_FAILPOINT=point)
    converges(fresh_hub)


@pytest.mark.parametrize("point", failpoints("stop."))
def test_a_stop_that_is_killed_anywhere(hub: Hub, point: str) -> None:
    hub.start(HUB_FAILPOINT=point)
    hub.run("stop", HUB_FAILPOINT=point)
    hub.stop()
    assert not hub.pids()
    eventually(lambda: nothing_runs(hub))
    converges(hub)


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("point", ["seed.started", "seed.stored", "seed.synced", "seed.renamed"])
def test_a_seeding_that_is_killed_under_a_start(fresh_hub: Hub, point: str, turn: int) -> None:
    done = fresh_hub.run("start", "--detach", HUB_FAILPOINT=f"{point}@{turn}")
    if turn == 1:
        assert done.returncode == 1, done
        assert "killed by signal 9" in done.stderr
        assert fresh_hub.status()["state"] == "stopped"
    converges(fresh_hub)


@pytest.mark.parametrize("delay_ms", range(0, 60, 6))
def test_a_starter_that_is_killed_at_any_moment(hub: Hub, delay_ms: int) -> None:
    starting = hub.begin("start", "--detach")
    try:
        starting.wait(delay_ms / 1000)
    except subprocess.TimeoutExpired:
        starting.kill()
    starting.communicate()
    converges(hub)


@pytest.mark.parametrize("delay_ms", range(0, 30, 5))
def test_a_supervisor_that_is_killed_at_any_moment_of_its_start(hub: Hub, delay_ms: int) -> None:
    starting = hub.begin("start", "--detach", "--json")
    eventually(lambda: len(hub.logged("starting")) == 1)
    pid = hub.logged("starting")[0]["pid"]
    pidfd = os.pidfd_open(pid) if not is_gone(pid) else -1
    try:
        starting.wait(delay_ms / 1000)
    except subprocess.TimeoutExpired:
        pass
    if pidfd >= 0:
        os.kill(pid, 9)
        os.close(pidfd)
    _out, err = starting.communicate(timeout=20)
    assert "Traceback" not in err
    assert starting.returncode in (0, 1)
    converges(hub)
