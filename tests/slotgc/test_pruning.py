"""Cleaning up: no live slot and no unsaved work is ever removed, whatever is killed when."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation.process import Identity
from foundation.workspace import Workspace
from slotgc import base, passage, pruning, sharing, taking, use, work
from slotgc.hold import Claim, swarm_lock
from slotgc.leaf import write_record
from slotgc.pruning import PruneError, Verdict, plan, prune, prune_dead
from slotgc.removal import remove_tree
from slotgc.rescue import list_rescues
from slotgc.restore import restore
from slotgc.use import sightings
from tests.slotgc.worktrees import CHECKIN, Node, Tree, age, make_slot, make_trunk, plant, tree_of
from tests.support import CODE, git, run_python, stranger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slotgc.use import Sighting

BASE: Tree = {
    b"a": Node(b"one\n"),
    b"bin/run": Node(b"#!/bin/sh\n", 0o755),
    b"link": Node(b"a", 0),
    b"gone/x": Node(b"x"),
    b"src/b": Node(b"two\n"),
    b"src/c": Node(b"three\n"),
}
EDITED: Tree = {
    b"a": Node(b"edited\n"),
    b"link": Node(b"src", 0),
    b"src/b": Node(b"two\n"),
    b"src/c": Node(b"three\n"),
    b"new/.env": Node(b"KEY=1", 0o600),
}
UNSAVED = {path: node for path, node in EDITED.items() if not path.startswith(b"src/")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a workspace with a clean slot, ``clean``, and one with unsaved work, ``dirty``."""
    return workspace(tmp_path / "root")


def workspace(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    make_trunk(root)
    make_slot(root, "clean", BASE)
    plant(make_slot(root, "dirty", BASE), EDITED)
    return root


def slots(root: Path) -> list[str]:
    return sorted(os.listdir(root / ".bones/swarm"))


def comes_back(root: Path, slot: str) -> None:
    """Assert that there is one finished rescue of *slot*, which makes of BASE what was there."""
    [one] = [one for one in list_rescues(str(root)) if one.slot == slot]
    assert one.state == "done", one.reason
    assert tree_of(Path(one.path) / "wt") == UNSAVED
    with tempfile.TemporaryDirectory() as scratch:
        plant(Path(scratch) / "copy", BASE)
        restore(str(root), one.name, f"{scratch}/copy")
        assert tree_of(Path(scratch) / "copy") == EDITED


def make_live(root: Path, name: str, pid: int) -> None:
    identity = Identity.of(pid)
    assert identity is not None
    write_record(f"{root}/.bones/swarm/{name}", identity)


# --- what a pass does ----------------------------------------------------------------------


def test_clean_slots_go_and_unsaved_work_is_rescued(root: Path) -> None:
    pruned = prune(str(root))
    assert pruned.removed == ["clean"]
    assert list(pruned.rescued) == ["dirty"]
    assert (pruned.kept, pruned.failed) == ({}, {})
    assert slots(root) == []
    assert os.listdir(root / ".bones/rescue") == [pruned.rescued["dirty"]]
    comes_back(root, "dirty")
    nothing: dict[str, object] = {"removed": [], "rescued": {}, "kept": {}, "failed": {}}
    assert prune(str(root)).as_dict() == {**nothing, "histories": []}


def test_a_slot_that_has_nothing_but_git_history_is_said_to_have_that(root: Path) -> None:
    wt = root / ".bones/swarm/clean/wt"
    git(wt, "init", "-q", "-b", "main")
    git(wt, "commit", "-q", "--allow-empty", "-m", "words")
    (verdict,) = [one for one in plan(str(root)) if one.name == "clean"]
    assert verdict.action == "rescue"
    assert "; git history: its git has commits or stashes of its own: " in verdict.reason
    pruned = prune(str(root))
    assert pruned.histories == ["clean"]
    assert pruned.rescued.keys() == {"clean", "dirty"}


def test_prune_dead_names_the_slots_that_are_gone(root: Path) -> None:
    assert prune_dead(str(root)) == ["clean", "dirty"]
    assert prune_dead(str(root)) == []


def test_with_clean_only_work_stays_where_it_is(root: Path) -> None:
    pruned = prune(str(root), clean_only=True)
    assert pruned.removed == ["clean"]
    assert pruned.kept == {
        "dirty": "unsaved work: 2 changed, 1 added, 2 deleted; `hub gc` rescues it"
    }
    assert tree_of(root / ".bones/swarm/dirty/wt") == EDITED
    assert list_rescues(str(root)) == []


def test_a_plan_says_what_a_pass_does_and_changes_nothing(root: Path) -> None:
    before = everything(root)
    assert plan(str(root)) == [
        Verdict(name="clean", action="remove", reason="pid 4194304 has ended; no unsaved work"),
        Verdict(
            name="dirty",
            action="rescue",
            reason="pid 4194304 has ended; unsaved work: 2 changed, 1 added, 2 deleted",
        ),
    ]
    assert [verdict.action for verdict in plan(str(root), clean_only=True)] == ["remove", "keep"]
    assert everything(root) == before


def everything(top: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in [top, *top.rglob("*")]:
        status = os.lstat(path)
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
    return found


def test_without_a_swarm_there_is_nothing_to_do_and_nothing_is_made(tmp_path: Path) -> None:
    assert prune_dead(str(tmp_path)) == []
    assert plan(str(tmp_path)) == []
    assert os.listdir(tmp_path) == []


def test_live_unknown_and_junk_slots_stay_with_a_reason(root: Path) -> None:
    for name in ("live", "unknown", "junk", "unborn"):
        make_slot(root, name, BASE)
    with stranger() as process:
        make_live(root, "live", process.pid)
        (root / ".bones/swarm/unknown/leaf.pid").write_text(f"{process.pid}\n")
        (root / ".bones/swarm/junk/leaf.pid").write_text("junk")
        (root / ".bones/swarm/unborn/leaf.pid").unlink()
        (root / ".bones/swarm/unborn/leaf.lock").unlink()
        (root / ".bones/swarm/.hidden").mkdir()
        (root / ".bones/swarm/file").touch()
        (root / ".bones/swarm/link").symlink_to("clean")
        pruned = prune(str(root))
    assert set(pruned.kept) == {"live", "unknown", "junk", "unborn"}
    assert all(pruned.kept.values())
    assert f"pid {process.pid}" in pruned.kept["live"]
    assert slots(root) == [".hidden", "file", "junk", "link", "live", "unborn", "unknown"]
    for name in pruned.kept:
        assert tree_of(root / ".bones/swarm" / name / "wt") == BASE


def test_a_half_made_slot_is_collected_once_its_maker_is_gone(root: Path) -> None:
    slot = root / ".bones/swarm/half"
    slot.mkdir()
    (slot / "wt.new").mkdir()
    (slot / "wt.new/a").touch()
    program = """
import fcntl, os, sys
fd = os.open(sys.argv[1] + "/leaf.lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, slot], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"held\n"
        assert "half" in prune(str(root)).kept
        maker.kill()
    assert prune(str(root)).removed == ["half"]


def test_what_is_too_deep_for_a_path_is_rescued_all_the_same(root: Path) -> None:
    here = os.getcwd()
    os.chdir(root / ".bones/swarm/clean/wt")
    try:
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        Path("deep").touch()
    finally:
        os.chdir(here)
    pruned = prune(str(root))
    assert "clean" in pruned.rescued
    assert pruned.failed == {}
    [one] = [one for one in list_rescues(str(root)) if one.slot == "clean"]
    assert one.state == "done"
    assert "too long" in one.reason
    remove_tree(one.path)


def test_git_does_not_see_the_rescues(repo: Path) -> None:
    workspace(repo)
    prune(str(repo))
    git(repo, "clean", "-ndx")
    assert ".bones" not in git(repo, "status", "--porcelain")


def test_two_rescues_of_one_slot_within_a_second_have_two_names(root: Path) -> None:
    first = prune(str(root)).rescued["dirty"]
    names = {first}
    for _ in range(3):
        plant(make_slot(root, "dirty", BASE), EDITED)
        names.add(prune(str(root)).rescued["dirty"])
    assert len(names) == 4
    assert {one.name for one in list_rescues(str(root))} == names
    assert {one.slot for one in list_rescues(str(root))} == {"dirty"}


def test_a_hundred_dead_slots_are_cleaned_up_in_one_pass_that_tells_how_far_it_is(
    tmp_path: Path,
) -> None:
    make_trunk(tmp_path)
    told = []
    for number in range(100):
        wt = make_slot(tmp_path, f"s{number:02}", {b"a": Node(b"1"), b"b": Node(b"2")})
        if number % 5 == 0:
            (wt / "a").write_text("edited")
    pruned = prune(str(tmp_path), on_progress=lambda *progress: told.append(progress))
    assert (len(pruned.removed), len(pruned.rescued)) == (80, 20)
    assert (pruned.kept, pruned.failed) == ({}, {})
    assert told == sorted(told)
    assert told[-1] == (100, 100)
    assert len(set(told)) > 20


def test_a_pass_looks_at_every_process_once_for_many_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trunk(tmp_path)
    for number in range(32):
        make_slot(tmp_path, f"s{number:02}", {b"a": Node(b"1")})
    looks: list[int] = []

    def look() -> list[Sighting]:
        looks.append(1)
        return sightings()

    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setattr(taking, "sightings", look)
    assert len(prune(str(tmp_path)).removed) == 32
    assert len(looks) == 2


def test_a_plan_tells_what_becomes_of_what_a_killed_pass_took_and_had_not_judged(
    root: Path,
) -> None:
    assert run_python(PRUNE, str(root), check=False, HUB_FAILPOINT="gc.taken").returncode == -9
    assert slots(root) == []
    told = {passage.parse_name(one.name)[0]: one.action for one in plan(str(root))}
    assert told == {"clean": "remove", "dirty": "rescue"}


# --- who works in it -----------------------------------------------------------------------


UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def skip_without_mounts() -> None:
    if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no unprivileged mount namespaces here")


@contextmanager
def working_in(place: Path) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.kill()


@pytest.mark.parametrize("where", ["", "wt", "wt/src"])
def test_a_slot_that_a_process_works_in_stays(root: Path, where: str) -> None:
    swarm = root / ".bones/swarm"
    plant(swarm / "dirty/wt", {**EDITED, b"src/new": Node(b"")})
    with working_in(swarm / "clean" / where) as one, working_in(swarm / "dirty" / where) as two:
        assert prune(str(root)).kept == {
            "clean": f"process {one} has its working directory in it",
            "dirty": f"process {two} has its working directory in it",
        }
        assert slots(root) == ["clean", "dirty"]
    assert prune_dead(str(root)) == ["clean", "dirty"]


def test_a_slot_of_which_a_process_has_a_file_open_stays(root: Path) -> None:
    with (
        open(root / ".bones/swarm/clean/wt/a", encoding="utf-8") as file,
        subprocess.Popen(["sleep", "1000"], stdin=file) as process,
    ):
        assert prune(str(root)).kept == {"clean": f"process {process.pid} has a file in it open"}
        process.kill()
    assert prune(str(root)).removed == ["clean"]


def test_a_slot_of_which_a_process_has_the_directory_open_stays(root: Path) -> None:
    here = os.open(root / ".bones/swarm/clean", os.O_RDONLY)
    with subprocess.Popen(["sleep", "1000"], stdin=here) as process:
        os.close(here)
        assert prune(str(root)).kept == {"clean": f"process {process.pid} has a file in it open"}
        process.kill()
    assert prune(str(root)).removed == ["clean"]


def test_a_slot_in_which_threads_without_their_first_one_work_stays(root: Path) -> None:
    program = """
import ctypes, os, threading
def work():
    while open("/proc/self/stat").read().split()[2] != "Z":
        pass
    print(flush=True)
    input()
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(int(os.uname().machine == "x86_64") * 60 or 93, 0)
"""
    slot = root / ".bones/swarm/clean"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=slot, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            kept = prune(str(root)).kept
            assert kept == {"clean": f"process {process.pid} has its working directory in it"}
        finally:
            process.kill()
    assert prune(str(root)).removed == ["clean"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("bound", "inside"),
    [
        ("", ".bones/swarm/clean/wt/src"),
        (".bones/swarm/clean/wt", "src"),
        (".bones/swarm", "clean"),
    ],
)
def test_a_slot_in_which_a_container_works_stays(
    root: Path, tmp_path: Path, bound: str, inside: str
) -> None:
    skip_without_mounts()
    container = tmp_path / "a container"  # where the workspace has another path
    container.mkdir()
    enter = 'mount --bind "$1" "$2" && cd "$2/$3" && echo && exec sleep 1000'
    with subprocess.Popen(
        [*UNSHARE, "sh", "-c", enter, "-", root / bound, container, inside], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            kept = prune(str(root)).kept
            assert kept == {"clean": f"process {process.pid} has its working directory in it"}
        finally:
            process.kill()
    assert prune(str(root)).removed == ["clean"]


def test_our_own_working_directory_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / ".bones/swarm/clean")
    assert f"process {os.getpid()}" in prune(str(root)).kept["clean"]


def at(monkeypatch: pytest.MonkeyPatch, point: str, act: Callable[[], object]) -> None:
    """Have *act* done once, when a pass gets to *point*."""
    waiting = [act]

    def hit(name: str) -> None:
        if name == point and waiting:
            waiting.pop()()

    for module in (pruning, taking):
        monkeypatch.setattr(module, "hit", hit)


def test_one_that_comes_alive_after_it_was_judged_is_not_touched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stranger() as process:
        at(monkeypatch, "gc.judged", lambda: make_live(root, "clean", process.pid))
        pruned = prune(str(root))
        assert f"pid {process.pid}" in pruned.kept["clean"]
        assert tree_of(root / ".bones/swarm/clean/wt") == BASE


def test_one_that_is_being_revived_is_not_touched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def revive() -> None:
        with Claim(Workspace(str(root)), "clean") as claim:
            held.append(claim.take())

    at(monkeypatch, "gc.judged", revive)
    assert "leaf.lock is held" in prune(str(root)).kept["clean"]
    os.close(held[0])
    assert prune(str(root)).removed == ["clean"]


def test_one_that_somebody_enters_at_the_last_moment_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    def enter() -> None:
        [taken] = (root / ".bones/rescue").glob(".judging-clean-*")
        entered.append(working_in(taken / "wt"))
        entered[0].__enter__()

    at(monkeypatch, "gc.renamed", enter)
    try:
        assert "working directory" in prune(str(root)).kept["clean"]
        assert tree_of(root / ".bones/swarm/clean/wt") == BASE
    finally:
        entered[0].__exit__(None, None, None)
    assert prune(str(root)).removed == ["clean"]


@pytest.mark.parametrize("point", ["gc.judged", "gc.locked", "gc.renamed", "gc.taken"])
def test_work_that_comes_after_the_judgement_is_rescued(
    root: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    here = os.open(root / ".bones/swarm/clean/wt", os.O_RDONLY)  # our own, it does not count

    def write() -> None:
        os.close(os.open("late", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=here))

    at(monkeypatch, point, write)
    try:
        name = prune(str(root)).rescued["clean"]
    finally:
        os.close(here)
    assert tree_of(root / ".bones/rescue" / name / "wt") == {b"late": Node(b"")}


@pytest.mark.parametrize("clean_only", [False, True])
def test_what_was_written_through_a_mapping_is_not_lost(root: Path, clean_only: bool) -> None:
    path = root / ".bones/swarm/clean/wt/src/b"
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4)
    mapped[0] = mapped[0]  # from here on writing moves no time stamp
    slot = path.parents[2]
    base.write(f"{slot}/base.json", base.index(f"{slot}/wt", checkin=CHECKIN))
    age(slot)
    before = os.lstat(path)
    mapped[:] = b"TWO\n"
    mapped.close()
    assert os.lstat(path).st_ctime_ns == before.st_ctime_ns
    name = prune(str(root), clean_only=clean_only).rescued["clean"]
    assert tree_of(root / ".bones/rescue" / name / "wt") == {b"src/b": Node(b"TWO\n")}


@pytest.mark.parametrize(
    "steps", [("",), (".removing-",), (".judging-", ""), (".judging-", ".removing-")]
)
def test_no_two_rescues_want_the_same_name_while_one_steps_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[str, ...]
) -> None:
    workspace = Workspace(str(root))
    passage.make_place(workspace)
    monkeypatch.setattr(passage, "utc_now", lambda: "2026-11-21T05:30:00.000Z")
    name = passage.new_name(workspace, "a")
    taken = [f"{workspace.rescue}/{step}{name}" for step in steps]
    for moment in range(3):  # it steps on after so many looks
        os.mkdir(taken[0])
        looks: list[str] = []
        lexists = os.path.lexists

        def look(path: str) -> bool:
            if len(looks) == moment and len(taken) > 1:  # noqa: B023 - called in this turn
                os.rename(*taken)
            looks.append(path)  # noqa: B023
            return lexists(path)  # noqa: B023

        with monkeypatch.context() as looking:
            looking.setattr(os.path, "lexists", look)
            assert passage.new_name(workspace, "a") == f"{name}-2"
        for path in taken:
            if lexists(path):
                os.rmdir(path)


# --- kills ---------------------------------------------------------------------------------

PRUNE = """
import sys
from slotgc.pruning import prune
print(prune(sys.argv[1]).failed)
"""
POINTS = [
    "gc.judged",
    "gc.judged@2",
    "gc.locked",
    "gc.locked@2",
    "gc.renamed",
    "gc.renamed@2",
    "gc.taken",
    "gc.taken@2",
    "gc.judged-again",
    "gc.removing",
    "gc.removing@3",
    "gc.removed",
    "gc.rescued",
    "gc.recorded",
    "gc.thinning",
    "gc.thinning@2",
    "gc.thinned",
    "gc.finished",
]


@pytest.mark.faults
@pytest.mark.parametrize("point", POINTS)
def test_a_pass_that_is_killed_loses_nothing_and_the_next_one_ends_it(
    root: Path, point: str
) -> None:
    killed = run_python(PRUNE, str(root), check=False, HUB_FAILPOINT=point)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    # Whatever is not in the swarm any more is listed, or was clean.
    left = {one.slot for one in list_rescues(str(root))} | set(slots(root))
    assert "dirty" in left
    for verdict in plan(str(root)):
        assert verdict.action in ("remove", "rescue")
    assert run_python(PRUNE, str(root)).stdout == "{}\n"
    assert slots(root) == []
    [name] = os.listdir(root / ".bones/rescue")
    assert name.startswith("dirty-")
    comes_back(root, "dirty")


@pytest.mark.faults
def test_a_restore_finishes_a_rescue_whose_pass_was_killed(root: Path) -> None:
    for point in ("gc.rescued", "gc.recorded"):
        plant(make_slot(root, "dirty", BASE), EDITED)
        assert run_python(PRUNE, str(root), check=False, HUB_FAILPOINT=point).returncode == -9
        [one] = [one for one in list_rescues(str(root)) if one.state == "unfinished"]
        plant(root / "copy", BASE)
        restore(str(root), one.name, f"{root}/copy")
        assert tree_of(root / "copy") == EDITED


def test_a_purged_trunk_stops_the_thinning_of_a_killed_pass(root: Path) -> None:
    killed = run_python(PRUNE, str(root), check=False, HUB_FAILPOINT="gc.recorded")
    assert killed.returncode == -9
    (root / ".orchestrator/hub.fossil").unlink()
    assert prune(str(root)).failed == {}
    [one] = list_rescues(str(root))
    assert tree_of(Path(one.path) / "wt") == EDITED
    restore(str(root), one.name, f"{root}/new")
    assert tree_of(root / "new") == EDITED


@pytest.mark.faults
def test_several_passes_at_once_do_no_harm(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    for number in range(24):
        wt = make_slot(tmp_path, f"s{number:02}", BASE)
        if number % 2:
            plant(wt, EDITED)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRUNE, tmp_path],
            cwd=CODE,
            env={**os.environ, "PYTHONPATH": str(CODE), **killed},
            stdout=subprocess.PIPE,
        )
        for killed in ({}, {"HUB_FAILPOINT": "gc.taken@5"}, {"HUB_FAILPOINT": "gc.recorded@3"}, {})
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert outputs[0] == outputs[3] == b"{}\n"
    assert prune(str(tmp_path)).failed == {}
    assert slots(tmp_path) == []
    assert len(os.listdir(tmp_path / ".bones/rescue")) == 12
    for number in range(1, 24, 2):
        comes_back(tmp_path, f"s{number:02}")


def test_what_a_living_pass_has_in_hand_is_left_to_it(root: Path) -> None:
    place = root / ".bones/rescue"
    assert run_python(PRUNE, str(root), check=False, HUB_FAILPOINT="gc.taken").returncode == -9
    [judging] = [name for name in os.listdir(place) if name.startswith(".judging-clean-")]
    claimed = passage.claim(f"{place}/{judging}")
    assert claimed is not None
    try:
        assert "clean" not in prune(str(root)).removed
        assert judging in os.listdir(place)
    finally:
        os.close(claimed)
    assert prune(str(root)).removed == ["clean"]


# --- what cannot be done -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_rescue_directory_that_is_not_ours_is_not_used(
    root: Path, tmp_path: Path, kind: str
) -> None:
    trap = tmp_path / "trap"
    (trap / ".removing-x-20261121T053000Z").mkdir(parents=True)
    if kind == "file":
        (root / ".bones/rescue").touch()
    else:
        (root / ".bones/rescue").symlink_to(trap)
    with pytest.raises(PruneError, match="not a directory of our own") as caught:
        prune_dead(str(root))
    assert caught.value.removed == []
    assert set(caught.value.failed) == {"clean", "dirty"}
    assert slots(root) == ["clean", "dirty"]
    assert os.listdir(trap) == [".removing-x-20261121T053000Z"]


def test_a_slot_that_fails_keeps_no_other_from_going(root: Path) -> None:
    make_slot(root, "n" * 250, BASE)  # with a time after it the name is too long
    with pytest.raises(PruneError) as caught:
        prune_dead(str(root))
    assert caught.value.removed == ["clean", "dirty"]
    assert "name too long" in caught.value.failed["n" * 250]
    assert slots(root) == ["n" * 250]


def test_who_hangs_with_the_lock_delays_a_pass_once_not_once_a_slot(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        make_slot(root, f"s{number}", BASE)
    monkeypatch.setattr(pruning, "WITHIN_S", 0.4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})  # a helper waits for longer
    held = swarm_lock(Workspace(str(root)))
    began_s = time.monotonic()
    try:
        failed = prune(str(root)).failed
    finally:
        os.close(held)
    assert len(failed) == 12
    assert time.monotonic() - began_s < 3
    assert prune(str(root)).failed == {}


IN_A_MOUNT = """
import errno, os, subprocess, sys
from pathlib import Path
from slotgc.pruning import prune
root, kind = sys.argv[1:]
swarm = Path(root) / ".bones/swarm"
if kind == "other":
    os.mkdir(f"{root}/.bones/rescue")
    subprocess.run(["mount", "-t", "tmpfs", "none", f"{root}/.bones/rescue"], check=True)
elif kind == "inside":
    for name in ("clean", "dirty"):
        os.mkdir(f"{swarm}/{name}/wt/mounted")
        subprocess.run(["mount", "--bind", root, f"{swarm}/{name}/wt/mounted"], check=True)
else:
    options = "size=1m" if kind == "bytes" else "size=1m,nr_inodes=100"
    os.mkdir(f"{root}/full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", f"{root}/full"], check=True)
    for name in (".bones", ".orchestrator"):
        subprocess.run(["cp", "-a", f"{root}/{name}", f"{root}/full"], check=True)
    root = f"{root}/full"
    if kind == "bytes":  # its removal would make room
        subprocess.run(["rm", "-r", f"{root}/.bones/swarm/clean"], check=True)
    try:
        for number in range(10**6):
            with open(f"{root}/filler{number}", "wb") as file:
                if kind == "bytes":
                    while True:
                        file.write(b"x" * 4096)
                        file.flush()
    except OSError as error:
        assert error.errno == errno.ENOSPC
pruned = prune(root)
print(sorted(os.listdir(f"{root}/.bones/swarm")))
print(pruned.removed, list(pruned.rescued), pruned.kept, pruned.failed)
if kind in ("bytes", "inodes"):
    for filler in Path(root).glob("filler*"):
        filler.unlink()
    pruned = prune(root)
    print(sorted(os.listdir(f"{root}/.bones/swarm")), pruned.failed)
    [name] = os.listdir(f"{root}/.bones/rescue")
    print((Path(root) / ".bones/rescue" / name / "wt/a").read_text())
    assert "rescue.json" in os.listdir(f"{root}/.bones/rescue/{name}")
"""


def in_a_mount(root: Path, kind: str) -> list[str]:
    skip_without_mounts()
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", IN_A_MOUNT, root, kind],
        cwd=CODE,
        env={**os.environ, "PYTHONPATH": str(CODE)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.faults
def test_a_rescue_directory_on_another_file_system_takes_nothing(root: Path) -> None:
    stays, told = in_a_mount(root, "other")
    assert stays == "['clean', 'dirty']"
    assert told.count("Invalid cross-device link") == 2
    assert tree_of(root / ".bones/swarm/dirty/wt") == EDITED


@pytest.mark.faults
def test_what_is_mounted_in_a_slot_is_not_removed(root: Path) -> None:
    stays, told = in_a_mount(root, "inside")
    assert stays == "['clean', 'dirty']"
    assert told.count("a file system is mounted at") == 2
    assert tree_of(root / ".bones/swarm/clean/wt") == BASE


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_on_a_full_disk_nothing_is_lost_and_a_pass_with_room_ends_it(root: Path, kind: str) -> None:
    _stays, told, after, content, *_ = in_a_mount(root, kind)
    assert "No space left on device" in told
    assert after == "[] {}"
    assert content == "edited"


@contextmanager
def as_an_ordinary_user() -> Iterator[tuple[Path, Callable[[Callable[[], object]], None]]]:
    """Give a directory of an ordinary user's, and a function that calls another as he."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(place, user, -1)

    def call(act: Callable[[], object]) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                act()
                status = 0
            except BaseException:  # noqa: BLE001 - the last stop of a fork
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    try:
        yield place, call
    finally:
        shutil.rmtree(place)


def test_an_ordinary_user_s_closed_directories_are_no_obstacle() -> None:
    def act() -> None:
        root = workspace(place / "root")
        swarm = root / ".bones/swarm"
        (swarm / "clean/wt/src/b").chmod(0o400)
        (swarm / "clean/wt/src").chmod(0o555)
        (swarm / "clean/wt/cache/deep").mkdir(parents=True)
        tag = "Signature: 8a477f597d28d172789f06886806bc55"
        (swarm / "clean/wt/cache/CACHEDIR.TAG").write_text(tag)
        (swarm / "clean/wt/cache/deep/x").touch()
        (swarm / "clean/wt/cache/deep").chmod(0o500)
        (swarm / "clean").chmod(0o500)
        (swarm / "dirty/wt/a").chmod(0o000)
        (swarm / "dirty/wt/closed").mkdir()
        (swarm / "dirty/wt/closed/x").write_text("x")
        (swarm / "dirty/wt/closed").chmod(0o000)
        (swarm / "dirty/wt").chmod(0o555)
        pruned = prune(str(root))
        assert pruned.removed == ["clean"], pruned
        assert pruned.failed == {}
        restore(str(root), pruned.rescued["dirty"], f"{place}/new")
        expected = {**UNSAVED, b"a": Node(b"edited\n", 0), b"closed/x": Node(b"x")}
        assert os.lstat(place / "new/a").st_mode & 0o777 == 0
        (place / "new/a").chmod(0o400)
        found = tree_of(place / "new")
        assert {p: n.content for p, n in found.items()} == {
            p: n.content for p, n in expected.items()
        }

    prune(str(Path("/nowhere")))  # what is imported late is imported by root
    with as_an_ordinary_user() as (place, call):
        call(act)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have another user's files")
def test_what_another_user_has_put_there_is_kept_and_named() -> None:
    def act() -> None:
        root = place / "root"
        pruned = prune(str(root))
        assert pruned.removed == ["clean"]  # it is gone from the swarm, but not from the disk
        assert "Permission denied" in pruned.failed["clean"], pruned
        assert list((root / ".bones/rescue").glob(".removing-clean-*"))

    with as_an_ordinary_user() as (place, call):
        call(lambda: workspace(place / "root"))
        cache = place / "root/.bones/swarm/clean/wt/__pycache__"
        cache.mkdir()
        (cache / "x.pyc").touch()
        call(act)


# --- removing ------------------------------------------------------------------------------


def test_removing_follows_no_link_and_knows_no_depth(tmp_path: Path) -> None:
    plant(tmp_path / "outside", BASE)
    top = tmp_path / "top"
    plant(top, {**BASE, b"out": Node(os.fsencode(tmp_path / "outside"), 0)})
    here = os.getcwd()
    os.chdir(top)
    try:
        for depth in range(1200):
            os.mkdir("d")
            os.symlink("/", f"link{depth}")
            os.chdir("d")
    finally:
        os.chdir(here)
    remove_tree(str(top))
    assert not os.path.lexists(top)
    assert tree_of(tmp_path / "outside") == BASE
    remove_tree(str(top))  # gone already


def test_removing_goes_on_past_what_it_cannot_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "top", BASE)
    unlink = os.unlink

    def fail(name: str, *, dir_fd: int) -> None:
        if name == "b":
            raise OSError(5, "Input/output error", name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(OSError, match="b"):
        remove_tree(f"{tmp_path}/top")
    monkeypatch.undo()
    assert tree_of(tmp_path / "top") == {b"src/b": Node(b"two\n")}


def test_whoever_makes_a_slot_need_not_wait_for_the_look_at_every_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(str(root))
    looks = []

    def look_with_the_lock(*seen: list[Sighting]) -> list[Sighting]:
        os.close(swarm_lock(workspace, within_s=0))
        looks.append(seen)
        return sightings()

    monkeypatch.setattr(use, "sightings", look_with_the_lock)
    assert sorted(prune(str(root)).removed) == ["clean"]
    assert looks


def test_what_cannot_be_put_back_since_its_name_is_taken_becomes_a_rescue(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    def enter_and_join_anew() -> None:
        [taken] = (root / ".bones/rescue").glob(".judging-clean-*")
        entered.append(working_in(taken / "wt"))
        entered[0].__enter__()
        make_slot(root, "clean", {b"new": Node(b"1")})

    at(monkeypatch, "gc.renamed", enter_and_join_anew)
    try:
        rescued = prune(str(root)).rescued["clean"]
        assert os.path.isdir(root / ".bones/rescue" / rescued / "wt")
        assert tree_of(root / ".bones/swarm/clean/wt") == {b"new": Node(b"1")}
    finally:
        entered[0].__exit__(None, None, None)


# --- shared --------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Return a workspace with eight dead slots, every third one with unsaved work."""
    make_trunk(tmp_path)
    for number in range(8):
        wt = make_slot(tmp_path, f"s{number}", BASE)
        if number % 3 == 0:
            plant(wt, EDITED)
    return tmp_path


def test_a_pass_over_many_slots_is_shared_by_two_processes(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what became of all of them."""
    here: list[str] = []
    judge = work.judge

    def note(workspace: Workspace, slot: str, **options: Any) -> work.Work:
        here.append(slot)
        return judge(workspace, slot, **options)

    monkeypatch.setattr(work, "judge", note)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    pruned = prune(str(many))
    assert {passage.parse_name(Path(path).name)[0] for path in here} == {"s0", "s2", "s4", "s6"}
    assert pruned.removed == ["s1", "s2", "s4", "s5", "s7"]
    assert sorted(pruned.rescued) == ["s0", "s3", "s6"]
    assert (pruned.kept, pruned.failed, slots(many)) == ({}, {}, [])
    assert sorted(one.name for one in list_rescues(str(many))) == sorted(pruned.rescued.values())


def test_what_a_helper_that_dies_has_left_is_seen_to(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    begin = sharing.begin

    def begin_one_that_dies(*args: Any, **options: Any) -> sharing.Helper | None:
        with monkeypatch.context() as failing:
            failing.setenv("HUB_FAILPOINT", "gc.renamed@2")
            return begin(*args, **options)

    monkeypatch.setattr(sharing, "begin", begin_one_that_dies)
    pruned = prune(str(many))
    assert (pruned.kept, pruned.failed, slots(many)) == ({}, {}, [])
    assert sorted(one.slot for one in list_rescues(str(many))) == ["s0", "s3", "s6"]
    assert {one.state for one in list_rescues(str(many))} == {"done"}
