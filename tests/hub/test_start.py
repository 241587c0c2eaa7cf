"""Starting: one hub, ready or refused by name, from wherever and by however many at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from foundation.errors import Refused
from hub.start import start
from tests.support import (
    CODE,
    Hub,
    accepts,
    data_of,
    eventually,
    free_port,
    git,
    is_gone,
    make_repository,
    port_of,
    run_python,
    taken_port,
)

pytestmark = pytest.mark.real


def executable(path: Path, script: str) -> str:
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


# --- it works ------------------------------------------------------------------------------


def test_a_start_is_ready_when_it_returns(hub: Hub) -> None:
    info = hub.start()
    assert not info["already_running"]
    assert info["root"] == str(hub.root)
    with urlopen(info["fossil_url"], timeout=5) as answer:
        assert answer.status == 200
    with socket.create_connection(("127.0.0.1", port_of(info["nats_url"]))) as bus:
        assert bus.recv(5) == b"INFO "
    assert hub.pids() == {
        "hub": info["pid"],
        "fossil": info["fossil_pid"],
        "nats": info["nats_pid"],
        **{name: pid for name, pid in hub.pids().items() if name == "trunk"},
    }
    for name in ("fossil", "nats"):
        assert Path(f"/proc/{info[f'{name}_pid']}/cmdline").read_bytes().count(name.encode())
    assert Path(hub.workspace.fossil_url).read_text() == info["fossil_url"] + "\n"
    assert Path(hub.workspace.nats_url).read_text() == info["nats_url"] + "\n"


def test_a_second_start_attaches_and_disturbs_nothing(hub: Hub) -> None:
    info = hub.start()
    again = hub.start()
    assert again == {**info, "already_running": True}
    assert hub.status()["info"] == info
    assert len(hub.logged("starting")) == 1


def test_a_first_start_seeds_from_git(fresh_hub: Hub) -> None:
    info = fresh_hub.start()
    with urlopen(f"{info['fossil_url']}/raw/README?name=x", timeout=5):
        pass
    assert (fresh_hub.root / ".orchestrator/hub.fossil").stat().st_mode & 0o777 == 0o600


def test_ports_outlive_a_stop(hub: Hub) -> None:
    info = hub.start()
    hub.stop()
    again = hub.start()
    assert (again["fossil_url"], again["nats_url"]) == (info["fossil_url"], info["nats_url"])
    assert again["hub_id"] == info["hub_id"]
    assert again["epoch"] == info["epoch"] + 1


def test_it_starts_from_a_subdirectory_by_a_link_and_by_name(hub: Hub, tmp_path: Path) -> None:
    info = hub.start()
    (tmp_path / "link").symlink_to(hub.root)
    for arguments, cwd in (
        ((), hub.root / "src"),
        ((), hub.root / ".orchestrator/logs"),
        ((), tmp_path / "link"),
        (("--root", str(hub.root)), tmp_path),
        (("--root", "link/src"), tmp_path),
    ):
        done = hub.run("start", "--detach", "--json", *arguments, cwd=cwd)
        assert data_of(done.stdout)["pid"] == info["pid"], done.stderr
    done = hub.run(
        "start", "--detach", "--json", cwd=tmp_path, environment={"HUB_ROOT": str(hub.root)}
    )
    assert data_of(done.stdout)["pid"] == info["pid"]


@pytest.mark.parametrize("count", [2, 20, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["hub", "fresh_hub"])
def test_of_many_starts_at_once_one_makes_the_hub_and_all_find_it(
    request: pytest.FixtureRequest, kind: str, count: int
) -> None:
    one: Hub = request.getfixturevalue(kind)
    starts = [one.begin("start", "--detach", "--json") for _turn in range(count)]
    ends = [(start.communicate(timeout=55), start.returncode) for start in starts]
    assert {status for _words, status in ends} == {0}, [e for e in ends if e[1]]
    infos = [data_of(out) for (out, _err), _status in ends]
    assert len({info["pid"] for info in infos}) == 1
    assert sum(not info["already_running"] for info in infos) <= 1
    eventually(lambda: len(one.logged("ready")) == 1)  # the answer is sent before it is logged
    assert len(one.logged("starting")) == 1
    assert "Traceback" not in one.log("hub")


def test_two_workspaces_have_two_hubs(hub: Hub, tmp_path: Path) -> None:
    other = Hub(Path(shutil.copytree(hub.root, tmp_path / "other", symlinks=True)))
    one, two = hub.start(), other.start()
    try:
        assert one["pid"] != two["pid"]
        assert one["fossil_url"] != two["fossil_url"]
        assert one["nats_url"] != two["nats_url"]
        hub.stop()
        assert other.status()["state"] == "running"
        assert accepts(port_of(two["nats_url"]))
    finally:
        other.stop()


def test_a_linked_worktree_has_a_hub_of_its_own(hub: Hub, tmp_path: Path) -> None:
    git(hub.root, "worktree", "add", "-q", str(tmp_path / "linked"))
    other = Hub(tmp_path / "linked")
    one, two = hub.start(), other.start()
    try:
        assert one["pid"] != two["pid"]
    finally:
        other.stop()


@pytest.mark.parametrize(
    "name", ["a b", "new\nline", "quote'\"$x`", "-dash", "bytes\udcff", "ünïcode", "x" * 220]
)
def test_a_path_may_hold_anything(tmp_path: Path, name: str) -> None:
    one = Hub(make_repository(tmp_path / name))
    info = one.start()
    try:
        assert info["root"] == str(one.root)
        assert one.status()["state"] == "running"
        one.wait_ready()
        assert one.run("url").stdout == f"fossil {info['fossil_url']}\nnats {info['nats_url']}\n"
        assert one.start()["pid"] == info["pid"]
    finally:
        one.stop()


def test_a_path_of_300_bytes_will_do(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 60] * 5)
    one = Hub(make_repository(deep / "repo"))
    one.start()
    assert one.status()["state"] == "running"
    one.wait_ready()
    one.stop()


@pytest.mark.parametrize("ignored", [signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM])
def test_what_the_caller_ignores_does_not_matter(hub: Hub, ignored: signal.Signals) -> None:
    script = "import os, signal, sys; signal.signal(int(sys.argv[1]), signal.SIG_IGN); "
    script += "os.execv(sys.argv[2], sys.argv[2:])"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            str(int(ignored)),
            CODE / "bin/hub",
            "start",
            "--detach",
            "--json",
        ],
        cwd=hub.root,
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr + hub.log("hub")
    info = data_of(done.stdout)
    os.kill(info["nats_pid"], signal.SIGKILL)
    eventually(lambda: hub.status()["info"]["nats_pid"] != info["nats_pid"])
    hub.wait_ready()
    os.kill(info["pid"], signal.SIGTERM)
    eventually(lambda: is_gone(info["pid"]))
    assert hub.pids() == {}


def test_stray_descriptors_reach_neither_the_hub_nor_its_servers(hub: Hub) -> None:
    stray = os.open("/dev/zero", os.O_RDONLY)
    done = subprocess.run(
        [CODE / "bin/hub", "start", "--detach", "--json"],
        cwd=hub.root,
        capture_output=True,
        text=True,
        check=True,
        pass_fds=(stray,),
    )
    os.close(stray)
    info = data_of(done.stdout)
    hub.wait_ready()
    for pid in hub.pids().values():
        links = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
        assert "/dev/zero" not in links
        assert not any("hub.lock" in link for link in links) or pid == info["pid"]


def test_the_caller_s_directory_is_not_held(hub: Hub, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = hub.run("start", "--detach", "--json", "--root", str(hub.root), cwd=elsewhere)
    assert done.returncode == 0
    for pid in hub.pids().values():
        assert os.readlink(f"/proc/{pid}/cwd").startswith(str(hub.root / ".orchestrator"))


def test_a_detached_hub_survives_its_starter_s_session(hub: Hub) -> None:
    starter = subprocess.Popen(
        [CODE / "bin/hub", "start", "--detach"],
        cwd=hub.root,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    assert starter.wait() == 0
    pid = hub.pids()["hub"]
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"


# --- git is the user's ---------------------------------------------------------------------


def snapshot(place: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if name == "info/exclude" or path.is_dir():
            continue
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        found[name] = (path.lstat().st_mode, content)
    return found


def test_the_user_s_git_is_as_it_was(fresh_hub: Hub) -> None:
    root = fresh_hub.root
    (root / "README").write_text("changed\n")
    (root / "src/new").write_text("staged\n")
    git(root, "add", "src/new")
    (root / "untracked").write_text("?\n")
    before = snapshot(root / ".git")
    status = git(root, "status", "--porcelain")
    before = snapshot(root / ".git")
    fresh_hub.start()
    fresh_hub.wait_ready()
    fresh_hub.stop()
    assert snapshot(root / ".git") == before
    assert git(root, "status", "--porcelain") == status
    git(root, "clean", "-fdx")
    assert fresh_hub.start()["epoch"] == 2
    assert not (root / "untracked").exists()


def test_git_s_own_variables_of_a_hook_do_not_mislead(fresh_hub: Hub, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other")
    info = fresh_hub.start(
        GIT_DIR=str(other / ".git"),
        GIT_INDEX_FILE=str(other / ".git/index"),
        GIT_WORK_TREE=str(other),
    )
    assert info["root"] == str(fresh_hub.root)
    assert not (other / ".orchestrator").exists()


# --- ports ---------------------------------------------------------------------------------


def test_a_pinned_port_is_used(hub: Hub) -> None:
    fossil, nats = free_port(), free_port()
    info = hub.start("--fossil-port", str(fossil), "--nats-port", str(nats))
    assert info["fossil_url"] == f"http://127.0.0.1:{fossil}"
    assert info["nats_url"] == f"nats://127.0.0.1:{nats}"
    done = hub.run("start", "--detach", "--nats-port", str(free_port()))
    assert done.returncode == 0
    assert "not applied" in done.stderr


@pytest.mark.parametrize("server", ["fossil", "nats"])
def test_a_pinned_port_that_is_taken_names_its_holder(hub: Hub, server: str) -> None:
    with taken_port() as port:
        error = hub.refused(f"--{server}-port", str(port))
    assert error["reason"] == "port-taken"
    assert str(port) in error["message"]
    assert f"pid {os.getpid()}" in error["message"]
    assert hub.status()["state"] == "stopped"
    hub.start(f"--{server}-port", str(port))


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_number_that_is_no_port_is_refused(hub: Hub, port: int) -> None:
    done = hub.run("start", "--detach", "--nats-port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr
    with pytest.raises(Refused) as raised:
        start(str(hub.root), detach=True, fossil_port=port)
    assert raised.value.reason == "port-invalid"


def test_one_port_for_both_is_refused(hub: Hub) -> None:
    port = str(free_port())
    error = hub.refused("--nats-port", port, "--fossil-port", port)
    assert error["reason"] in ("port-taken", "port-invalid")
    hub.start()


@pytest.mark.parametrize(("pinned", "other"), [("nats", "fossil"), ("fossil", "nats")])
def test_a_pinned_port_goes_before_the_other_server_s_habit(
    hub: Hub, pinned: str, other: str
) -> None:
    habit = port_of(hub.start()[f"{other}_url"])
    hub.stop()
    info = hub.start(f"--{pinned}-port", str(habit))
    assert port_of(info[f"{pinned}_url"]) == habit
    assert port_of(info[f"{other}_url"]) != habit


def test_a_recorded_port_that_somebody_else_took_is_given_up(hub: Hub) -> None:
    info = hub.start()
    hub.stop()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port_of(info["nats_url"])))
        thief.listen()
        again = hub.start()
        assert again["nats_url"] != info["nats_url"]
        assert again["fossil_url"] == info["fossil_url"]


THIEF = """
import fcntl, os, socket, sys
from hub import ports
first = []
choose = ports.choose

def robbed(server, *, pinned, preferred):
    port = choose(server, pinned=pinned, preferred=preferred)
    if server == sys.argv[2] and len(first) < int(sys.argv[3]):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        first.append(sock)
    return port

ports.choose = robbed
from hub.start import start
read, write = os.pipe()
def ready(info):
    print(info.fossil_url, info.nats_url, *(s.getsockname()[1] for s in first), flush=True)
    os.write(write, b"x")
try:
    start(sys.argv[1], cancel=read, on_ready=ready,
          **({sys.argv[2] + "_port": int(sys.argv[4])} if len(sys.argv) > 4 else {}))
except Exception as error:
    print(type(error).__name__, error.reason, error)
"""


@pytest.mark.faults
@pytest.mark.parametrize("server", ["fossil", "nats"])
def test_a_port_stolen_before_it_is_bound_is_replaced(hub: Hub, server: str) -> None:
    done = run_python(THIEF, str(hub.root), server, "2")
    fossil, nats, *stolen = done.stdout.split()
    assert len(stolen) == 2
    assert str(port_of(fossil if server == "fossil" else nats)) not in stolen


@pytest.mark.faults
@pytest.mark.parametrize("server", ["fossil", "nats"])
def test_a_pinned_port_stolen_before_it_is_bound_is_named(hub: Hub, server: str) -> None:
    port = str(free_port())
    done = run_python(THIEF, str(hub.root), server, "1", port)
    assert done.stdout.startswith(f"Refused port-taken port {port}"), done.stdout


@pytest.mark.faults
def test_ports_stolen_for_ever_are_an_error(hub: Hub) -> None:
    done = run_python(THIEF, str(hub.root), "nats", "99")
    assert "nats-failed" in done.stdout
    assert "address already in use" in done.stdout


# --- refusals ------------------------------------------------------------------------------


def refused_quickly(hub: Hub, *arguments: str, **environment: str) -> dict[str, Any]:
    """Return the error of a start, and see that nothing runs and nothing is left."""
    error = hub.refused(*arguments, **environment)
    assert hub.status()["state"] == "stopped"
    assert not hub.pids()
    assert "Traceback" not in hub.log("hub")
    return error


@pytest.mark.parametrize("variable", ["HUB_FOSSIL", "HUB_NATS_SERVER"])
def test_a_missing_binary_is_named(hub: Hub, variable: str) -> None:
    error = refused_quickly(hub, **{variable: "/no/such/program"})
    assert error["reason"] == "binary-missing"
    assert variable in error["message"]


@pytest.mark.parametrize("variable", ["HUB_FOSSIL", "HUB_NATS_SERVER"])
def test_a_binary_that_cannot_be_executed_is_named(hub: Hub, tmp_path: Path, variable: str) -> None:
    junk = executable(tmp_path / "junk", "\x7fELF junk")
    error = refused_quickly(hub, **{variable: junk})
    assert error["reason"] in ("binary-unsupported", "binary-missing", "system", "nats-failed")
    assert junk in error["message"]
    (tmp_path / "junk").chmod(0o644)
    assert refused_quickly(hub, **{variable: junk})["reason"] == "binary-missing"


@pytest.mark.parametrize(
    "words",
    [
        "This is fossil version 2.10 [abc] 2019",
        "This is fossil version 3.0 [abc] 2030",
        "something else",
        "",
    ],
)
def test_an_unsupported_fossil_is_named(hub: Hub, tmp_path: Path, words: str) -> None:
    old = executable(tmp_path / "fossil", f"#!/bin/sh\necho '{words}'\n")
    error = refused_quickly(hub, HUB_FOSSIL=old)
    assert error["reason"] == "binary-unsupported"
    assert old in error["message"]


def test_an_unsupported_nats_server_is_named(hub: Hub, tmp_path: Path) -> None:
    old = executable(
        tmp_path / "nats-server",
        f"""#!{sys.executable}
import re, socket, sys
text = open(sys.argv[sys.argv.index("-c") + 1]).read()
name = re.search('server_name: "(.*?)"', text)[1]
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", int(re.search("port: (.*)", text)[1])))
sock.listen()
print("Server is ready", flush=True)
while True:
    client, _ = sock.accept()
    client.sendall(b'INFO {{"version": "2.9.0", "server_name": "%s", "jetstream": true}}\\r\\n'
                   % name.encode())
""",
    )
    error = refused_quickly(hub, HUB_NATS_SERVER=old)
    assert "2.9.0" in error["message"]


def test_a_server_that_dies_at_once_has_its_words_repeated(hub: Hub, tmp_path: Path) -> None:
    sick = executable(tmp_path / "nats-server", "#!/bin/sh\necho 'I feel sick' >&2\nexit 7\n")
    error = refused_quickly(hub, HUB_NATS_SERVER=sick)
    assert error["reason"] == "nats-failed"
    assert "I feel sick" in error["message"]
    assert "status 7" in error["message"]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "directory"])
def test_a_damaged_repository_is_named_and_left_alone(hub: Hub, damage: str) -> None:
    path = Path(hub.workspace.repository)
    if damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        content = {"garbage": b"junk" * 5000, "truncated": path.read_bytes()[:5000], "empty": b""}
        path.write_bytes(content[damage])
    before = None if damage == "directory" else path.read_bytes()
    error = refused_quickly(hub)
    assert error["reason"] == "repository-corrupt", error
    if before is not None:
        assert path.read_bytes() == before, "it was touched"


def test_a_place_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    for arguments, cwd in (((), tmp_path), (("--root", "/no/such/place"), tmp_path)):
        done = Hub(tmp_path).run("start", "--detach", "--json", *arguments, cwd=cwd)
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["reason"] == "not-git"
    assert os.listdir(tmp_path) == []


def test_a_deleted_directory_is_refused(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    script = f"mkdir {gone}; cd {gone}; rmdir {gone}; exec {CODE}/bin/hub start --detach --json"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["reason"] == "not-git"
    assert "Traceback" not in done.stderr


def test_a_repository_without_a_commit_is_refused_or_seeded_empty(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    git(root, "init", "-q")
    one = Hub(root)
    error = refused_quickly(one)
    assert error["reason"] == "no-tracked-file"
    git(root, "commit", "-q", "--allow-empty", "-m", "nothing")
    error = refused_quickly(one)
    assert error["reason"] == "no-tracked-file"


def test_without_git_a_first_start_says_so(fresh_hub: Hub, tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("sh", "readlink", "fossil", "env"):
        found = shutil.which(name)
        assert found is not None
        (binaries / name).symlink_to(found)
    error = refused_quickly(fresh_hub, PATH=str(binaries))
    assert "git" in error["message"]
    assert error["reason"] in ("git-missing", "binary-missing")


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@root_only
def test_state_of_another_user_is_refused(hub: Hub) -> None:
    os.chown(hub.workspace.state, 12345, 12345)
    error = hub.refused()
    assert error["reason"] == "state-foreign"
    assert "12345" in error["message"]
    os.chown(hub.workspace.state, 0, 0)


@root_only
def test_sudo_in_another_user_s_repository_is_refused(fresh_hub: Hub) -> None:
    os.chown(fresh_hub.root, 12345, 12345)
    error = fresh_hub.refused(SUDO_UID="12345")
    assert error["reason"] == "state-foreign"
    assert not (fresh_hub.root / ".orchestrator").exists()


@root_only
def test_a_repository_that_git_distrusts_is_refused_by_name(fresh_hub: Hub) -> None:
    for path in (fresh_hub.root, fresh_hub.root / ".git"):
        os.chown(path, 12345, 12345)
    error = fresh_hub.refused()
    assert "safe.directory" in error["message"]


def modes_hold(*argv: str | Path) -> list[str | Path]:
    """Return *argv* such that modes hold for it: root writes through them."""
    powers = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", *argv]


def can_drop_powers() -> bool:
    return subprocess.run(modes_hold("true"), capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_drop_powers(), reason="root writes through modes, and cannot be kept")
@pytest.mark.parametrize("where", ["", ".orchestrator/logs/hub.log"])
def test_state_that_cannot_be_written_is_refused(hub: Hub, where: str) -> None:
    place = hub.root / where
    if not where:
        shutil.rmtree(hub.workspace.state)
    else:
        place.touch()
    before = place.stat().st_mode
    place.chmod(0o444 if where else 0o555)
    done = subprocess.run(
        modes_hold(CODE / "bin/hub", "start", "--detach", "--json"),
        cwd=hub.root,
        capture_output=True,
        text=True,
        check=False,
    )
    place.chmod(before)
    assert done.returncode == 1, done
    error = json.loads(done.stdout)["error"]
    assert error["reason"] == "state-not-writable", error
    assert "Traceback" not in done.stderr + hub.log("hub")
    assert hub.status()["state"] == "stopped"
    hub.start()


@pytest.mark.parametrize("name", ["hub.log", "nats.log"])
def test_a_directory_in_a_log_s_place_is_an_error_with_a_name(hub: Hub, name: str) -> None:
    (Path(hub.workspace.logs) / name).mkdir()
    error = hub.refused()
    assert name in error["message"]


@pytest.mark.skipif(not can_drop_powers(), reason="root writes through modes, and cannot be kept")
@pytest.mark.parametrize("where", ["", "logs", "nats", "creds", "pids", "outbox", "leases"])
@pytest.mark.parametrize("mode", [0o555, 0o777])
def test_directories_of_ours_with_other_modes_are_made_private(
    hub: Hub, where: str, mode: int
) -> None:
    place = Path(hub.workspace.state) / where
    if not where:
        mode |= 0o200  # otherwise it is refused
    place.chmod(mode)
    subprocess.run(
        modes_hold(CODE / "bin/hub", "start", "--detach"),
        cwd=hub.root,
        capture_output=True,
        check=True,
    )
    assert place.stat().st_mode & 0o777 == 0o700


def can_mount() -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "x", "/mnt"],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.mark.faults
@pytest.mark.skipif(not can_mount(), reason="no mounts here")
@pytest.mark.parametrize(
    ("options", "reason"), [("size=4m", "disk-full"), ("ro", "state-not-writable")]
)
def test_a_full_or_read_only_disk_is_named(hub: Hub, options: str, reason: str) -> None:
    script = f"""
mount -t tmpfs -o size=64m x "$1" && cp -a "$2" "$1/again" && cd "$1/again" &&
mount -o remount,{options} "$1" && exec {CODE}/bin/hub start --detach --json
"""
    place = hub.root.parent / "mounted"
    place.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "-", place, hub.root],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done
    assert json.loads(done.stdout)["error"]["reason"] == reason, done


def test_another_program_s_lock_is_no_hub(hub: Hub) -> None:
    import fcntl  # noqa: PLC0415

    with open(hub.workspace.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_python(
            "import sys; from hub.start import start\n"
            "from foundation.errors import Unavailable\n"
            "try: start(sys.argv[1], detach=True, timeout_s=0.2)\n"
            "except Unavailable as error: print(error.reason)",
            str(hub.root),
        )
    assert done.stdout == "lock-held\n"


# --- by the library ------------------------------------------------------------------------


def test_a_start_that_takes_too_long_is_ended(hub: Hub, tmp_path: Path) -> None:
    slow = executable(tmp_path / "nats-server", "#!/bin/sh\nexec sleep 1000\n")
    done = run_python(
        "import sys; from hub.start import start\n"
        "from foundation.errors import Unavailable\n"
        "try: start(sys.argv[1], detach=True, timeout_s=0.5)\n"
        "except Unavailable as error: print(error.reason)",
        str(hub.root),
        HUB_NATS_SERVER=slow,
    )
    assert done.stdout == "start-timeout\n"
    assert hub.status()["state"] == "stopped"
    assert not hub.pids()


def test_ctrl_c_during_a_start_ends_it(hub: Hub, tmp_path: Path) -> None:
    slow = executable(
        tmp_path / "nats-server", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n"
    )
    start = hub.begin("start", "--detach", HUB_NATS_SERVER=slow)
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    start.send_signal(signal.SIGINT)
    _out, err = start.communicate(timeout=20)
    assert start.returncode == 130, err
    assert "Traceback" not in err
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert hub.status()["state"] == "stopped"


def test_a_starter_that_is_killed_leaves_a_hub_that_becomes_ready(hub: Hub) -> None:
    start = hub.begin("start", "--detach")
    eventually(lambda: len(hub.logged("starting")) == 1)
    start.kill()
    start.communicate()
    assert hub.start()["already_running"]


def test_a_stranger_that_answers_on_our_port_is_not_taken_for_ours(hub: Hub) -> None:
    with taken_port() as port:
        for url in (hub.workspace.nats_url, hub.workspace.fossil_url):
            Path(url).write_text(f"http://127.0.0.1:{port}\n")
        info = hub.start()
        assert port not in (port_of(info["nats_url"]), port_of(info["fossil_url"]))
