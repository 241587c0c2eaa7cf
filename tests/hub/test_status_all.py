"""`hub status --all`: every hub of this user on this machine, whatever the registry says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foundation.process import Identity
from hub import everywhere, fossil, registry
from tests.hub.test_census import holding
from tests.support import (
    HUB,
    Hub,
    data_of,
    delete,
    eventually,
    free_port,
    is_gone,
    run_python,
    stranger,
)

pytestmark = pytest.mark.real


def beside(hub: Hub, name: str) -> Hub:
    """Return the hub of another workspace beside that of *hub*, which does not run yet."""
    other = Hub(Path(shutil.copytree(hub.root, hub.root.parent / name, symlinks=True)))
    Path(other.workspace.fossil_url).write_text(f"http://127.0.0.1:{free_port()}\n")
    Path(other.workspace.nats_url).write_text(f"nats://127.0.0.1:{free_port()}\n")
    return other


def listed(hub: Hub, **environment: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and the hubs of the test's own workspaces."""
    below = hub.root.parent
    done = hub.run(
        "status", "--all", "--json", "--root", str(below), cwd=below, environment=environment
    )
    return done.returncode, data_of(done.stdout)["hubs"]


def started(*hubs: Hub) -> list[dict[str, Any]]:
    """Start *hubs* and wait until they stand in the registry."""
    told = []
    for one in hubs:
        told.append(one.start())
        one.wait_ready()
        eventually(Path(registry.path_of(str(one.root))).exists)
    return told


def test_every_hub_is_shown_and_none_is_no_error(hub: Hub) -> None:
    assert listed(hub) == (0, [])
    done = hub.run("status", "--all", "--root", str(hub.root.parent))
    assert done.stdout == ""
    assert done.stderr.startswith("hub: no hub runs at ")
    others = [beside(hub, "second"), beside(hub, "third")]
    infos = started(hub, *others)
    code, hubs = listed(hub)
    assert code == 0
    assert [(one["root"], one["pid"], one["state"], one["registered"]) for one in hubs] == [
        (info["root"], info["pid"], "running", True)
        for info in sorted(infos, key=lambda info: str(info["root"]))
    ]
    assert hubs[0]["info"] == {**infos[0], "already_running": False}
    text = hub.run("status", "--all", "--root", str(hub.root.parent)).stdout
    for line, info in zip(text.splitlines(), infos, strict=True):
        assert line.split()[:4] == ["running", info["root"], "pid", str(info["pid"])]
        assert line.split()[4:] == [info["fossil_url"], info["nats_url"]]
    for other in others:
        other.stop()
    assert [one["root"] for one in listed(hub)[1]] == [str(hub.root)]


@pytest.mark.faults
def test_hubs_that_hang_delay_nobody_and_are_unknown(hub: Hub) -> None:
    others = [beside(hub, name) for name in ("second", "third", "fourth")]
    infos = started(hub, *others)
    for info in infos[1:]:
        os.kill(info["pid"], signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        code, hubs = listed(hub)
        assert time.monotonic() - began_s < 2.5 * everywhere.ANSWER_WITHIN_S, "one after the other"
        assert code == 5
        assert [one["state"] for one in hubs] == ["unknown", "running", "unknown", "unknown"]
        assert "did not answer within 1 s" in hubs[0]["reason"]
    finally:
        for info in infos[1:]:
            os.kill(info["pid"], signal.SIGCONT)
    for other in others:
        other.stop()


@pytest.mark.faults
def test_one_that_is_degraded_shows_in_the_exit_code(hub: Hub) -> None:
    (info,) = started(hub)
    os.kill(info["nats_pid"], signal.SIGKILL)
    seen = []

    def degraded() -> bool:
        if hub.status()["state"] == "running":
            with contextlib.suppress(ProcessLookupError):  # the record is of one that ended
                os.kill(hub.pids()["nats"], signal.SIGKILL)
        seen.append(listed(hub))
        return seen[-1][0] == 5

    eventually(degraded)
    assert seen[-1][1][0]["state"] in ("degraded", "failed")


@pytest.mark.faults
def test_the_entry_of_a_killed_hub_goes_with_the_next_listing(hub: Hub) -> None:
    (info,) = started(hub)
    path = Path(registry.path_of(str(hub.root)))
    os.kill(info["pid"], signal.SIGKILL)
    eventually(lambda: is_gone(info["pid"]))
    assert path.exists()
    assert listed(hub) == (0, [])
    assert not path.exists()


def test_right_after_its_start_a_hub_counts_as_registered(hub: Hub) -> None:
    """It registers when it is ready, which the reading of the registry came before."""
    program = """
import sys
from hub.everywhere import everywhere
from hub.start import start
start(sys.argv[1], detach=True)
print([one.registered for one in everywhere(sys.argv[1]).hubs])
"""
    assert run_python(program, str(hub.root)).stdout == "[True]\n"


def test_a_hub_of_another_home_is_shown_and_marked(hub: Hub, tmp_path: Path) -> None:
    (info,) = started(hub)
    elsewhere = {"XDG_STATE_HOME": str(tmp_path / "elsewhere")}
    code, (one,) = listed(hub, **elsewhere)
    assert (code, one["pid"], one["registered"]) == (0, info["pid"], False)
    text = hub.run("status", "--all", "--root", str(hub.root), environment=elsewhere).stdout
    assert "(not in this registry)" in text
    assert not (tmp_path / "elsewhere").exists(), "looking makes nothing"


def test_one_that_holds_its_locks_and_does_not_listen_is_unknown(hub: Hub) -> None:
    with holding("flock", hub.workspace.lock, hub.workspace.state) as pid:
        code, (one,) = listed(hub)
        assert (code, one["pid"], one["state"]) == (5, pid, "unknown")
        assert "does not listen" in one["reason"]


@pytest.mark.faults
@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_hung_hub_that_lost_its_workspace_is_shown_with_the_way_out(hub: Hub, how: str) -> None:
    (info,) = started(hub)
    os.kill(info["pid"], signal.SIGSTOP)
    if how == "deleted":
        delete(hub.root)
    else:
        hub.root.rename(hub.root.parent / "aside")
    code, (one,) = listed(hub)
    assert (code, one["state"], one["root"]) == (5, "unknown", str(hub.root))
    assert "`hub reap` ends it" in one["reason"]
    hub.run("reap", "--yes", "--root", str(hub.root.parent), cwd=hub.root.parent)
    assert listed(hub) == (0, [])


# --- entries that lie ------------------------------------------------------------------------


def entry_of(hub: Hub) -> registry.Entry:
    return registry.read(registry.path_of(str(hub.root)))


def test_an_entry_of_another_pid_namespace_is_unknown_and_kept(hub: Hub) -> None:
    started(hub)
    entry = entry_of(hub)
    hub.stop()
    registry.write(entry.replace(identity=entry.identity.replace(namespace=1)))
    code, (one,) = listed(hub)
    assert (code, one["state"]) == (5, "unknown")
    path = Path(registry.path_of(str(hub.root)))
    assert "pid namespace" in one["reason"]
    assert f"`rm -r {path}`" in one["reason"]
    assert path.exists()


def test_an_entry_of_another_namespace_at_whose_socket_a_hub_answers_is_that_hub(hub: Hub) -> None:
    (info,) = started(hub)
    entry = entry_of(hub)
    registry.write(entry.replace(identity=entry.identity.replace(namespace=1)))
    code, hubs = listed(hub)
    assert (code, [one["pid"] for one in hubs]) == (0, [info["pid"]])


def test_one_in_a_container_is_not_hidden_by_a_hub_that_has_its_pid_here(hub: Hub) -> None:
    (info,) = started(hub)
    entry, inside = entry_of(hub), str(hub.root.parent / "inside")
    registry.write(entry.replace(root=inside, identity=entry.identity.replace(namespace=1)))
    _code, hubs = listed(hub)
    assert {one["root"] for one in hubs} == {info["root"], inside}


def test_a_hub_that_starts_after_a_killed_one_is_shown_once(hub: Hub) -> None:
    (info,) = started(hub)
    os.kill(info["pid"], signal.SIGKILL)
    eventually(lambda: is_gone(info["pid"]))
    slow = hub.root.parent / "slow-fossil"
    slow.write_text('#!/bin/sh\n[ "$1" != server ] && exec fossil "$@"\nexec sleep 1000\n')
    slow.chmod(0o755)
    fossils = {
        "HUB_FOSSIL": str(slow),
        "PATH": f"{Path(fossil.find()).parent}:{os.environ['PATH']}",
    }
    with hub.begin("start", **fossils) as starting:
        eventually(lambda: hub.status()["state"] == "starting")
        assert [(one["state"], one["pid"]) for one in listed(hub)[1]] == [
            ("starting", starting.pid)
        ]
        starting.terminate()
        starting.communicate(timeout=20)


@pytest.mark.parametrize("change", [{"start": 1, "inode": 0}, {"boot": "x"}, {"pid": 4_000_000}])
def test_an_entry_whose_process_is_gone_is_removed(hub: Hub, change: dict[str, Any]) -> None:
    started(hub)
    entry = entry_of(hub)
    hub.stop()
    registry.write(entry.replace(identity=entry.identity.replace(**change)))
    assert listed(hub) == (0, [])
    assert registry.entries() == ([], [])


def test_an_entry_that_names_a_stranger_is_removed_and_the_stranger_lives(hub: Hub) -> None:
    started(hub)
    entry = entry_of(hub)
    hub.stop()
    with stranger() as victim:
        identity = Identity.of(victim.pid)
        assert identity is not None
        registry.write(entry.replace(identity=identity))
        assert listed(hub) == (0, [])
        assert registry.entries() == ([], [])


def test_an_entry_that_names_another_hubs_process_hides_neither(hub: Hub) -> None:
    other = beside(hub, "second")
    infos = started(hub, other)
    one, two = entry_of(hub), entry_of(other)
    registry.write(one.replace(identity=two.identity))
    registry.write(two.replace(identity=one.identity))
    code, hubs = listed(hub)
    assert code == 0
    assert [(told["root"], told["pid"]) for told in hubs] == [
        (info["root"], info["pid"]) for info in infos
    ]
    other.stop()


def test_what_could_steer_a_terminal_is_shown_escaped(hub: Hub) -> None:
    place = Path(registry.directory())
    place.mkdir(parents=True)
    (place / "\x1b[2J.json").write_text("{}")
    done = hub.run("status", "--all", "--root", str(hub.root))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "\\x1b[2J.json" in done.stderr


def test_without_a_home_what_runs_is_shown_all_the_same(hub: Hub) -> None:
    (info,) = started(hub)
    program = (
        "import os, sys; sys.path.insert(0, sys.argv.pop(1)); import pwd; "
        "pwd.getpwuid = lambda uid: {}[uid]; from hub.entry import main; main()"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_STATE_HOME")}
    words = [sys.executable, "-I", "-c", program, str(HUB.parents[1])]
    words += ["status", "--all", "--json", "--root", str(hub.root)]
    done = subprocess.run(words, env=kept, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)["data"]
    assert [one["pid"] for one in told["hubs"]] == [info["pid"]]
    assert "no home directory" in told["notes"][0]


def test_where_nothing_was_looked_for_the_place_is_named(tmp_path: Path) -> None:
    place = str(tmp_path / "mistyped")
    for arguments in (["status", "--all"], ["reap", "--dry-run"]):
        done = subprocess.run(
            [HUB, *arguments, "--root", place], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert f"{place} or below" in done.stderr
