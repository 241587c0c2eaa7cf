"""Who serves a workspace, and as what: by what nobody has by accident."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.process import has_exited, send_signal, wait_exit
from foundation.workspace import MARK, Workspace
from hub import fossil, whereabouts
from hub.census import census
from hub.hold import ABSENT
from tests.support import Hub, eventually, free_port, run_python

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hub.hold import Inode
    from hub.roles import Role

HOLDER = """
import fcntl, os, sys
held = [os.open(path, os.O_RDONLY) for path in sys.argv[2:]]
for fd in held:
    if sys.argv[1] == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
"""Holds files open, locked or not, until its input ends."""


@contextmanager
def holding(how: str, *paths: str, mark: str = "", program: str = HOLDER) -> Iterator[int]:
    """Run a process that has *paths* open, locked alone if *how* is ``flock``; yield its pid."""
    env = {**os.environ, **({MARK: mark} if mark else {})}
    with subprocess.Popen(
        [sys.executable, "-c", program, how, *paths], stdin=-1, stdout=-1, env=env
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process.pid
        finally:
            process.communicate()


@contextmanager
def marked(root: str | Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that carries the mark of *root* and is none of ours."""
    env = {"PATH": os.environ["PATH"], MARK: str(root), "HUB_TEST": os.environ["HUB_TEST"]}
    process = subprocess.Popen(argv or ("sleep", "1000"), env=env, start_new_session=True)
    try:
        yield process
        assert process.poll() is None, "it was signalled"
    finally:
        process.kill()
        process.wait()


@contextmanager
def orphan(workspace: Workspace) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Fossil server of *workspace* as a killed hub's would be left: with nobody above."""
    process = subprocess.Popen(
        fossil.server_argv(fossil.find(), workspace, free_port()),
        env={**fossil.environment(workspace.state), MARK: workspace.root},
        cwd=workspace.state,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: roles(workspace.root).get(process.pid) == "fossil")
        yield process
    finally:
        process.kill()
        process.wait()


def roles(root: str | Path) -> dict[int, Role]:
    with census(str(root)) as found:
        return {member.pid: member.role for member in found.members}


@pytest.mark.real
@pytest.mark.parametrize("how", ["forked", "executed", "foreground"])
def test_every_process_of_a_hub_has_its_role(hub: Hub, how: str) -> None:
    running = None
    if how == "executed":
        program = "import sys, site; from hub.start import start; start(sys.argv[1], detach=True)"
        run_python(program, str(hub.root))
    elif how == "foreground":
        running = hub.begin("start")
        eventually(lambda: hub.status()["state"] == "running")
    else:
        hub.start()
    hub.wait_ready()
    members = {role: pid for pid, role in roles(hub.root).items()}
    for passing in ("preparation", "other"):  # what trunk or the hub has just started
        members.pop(passing, None)
    assert members.pop("nursery") not in hub.pids().values()
    assert members == hub.pids()
    with census(str(hub.root)) as found:
        (one,) = found.hubs()
        assert all(m.near and m.root == str(hub.root) for m in found.members)
        lasting = [m for m in found.members if m.role in hub.pids() or m.role == "nursery"]
        assert [found.hub_above(m) for m in lasting if m is not one] == [one] * 4
        assert {whereabouts.find(m).kind for m in found.members} == {"there"}
    hub.stop()
    if running is not None:
        running.communicate(timeout=20)
    assert roles(hub.root) == {}


@pytest.mark.real
def test_a_hub_started_from_another_workspaces_slot_counts_for_its_own(
    hub: Hub, tmp_path: Path
) -> None:
    hub.start(**{MARK: str(tmp_path / "other")})
    hub.wait_ready()
    assert sorted(roles(hub.root).values()) == ["fossil", "hub", "nats", "nursery", "trunk"]
    assert roles(tmp_path / "other") == {}


def test_who_merely_carries_the_mark_is_other(tmp_path: Path) -> None:
    with marked(tmp_path) as one:
        assert roles(tmp_path) == {one.pid: "other"}
        assert roles(f"{tmp_path}-more") == {}


def test_who_merely_has_a_lock_file_open_is_nobody_and_who_locks_one_is_no_hub(
    seeded: Path,
) -> None:
    own = Workspace(str(seeded))
    with holding("open", own.lock, own.state), holding("flock", own.lock):
        assert roles(seeded) == {}
    with holding("flock", own.lock, own.state) as pid:
        assert roles(seeded) == {pid: "hub"}


def test_who_locks_files_of_such_names_elsewhere_is_a_stranger(tmp_path: Path) -> None:
    """Nothing of ours is there: not even once it is deleted may it be ended."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/hub.lock").touch()
    with holding("flock", f"{tmp_path}/app/hub.lock", f"{tmp_path}/app") as pid:
        for _turn in ("there", "deleted"):
            with census() as found:
                assert pid not in {member.pid for member in found.members}
            shutil.rmtree(tmp_path / "app", ignore_errors=True)


def test_a_server_that_a_person_runs_on_the_trunk_is_other(seeded: Path) -> None:
    """As from a shell in a slot, which has the mark, and its own home."""
    own = Workspace(str(seeded))
    port = str(free_port())
    by_hand = [fossil.find(), "server", "--localhost", "--port", port, own.repository]
    env = {**fossil.environment(str(seeded)), MARK: own.root, "HUB_TEST": os.environ["HUB_TEST"]}
    with subprocess.Popen(by_hand, env=env, cwd=seeded, stdout=-3, stderr=-3) as person:
        try:
            eventually(lambda: roles(seeded).get(person.pid) == "other")
        finally:
            person.kill()


def test_a_hub_that_was_given_anothers_orphan_is_still_its_own(
    seeded: Path, tmp_path: Path
) -> None:
    """A subreaper, or pid 1 of a container, is the parent of whoever has lost his own."""
    own, other = Workspace(str(seeded)), Workspace(str(tmp_path / "other"))
    os.makedirs(other.state)
    shutil.copy(own.repository, other.repository)
    words = fossil.server_argv(fossil.find(), other, free_port())
    env = {**fossil.environment(other.state), MARK: other.root, "HUB_TEST": os.environ["HUB_TEST"]}
    program = f"""
import subprocess
child = subprocess.Popen({words!r}, env={env!r}, cwd={other.state!r}, stdout=-3, stderr=-3)
{HOLDER}
child.kill()
child.wait()
"""
    with holding("flock", own.lock, own.state, program=program) as pid:
        eventually(lambda: "fossil" in roles(other.root).values())
        assert roles(seeded) == {pid: "hub"}
        with census(own.root) as found:
            assert whereabouts.find(found.hubs()[0]).kind == "there"


def test_a_leaf_holds_the_lock_of_its_slot_and_carries_the_mark(seeded: Path) -> None:
    slot = seeded / ".bones/swarm/auth"
    slot.mkdir(parents=True)
    lock = str(slot / "leaf.lock")
    Path(lock).touch()
    with holding("flock", lock, mark=str(seeded)) as pid:
        assert roles(seeded) == {pid: "leaf"}
    with holding("open", lock, mark=str(seeded)) as pid:
        assert roles(seeded) == {pid: "other"}
    with holding("flock", lock):
        assert roles(seeded) == {}


def test_a_command_line_of_ours_without_the_mark_is_nobody(seeded: Path) -> None:
    repository = Workspace(str(seeded)).repository
    words = ["tail", "server", "-f", repository]
    with subprocess.Popen(words, stdout=-3, stderr=-3) as person:
        try:
            assert roles(seeded) == {}
        finally:
            person.kill()


def test_this_process_the_shell_above_it_and_the_dead_are_not_named(tmp_path: Path) -> None:
    program = """
import os, subprocess, sys
from hub.census import census
dead = subprocess.Popen(["true"])
os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
with census(sys.argv[1]) as found:
    print([member.pid for member in found.members])
dead.wait()
"""
    shell = ["sh", "-c", 'printf x; "$@"; true', "sh", sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(
        shell,
        env={**os.environ, MARK: str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "x[]\n"


def test_a_member_is_held_so_that_nobody_else_is_ever_signalled_for_it(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with marked(tmp_path) as other, census(str(tmp_path)) as found:
        (member,) = found.members
        assert member.pid == other.pid
        assert not has_exited(member.pidfd)
    victim = subprocess.Popen(["sleep", "1000"], env={**os.environ, MARK: str(tmp_path)})
    with census(str(tmp_path)) as found:
        (member,) = found.members
        victim.kill()
        victim.wait()
        assert wait_exit(member.pidfd, 5)
        assert not send_signal(member.pidfd, 9)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("most", "said"), [(8, "too-many-processes"), (1024, "12")])
def test_more_processes_than_descriptors_are_seen_if_the_limit_can_be_raised(
    tmp_path: Path, most: int, said: str
) -> None:
    program = f"""
import resource, sys
from foundation.errors import Unavailable
from hub.census import census
resource.setrlimit(resource.RLIMIT_NOFILE, (8, {most}))
try:
    with census(sys.argv[1]) as found:
        print(len(found.members))
except Unavailable as error:
    print(error.reason)
with open("/dev/null"):
    print("nothing leaked")
"""
    running = [
        subprocess.Popen(["sleep", "1000"], env={**os.environ, MARK: str(tmp_path)})
        for _turn in range(12)
    ]
    try:
        assert run_python(program, str(tmp_path)).stdout == f"{said}\nnothing leaked\n"
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_another_user_sees_none_of_ours(seeded: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    program = """
import os, sys
from hub.census import census
os.setgid(65534); os.setuid(65534)
with census() as found:
    print([member.pid for member in found.members if member.root == sys.argv[1]])
"""
    own = Workspace(str(seeded))
    with marked(seeded), holding("flock", own.lock, own.state):
        assert len(roles(seeded)) == 2
        assert run_python(program, str(seeded)).stdout == "[]\n"


def test_the_lock_of_a_census_is_nobodys(seeded: Path) -> None:
    """It looks at locks and takes none: a starter beside it gets its own."""
    own = Workspace(str(seeded))
    with census(), open(own.lock) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- where a workspace is --------------------------------------------------------------------

D: Inode = (1, 7)
HERE = "/w/.orchestrator"


@pytest.mark.parametrize(
    ("link", "expected", "seen", "kind"),
    [
        (HERE, HERE, {HERE: D}, "there"),
        (HERE, "", {HERE: D}, "there"),
        ("/new/.orchestrator", HERE, {"/new/.orchestrator": D}, "moved"),
        ("/new/.orchestrator", HERE, {"/new/.orchestrator": D, HERE: (1, 8)}, "moved"),
        ("/w/old", "", {"/w/old": D}, "moved"),
        (f"{HERE} (deleted)", HERE, {}, "gone"),
        (f"{HERE} (deleted)", "", {}, "gone"),
        (f"{HERE} (deleted)", HERE, {HERE: (1, 8)}, "gone"),
        (f"{HERE} (deleted)", HERE, {f"{HERE} (deleted)": D}, "moved"),  # renamed to just that
        ("/h/.local/share/Trash/files/w/.orchestrator", HERE, "link", "trashed"),
        ("/mnt/.Trash-1000/files/w/.orchestrator", HERE, "link", "trashed"),
        ("/mnt/.Trash/1000/files/w/.orchestrator", "", "link", "trashed"),
        ("/xdg/Trash/files/w/.orchestrator", HERE, "link", "trashed"),
        ("/h/Trash/w/.orchestrator", HERE, "link", "moved"),
        ("/h/.Trashy/w/.orchestrator", HERE, "link", "moved"),
        # seen through another path (a bind mount): it is where it was
        ("/mnt/w/.orchestrator", HERE, {HERE: D, "/mnt/w/.orchestrator": D}, "there"),
        # nothing proves that it is gone
        (HERE, HERE, {}, "unknown"),  # not mounted, or mounted over
        (HERE, HERE, {HERE: (1, 8)}, "unknown"),
        (HERE, HERE, {HERE: None}, "unknown"),
        (f"{HERE} (deleted)", HERE, {HERE: None}, "unknown"),
        ("/new/.orchestrator", HERE, {"/new/.orchestrator": None}, "unknown"),
        ("(unreachable)/w/.orchestrator", HERE, {}, "unknown"),
    ],
)
def test_only_what_is_proved_counts_as_gone(
    monkeypatch: pytest.MonkeyPatch,
    link: str,
    expected: str,
    seen: dict[str, Inode | None] | str,
    kind: str,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    there = {link: D} if isinstance(seen, str) else seen
    found = whereabouts.judge(link, D, expected, lambda path: there.get(path, ABSENT))
    assert found.kind == kind, found
    assert bool(found.reason) == (kind != "there")
