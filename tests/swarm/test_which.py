"""Which slot a verb means, and which of its files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foundation.errors import Refused, Usage
from foundation.workspace import MARK, SLOT_MARK, Workspace
from swarm import which
from tests.support import make_repository


def make_slots(root: Path, *names: str) -> None:
    Workspace(str(root)).make_bones()
    for name in names:
        (root / ".bones/swarm" / name / "wt/src").mkdir(parents=True)


@pytest.fixture
def here(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a workspace with slots, which is the current directory."""
    make_slots(repo, "auth", "api", "web")
    monkeypatch.chdir(repo)
    return repo


def worktree(root: Path, slot: str) -> Path:
    return root / ".bones/swarm" / slot / "wt"


def test_the_flag_wins_then_the_directory_then_the_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, str(here))
    monkeypatch.setenv(SLOT_MARK, "web")
    assert which.slot_of(None, None).name == "web"
    monkeypatch.chdir(worktree(here, "api") / "src")
    assert which.slot_of(None, None).name == "api"
    assert which.slot_of(None, "auth").name == "auth"
    found = which.named_or_here(None, None)
    assert found is not None
    assert (found.name, found.root) == ("api", str(here))


def test_an_agent_finds_its_slot_wherever_it_is(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, str(here))
    monkeypatch.setenv(SLOT_MARK, "auth")
    (tmp_path / "nowhere").mkdir()
    for place in (tmp_path / "nowhere", make_repository(tmp_path / "other")):
        monkeypatch.chdir(place)
        assert which.slot_of(None, None).worktree == str(worktree(here, "auth"))
    monkeypatch.chdir(tmp_path / "nowhere")
    assert which.slot_of(None, "api").name == "api", "its workspace is known from the mark"


def test_a_named_workspace_is_not_left_for_a_slot_of_another(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_repository(tmp_path / "other")
    make_slots(other, "theirs")
    monkeypatch.chdir(worktree(here, "auth"))
    for root, variable in ((str(other), ""), (None, str(other))):
        monkeypatch.setenv("HUB_ROOT", variable)
        with pytest.raises(Usage, match="there are theirs"):
            which.slot_of(root, None)
        assert which.slot_of(root, "theirs").root == str(other)
    monkeypatch.setenv("HUB_ROOT", str(worktree(here, "auth")))
    assert which.slot_of(None, None).name == "auth"


@pytest.mark.usefixtures("here")
def test_where_no_slot_is_meant_those_that_there_are_are_named() -> None:
    with pytest.raises(Usage, match="api, auth, web") as error:
        which.slot_of(None, None)
    assert error.value.exit_code == 2
    assert which.named_or_here(None, None) is None
    with pytest.raises(Refused, match="join --slot nope"):
        which.slot_of(None, "nope")
    with pytest.raises(Refused, match="cannot name a slot"):
        which.slot_of(None, "../auth")


def test_outside_of_any_workspace_the_way_in_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="git init"):
        which.slot_of(None, None)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(Refused, match="was deleted"):
        which.slot_of(None, None)
    monkeypatch.chdir("/")


def test_files_are_meant_from_here_and_from_elsewhere_from_the_top(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = which.slot_of(None, "auth")
    assert which.paths_in(slot, []) is None
    assert which.paths_in(slot, ["src/a", "."]) == [b"src/a", b"."]
    inside = worktree(here, "auth") / "src"
    monkeypatch.chdir(inside)
    odd = os.fsdecode(b"n\nl\xff")
    assert which.paths_in(slot, ["a", "../b", odd, "."]) == [
        b"src/a",
        b"b",
        b"src/n\nl\xff",
        b"src",
    ]
    assert which.paths_in(slot, [str(inside / "a")]) == [b"src/a"]
    for outside in ("../../leaf.pid", "/etc/passwd", "../.git/config", str(here / "README")):
        with pytest.raises(Refused, match="no file of slot auth"):
            which.paths_in(slot, [outside])
    monkeypatch.chdir(worktree(here, "api") / "src")
    assert which.paths_in(slot, ["a"]) == [b"a"]


def test_a_workspace_is_one_by_whatever_path(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(here)
    monkeypatch.chdir(worktree(here, "auth") / "src")
    slot = which.slot_of(str(link), None)
    assert slot.name == "auth"
    assert which.paths_in(slot, ["a"]) == [b"src/a"]
