"""Who makes, revives or removes a slot excludes the others, and a killed one excludes nobody."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from foundation.errors import Refused, Unavailable
from foundation.lock import try_lock
from foundation.process import PID_MAX
from slotgc import hold
from slotgc.hold import Claim, leaf_lock, make_leaf_lock, swarm_lock
from slotgc.leaf import DEAD, UNBORN, UNKNOWN, look
from tests.slotgc.leaves import leaf, make_slot, process, workspace_of
from tests.support import CODE

HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from foundation.workspace import Workspace
from slotgc.hold import Claim, swarm_lock
workspace = Workspace(sys.argv[2])
claim = Claim(workspace, "a").__enter__()
print(claim.leaf.state, flush=True)
sys.stdin.read()
"""


def holder_of(root: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", HOLDER, str(CODE), str(root))


# --- swarm.lock --------------------------------------------------------------------------------


def test_swarm_lock_has_one_holder_and_is_never_unlinked(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    (tmp_path / ".bones").mkdir()
    fd = swarm_lock(workspace)
    with pytest.raises(Unavailable, match=r"0\.01 s.*fuser") as caught:
        swarm_lock(workspace, within_s=0.01)
    assert caught.value.reason == "swarm-busy"
    inode = os.stat(workspace.swarm_lock).st_ino
    os.close(fd)
    fd = swarm_lock(workspace, within_s=0)
    assert os.stat(workspace.swarm_lock).st_ino == inode == os.fstat(fd).st_ino
    os.close(fd)


def test_who_waits_gets_it_as_soon_as_it_is_let_go(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    (tmp_path / ".bones").mkdir()
    fd = swarm_lock(workspace)
    threading.Timer(0.05, os.close, [fd]).start()
    os.close(swarm_lock(workspace, within_s=10))


@pytest.mark.faults
def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    slot = make_slot(tmp_path, "a", PID_MAX)
    (slot / "leaf.lock").touch()
    workspace = workspace_of(tmp_path)
    with process(*holder_of(tmp_path), ready=True) as holder:
        with pytest.raises(Unavailable):
            swarm_lock(workspace, within_s=0.01)
        assert look(workspace, "a").reason == "leaf.lock is held"
        holder.kill()
        holder.wait()
        with Claim(workspace, "a", within_s=0) as claim:
            assert claim.leaf.state == DEAD


def test_the_lock_of_a_bones_that_was_deleted_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of(tmp_path)
    bones = tmp_path / ".bones"
    bones.mkdir()

    def try_and_lose(path: str) -> int | None:
        fd = try_lock(path)
        if not (tmp_path / "gone").exists():
            bones.rename(tmp_path / "gone")
            bones.mkdir()
        return fd

    monkeypatch.setattr(hold, "try_lock", try_and_lose)
    fd = swarm_lock(workspace, within_s=1)
    assert os.path.samestat(os.fstat(fd), os.stat(workspace.swarm_lock))
    os.close(fd)


def test_a_bones_that_is_not_ours_is_refused_and_not_written_into(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    with pytest.raises(Refused) as caught:
        swarm_lock(workspace_of(root))
    assert caught.value.reason == "state-foreign"
    (root / ".bones").symlink_to(elsewhere)
    with pytest.raises(Refused):
        swarm_lock(workspace_of(root))
    (root / ".bones").unlink()
    (root / ".bones").mkdir()
    (root / ".bones/swarm.lock").symlink_to(elsewhere / "lock")
    with pytest.raises(OSError, match="symbolic"):
        swarm_lock(workspace_of(root))
    assert list(elsewhere.iterdir()) == []


# --- leaf.lock ---------------------------------------------------------------------------------


def test_a_remover_makes_no_lock_where_there_was_none(tmp_path: Path) -> None:
    slot = make_slot(tmp_path, "a", PID_MAX)
    assert leaf_lock(workspace_of(tmp_path), "a") is None
    with Claim(workspace_of(tmp_path), "a") as claim:
        assert claim.leaf.state == DEAD
    assert sorted(path.name for path in slot.iterdir()) == ["leaf.pid"]


def test_a_held_leaf_lock_is_busy(tmp_path: Path) -> None:
    make_slot(tmp_path)
    fd = make_leaf_lock(workspace_of(tmp_path), "a")
    for take in (make_leaf_lock, leaf_lock):
        with pytest.raises(Unavailable) as caught:
            take(workspace_of(tmp_path), "a")
        assert caught.value.reason == "leaf-busy"
    os.close(fd)
    again = leaf_lock(workspace_of(tmp_path), "a")
    assert again is not None
    os.close(again)


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_is_no_lock_file_is_not_taken_for_one(tmp_path: Path, kind: str) -> None:
    lock = make_slot(tmp_path, "a", PID_MAX) / "leaf.lock"
    if kind == "link":
        lock.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    for take in (make_leaf_lock, leaf_lock):
        with pytest.raises(OSError):  # noqa: PT011 - three kinds of it
            take(workspace_of(tmp_path), "a")
    assert not (tmp_path / "elsewhere").exists()
    with Claim(workspace_of(tmp_path), "a") as claim:
        assert claim.leaf.state == UNKNOWN


def test_who_only_looks_does_not_keep_a_leaf_from_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe holds the lock for a moment; a leaf that took that for a holder would give up."""
    monkeypatch.setattr(hold, "_PROBES_LAST_S", 10.0)  # on a machine that stalls
    slot = make_slot(tmp_path, "a", PID_MAX)
    with open(slot / "leaf.lock", "w") as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        threading.Timer(0.03, fcntl.flock, [probe, fcntl.LOCK_UN]).start()
        os.close(make_leaf_lock(workspace_of(tmp_path), "a"))


# --- claiming ----------------------------------------------------------------------------------


def test_under_a_claim_a_living_leaf_is_seen_to_live(tmp_path: Path) -> None:
    make_slot(tmp_path)
    with leaf(tmp_path), Claim(workspace_of(tmp_path), "a") as claim:
        assert claim.leaf.state == "live"
        with pytest.raises(Unavailable):
            claim.take()
    with Claim(workspace_of(tmp_path), "a") as claim:
        assert claim.leaf.state == DEAD


def test_a_reviver_keeps_the_leaf_lock_when_it_lets_the_swarm_go(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    for name in ("without a lock", "with a lock"):
        slot = make_slot(tmp_path, name, PID_MAX)
        if name.startswith("with a"):
            (slot / "leaf.lock").touch()
        with Claim(workspace, name) as claim:
            lock = claim.take()
        assert look(workspace, name).reason == "leaf.lock is held"
        os.close(swarm_lock(workspace, within_s=0))
        with Claim(workspace, name) as claim:
            assert claim.leaf.state == UNKNOWN
        os.close(lock)
        assert look(workspace, name).state == DEAD


def test_a_slot_that_is_not_there_can_be_claimed_and_made(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path)
    (tmp_path / ".bones/swarm").mkdir(parents=True)
    with Claim(workspace, "a") as claim:
        assert (claim.leaf.state, claim.leaf.abandoned) == (UNBORN, False)
        os.mkdir(f"{workspace.swarm}/a")
        lock = claim.take()
    assert not look(workspace, "a").abandoned
    os.close(lock)
    assert look(workspace, "a").abandoned


def test_a_claim_leaves_no_descriptor_whatever_happens_in_it(tmp_path: Path) -> None:
    (make_slot(tmp_path, "a", PID_MAX) / "leaf.lock").touch()
    workspace = workspace_of(tmp_path)
    gc.collect()  # what other tests have left is not to go in the midst of this one
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), Claim(workspace, "a"):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="cannot be the name"), Claim(workspace, "../a"):
        pass
    with Claim(workspace, "a"), pytest.raises(Unavailable), Claim(workspace, "a", within_s=0):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


RIVAL = """
import os, random, sys
sys.path.insert(0, sys.argv[1])
from foundation.workspace import Workspace
from slotgc.hold import Claim
from slotgc.leaf import look
workspace, number, turns = Workspace(sys.argv[2]), sys.argv[3], int(sys.argv[4])
slot = f"{workspace.swarm}/a"
chance = random.Random(number)
made = removed = 0
for turn in range(turns):
    with Claim(workspace, "a", within_s=30) as claim:
        lock = None
        if not os.path.exists(slot):
            os.mkdir(slot)
            lock = claim.take()
        elif claim.leaf.abandoned:
            os.rename(slot, f"{workspace.swarm}/.gone-{number}-{turn}")
            removed += 1
    if lock is not None:  # a maker, with nothing but leaf.lock now
        made += 1
        mine = os.stat(slot).st_ino
        with open(f"{slot}/work-{number}-{turn}", "x"):
            pass
        for _look in range(chance.randrange(20)):
            assert os.stat(slot).st_ino == mine, "it was removed under its maker"
            assert not look(workspace, "a").abandoned
        if chance.random() < 0.2:
            os.kill(os.getpid(), 9)
        os.close(lock)
print(made, removed)
"""


@pytest.mark.faults
def test_rivals_that_make_remove_and_die_never_take_a_slot_from_its_maker(tmp_path: Path) -> None:
    (tmp_path / ".bones/swarm").mkdir(parents=True)
    argv = [sys.executable, "-c", RIVAL, str(CODE), str(tmp_path)]
    for generation in range(3):
        rivals = [
            subprocess.Popen(
                [*argv, f"{generation}{number}", "40"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        for rival in rivals:
            _out, err = rival.communicate()
            assert (rival.returncode in (0, -9), err) == (True, "")
    gone = [path for path in (tmp_path / ".bones/swarm").iterdir() if path.name[:1] == "."]
    assert len(gone) > 10
    assert all(len(list(path.glob("work-*"))) <= 1 for path in gone)
