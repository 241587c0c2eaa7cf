"""Reaping: what lost its workspace or its hub ends, and nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from foundation.process import Identity
from foundation.workspace import Workspace
from hub import registry
from hub.census import census
from hub.reap import reap
from hub.status import status_of
from tests.hub.test_census import holding, marked, orphan, roles
from tests.support import (
    HUB,
    Hub,
    accepts,
    copy_workspace,
    data_of,
    delete,
    eventually,
    is_gone,
    port_of,
    processes_of,
    run_python,
    stranger,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.real, pytest.mark.faults]


def run(hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `hub reap` for the test's own workspaces, from a directory that stays."""
    below = str(hub.root.parent)
    return hub.run("reap", "--root", below, *arguments, cwd=hub.root.parent)


def reaped(hub: Hub, *arguments: str) -> dict[str, Any]:
    done = run(hub, "--yes", "--json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return data_of(done.stdout)


@pytest.fixture
def hung(hub: Hub) -> Iterator[dict[str, Any]]:
    """Return a hub that is stopped by SIGSTOP, so that it notices nothing, and its processes."""
    info = hub.start()
    hub.wait_ready()
    eventually(Path(registry.path_of(str(hub.root))).exists)
    pids = hub.pids()
    os.kill(info["pid"], signal.SIGSTOP)
    yield {**info, "pids": pids}
    for survivor in processes_of("", str(hub.root.parent)):
        signal.pidfd_send_signal(survivor.pidfd, signal.SIGCONT)
        signal.pidfd_send_signal(survivor.pidfd, signal.SIGKILL)
        os.close(survivor.pidfd)


def lose(hub: Hub, how: str) -> str:
    """Take the workspace away from its hub; return where it is now."""
    if how == "deleted":
        delete(hub.root)
        return ""
    if how == "state-deleted":
        delete(hub.workspace.state)
        return ""
    if how == "state-renamed":
        os.rename(hub.workspace.state, hub.root / "old-state")
        return str(hub.root / "old-state")
    if how == "lock-renamed":
        os.rename(hub.workspace.lock, f"{hub.workspace.lock}.old")
        return ""
    if how == "lock-replaced":
        os.unlink(hub.workspace.lock)
        Path(hub.workspace.lock).touch()
        return ""
    place = hub.root.parent / "aside"
    if how == "trashed":
        place = hub.root.parent / ".local/share/Trash/files/repo"
    place.parent.mkdir(parents=True, exist_ok=True)
    hub.root.rename(place)
    if how == "replaced-by-another":
        copy_workspace(place, hub.root)
    return str(place)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("deleted", "was deleted"),
        ("state-deleted", "was deleted"),
        ("state-renamed", "was moved to"),
        ("moved", "was moved to"),
        ("trashed", "in the trash"),
        ("replaced-by-another", "was moved to"),
        ("lock-replaced", "was removed or replaced"),
        ("lock-renamed", "was removed or replaced"),
    ],
)
def test_a_hung_hub_that_lost_its_workspace_ends_with_all_its_servers(
    hub: Hub, hung: dict[str, Any], how: str, reason: str
) -> None:
    place = lose(hub, how)
    with stranger():
        (one,) = reaped(hub)["reaped"]
        assert one["root"] == str(hub.root)
        assert reason in one["reason"]
        assert place in one["reason"]
        assert set(one["gone"]) >= set(hung["pids"].values())
        assert one["survivors"] == []
    assert all(is_gone(pid) for pid in hung["pids"].values())
    assert not accepts(port_of(hung["nats_url"]))
    assert not accepts(port_of(hung["fossil_url"]))
    assert registry.entries() == ([], [])
    assert reaped(hub)["reaped"] == []


def test_a_hub_that_does_not_obey_is_killed_with_its_servers(
    hub: Hub, hung: dict[str, Any]
) -> None:
    os.kill(hung["nats_pid"], signal.SIGSTOP)  # so that the supervisor waits for it, too
    delete(hub.root)
    (one,) = reap(str(hub.root.parent), grace_s=0.2)
    assert set(one.gone) >= set(hung["pids"].values())
    assert all(is_gone(pid) for pid in hung["pids"].values())
    assert registry.entries() == ([], []), "a killed hub leaves its entry, and reap removes it"


def test_a_hung_hub_whose_workspace_is_there_is_not_touched(hub: Hub, hung: dict[str, Any]) -> None:
    assert reaped(hub) == {"dry_run": False, "reaped": [], "spared": []}
    assert not any(is_gone(pid) for pid in hung["pids"].values())
    os.kill(hung["pid"], signal.SIGCONT)
    assert hub.status()["state"] == "running"
    hub.stop()


def test_no_file_makes_a_hub_look_as_if_its_workspace_were_gone(
    hub: Hub, hung: dict[str, Any]
) -> None:
    """Whatever the registry and hub.json say, the kernel says where it is."""
    entry = registry.read(registry.path_of(str(hub.root)))
    for root in ("/nowhere", str(hub.root.parent / "elsewhere")):
        registry.write(entry.replace(root=root, directory=[1, 1]))
    told = json.loads(Path(hub.workspace.discovery).read_text())
    Path(hub.workspace.discovery).write_text(
        json.dumps({**told, "root": "/nowhere", "directory": [1, 1]})
    )
    with stranger() as victim:
        identity = Identity.of(victim.pid)
        assert identity is not None
        registry.write(entry.replace(root="/somewhere", identity=identity))
        assert reaped(hub)["reaped"] == []
    assert not any(is_gone(pid) for pid in hung["pids"].values())
    os.kill(hung["pid"], signal.SIGCONT)
    hub.stop()


def test_a_hub_in_another_pid_namespace_is_left_alone(hub: Hub) -> None:
    words = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no pid namespaces here")
    container = subprocess.Popen([*words, HUB, "run"], cwd=hub.root, stdout=-3, stderr=-3)
    try:
        eventually(lambda: hub.status()["state"] == "running", 20)
        (inside,) = (pid for pid, role in roles(hub.root).items() if role == "hub")
        os.kill(inside, signal.SIGSTOP)
        delete(hub.root)
        told = reaped(hub)
        assert told["reaped"] == []
        assert {one["pid"] for one in told["spared"] if one["role"] == "hub"} == {inside}
        assert "namespace" in told["spared"][0]["reason"]
        assert not is_gone(inside)
    finally:
        for survivor in processes_of("", str(hub.root.parent)):
            with contextlib.suppress(ProcessLookupError):  # its namespace ended before its turn
                signal.pidfd_send_signal(survivor.pidfd, signal.SIGKILL)
            os.close(survivor.pidfd)
        container.kill()
        container.wait()


def test_another_users_reap_finds_nothing_of_ours(hub: Hub, hung: dict[str, Any]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    delete(hub.root)
    program = """
import os, sys
from hub import everywhere, whereabouts
from hub.reap import reap
os.setgid(65534); os.setuid(65534)
os.environ["XDG_STATE_HOME"] = "/nonexistent"
print(reap(sys.argv[1]))
"""
    assert run_python(program, str(hub.root.parent)).stdout == "()\n"
    assert not any(is_gone(pid) for pid in hung["pids"].values())
    reaped(hub)


# --- orphans, leaves, strangers --------------------------------------------------------------


def test_the_orphan_of_a_dead_hub_ends(hub: Hub) -> None:
    with orphan(hub.workspace) as left:
        (one,) = reaped(hub)["reaped"]
        assert (one["kind"], one["gone"]) == ("orphans", [left.pid])
        assert is_gone(left.pid)


def test_who_was_agreed_to_ends_whoever_else_is_there_by_now(hub: Hub) -> None:
    with orphan(hub.workspace) as one, orphan(hub.workspace) as two:
        reap(str(hub.root), only=[max(one.pid, two.pid)])
        assert is_gone(max(one.pid, two.pid))


def test_the_orphan_of_a_deleted_workspace_ends(hub: Hub) -> None:
    with orphan(hub.workspace) as left:
        delete(hub.root)
        (one,) = reaped(hub)["reaped"]
        assert (one["kind"], one["gone"]) == ("orphans", [left.pid])
        assert "was deleted" in one["reason"]


def test_under_a_lock_that_somebody_has_no_orphan_is_touched_and_the_exit_code_says_so(
    hub: Hub,
) -> None:
    with orphan(hub.workspace) as left:
        with open(hub.workspace.lock) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = run(hub, "--yes", "--json")
            assert done.returncode == 1
            (one,) = data_of(done.stdout)["reaped"]
            assert one["survivors"] == [left.pid]
            assert one["why"]
            assert str(left.pid) in run(hub, "--yes").stderr
        assert not is_gone(left.pid)


def test_while_a_hub_drains_the_lock_of_another_workspace_is_nobodys(
    hub: Hub, hung: dict[str, Any]
) -> None:
    """Or a `hub stop` there would find a lock without a listener, and give up."""
    copy = hub.root.parent / "other"
    copy_workspace(hub.root, copy)
    other = Workspace(str(copy))
    os.kill(hung["nats_pid"], signal.SIGSTOP)  # so that the supervisor waits for it
    delete(hub.root)
    with orphan(other) as left:
        reaping = threading.Thread(target=reap, args=(str(hub.root.parent),), kwargs={"grace_s": 1})
        reaping.start()
        try:
            eventually(lambda: is_gone(left.pid))
            with open(other.lock) as lock:
                eventually(lambda: is_locked_by_us(lock))
            assert not is_gone(hung["pid"])
        finally:
            reaping.join()
    assert is_gone(hung["pid"])


def is_locked_by_us(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_a_hub_whose_lock_was_moved_away_keeps_its_servers(
    hub: Hub, hung: dict[str, Any], tmp_path: Path
) -> None:
    """Nobody knows the process for the hub any more; that one lives the directory's lock tells."""
    os.rename(hub.workspace.lock, tmp_path / "hub.lock")
    done = run(hub, "--yes", "--json")
    assert done.returncode == 1
    (one,) = data_of(done.stdout)["reaped"]
    assert (one["kind"], one["gone"]) == ("orphans", [])
    assert not any(is_gone(pid) for pid in hung["pids"].values())


def test_beside_a_hub_that_runs_no_server_is_an_orphan_to_end(hub: Hub) -> None:
    hub.start()
    hub.wait_ready()
    with orphan(hub.workspace) as left:
        told = reaped(hub)
        assert told["reaped"] == []
        assert [one["pid"] for one in told["spared"]] == [left.pid]
        assert not is_gone(left.pid)
    hub.stop()


def test_a_leaf_ends_with_its_workspace_and_not_with_its_slot(hub: Hub) -> None:
    slot = hub.root / ".bones/swarm/auth"
    slot.mkdir(parents=True)
    lock = slot / "leaf.lock"
    lock.touch()
    with holding("flock", str(lock), mark=str(hub.root)) as leaf:
        assert reaped(hub)["reaped"] == []
        trash = hub.root.parent / ".local/share/Trash/files/.bones"
        trash.parent.mkdir(parents=True)
        (hub.root / ".bones").rename(trash)
        assert reaped(hub)["reaped"] == []
        delete(trash)
        assert reaped(hub)["reaped"] == []
        assert not is_gone(leaf)
        delete(hub.root)
        (one,) = reaped(hub)["reaped"]
        assert (one["kind"], one["gone"]) == ("leaves", [leaf])


def test_who_is_no_program_of_ours_is_named_and_left_alone(hub: Hub) -> None:
    delete(hub.root)
    with marked(hub.root) as shell:
        told = reaped(hub)
        assert told["reaped"] == []
        (one,) = told["spared"]
        assert (one["pid"], one["role"], one["name"]) == (shell.pid, "other", "sleep")
        assert f"left alone: pid {shell.pid} (sleep, other)" in run(hub).stdout


# --- the verb --------------------------------------------------------------------------------


def test_without_yes_and_a_terminal_it_says_what_it_would_do_and_refuses(
    hub: Hub, hung: dict[str, Any]
) -> None:
    delete(hub.root)
    for words in ([], ["--json"]):
        done = run(hub, *words)
        assert done.returncode == 2
        assert "--yes" in done.stdout + done.stderr
    assert f"would end pid {hung['pid']} (hub: " in run(hub).stdout
    dry = run(hub, "--dry-run")
    assert dry.returncode == 0
    assert all(f"would end pid {pid} " in dry.stdout for pid in hung["pids"].values())
    assert data_of(run(hub, "--dry-run", "--json").stdout)["reaped"][0]["gone"] == []
    assert not any(is_gone(pid) for pid in hung["pids"].values())
    done = run(hub, "--yes")
    assert done.returncode == 0
    assert f"ended pid {hung['pid']} (hub: " in done.stdout
    assert run(hub).stderr.startswith("hub: nothing to reap at ")


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
def test_at_a_terminal_it_asks_first(
    hub: Hub, hung: dict[str, Any], answer: str, status: int
) -> None:
    delete(hub.root)
    ours, theirs = pty.openpty()
    asking = subprocess.Popen(
        [HUB, "reap", "--root", str(hub.root.parent)],
        cwd=hub.root.parent,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 4096)
    assert f"would end pid {hung['pid']} ".encode() in said
    os.write(ours, answer.encode())
    assert asking.wait(30) == status
    os.close(ours)
    assert is_gone(hung["pid"]) == (status == 0)


def test_only_the_workspaces_below_a_directory_are_meant(hub: Hub, hung: dict[str, Any]) -> None:
    delete(hub.root)
    elsewhere = [f"{hub.root}-more", str(hub.root.parent / "re"), "/nowhere"]
    for root in elsewhere:
        done = hub.run("reap", "--dry-run", "--root", root, cwd=hub.root.parent)
        assert done.stderr.startswith("hub: nothing to reap at ")
    done = hub.run("reap", "--yes", cwd=hub.root.parent, HUB_ROOT=str(hub.root))
    assert f"ended pid {hung['pid']} " in done.stdout


def test_reaping_beside_starts_and_stops_harms_neither(hub: Hub) -> None:
    enough = threading.Event()
    ended: list[object] = []

    def reap_on() -> None:
        while not enough.is_set():
            ended.extend(reap(str(hub.root.parent)))

    workers = [threading.Thread(target=reap_on) for _turn in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _turn in range(4):
            info = hub.start()
            assert status_of(Workspace(str(hub.root))).state == "running"
            hub.stop()
            assert is_gone(info["pid"])
    finally:
        enough.set()
        for worker in workers:
            worker.join()
    assert not any(
        process.role in ("hub", "leaf") for one in ended for process in vars(one)["processes"]
    )


def test_reaping_beside_a_moved_hub_that_ends_by_itself_is_no_error(hub: Hub) -> None:
    info = hub.start()
    delete(hub.root)
    programs = [
        subprocess.Popen(
            [HUB, "reap", "--yes", "--root", str(hub.root.parent)],
            cwd=hub.root.parent,
            stdout=-3,
            stderr=-1,
        )
        for _turn in range(4)
    ]
    for program in programs:
        _out, err = program.communicate(timeout=30)
        assert (program.returncode, b"Traceback" in err) == (0, False), err
    assert is_gone(info["pid"])
    with census(str(hub.root)) as found:
        assert found.members == ()
