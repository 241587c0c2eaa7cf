"""A state directory, a socket or a repository that somebody else has prepared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Refused
from foundation.process import Identity
from foundation.workspace import Workspace
from hub.stop import stop
from tests.support import eventually, git, is_gone, kill, stranger

if TYPE_CHECKING:
    from tests.support import Hub

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs files of another user")
NOBODY = 65534

LISTEN = """
import json, os, socket, sys
os.setuid(int(sys.argv[2]))
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("listening", flush=True)
while True:
    client, _ = server.accept()
    lines = client.makefile("rwb")
    while line := lines.readline():
        verb = json.loads(line)["verb"]
        data = {"identity": json.loads(sys.argv[3]), "children": []} if verb == "status" else {}
        lines.write(json.dumps({"v": 1, "data": data}).encode() + b"\\n")
        lines.flush()
"""


def test_a_directory_that_no_hub_made_is_refused_and_left_alone(hub: Hub) -> None:
    state = Path(hub.workspace.state)
    shutil.rmtree(state)
    (state / "creds").mkdir(parents=True)
    (state / "creds/nats-hub.nk").write_text("known to somebody else\n")
    git(hub.root, "add", "-f", ".orchestrator")
    git(hub.root, "commit", "-q", "-m", "a trap")
    error = hub.refused()
    assert error["reason"] == "state-foreign"
    assert "move it away" in error["message"]
    assert sorted(p.name for p in state.iterdir()) == ["creds"]


@pytest.mark.parametrize("name", ["pids", "logs", "creds", "nats", "outbox", "leases"])
def test_a_link_that_leads_out_of_the_state_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "innocent.pid").write_text("1\n")
    place = Path(hub.workspace.state) / name
    shutil.rmtree(place)
    place.symlink_to(outside)
    assert hub.refused()["reason"] == "state-foreign"
    hub.run("stop")
    assert (outside / "innocent.pid").read_text() == "1\n"


@pytest.mark.real
def test_a_log_that_is_a_link_is_not_written_through(hub: Hub, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    log = Path(hub.workspace.logs) / "hub.log"
    log.unlink(missing_ok=True)
    log.symlink_to(victim)
    assert hub.refused()["exit_code"] == 1
    assert victim.read_text() == "mine\n"


def test_a_state_that_is_a_link_to_another_workspace_is_not_that_ones_hub(
    hub: Hub, tmp_path: Path
) -> None:
    info = hub.start()
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    (other / ".orchestrator").symlink_to(hub.workspace.state)
    for verb in ("stop", "status", "url", "start"):
        done = hub.run(verb, "--json", cwd=other)
        assert done.returncode != 0
    assert hub.status()["info"]["pid"] == info["pid"]


@pytest.mark.real
def test_a_socket_that_is_a_link_leads_to_no_other_hub(hub: Hub, tmp_path: Path) -> None:
    info = hub.start()
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    workspace = Workspace(str(other))
    workspace.make_state()
    Path(workspace.socket).symlink_to(hub.workspace.socket)
    for verb in ("stop", "status", "url"):
        assert hub.run(verb, cwd=other).returncode != 0
    assert hub.status()["info"]["pid"] == info["pid"]


@as_root
@pytest.mark.faults
def test_a_socket_of_another_user_cannot_make_us_end_a_stranger(tmp_path: Path) -> None:
    root = tmp_path / "trap"
    state = root / ".orchestrator"
    state.mkdir(parents=True)
    (root / ".git").mkdir()
    for path in (root, state):
        os.chown(path, NOBODY, NOBODY)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o005 != 0o005 and path.is_relative_to("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    with stranger() as victim:
        identity = Identity.of(victim.pid)
        assert identity is not None
        for owner in (NOBODY, 0):  # of the directory
            os.chown(state, owner, NOBODY)
            state.chmod(0o777)
            address = Workspace(str(root)).socket
            argv = [
                sys.executable,
                "-c",
                LISTEN,
                address,
                str(NOBODY),
                json.dumps(identity.as_dict()),
            ]
            with subprocess.Popen(argv, stdout=subprocess.PIPE) as trap:
                assert trap.stdout is not None
                assert trap.stdout.readline() == b"listening\n"
                with pytest.raises(Refused) as raised:
                    stop(str(root), timeout_s=1)
                assert raised.value.reason == "state-foreign"
                trap.kill()
            os.unlink(address)


@pytest.mark.real
@pytest.mark.faults
def test_a_journal_of_a_removed_repository_is_moved_aside_not_replayed(hub: Hub) -> None:
    repository = Path(hub.workspace.repository)
    wal = Path(f"{repository}-wal")
    repository.unlink()
    wal.write_bytes(b"of the old one")
    hub.start()
    aside = list(repository.parent.glob("hub.fossil-wal.of-a-removed-repository.*"))
    assert [path.read_bytes() for path in aside] == [b"of the old one"]


@pytest.mark.real
@pytest.mark.faults
def test_beside_a_hub_whose_lock_file_was_removed_no_second_one_runs(hub: Hub) -> None:
    first = hub.start()["pid"]
    Path(hub.workspace.lock).unlink()
    Path(hub.workspace.socket).unlink()
    error = hub.refused()
    assert error["reason"] == "lock-replaced"
    assert error["exit_code"] == 75
    kill(first, signal.SIGTERM)
    eventually(lambda: is_gone(first))
    assert hub.start()["pid"] != first


@pytest.mark.real
def test_keys_that_others_could_read_become_private_again(hub: Hub) -> None:
    creds = Path(hub.workspace.creds)
    creds.chmod(0o755)
    for path in creds.iterdir():
        path.chmod(0o644)
    hub.start()
    assert creds.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in creds.iterdir()} == {0o600}
