"""`bones purge`: what was ours is gone, git is as it was, and nobody alive loses anything."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.workspace import Workspace
from slotgc.pruning import prune
from tests.slotgc.leaves import leaf
from tests.slotgc.worktrees import Node, make_slot, plant
from tests.support import CODE, data_of, git
from tests.swarm.stock import Checkout

if TYPE_CHECKING:
    from tests.support import Hub

BONES = CODE / "bin/bones"
TREE = {b"a": Node(b"1\n")}
FAILPOINTS = [
    "purge.locked",
    "purge.taken",
    "purge.removed",
    "purge.removed@3",
    "gc.removing@5",
    "purge.gone",
]


def purge(
    root: Path, *words: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BONES, "purge", "--root", str(root), *words],
        cwd=cwd or root,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def ours(root: Path) -> list[str]:
    """Return what of ours git or a person could see in *root*."""
    exclude = (root / ".git/info/exclude").read_text()
    found = [name for name in (".orchestrator", ".bones") if (root / name).exists()]
    return found + [line for line in exclude.splitlines() if line and not line.startswith("# git")]


@pytest.fixture
def used(seeded: Path) -> Path:
    """Return a workspace with a trunk, a dead slot with unsaved work, a clean one, and a rescue."""
    (seeded / ".git/info/exclude").write_text("# git's\n")
    Workspace(str(seeded)).make_bones()
    plant(make_slot(seeded, "first", TREE), {b"a": Node(b"rescued\n")})
    prune(str(seeded))
    plant(make_slot(seeded, "auth", TREE), {b"a": Node(b"unsaved\n")})
    return seeded


def test_what_would_be_lost_is_named_and_nothing_goes_unasked(used: Path) -> None:
    for done in (purge(used, "--dry-run"), purge(used)):
        said = done.stdout + done.stderr
        assert "the trunk with its history" in said
        assert "slot auth: " in said
        assert "1 changed" in said
        assert "rescue first-" in said
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert (used / ".bones/swarm/auth/wt/a").read_text() == "unsaved\n"
    assert (used / ".orchestrator/hub.fossil").exists()
    told = data_of(purge(used, "--dry-run", "--json").stdout)
    assert (told["dry_run"], told["purged"], told["trunk"]) == (True, False, True)
    assert [words.partition(":")[0] for words in told["slots"]] == ["auth"]


def test_check_ins_that_git_has_not_are_named(used: Path, tmp_path: Path) -> None:
    checkout = Checkout(used / ".orchestrator/hub.fossil", tmp_path / "stock/co")
    made = checkout.commit({b"new": Node(b"kept\n")}, "worth keeping", "auth")
    shown = purge(used, "--dry-run").stdout
    assert f"check-in {made[:10]} of auth, not in git: worth keeping" in shown
    subprocess.run([BONES, "apply"], cwd=used, check=True, capture_output=True)
    assert made[:10] not in purge(used, "--dry-run").stdout
    assert purge(used, "--yes").returncode == 0
    assert "worth keeping" in git(used, "log", "--all", "--format=%s")


def test_all_that_is_ours_goes_and_git_is_as_it_was(used: Path) -> None:
    (used / "README").write_text("edited\n")
    (used / "untracked").write_text("mine\n")
    before = (
        git(used, "status", "--porcelain"),
        git(used, "log", "--all"),
        git(used, "stash", "list"),
    )
    done = purge(used, "--yes")
    assert done.returncode == 0, done.stderr
    assert ours(used) == []
    assert (used / ".git/info/exclude").read_text() == "# git's\n"
    after = (
        git(used, "status", "--porcelain"),
        git(used, "log", "--all"),
        git(used, "stash", "list"),
    )
    assert after == before
    again = purge(used, "--yes")
    assert again.returncode == 0
    assert "nothing of ours" in again.stderr


def test_an_answer_is_asked_for_at_a_terminal(used: Path) -> None:
    ours_end, theirs = pty.openpty()
    try:
        for answer, code in ((b"\n", 1), (b"y\n", 0)):
            asking = subprocess.Popen(
                [BONES, "purge"], cwd=used, stdin=theirs, stderr=subprocess.PIPE, text=True
            )
            os.write(ours_end, answer)
            _out, said = asking.communicate(timeout=30)
            assert "go on? [y/N]" in said
            assert asking.returncode == code
            assert (used / ".orchestrator").exists() is bool(code)
    finally:
        os.close(ours_end)
        os.close(theirs)


@pytest.mark.real
def test_beside_a_hub_nothing_is_touched(hub: Hub) -> None:
    hub.start()
    done = purge(hub.root, "--yes")
    assert done.returncode == 1
    assert "bones down" in done.stderr
    assert hub.status()["state"] == "running"


def test_beside_a_leaf_nothing_is_touched(used: Path) -> None:
    with leaf(used, "auth"):
        done = purge(used, "--yes", "--json")
        assert done.returncode == 1
        assert "auth" in json.loads(done.stdout)["error"]["message"]
    assert (used / ".bones/swarm/auth/wt/a").exists()
    assert (used / ".orchestrator/hub.fossil").exists()


def test_who_works_in_a_slot_is_named(used: Path) -> None:
    with subprocess.Popen(["sleep", "1000"], cwd=used / ".bones/swarm/auth/wt") as visitor:
        done = purge(used, "--yes")
        visitor.kill()
    assert done.returncode == 1
    assert str(visitor.pid) in done.stderr
    assert (used / ".bones/swarm/auth/wt/a").exists()


@pytest.mark.faults
@pytest.mark.parametrize("point", FAILPOINTS)
def test_a_purge_that_is_killed_at_any_step_is_finished_by_the_next(used: Path, point: str) -> None:
    killed = purge(used, "--yes", HUB_FAILPOINT=point)
    assert killed.returncode == -signal.SIGKILL
    if point != "purge.locked":
        assert not (used / ".orchestrator").exists(), "a trunk is there whole or not at all"
    assert git(used, "status", "--porcelain") == ""
    again = purge(used, "--yes")
    assert again.returncode == 0, again.stderr
    assert ours(used) == []


@pytest.mark.real
@pytest.mark.faults
@pytest.mark.parametrize("point", ["purge.taken", "purge.gone"])
def test_after_a_killed_purge_a_hub_starts_anew(hub: Hub, point: str) -> None:
    assert purge(hub.root, "--yes", HUB_FAILPOINT=point).returncode == -signal.SIGKILL
    assert not hub.start()["already_running"]
    assert git(hub.root, "status", "--porcelain") == ""
    hub.stop()
    assert purge(hub.root, "--yes").returncode == 0
    assert not (hub.root / ".orchestrator").exists()


def test_another_worktree_of_the_repository_keeps_being_hidden(used: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(used, "worktree", "add", "-q", str(linked))
    Workspace(str(linked)).make_state()
    assert purge(used, "--yes").returncode == 0
    assert not (used / ".orchestrator").exists()
    assert git(linked, "status", "--porcelain") == ""
    assert purge(linked, "--yes").returncode == 0
    assert ours(used) == []


@pytest.mark.parametrize("how", ["a stale entry", "a relative path"])
def test_no_other_entry_and_no_form_of_its_own_makes_a_worktree_forgotten(
    used: Path, tmp_path: Path, how: str
) -> None:
    linked = tmp_path / "linked"
    git(used, "worktree", "add", "-q", str(linked))
    Workspace(str(linked)).make_state()
    entries = used / ".git/worktrees"
    if how == "a relative path":  # as git 2.48 may write it
        path = os.path.relpath(linked / ".git", entries / "linked")
        (entries / "linked/gitdir").write_text(f"{path}\n")
    else:
        number = 0
        while os.listdir(entries)[0] == "linked":  # in the order that purge sees
            number += 1
            (entries / f"stale{number}").mkdir()
        (entries / "zero").mkdir()
        (entries / "zero/gitdir").write_bytes(b"\0")
        (entries / "file").touch()
    assert purge(used, "--yes").returncode == 0
    assert git(linked, "status", "--porcelain") == ""
    assert purge(linked, "--yes").returncode == 0
    assert [name for name in ours(used) if name.startswith("/.")] == []


def test_a_worktree_that_cannot_be_looked_at_keeps_being_hidden(used: Path) -> None:
    (used / ".git/worktrees/odd/gitdir").mkdir(parents=True)
    assert purge(used, "--yes").returncode == 0
    assert "/.orchestrator/" in ours(used)


def test_a_state_that_is_a_link_is_refused(used: Path) -> None:
    elsewhere = used.parent / "elsewhere"
    shutil.copytree(used, elsewhere, symlinks=True)
    shutil.rmtree(elsewhere / ".orchestrator")
    (elsewhere / ".orchestrator").symlink_to(used / ".orchestrator")
    done = purge(elsewhere, "--yes")
    assert done.returncode == 1
    assert ".orchestrator is not a directory of our own" in done.stderr
    assert (used / ".orchestrator/hub.fossil").exists()
