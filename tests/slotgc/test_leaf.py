"""A leaf is dead only if that is proved: by its record, its number and its lock together."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.process import PID_MAX
from slotgc import dead_slots, live_slots
from slotgc.leaf import DEAD, JUNK, LIVE, UNBORN, UNKNOWN, Leaf, look, look_all
from tests.slotgc.leaves import (
    identity_of,
    leaf,
    make_slot,
    mark,
    process,
    sign,
    workspace_of,
)
from tests.support import eventually, run_python, stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

DEAD_PID = PID_MAX  # the kernel gives out smaller ones only


def judged(root: Path, name: str = "a", *, locked: bool = False) -> Leaf:
    return look(workspace_of(root), name, locked=locked)


def states(root: Path) -> dict[str, str]:
    return {leaf.name: leaf.state for leaf in look_all(workspace_of(root))}


# --- what is a slot ----------------------------------------------------------------------------


def test_without_a_swarm_directory_there_are_no_slots(tmp_path: Path) -> None:
    assert look_all(workspace_of(tmp_path)) == []
    (tmp_path / ".bones").mkdir()
    assert look_all(workspace_of(tmp_path)) == []
    (tmp_path / ".bones/swarm").write_text("a file")
    assert look_all(workspace_of(tmp_path)) == []
    assert (live_slots(tmp_path), dead_slots(tmp_path)) == ([], [])


def test_slots_come_by_name_and_only_real_directories_are_slots(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        make_slot(tmp_path, name, DEAD_PID)
    swarm = tmp_path / ".bones/swarm"
    (swarm / "link").symlink_to(swarm / "a")
    (swarm / "file").touch()
    assert states(tmp_path) == {"a": DEAD, "b": DEAD}
    assert judged(tmp_path, "link").state == JUNK
    assert judged(tmp_path, "file").state == JUNK


@pytest.mark.parametrize("link", [".bones", ".bones/swarm"])
def test_slots_behind_a_link_are_not_ours(tmp_path: Path, link: str) -> None:
    make_slot(tmp_path / "elsewhere", "a", DEAD_PID)
    root = tmp_path / "root"
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(tmp_path / "elsewhere" / link)
    assert (root / ".bones/swarm/a/leaf.pid").exists()
    assert look_all(workspace_of(root)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("path", [".bones", ".bones/swarm", ".bones/swarm/a"])
def test_what_belongs_to_another_user_is_no_slot_of_ours(tmp_path: Path, path: str) -> None:
    make_slot(tmp_path, "a", DEAD_PID)
    os.chown(tmp_path / path, 65534, 65534)
    assert look_all(workspace_of(tmp_path)) == []


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a\0"])
def test_a_path_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        look(workspace_of(tmp_path), name)


# --- the table ---------------------------------------------------------------------------------


def test_a_leaf_that_holds_its_lock_and_has_signed_lives_until_it_ends(tmp_path: Path) -> None:
    make_slot(tmp_path)
    with leaf(tmp_path) as running:
        found = judged(tmp_path)
        assert (found.state, found.pid) == (LIVE, running.pid)
        running.kill()
        running.wait()
        assert judged(tmp_path) == Leaf(
            name="a", state=DEAD, reason=f"pid {running.pid} has ended", pid=running.pid
        )
    assert dead_slots(tmp_path) == ["a"]


def test_a_signed_process_needs_no_lock_and_no_mark(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process() as running:
        sign(slot, running.pid)
        assert judged(tmp_path).state == LIVE
    assert judged(tmp_path).state == DEAD


def test_a_zombie_is_dead_signed_or_not(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process() as running:
        sign(slot, running.pid)
        running.kill()
        eventually(lambda: judged(tmp_path).state == DEAD)
        os.kill(running.pid, 0)  # it still answers
        (slot / "leaf.json").unlink()
        assert judged(tmp_path).state == DEAD


def test_without_a_record_the_mark_of_this_workspace_proves_the_leaf(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    for variables, state in (
        (mark(tmp_path), LIVE),
        (mark(tmp_path, "a"), LIVE),
        (mark(tmp_path, "b"), UNKNOWN),
        (mark(tmp_path / "other", "a"), UNKNOWN),
        ({}, UNKNOWN),
    ):
        with process(variables=variables) as running:
            (slot / "leaf.pid").write_text(f"{running.pid}\n")
            eventually(lambda: Path(f"/proc/{running.pid}/environ").read_bytes() != b"")
            found = judged(tmp_path)
            assert (found.state, found.pid) == (state, running.pid), variables
            assert [slot.name for slot in live_slots(tmp_path)] == ["a"]
            assert dead_slots(tmp_path) == []
        assert judged(tmp_path).state == DEAD


def test_a_stranger_is_named_as_what_he_is(tmp_path: Path) -> None:
    with stranger() as one:
        make_slot(tmp_path, "a", one.pid)
        reason = f"pid {one.pid} is alive and nothing proves that it is the leaf"
        assert judged(tmp_path) == Leaf(name="a", state=UNKNOWN, reason=reason, pid=one.pid)


def test_a_record_of_another_boot_is_of_a_dead_leaf_whoever_has_its_pid_now(
    tmp_path: Path,
) -> None:
    slot = make_slot(tmp_path)
    with stranger() as one:
        from slotgc.leaf import write_record  # noqa: PLC0415

        write_record(str(slot), identity_of(one.pid).replace(boot="another"))
        assert judged(tmp_path).state == DEAD


def test_a_leaf_of_another_pid_namespace_is_unknown_and_no_number_is_told(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with stranger() as one:
        from slotgc.leaf import write_record  # noqa: PLC0415

        write_record(str(slot), identity_of(one.pid).replace(namespace=1))
        found = judged(tmp_path)
        assert (found.state, found.pid) == (UNKNOWN, 0)
        assert "another pid namespace" in found.reason


def test_a_record_and_a_number_that_disagree_are_dead_only_if_both_are(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process() as one, stranger() as two:
        sign(slot, one.pid)
        (slot / "leaf.pid").write_text(f"{DEAD_PID}\n")  # as between the two writes of a revival
        assert (judged(tmp_path).state, judged(tmp_path).pid) == (LIVE, one.pid)
        one.kill()
        one.wait()
        assert judged(tmp_path).state == DEAD
        (slot / "leaf.pid").write_text(f"{two.pid}\n")
        assert judged(tmp_path).state == UNKNOWN


def test_a_thread_s_number_is_no_leaf(tmp_path: Path) -> None:
    gate, numbers = threading.Event(), [0]

    def run() -> None:
        numbers[0] = threading.get_native_id()
        gate.wait()

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: numbers[0] != 0)
    make_slot(tmp_path, "a", numbers[0])
    try:
        assert judged(tmp_path).state == DEAD
    finally:
        gate.set()
        thread.join()


# --- the lock ----------------------------------------------------------------------------------


def test_where_the_lock_is_held_nothing_is_dead(tmp_path: Path) -> None:
    slot = make_slot(tmp_path, "a", DEAD_PID)
    with open(slot / "leaf.lock", "w") as lock:
        assert judged(tmp_path).state == DEAD
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = Leaf(name="a", state=UNKNOWN, reason="leaf.lock is held", pid=DEAD_PID)
        assert judged(tmp_path) == held
        assert dead_slots(tmp_path) == []
        assert judged(tmp_path, locked=True).state == DEAD  # who holds it asks past it
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert judged(tmp_path).state == DEAD  # another's probe is no leaf
    assert judged(tmp_path).state == DEAD


def test_a_child_that_inherited_the_lock_keeps_the_slot(tmp_path: Path) -> None:
    slot = make_slot(tmp_path, "a", DEAD_PID)
    with open(slot / "leaf.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = subprocess.Popen(["sleep", "1000"], pass_fds=[lock.fileno()])
    try:
        assert judged(tmp_path).state == UNKNOWN
    finally:
        child.kill()
        child.wait()
    assert judged(tmp_path).state == DEAD


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "dangling"])
def test_a_lock_that_cannot_be_asked_leaves_it_unknown(tmp_path: Path, kind: str) -> None:
    slot = make_slot(tmp_path, "a", DEAD_PID)
    lock = slot / "leaf.lock"
    if kind == "link":
        (slot / "other").touch()
        lock.symlink_to(slot / "other")
    elif kind == "dangling":
        lock.symlink_to(slot / "nothing")
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    found = judged(tmp_path)
    assert (found.state, found.reason.startswith("leaf.lock is ")) == (UNKNOWN, True)
    (slot / "leaf.pid").unlink()
    assert not judged(tmp_path).abandoned


def test_looking_takes_and_leaves_nothing(tmp_path: Path) -> None:
    slot = make_slot(tmp_path, "a", DEAD_PID)
    (slot / "leaf.lock").touch()
    make_slot(tmp_path, "b")
    before = sorted(tmp_path.rglob("*")), len(os.listdir("/proc/self/fd"))
    look_all(workspace_of(tmp_path))
    assert (sorted(tmp_path.rglob("*")), len(os.listdir("/proc/self/fd"))) == before
    with open(slot / "leaf.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- being made --------------------------------------------------------------------------------


def test_without_a_pid_file_a_slot_is_neither_dead_nor_alive(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    (slot / "wt.new").mkdir()
    assert judged(tmp_path).state == UNBORN
    assert not judged(tmp_path).abandoned
    assert (live_slots(tmp_path), dead_slots(tmp_path)) == ([], [])


def test_a_half_made_slot_is_abandoned_once_its_maker_is_gone(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    assert judged(tmp_path).abandoned  # empty: there is nothing to lose
    (slot / "wt.new").mkdir()
    with open(slot / "leaf.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not judged(tmp_path).abandoned
        assert judged(tmp_path, locked=True).abandoned
    found = judged(tmp_path)
    assert (found.state, found.abandoned) == (UNBORN, True)


def test_a_slot_that_is_not_there_is_not_abandoned(tmp_path: Path) -> None:
    make_slot(tmp_path, "b")
    found = judged(tmp_path)
    assert (found.state, found.abandoned, found.reason) == (UNBORN, False, "there is no such slot")


# --- what cannot be known ----------------------------------------------------------------------


def test_without_descriptors_nothing_is_dead(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process() as running:
        sign(slot, running.pid)
    assert judged(tmp_path).state == DEAD
    program = """
import os, resource, sys
from foundation.process import Identity
from foundation.workspace import Workspace
from slotgc.leaf import look
Identity.of(os.getpid())
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
said = []
while taken:
    said.append(look(Workspace(sys.argv[1]), "a").state)
    os.close(taken.pop())
print(*said)
"""
    said = run_python(program, str(tmp_path)).stdout.split()
    assert said[0] == UNKNOWN
    assert said[-1] == DEAD
    assert set(said) == {UNKNOWN, DEAD}


def test_without_descriptors_nothing_signed_and_alive_is_dead(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    program = """
import os, resource, sys
from foundation.workspace import Workspace
from slotgc.leaf import look
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
while taken:
    print(look(Workspace(sys.argv[1]), "a").state)
    os.close(taken.pop())
"""
    with process() as running:
        sign(slot, running.pid)
        said = run_python(program, str(tmp_path)).stdout.split()
    assert set(said) == {UNKNOWN, LIVE}


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Return a directory that another user can reach; tmp_path is root's alone."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    yield place
    shutil.rmtree(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_s_process_counts_as_alive_and_is_left_alone(open_place: Path) -> None:
    """EPERM is no death; here somebody who may signal nobody asks."""
    slot = make_slot(open_place)
    program = """
import os, sys
from foundation.process import boot_id
from slotgc import ending, leaf, slots
boot_id()  # loads what that user may not read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
(found,) = leaf.look_all(slots.Workspace(sys.argv[1]))
print(found.state, ending.end(found.pid, workspace_dir=sys.argv[1]).outcome)
try:
    os.kill(found.pid, 0)
except PermissionError:
    print("EPERM")
"""

    def said_by_another_user() -> str:
        for path in (open_place, *open_place.rglob("*")):
            os.chown(path, 65534, 65534)
        return run_python(program, str(open_place)).stdout

    with process(variables=mark(open_place, "a")) as running:
        (slot / "leaf.pid").write_text(f"{running.pid}\n")
        assert said_by_another_user() == "unknown refused\nEPERM\n"
        sign(slot, running.pid)
        assert said_by_another_user() == "live refused\nEPERM\n"
        assert running.poll() is None


def test_the_front_of_the_package_brings_only_what_is_asked_for() -> None:
    program = """
import sys
import slotgc
assert not [name for name in sys.modules if name.startswith("slotgc.")]
assert slotgc.dead_slots("/nonexistent") == []
assert "slotgc.ending" not in sys.modules and "slotgc.pruning" not in sys.modules
for name in slotgc.__all__:
    assert callable(getattr(slotgc, name)), name
try:
    slotgc.nonsense
except AttributeError:
    print("good")
"""
    assert run_python(program).stdout == "good\n"
