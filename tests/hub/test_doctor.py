"""`hub doctor`: every wreck is named with evidence and a way out, and nothing is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.workspace import MARK, Workspace
from hub import nats, place
from hub import status as status_module
from hub.doctor import Finding, doctor, examine, machine
from hub.start import start
from hub.status import status
from hub.stop import stop
from hub.verbs import ROOT_VARIABLE
from tests.slotgc.leaves import make_slot
from tests.support import copy_workspace, eventually, make_repository, record_free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hub.info import HubInfo

CODE = Path(__file__).parents[2]
GONE = 4194303
"""A pid that nobody has: the largest there is, and the kernel counts up to it first."""

LISTENER = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    input()
"""

pytestmark = pytest.mark.real


def git(*arguments: str, cwd: Path) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", MARK, ROOT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def repo(seeded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A git repository; we stand in it, and its hub ends with the test.

    What its first start would make lies beside it.
    """
    os.rename(seeded / ".orchestrator", seeded.parent / "state")
    monkeypatch.chdir(seeded)
    yield seeded
    stop(str(seeded), force=True)


def give_state(root: Path) -> Workspace:
    """Give *root* what its first start would make, if it has nothing yet."""
    workspace = Workspace(str(root))
    if not os.path.lexists(workspace.state):
        os.rename(root.parent / "state", workspace.state)
    return workspace


def start_somewhere(root: Path) -> HubInfo:
    """Start the hub, on ports that no other hub of this machine would choose."""
    if (root.parent / "state").exists():
        record_free_ports(give_state(root))
    info = start(str(root), detach=True)
    assert info is not None
    return info


def up(root: Path) -> HubInfo:
    """Start the hub and wait until trunk, too, is there."""
    info = start_somewhere(root)
    eventually(
        lambda: any(c.name == "trunk" and c.phase == "ready" for c in status(str(root)).children)
    )
    return info


def found(root: Path, name: str) -> Finding:
    return {finding.name: finding for finding in examine(str(root))}[name]


def wrong(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(str(root)) if finding.level != "ok"}


def follow(fix: str, root: Path, tmp_path: Path) -> None:
    """Type *fix* into a shell in *root*, where ``hub`` is this project's."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    main = "import sys; sys.path.insert(0, sys.argv.pop(1)); from hub.entry import main; main()"
    (tools / "hub").write_text(
        f"#!/bin/sh\nexec '{sys.executable}' -I -S -c '{main}' '{CODE}' \"$@\"\n"
    )
    (tools / "hub").chmod(0o755)
    # None of git's own variables: `git config --global` would write to what they name.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tools)}
    env.pop("USER", None)
    typed = subprocess.run(
        ["sh", "-c", fix], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert typed.returncode == 0, (fix, typed.stdout, typed.stderr)


def execute(workspace: Workspace, sql: str) -> None:
    with sqlite3.connect(workspace.repository) as database:
        database.execute(sql)
    database.close()


Snapshot = dict[str, tuple[int, ...]]


def snapshot(root: Path, *, but: tuple[str, ...] = ()) -> Snapshot:
    """Return inode, mode, owner, size and time of everything below *root*."""
    taken: Snapshot = {}
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in but]
        for name in (".", *files):
            path = os.path.join(directory, name)
            seen = os.lstat(path)
            taken[path] = (
                *(seen.st_ino, seen.st_mode, seen.st_uid),
                *(seen.st_size, seen.st_mtime_ns),
            )
    return taken


# --- nothing wrong ---------------------------------------------------------------------------


def test_before_the_first_start_nothing_is_wrong_and_nothing_is_made(repo: Path) -> None:
    before = snapshot(repo)
    assert wrong(repo) == {}
    assert snapshot(repo) == before


def test_with_a_healthy_hub_nothing_is_wrong(repo: Path) -> None:
    info = up(repo)
    findings = {finding.name: finding for finding in examine(str(repo))}
    assert [f for f in findings.values() if f.level != "ok"] == []
    assert str(info.pid) in findings["hub"].evidence
    assert str(info.nats_pid) in findings["pidfiles"].evidence
    assert all(name in findings["memory"].evidence for name in ("hub", "fossil", "nats", "trunk"))
    assert not any(finding.fix for finding in findings.values())


def test_after_a_stop_nothing_is_wrong(repo: Path) -> None:
    start_somewhere(repo)
    stop(str(repo), force=True)
    assert wrong(repo) == {}


def test_every_check_has_a_name_of_its_own(repo: Path) -> None:
    up(repo)
    names = [finding.name for finding in examine(str(repo))]
    assert len(names) == len(set(names))


# --- nothing is touched ----------------------------------------------------------------------


def test_a_stopped_workspace_is_left_as_it_was(repo: Path) -> None:
    give_state(repo)
    before = snapshot(repo)
    examine(str(repo))
    assert snapshot(repo) == before


def test_a_running_workspace_is_left_as_it_was(repo: Path) -> None:
    up(repo)

    def untouched() -> bool:
        # The hub itself writes now and then (its health check has fossil open the trunk):
        # what the doctor changed would have changed every time.
        before = snapshot(repo, but=("nats", "outbox", "logs"))
        examine(str(repo))
        return snapshot(repo, but=("nats", "outbox", "logs")) == before

    eventually(untouched)


def test_a_write_ahead_log_that_a_kill_left_is_read_and_left(repo: Path) -> None:
    workspace = give_state(repo)
    writer = (
        f"import os, sqlite3; d = sqlite3.connect({workspace.repository!r}); "
        "d.execute(\"UPDATE user SET cap='s' WHERE login='nobody'\"); d.commit(); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", writer], check=False)
    assert os.path.getsize(f"{workspace.repository}-wal") > 0
    before = snapshot(repo)
    assert "'s'" in found(repo, "repository-rights").evidence
    assert snapshot(repo) == before


def test_wrecked_state_is_left_as_it_was(repo: Path) -> None:
    workspace = give_state(repo)
    Path(workspace.repository).write_bytes(b"junk")
    Path(workspace.discovery).write_bytes(b"{")
    Path(workspace.pids, "hub.pid").write_text("12")
    shutil.rmtree(workspace.creds)
    before = snapshot(repo)
    assert {"repository", "hub-json", "pidfiles", "credentials"} <= wrong(repo).keys()
    assert snapshot(repo) == before


def test_the_lock_is_never_made(repo: Path) -> None:
    workspace = give_state(repo)
    os.unlink(workspace.lock)
    examine(str(repo))
    assert not os.path.lexists(workspace.lock)


# --- the machine -----------------------------------------------------------------------------


def test_a_variable_that_names_no_binary_is_named(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, check in (("HUB_FOSSIL", "fossil"), (nats.VARIABLE, "nats-server")):
        monkeypatch.setenv(variable, "/nowhere/program")
        finding = found(repo, check)
        assert finding.level == "problem"
        assert f"{variable}=/nowhere/program" in finding.evidence
        assert finding.fix == f"unset {variable}"


def program_that(tmp_path: Path, script: str) -> str:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo This is fossil version 2.10 [abc]", "2.10"),
        ("echo hello", "hello"),
        ("echo no such thing >&2; exit 3", "exited with status 3"),
    ],
)
def test_a_binary_that_is_no_supported_fossil_is_named(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    monkeypatch.setenv("HUB_FOSSIL", program_that(tmp_path, script))
    finding = found(repo, "fossil")
    assert finding.level == "problem"
    assert told in finding.evidence


def test_a_binary_that_hangs_does_not_hang_the_doctor(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "WITHIN_S", 0.1)
    monkeypatch.setenv("HUB_NATS_SERVER", program_that(tmp_path, "exec sleep 1000"))
    finding = found(repo, "nats-server")
    assert finding.level == "problem"
    assert "did not answer within 0.1 s" in finding.evidence


def test_without_git_the_rest_is_still_judged(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_state(repo)
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = wrong(repo)
    assert findings["git"].fix == "sudo apt-get install git"
    assert "repository" not in findings


def test_a_proxy_that_would_catch_loopback_is_a_warning_without_its_password(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy:3128")
    monkeypatch.setenv("no_proxy", "example.org")
    finding = found(repo, "proxy")
    assert finding.level == "warning"
    assert "secret" not in repr(finding)
    assert finding.fix == "export no_proxy=example.org,127.0.0.1,localhost"
    monkeypatch.setenv("no_proxy", finding.fix.partition("=")[2])
    assert found(repo, "proxy").level == "ok"


# --- the repository and the place ------------------------------------------------------------


def test_outside_a_repository_that_is_the_problem(tmp_path: Path) -> None:
    finding = found(tmp_path, "workspace")
    assert finding.level == "problem"
    assert finding.fix == "git init"


def test_a_repository_without_a_tracked_file_is_a_problem(tmp_path: Path) -> None:
    git("init", "-q", cwd=tmp_path)
    assert found(tmp_path, "tracked").level == "problem"
    (tmp_path / "a").write_text("a")
    follow(found(tmp_path, "tracked").fix, tmp_path, tmp_path)
    assert found(tmp_path, "tracked").level == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_project_file_that_keeps_every_commit_out_is_a_problem(
    repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = repo / "bones.toml"
    path.write_text("[trunk]\nverify = 1\n")
    (finding,) = wrong(repo).values()
    assert (finding.name, finding.level) == ("project", "problem")
    assert "No commit lands" in finding.evidence
    monkeypatch.setenv("EDITOR", "rm")
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}
    path.write_text("[trunk]\nverify = 'make test'\n")
    (found,) = [finding for finding in examine(str(repo)) if finding.name == "project"]
    assert (found.level, found.evidence) == ("ok", "commits must pass `make test`")


def test_a_repository_that_git_does_not_trust_is_a_problem(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "tools"))
    for directory, _names, files in os.walk(repo):
        for name in (".", *files):
            os.chown(os.path.join(directory, name), 12345, 12345)
    finding = found(repo, "git-repository")
    assert finding.level == "problem"
    assert "belongs to another user" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert found(repo, "git-repository").level == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes  # noqa: F401, PLC0415 - the interpreter may be in a directory of root's

    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:  # tmp_path is closed to others
        os.chmod(scratch, 0o755)
        root = Path(scratch, "repo")
        make_repository(root)
        up(root)
        try:
            examine(str(root))  # loads what another user may not be able to read
            monkeypatch.setenv("HOME", scratch)
            findings = as_user(65534, root)
        finally:
            stop(str(root), force=True)
    assert findings["state"]["level"] == "warning"
    assert findings["state"]["fix"] == f"sudo -u root hub doctor --root {root}"
    assert findings["place"]["level"] == "problem"
    assert "is root's" in findings["place"]["evidence"]
    assert "hub" not in findings
    assert "pidfiles" not in findings


def as_user(uid: int, root: Path) -> dict[str, dict[str, str]]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.chdir("/")
            told = {finding.name: finding.as_dict() for finding in examine(str(root))}
            os.write(write, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    decoded: dict[str, dict[str, str]] = json.loads(text)
    return decoded


def test_a_state_directory_that_is_a_file_is_a_problem(repo: Path, tmp_path: Path) -> None:
    (repo / ".orchestrator").write_text("not ours")
    finding = found(repo, "state")
    assert finding.level == "problem"
    follow(finding.fix, repo, tmp_path)
    assert found(repo, "state").level == "ok"
    assert (repo / ".orchestrator.aside").read_text() == "not ours"


def test_modes_that_let_others_in_are_a_problem(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    os.chmod(workspace.state, 0o755)
    os.chmod(f"{workspace.creds}/nats-hub.nk", 0o644)
    finding = found(repo, "modes")
    assert finding.level == "problem"
    assert f"{workspace.state} has mode 0755" in finding.evidence
    assert "nats-hub.nk has mode 0644" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}
    assert stat.S_IMODE(os.stat(workspace.state).st_mode) == 0o700


def test_state_that_git_sees_is_a_problem(repo: Path, tmp_path: Path) -> None:
    give_state(repo)
    (repo / ".git/info/exclude").write_text("*.o")
    finding = found(repo, "exclude")
    assert finding.level == "problem"
    assert ".orchestrator" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}


def test_state_that_git_clean_would_delete_is_a_problem(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    shutil.rmtree(f"{workspace.state}/.git")
    finding = found(repo, "bones")
    assert finding.level == "problem"
    assert "HEAD" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}
    git("clean", "-fdxq", cwd=repo)
    assert os.path.exists(workspace.repository)


@pytest.mark.parametrize("content", [b"", b"SUAJUNK\n", None])
def test_a_key_that_cannot_be_used_is_a_problem(
    repo: Path, tmp_path: Path, content: bytes | None
) -> None:
    workspace = give_state(repo)
    key = Path(workspace.creds, "nats-operator.nk")
    others = Path(workspace.creds, "nats-hub.nk").read_bytes()
    if content is None:
        key.unlink()
    else:
        key.write_bytes(content)
    finding = found(repo, "credentials")
    assert finding.level == "problem"
    assert "operator" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert found(repo, "credentials").level == "ok"
    assert Path(workspace.creds, "nats-hub.nk").read_bytes() == others


def test_a_key_of_somebody_else_is_a_problem(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    one, other = (Path(workspace.creds, f"nats-{role}.nk") for role in ("hub", "sys"))
    swapped = other.read_bytes(), one.read_bytes()
    one.write_bytes(swapped[0])
    other.write_bytes(swapped[1])
    finding = found(repo, "credentials")
    assert "nats-users.json does not know the keys" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert found(repo, "credentials").level == "ok"


def test_a_fossil_password_that_is_missing_is_a_problem(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    os.unlink(f"{workspace.creds}/fossil-operator")
    finding = found(repo, "credentials")
    assert finding.level == "problem"
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}


def test_what_a_killed_writer_left_is_a_warning(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    os.mkdir(f"{workspace.state}/hub.fossil.seeding")
    Path(f"{workspace.discovery}.{GONE}.tmp").write_text("{")
    mine = Path(f"{workspace.discovery}.{os.getpid()}.tmp")
    mine.write_text("still being written")
    finding = found(repo, "leftovers")
    assert finding.level == "warning"
    assert "hub.fossil.seeding" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}
    assert mine.exists()


def test_dead_slots_are_only_counted_while_no_hub_runs(repo: Path) -> None:
    give_state(repo)
    make_slot(repo, "auth", GONE)
    assert found(repo, "slots").level == "ok"
    assert found(repo, "slots").evidence == "0 alive, 1 dead; 0 rescued"


def test_a_slot_whose_leaf_is_in_doubt_is_named_with_the_reason(repo: Path) -> None:
    give_state(repo)
    make_slot(repo, "db", os.getpid())
    make_slot(repo, "junk", b"no pid")
    finding = found(repo, "slots")
    assert finding.level == "warning"
    assert f"db: pid {os.getpid()} is alive and nothing proves" in finding.evidence
    assert "junk: leaf.pid holds no pid" in finding.evidence
    assert finding.fix.startswith("ls -l ")


# --- processes -------------------------------------------------------------------------------


def test_what_a_killed_hub_left_is_cleared_by_a_stop(repo: Path, tmp_path: Path) -> None:
    info = up(repo)
    os.kill(info.pid, signal.SIGKILL)
    os.waitpid(info.pid, 0)
    eventually(lambda: not os.path.exists(f"/proc/{info.nats_pid}"))
    finding = found(repo, "pidfiles")
    assert finding.level == "warning"
    assert f"hub.pid names {info.pid} (ended)" in finding.evidence
    assert found(repo, "hub-json").evidence.endswith("has ended")
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}


def test_a_pid_file_that_names_another_than_the_server_is_a_warning(repo: Path) -> None:
    info = up(repo)
    Path(repo, ".orchestrator/pids/nats.pid").write_text("1\n")
    finding = found(repo, "pidfiles")
    assert finding.level == "warning"
    assert finding.evidence == f"nats.pid names 1 and the process is {info.nats_pid}"


def test_a_copied_workspace_is_told_from_the_original(repo: Path, tmp_path: Path) -> None:
    info = up(repo)
    copy = tmp_path / "copy"
    copy_workspace(repo, copy)
    findings = wrong(copy)
    assert findings["hub-json"].level == "warning"
    assert f"another directory, {repo}" in findings["hub-json"].evidence
    assert findings["hub-json"].fix == f"hub start --detach --root {copy}"
    assert f"pid {info.nats_pid} (nats-server)" in findings["ports"].evidence
    try:
        follow(findings["hub-json"].fix, repo, tmp_path)
        eventually(lambda: wrong(copy) == {})
    finally:
        stop(str(copy), force=True)
    assert wrong(repo) == {}


def test_a_hub_json_that_is_torn_or_missing_is_told(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    Path(workspace.discovery).write_text('{"schema":1,')
    assert found(repo, "hub-json").level == "warning"
    Path(workspace.discovery).write_text('{"schema":0}')
    assert found(repo, "hub-json").level == "warning"
    follow(found(repo, "hub-json").fix, repo, tmp_path)
    assert found(repo, "hub-json").level == "ok"
    os.unlink(workspace.discovery)
    assert found(repo, "hub-json").level == "problem"


def test_a_hub_that_does_not_answer_is_a_problem(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = up(repo)
    monkeypatch.setattr(status_module, "ANSWER_WITHIN_S", 0.1)
    os.kill(info.pid, signal.SIGSTOP)
    try:
        finding = found(repo, "hub")
    finally:
        os.kill(info.pid, signal.SIGCONT)
    assert finding.level == "problem"
    assert "did not answer" in finding.evidence


def test_a_hub_that_lost_its_socket_is_a_problem(repo: Path, tmp_path: Path) -> None:
    info = up(repo)
    os.kill(info.pid, signal.SIGSTOP)  # or it would notice and listen again
    os.unlink(repo / ".orchestrator/hub.sock")
    finding = found(repo, "hub-json")
    assert finding.level == "problem"
    assert f"pid {info.pid}, which lives" in finding.evidence
    os.kill(info.pid, signal.SIGKILL)
    os.waitpid(info.pid, 0)
    follow(finding.fix, repo, tmp_path)
    assert found(repo, "hub-json").level == "ok"


def test_a_process_of_this_workspace_that_nobody_watches_is_a_problem(repo: Path) -> None:
    up(repo)
    assert found(repo, "strays").level == "ok"
    env = {"PATH": os.defpath, MARK: str(repo)}
    with subprocess.Popen(["sleep", "1000"], env=env, start_new_session=True) as stray:
        eventually(lambda: found(repo, "strays").level == "problem")
        finding = found(repo, "strays")
        stray.kill()
    assert f"pid {stray.pid} (sleep)" in finding.evidence
    assert f"{MARK}={repo}" in finding.evidence
    assert finding.fix == f"kill {stray.pid}"
    assert found(repo, "strays").level == "ok"


def test_processes_of_a_live_slot_and_of_other_workspaces_are_nobodys_orphans(repo: Path) -> None:
    give_state(repo)
    mine = {"PATH": os.defpath, MARK: str(repo)}
    others = {"PATH": os.defpath, MARK: f"{repo}-other"}
    with (
        subprocess.Popen(["sleep", "1000"], env=mine) as leaf,
        subprocess.Popen(["sleep", "1000"], env=others) as other,
    ):
        slot = repo / ".bones/swarm/auth"
        slot.mkdir(parents=True)
        (slot / "leaf.pid").write_text(f"{leaf.pid}\n")
        finding = found(repo, "strays")
        leaf.kill()
        other.kill()
    assert finding.level == "ok"


def test_a_recorded_port_that_another_program_took_is_a_warning(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdout=-1, stdin=-1) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        Path(workspace.fossil_url).write_text(f"http://127.0.0.1:{port}\n")
        finding = found(repo, "ports")
        assert finding.level == "warning"
        assert f"port {port} of fossil is held by pid {other.pid} (" in finding.evidence
        follow(finding.fix, repo, tmp_path)
        assert found(repo, "ports").level == "ok"
        other.kill()


def test_errors_in_the_log_count_until_the_next_start(repo: Path) -> None:
    workspace = give_state(repo)
    with open(f"{workspace.logs}/hub.log", "a") as log:
        log.write('{"time":"x","level":"error","event":"failed","child":"nats"}\nnot JSON\n')
    with open(f"{workspace.logs}/nats.log", "a") as log:
        log.write("[1] 2026/01/01 00:00:00.0 [ERR] no space\n")
    finding = found(repo, "logs")
    assert finding.level == "warning"
    assert finding.evidence == "2 errors since the last start, the last of hub: failed child=nats"
    assert finding.fix == "hub logs hub"
    up(repo)
    assert found(repo, "logs").level == "ok"


# --- the trunk's file ------------------------------------------------------------------------


def test_a_process_that_nobody_has_waited_for_has_ended(repo: Path) -> None:
    workspace = give_state(repo)
    with subprocess.Popen(["true"]) as zombie:
        eventually(lambda: ") Z " in Path(f"/proc/{zombie.pid}/stat").read_text())
        Path(workspace.pids, "nats.pid").write_text(f"{zombie.pid}\n")
        assert f"nats.pid names {zombie.pid} (ended)" in found(repo, "pidfiles").evidence


def test_what_is_no_database_is_not_quoted(repo: Path) -> None:
    workspace = give_state(repo)
    Path(workspace.repository).write_bytes(b"\x1b[2J\xff\0junk")
    evidence = found(repo, "repository").evidence
    assert "does not begin like an SQLite database" in evidence
    assert "junk" not in evidence


def test_little_room_is_told_with_what_to_do(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "free_bytes", lambda _path: 300 * 2**20)
    finding = found(repo, "place")
    assert finding.level == "warning"
    assert "300.0 MiB free: below 1.0 GiB" in finding.evidence
    monkeypatch.setattr(place, "free_bytes", lambda _path: 2**20)
    finding = found(repo, "place")
    assert finding.level == "problem"
    assert "free at least 16 MiB" in finding.evidence
    assert subprocess.run(["sh", "-nc", finding.fix], check=False).returncode == 0
    assert finding.fix.startswith("du ")
    monkeypatch.setattr(place, "free_bytes", lambda _path: 80 * 2**30)
    assert found(repo, "place").evidence.endswith("80.0 GiB free")


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_trunk_that_is_no_database_is_a_problem(
    repo: Path, tmp_path: Path, content: bytes | None
) -> None:
    start_somewhere(repo)
    stop(str(repo), force=True)
    workspace = Workspace(str(repo))
    os.unlink(workspace.repository)
    if content is not None:
        Path(workspace.repository).write_bytes(content)
    finding = found(repo, "repository")
    assert finding.level == "problem"
    follow(finding.fix, repo, tmp_path)
    eventually(lambda: wrong(repo) == {})


def test_a_trunk_that_is_a_pipe_does_not_hang_the_doctor(repo: Path) -> None:
    workspace = give_state(repo)
    os.unlink(workspace.repository)
    os.mkfifo(workspace.repository, 0o600)
    assert "not a regular file" in found(repo, "repository").evidence


def test_a_trunk_with_damaged_pages_is_a_problem(repo: Path) -> None:
    workspace = give_state(repo)
    with open(workspace.repository, "r+b") as file:
        size = file.seek(0, 2)
        for offset in range(16384, size, 4096):
            file.seek(offset)
            file.write(b"\xff" * 512)
    finding = found(repo, "repository-content")
    assert finding.level == "problem"
    assert "is damaged" in finding.evidence
    assert finding.fix.endswith(f"fossil rebuild {workspace.repository}")


def test_a_trunk_not_in_wal_mode_is_a_warning(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    execute(workspace, "PRAGMA journal_mode=DELETE")
    assert found(repo, "repository-wal").level == "warning"
    follow(found(repo, "repository-wal").fix, repo, tmp_path)
    assert wrong(repo) == {}


def test_a_transaction_cut_off_is_a_warning(repo: Path) -> None:
    workspace = give_state(repo)
    execute(workspace, "PRAGMA journal_mode=DELETE")
    writer = (
        f"import os, sqlite3; d = sqlite3.connect({workspace.repository!r}); "
        "d.execute('PRAGMA cache_size=1'); d.execute('BEGIN'); "
        "d.execute('UPDATE blob SET size=size+1'); d.execute('UPDATE config SET mtime=0'); "
        "d.execute('CREATE TABLE t AS SELECT hex(zeroblob(100000)) AS x'); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", writer], check=False)
    assert os.path.getsize(f"{workspace.repository}-journal") > 0
    before = snapshot(repo)
    assert "transaction" in found(repo, "repository-content").evidence
    assert snapshot(repo) == before


def test_a_backoffice_that_would_run_is_a_problem(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    execute(workspace, "DELETE FROM config WHERE name='backoffice-disable'")
    finding = found(repo, "repository-settings")
    assert finding.level == "problem"
    assert "not set" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}


def test_rights_of_nobody_are_a_problem(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    execute(workspace, "UPDATE user SET cap='gjorz' WHERE login IN ('nobody', 'anonymous')")
    finding = found(repo, "repository-rights")
    assert finding.level == "problem"
    assert "nobody has the rights 'gjorz'" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}


def test_a_forked_trunk_is_a_problem_and_the_fix_loses_nothing(repo: Path, tmp_path: Path) -> None:
    workspace = give_state(repo)
    fork_trunk(workspace, tmp_path)
    finding = found(repo, "repository-fork")
    assert finding.level == "problem"
    assert "trunk has 2 leaves" in finding.evidence
    follow(finding.fix, repo, tmp_path)
    assert wrong(repo) == {}
    assert found(repo, "repository-checkins").evidence.startswith("4 check-ins")


def fork_trunk(workspace: Workspace, tmp_path: Path) -> None:
    """Commit twice upon the root, then once more beside, with stock Fossil."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    env = {**os.environ, "USER": "hub", "HOME": str(tmp_path), "FOSSIL_HOME": str(tmp_path)}

    def fossil(*arguments: str) -> None:
        subprocess.run(
            ["fossil", *arguments], cwd=checkout, env=env, check=True, capture_output=True
        )

    fossil("open", workspace.repository)
    for number, where in enumerate(("", "", "root:trunk")):
        if where == "root:trunk":
            fossil("update", where)
        (checkout / f"new{number}").write_text("x")
        fossil("add", f"new{number}")
        fossil("commit", "-m", "x", "--allow-fork", "--no-warnings")
    fossil("close", "--force")


def test_a_tip_of_the_future_is_a_warning(repo: Path) -> None:
    workspace = give_state(repo)
    execute(workspace, "UPDATE event SET mtime=julianday('now', '+2 hours')")
    finding = found(repo, "repository-clock")
    assert finding.level == "warning"
    assert "2.0 h ahead" in finding.evidence


def test_a_trunk_without_a_checkin_is_a_problem(repo: Path) -> None:
    workspace = give_state(repo)
    execute(workspace, "DELETE FROM event")
    assert found(repo, "repository-checkins").level == "problem"


# --- what is printed -------------------------------------------------------------------------


def test_the_text_holds_only_what_is_wrong_and_a_summary(
    repo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert doctor(root=str(repo)) == 0
    assert capfd.readouterr().out == f"{len(examine(str(repo)))} checks, no problems\n"
    workspace = give_state(repo)
    os.mkdir(f"{workspace.state}/hub.fossil.seeding")
    assert doctor(root=str(repo)) == 0  # a warning is no failure
    assert capfd.readouterr().out.endswith("checks, no problems, 1 warning\n")
    os.chmod(workspace.creds, 0o750)
    assert doctor(root=str(repo)) == 1
    lines = capfd.readouterr().out.splitlines()
    assert f"problem  modes: {workspace.creds} has mode 0750" in lines
    assert f"         fix: chmod 700 {workspace.creds}" in lines
    assert lines[-1].endswith("checks, 1 problem, 1 warning")


def test_the_envelope_holds_everything(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert doctor(root=str(repo), as_json=True) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["schema"] == {"verb": "hub.doctor", "version": "v1"}
    findings = [Finding(**finding) for finding in told["data"]["findings"]]
    assert [finding.name for finding in findings] == [each.name for each in examine(str(repo))]
    assert (told["data"]["problems"], told["data"]["warnings"]) == (0, 0)


def test_outside_a_repository_the_exit_code_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert doctor(root=str(tmp_path)) == 1
    assert "fix: git init" in capfd.readouterr().out
