"""`bones down`: everything of this workspace ends, nothing is lost, what is left is named."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation.errors import HubError
from foundation.workspace import Workspace
from orchestrator import down as ending
from slotgc import pruning
from tests.slotgc.leaves import STUBBORN, leaf, mark, process, sign
from tests.slotgc.test_pruning import as_an_ordinary_user
from tests.slotgc.worktrees import Node, make_slot, make_trunk, newest_checkin
from tests.support import CODE, accepts, data_of, eventually, is_gone, port_of, stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Hub

BONES = CODE / "bin/bones"
TREE = {b"a": Node(b"1\n")}
FAILPOINTS = ["down.processes-ended", "gc.renamed", "down.slots-pruned", "down.hub-stopped"]


def bones(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``bones`` in *root*, with nobody at the terminal."""
    return subprocess.run(
        [BONES, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def live_slot(root: Path, name: str) -> Path:
    """Make a slot with unsaved work that waits for its leaf; return its worktree."""
    worktree = make_slot(root, name, TREE)
    (worktree / "new").write_text("unsaved\n")
    return worktree


@pytest.mark.real
def test_down_ends_leaves_and_hub_rescues_the_work_and_proves_it(hub: Hub) -> None:
    info = hub.start()
    hub.wait_ready()  # it has looked for dead slots by then
    live_slot(hub.root, "busy")
    make_slot(hub.root, "clean", TREE, checkin=newest_checkin(hub.root))
    with (
        leaf(hub.root, "busy") as busy,
        process(*STUBBORN, ready=True, variables=mark(hub.root, "busy")) as agent,
        stranger() as other,
    ):
        shown = bones(hub.root, "down", "--dry-run")
        assert shown.returncode == 0
        assert f"end      leaf of slot busy (pid {busy.pid})" in shown.stdout
        assert f"(pid {agent.pid})" in shown.stdout
        assert "clean up busy, once ended: " in shown.stdout
        assert "remove   slot clean: " in shown.stdout
        assert f"stop     the hub (pid {info['pid']})" in shown.stdout
        assert hub.status()["state"] in ("running", "degraded")

        done = bones(hub.root, "down", "--yes", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        told = data_of(done.stdout)
        assert {one["pid"] for one in told["ended"]} == {busy.pid, agent.pid}
        assert told["removed"] == ["clean"]
        assert told["hub"] == info["pid"]
        assert told["survivors"] == []
        assert busy.wait(1) == -signal.SIGTERM
        assert agent.wait(1) == -signal.SIGKILL
        assert other.poll() is None
    assert is_gone(info["pid"])
    assert not accepts(port_of(info["fossil_url"]))
    assert not accepts(port_of(info["nats_url"]))
    rescue = Path(hub.workspace.rescue) / told["rescued"]["busy"]
    assert (rescue / "wt/new").read_text() == "unsaved\n"
    assert Path(hub.workspace.repository).exists()


def test_down_where_nothing_runs_says_so_and_asks_nobody(repo: Path) -> None:
    for arguments in (["down"], ["down", "--dry-run"], ["down", "--yes"]):
        done = bones(repo, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        assert str(repo) in done.stderr
    assert sorted(os.listdir(repo)) == [".git", "README", "src"]


def test_who_reads_what_down_says_is_not_ended(repo: Path) -> None:
    """`bones down | tee log` in a shell that a leaf has started."""
    with process(variables=mark(repo)) as other:
        piped = subprocess.run(
            ["sh", "-c", f"{BONES} down --yes --json | cat"],
            cwd=repo,
            env={**os.environ, **mark(repo)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert piped.returncode == 0, piped.stderr
        assert [one["pid"] for one in data_of(piped.stdout)["ended"]] == [other.pid]


def test_down_does_nothing_where_nobody_can_be_asked(repo: Path) -> None:
    make_trunk(repo)
    make_slot(repo, "clean", TREE)
    done = bones(repo, "down")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert "remove   slot clean" in done.stderr
    assert (repo / ".bones/swarm/clean").exists()


def test_down_shows_at_a_terminal_how_many_slots_are_cleaned_up(repo: Path) -> None:
    make_trunk(repo)
    for number in range(100):
        make_slot(repo, f"s{number}", TREE)
    ours, theirs = pty.openpty()
    shown = b""
    try:
        with subprocess.Popen(
            [BONES, "down", "--yes"],
            cwd=repo,
            env={**os.environ, "TERM": "xterm"},
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        ) as running:
            os.close(theirs)
            while b"nothing of ours runs" not in shown:
                shown += os.read(ours, 4096)
        assert running.returncode == 0
    finally:
        os.close(ours)
    assert b" of 100" in shown


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("yes\n", True), ("\n", False)])
def test_down_asks_at_a_terminal(repo: Path, answer: str, goes: bool) -> None:
    make_trunk(repo)
    make_slot(repo, "clean", TREE)
    ours, theirs = pty.openpty()
    try:
        asking = subprocess.Popen(
            [BONES, "down"], cwd=repo, stdin=theirs, stderr=subprocess.PIPE, text=True
        )
        os.write(ours, answer.encode())
        _out, said = asking.communicate(timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "go on? [y/N]" in said
    assert asking.returncode == (0 if goes else 1)
    assert (repo / ".bones/swarm/clean").exists() is not goes


@pytest.mark.real
def test_down_can_keep_the_hub(hub: Hub) -> None:
    info = hub.start()
    live_slot(hub.root, "busy")
    with leaf(hub.root, "busy") as busy:
        done = bones(hub.root, "down", "--yes", "--keep-hub")
        assert done.returncode == 0, done.stdout + done.stderr
        assert busy.wait(1) == -signal.SIGTERM
    assert "the hub aside, nothing of ours runs" in done.stderr
    assert hub.status()["info"]["pid"] == info["pid"]
    assert os.listdir(hub.workspace.swarm) == []


@pytest.mark.faults
def test_a_leaf_that_is_stopped_or_does_not_obey_is_ended_all_the_same(repo: Path) -> None:
    live_slot(repo, "stopped")
    slot = live_slot(repo, "stubborn").parent
    with (
        leaf(repo, "stopped") as stopped,
        process(*STUBBORN, ready=True) as stubborn,  # no mark: its record alone proves it
    ):
        stopped.send_signal(signal.SIGSTOP)
        sign(slot, stubborn.pid)
        done = bones(repo, "down", "--yes", "--json")
        assert done.returncode == 0, done.stdout
        assert stopped.wait(1) == -signal.SIGTERM
        assert stubborn.wait(1) == -signal.SIGKILL
    assert set(data_of(done.stdout)["rescued"]) == {"stopped", "stubborn"}


def test_a_stranger_in_a_pid_file_is_left_alone_and_named(repo: Path) -> None:
    slot = live_slot(repo, "doubtful").parent
    with stranger() as other:
        (slot / "leaf.pid").write_text(f"{other.pid}\n")
        done = bones(repo, "down", "--yes")
        assert done.returncode == 1
        assert f"kept     slot doubtful: pid {other.pid} is alive and nothing" in done.stdout
        assert "DOUBTFUL slot doubtful: " in done.stdout, "why it is no success"
    assert (slot / "wt/new").exists()


@pytest.mark.parametrize("marked", [True, False])
def test_a_leaf_that_comes_while_slots_are_cleaned_up_is_named(
    repo: Path, monkeypatch: pytest.MonkeyPatch, *, marked: bool
) -> None:
    slot = live_slot(repo, "late").parent
    prune = pruning.prune
    with ExitStack() as stack:

        def with_a_late_one(root: str, **options: Any) -> pruning.Pruned:
            variables = mark(repo, "late") if marked else {}
            late.append(stack.enter_context(process(variables=variables)))
            sign(slot, late[0].pid)
            return prune(root, **options)

        late: list[subprocess.Popen[bytes]] = []
        monkeypatch.setattr(pruning, "prune", with_a_late_one)
        done = ending.down(str(repo), keep_hub=True)
        assert [process.pid for process in done.survivors] == [late[0].pid]
        assert not done.is_clean
        assert late[0].poll() is None
    assert (slot / "wt/new").exists()


HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("pid_file", [None, "junk"])
def test_a_slot_that_somebody_is_making_is_no_clean_end(repo: Path, pid_file: str | None) -> None:
    slot = live_slot(repo, "coming").parent
    (slot / "leaf.pid").unlink()
    if pid_file is not None:
        (slot / "leaf.pid").write_text(pid_file)
    with process(sys.executable, "-c", HOLD, str(slot / "leaf.lock"), ready=True) as maker:
        done = bones(repo, "down", "--yes", "--json")
        assert maker.poll() is None
    assert done.returncode == 1
    assert data_of(done.stdout)["doubtful"] == ["coming"]


def test_a_leaf_whose_pid_file_was_spoilt_is_no_clean_end(repo: Path) -> None:
    slot = live_slot(repo, "spoilt").parent
    with stranger() as other:
        sign(slot, other.pid)
        (slot / "leaf.pid").write_text("junk")
        done = bones(repo, "down", "--yes", "--json")
    assert done.returncode == 1
    assert data_of(done.stdout)["doubtful"] == ["spoilt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("directory", [".bones", ".bones/swarm", ".orchestrator"])
def test_another_user_s_workspace_is_refused_not_called_quiet(repo: Path, directory: str) -> None:
    make_trunk(repo)
    make_slot(repo, "theirs", TREE)
    os.chown(repo / directory, 65534, 65534)
    for arguments in (["down", "--yes"], ["down", "--dry-run"], ["hub", "gc"]):
        done = bones(repo, *arguments)
        assert done.returncode == 1
        assert f"{directory} is not a directory of our own" in done.stderr
    os.chown(repo / directory, 0, 0)
    assert (repo / ".bones/swarm/theirs").exists()


@pytest.mark.parametrize("directory", [".bones", ".bones/swarm"])
def test_slots_that_cannot_be_looked_at_are_an_error_that_names_them(directory: str) -> None:
    def act() -> None:
        make_slot(place, "closed", TREE)
        (place / directory).chmod(0)
        try:
            with pytest.raises(HubError, match=directory):
                ending.plan(Workspace(str(place)))
        finally:
            (place / directory).chmod(0o700)

    with as_an_ordinary_user() as (place, call):
        call(act)


IN_A_CONTAINER = [
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c"),
    '$2 && echo && exec env "BONES_WORKSPACE=$1" sleep 1000',
    "-",
]


@contextmanager
def in_a_container(root: Path, prepare: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with our mark where *prepare* has changed what is at our path."""
    if subprocess.run([*IN_A_CONTAINER[:4], "true"], check=False, capture_output=True).returncode:
        pytest.skip("no unprivileged mount namespaces here")
    with process(*IN_A_CONTAINER, str(root), prepare, ready=True) as running:
        marked = f"BONES_WORKSPACE={root}".encode()
        eventually(lambda: marked in Path(f"/proc/{running.pid}/environ").read_bytes())
        yield running


@pytest.mark.faults
def test_a_container_s_process_is_ended_if_it_serves_this_workspace(repo: Path) -> None:
    with in_a_container(repo, "true") as inside:
        done = bones(repo, "down", "--yes")
        assert done.returncode == 0, done.stdout
        assert f"(pid {inside.pid})" in done.stdout
        assert inside.wait(1) == -signal.SIGTERM


@pytest.mark.faults
def test_a_container_s_own_workspace_at_the_same_path_is_a_stranger_s(repo: Path) -> None:
    live_slot(repo, "old")
    with in_a_container(repo, f"mount -t tmpfs none {repo}") as inside:
        (repo / ".bones/swarm/old/leaf.pid").write_text(f"{inside.pid}\n")
        done = bones(repo, "down", "--yes")
        assert inside.poll() is None
    assert done.returncode == 1  # leaf.pid names it, and unknown is alive
    assert "kept     slot old: pid" in done.stdout
    assert "SURVIVES" not in done.stdout


@pytest.mark.faults
def test_a_container_s_process_that_may_be_ours_is_named_and_left_alone(repo: Path) -> None:
    with in_a_container(repo, f"mount -t tmpfs none {repo.parent}") as inside:
        done = bones(repo, "down", "--yes")
        assert inside.poll() is None
    assert done.returncode == 1
    assert f"SURVIVES sleep, started in a container for this workspace (pid {inside.pid})" in (
        done.stdout
    )


def test_a_slot_in_which_somebody_works_stays(repo: Path) -> None:
    worktree = live_slot(repo, "visited")
    with subprocess.Popen(["sleep", "1000"], cwd=worktree) as visitor:
        done = bones(repo, "down", "--yes")
        assert visitor.poll() is None
        visitor.kill()
    assert done.returncode == 0
    assert "kept     slot visited: " in done.stdout
    assert str(visitor.pid) in done.stdout
    assert (worktree / "new").exists()


def test_down_from_inside_a_slot_is_refused(repo: Path) -> None:
    slot = live_slot(repo, "mine").parent
    below = f"""
import os, subprocess, sys
sys.path.insert(0, {str(CODE)!r})
from foundation.process import Identity
from slotgc.leaf import write_record
write_record({str(slot)!r}, Identity.of(os.getpid()))
sys.exit(subprocess.run([{str(BONES)!r}, "down", "--yes"], cwd={str(slot / "wt")!r}).returncode)
"""
    done = subprocess.run(
        [sys.executable, "-c", below],
        env={**os.environ, **mark(repo, "mine")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "outside of the slots" in done.stderr
    assert (slot / "wt/new").exists()


@pytest.mark.real
@pytest.mark.faults
@pytest.mark.parametrize("point", FAILPOINTS)
def test_a_down_that_is_killed_at_any_step_is_finished_by_the_next(hub: Hub, point: str) -> None:
    hub.start()
    live_slot(hub.root, "busy")
    with leaf(hub.root, "busy") as busy:
        killed = bones(hub.root, "down", "--yes", HUB_FAILPOINT=point)
        assert killed.returncode == -signal.SIGKILL
        again = bones(hub.root, "down", "--yes")
        assert again.returncode == 0, again.stdout + again.stderr
        assert busy.wait(1) is not None
    eventually(lambda: hub.status()["state"] == "stopped")
    workspace = Workspace(str(hub.root))
    assert os.listdir(workspace.swarm) == []
    (rescue,) = os.listdir(workspace.rescue)
    assert (Path(workspace.rescue) / rescue / "wt/new").read_text() == "unsaved\n"


@pytest.mark.real
@pytest.mark.faults
def test_a_hung_hub_is_ended_and_what_it_left(hub: Hub) -> None:
    info = hub.start()
    os.kill(info["pid"], signal.SIGSTOP)
    done = bones(hub.root, "down", "--yes", "--timeout", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stopping the hub; one that hangs is ended after 2 s …" in done.stderr
    for name in ("pid", "fossil_pid", "nats_pid"):
        assert is_gone(info[name])


def test_the_help_is_one_screen_with_an_example() -> None:
    done = bones(CODE, "down", "--help", COLUMNS="80")
    assert "Example:" in done.stdout
    assert "--json" in done.stdout
    assert len(done.stdout.splitlines()) <= 40
    assert " down " in bones(CODE, "--help").stdout
