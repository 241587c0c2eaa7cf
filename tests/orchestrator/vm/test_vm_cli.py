"""``bones vm`` as a person uses it, with real VMs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from foundation.workspace import Workspace
from hub.logins import of_cluster
from hub.trunk import registry
from orchestrator import control, holders
from orchestrator.store import Options, Store
from owner import private
from tests.orchestrator.vm.holders import end_holders, holder_pid, up
from tests.support import CODE, Hub, eventually, git, is_gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.real]

PROGRAM = (
    "import sys; sys.path[:0] = [sys.argv.pop(1)]; from orchestrator.entry import main; main()"
)


def bones(root: Path, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(CODE), *words],
        cwd=root,
        input=stdin,
        capture_output=True,
        check=False,
    )


def told(root: Path, *words: str) -> Any:
    done = bones(root, *words, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)["data"]


@pytest.fixture
def vms(repo: Path) -> Iterator[Store]:
    """Return the store of a workspace that has no VMs yet."""
    store = Store(repo / ".orchestrator/vms")
    yield store
    end_holders(store)


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_vms_come_up_work_and_go_again(repo: Path, vms: Store, tmp_path: Path) -> None:
    up = bones(repo, "vm", "up", "web", "-n", "2")
    assert up.stdout == b"web-1 is up: 10.77.0.11\nweb-2 is up: 10.77.0.12\n", up
    assert git(repo, "status", "--porcelain") == ""
    again = bones(repo, "vm", "up", "web-1", "--mem", "256")
    assert b"keeps what it was created with" in again.stderr
    assert [one["state"] for one in told(repo, "vm", "ls")["vms"]] == ["running", "running"]

    def run(name: str, *argv: str) -> subprocess.CompletedProcess[bytes]:
        return bones(repo, "vm", "exec", name, "--", *argv)

    said = run("web-1", "sh", "-c", "hostname; echo no >&2; exit 9")
    assert (said.returncode, said.stdout, said.stderr) == (9, b"web-1\n", b"no\n")
    assert run("web-1", "ping", "-c", "1", "-W", "9", "web-2").returncode == 0
    assert bones(repo, "vm", "exec", "-i", "web-2", "--", "cat", stdin=b"\0in").stdout == b"\0in"

    source = tmp_path / "files"
    (source / "www").mkdir(parents=True)
    (source / "www/page").write_text("page\n")
    (source / "www/run").write_text("#!/bin/sh\necho ran\n")
    (source / "www/run").chmod(0o755)
    assert bones(repo, "vm", "cp", str(source / "www"), "web-1:/data/").returncode == 0
    assert run("web-1", "/data/www/run").stdout == b"ran\n"
    assert bones(repo, "vm", "cp", "web-1:/data/www", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back/run").stat().st_mode & 0o777 == 0o755

    assert run("web-1", "httpd", "-p", "80", "-h", "/data/www").returncode == 0
    address = bones(repo, "vm", "forward", "web-1", "80").stdout.decode().strip()
    with urllib.request.urlopen(f"http://{address}/page") as answer:
        assert answer.read() == b"page\n"

    assert bones(repo, "vm", "down", "web-1", "nobody").returncode == 1
    assert [one["state"] for one in told(repo, "vm", "ls")["vms"]] == ["stopped", "running"]
    assert bones(repo, "vm", "up", "web-1").returncode == 0
    assert run("web-1", "cat", "/data/www/page").stdout == b"page\n"
    for one, other in (("web-1", "web-2"), ("web-2", "web-1")):
        eventually(lambda: run(one, "ping", "-c", "1", "-W", "5", other).returncode == 0)  # noqa: B023
    assert b"web-1" in bones(repo, "vm", "rm", "web-1", "--yes").stdout
    assert vms.members() == ["web-2"]
    (holder,) = holders.find(Workspace(str(repo)))
    down = bones(repo, "down", "--yes")
    assert b"holder of VMs web-2" in down.stdout, down
    assert is_gone(holder.pid)
    assert vms.members() == ["web-2"]
    assert told(repo, "vm", "ls")["vms"][0]["state"] == "stopped"


def test_a_command_that_takes_too_long_is_said_to_have_been_killed(repo: Path, vms: Store) -> None:
    Workspace(str(repo)).make_state()
    up(vms, "web")
    late = bones(repo, "vm", "exec", "--timeout", "0.5", "web", "--", "sleep", "1000")
    assert (late.returncode, late.stdout) == (75, b""), late
    assert late.stderr == b"bones: sleep had not ended after 0.5 s, and was killed\n"
    words = ("vm", "exec", "--timeout=0.5", "--json", "web", "--", "sleep", "1000")
    error = json.loads(bones(repo, *words).stdout)["error"]
    assert (error["reason"], error["exit_code"]) == ("timed-out", 75)
    assert bones(repo, "vm", "exec", "--timeout", "-1", "web", "--", "true").returncode == 2
    done = bones(repo, "vm", "exec", "--timeout", "30", "web", "--", "echo", "fine")
    assert (done.returncode, done.stdout) == (0, b"fine\n")


def test_what_is_not_there_is_named_with_its_way_out(repo: Path) -> None:
    none = bones(repo, "vm", "ls")
    assert (none.returncode, none.stdout) == (0, b"")
    assert b"`bones vm up`" in none.stderr
    asked: list[tuple[str, ...]] = [("exec", "web", "--", "true"), ("logs", "web")]
    for words in [*asked, ("forward", "web", "80")]:
        done = bones(repo, "vm", *words)
        assert done.returncode == 1
        assert b"no VM web: `bones vm up web`" in done.stderr
    assert bones(repo, "vm", "down", "web").returncode == 1
    assert bones(repo, "vm", "down", "--all").returncode == 0
    wrong: list[tuple[str, ...]] = [("down",), ("rm",), ("rm", "--all", "web"), ("up", "-n", "0")]
    for words in [*wrong, ("cp", "a", "b")]:
        assert bones(repo, "vm", *words).returncode == 2, words
    assert bones(repo, "vm", "up", "Web").returncode == 2
    assert not (repo / ".orchestrator/vms").exists()


def test_what_rm_would_delete_is_asked_and_nobody_here_is_no_yes(repo: Path, vms: Store) -> None:
    vms.make()
    lock = vms.take("web")
    assert lock is not None
    vms.create("web", Options())
    private.close(lock)
    done = bones(repo, "vm", "rm", "web")
    assert done.returncode == 2
    assert b"--yes" in done.stderr
    assert vms.exists("web")
    assert bones(repo, "vm", "rm", "web", "--yes").stdout == b"web removed\n"
    assert not vms.exists("web")


def has_login(hub: Hub) -> bool:
    login = registry.read(hub.workspace).logins.get(of_cluster("web"))
    return login is not None and bool(login.public)


@pytest.mark.faults
def test_what_a_killed_holder_left_is_seen_by_doctor_and_cleared_by_prune_or_rm(
    repo: Path, vms: Store
) -> None:
    hub = Hub(repo)
    hub.start()
    hub.wait_ready()
    try:
        up(vms, "web-1", "web-2", settings={"workspace": str(repo)})
        eventually(lambda: has_login(hub))
        os.kill(holder_pid(vms, "web-1"), signal.SIGKILL)
        eventually(lambda: not control.running_members(vms))
        found = told(repo, "vm", "doctor")
        assert [one["fix"] for one in found["findings"] if one["name"] == "members"] == [
            "bones vm prune"
        ]
        assert told(repo, "vm", "prune")["cleared"] == ["web-1", "web-2"]
        assert told(repo, "vm", "doctor")["warnings"] == 0
        assert not has_login(hub)
        assert b"nothing to clear up" in bones(repo, "vm", "prune").stderr
        up(vms, "web-1", settings={"workspace": str(repo)})
        eventually(lambda: has_login(hub))
        os.kill(holder_pid(vms, "web-1"), signal.SIGKILL)
        eventually(lambda: not control.running_members(vms))
        assert bones(repo, "vm", "rm", "web-1", "--yes").returncode == 0
        assert not has_login(hub), "nothing that prune could find is left of it"
    finally:
        hub.stop("--force")
