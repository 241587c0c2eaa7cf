"""What an agent's git is taken back to: the slot's own work lands, that of others is not undone."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Refused
from tests.slotgc.worktrees import Node, tree_of
from tests.swarm.benches import Bench, assert_clean, edit, git, without_git
from tests.swarm.test_worktree_agents import paths
from tests.swarm.test_worktree_kills import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from swarm.worktree import Worktree
    from tests.support import Hub

pytestmark = pytest.mark.real


@pytest.fixture
def bench(seeded: Path) -> Iterator[Bench]:
    made = Bench(seeded)
    assert made.tree.changes() == ()
    yield made
    made.close()


TEXT = b"".join(b"%d\n" % number for number in range(20))


def updated(bench: Bench) -> None:
    """Have the slot commit, others commit, and the slot update."""
    bench.elsewhere({b"text": Node(TEXT), b"gone": Node(b"g\n")})
    edit(bench.wt, {b"README": Node(b"mine\n")})
    bench.commit()
    bench.tree.update()
    bench.elsewhere(
        {b"text": Node(b"theirs\n" + TEXT), b"gone": None, b"new": Node(b"n\n")},
    )
    bench.tree.update()
    assert_clean(bench)


@pytest.mark.parametrize("how", ["reset", "detached", "branch", "reset dead"])
def test_going_back_before_an_update_takes_nothing_back_from_others(bench: Bench, how: str) -> None:
    updated(bench)
    match how:
        case "detached":
            git(bench, "checkout", "-q", "HEAD~1")
        case "branch":
            git(bench, "checkout", "-q", "-b", "feature", "HEAD~1")
        case _:
            git(bench, "reset", "-q", "--hard", "HEAD~1")
    if how == "reset dead":
        bench.reopen()
    assert (bench.wt / "text").read_bytes() == TEXT
    assert paths(bench) == []
    with pytest.raises(Refused, match="bones swarm update"):
        bench.propose()
    edit(bench.wt, {b"README": Node(b"more\n"), b"text": Node(TEXT + b"mine\n")})
    proposal = bench.propose()
    assert [one.path for one in proposal.changes] == [b"README", b"text"]
    text = proposal.changes[1]
    assert bench.content(text.base_hash) == TEXT  # what trunk merges by
    merged = b"theirs\n" + TEXT + b"mine\n"
    bench.tree.landed(proposal, bench.land(proposal, {b"text": Node(merged)}))
    bench.tree.update()
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()
    assert paths(bench) == []
    assert bench.fossil("changes") == ""
    if how.startswith("reset"):
        assert_clean(bench)


def test_an_edit_that_was_made_before_git_was_taken_back_is_one_of_the_older_file(
    bench: Bench,
) -> None:
    updated(bench)
    git(bench, "reset", "-q", "--hard", "HEAD~1")
    edit(bench.wt, {b"text": Node(TEXT + b"mine\n")})
    git(bench, "commit", "-qam", "mine")
    (text,) = bench.propose().changes
    assert bench.content(text.base_hash) == TEXT


@pytest.mark.parametrize("mode", ["--soft", "--mixed"])
def test_a_reset_that_leaves_the_files_leaves_the_base(bench: Bench, mode: str) -> None:
    updated(bench)
    git(bench, "reset", "-q", mode, "HEAD~1")
    assert paths(bench) == []
    edit(bench.wt, {b"README": Node(b"more\n")})
    assert paths(bench) == [b"README"]
    bench.commit()
    assert paths(bench) == []
    assert git(bench, "show", "HEAD:text").startswith("theirs\n")


def test_who_takes_back_his_own_work_changes_it(bench: Bench) -> None:
    updated(bench)
    edit(bench.wt, {b"text": Node(b"theirs\n" + TEXT + b"mine\n")})
    bench.commit()
    git(bench, "reset", "-q", "--hard", "HEAD~1")
    assert paths(bench) == [b"text"]
    bench.commit()
    assert_clean(bench)
    assert bench.tip_tree()[b"text"].content == b"theirs\n" + TEXT


def test_to_amend_what_has_landed_is_an_edit_of_it(bench: Bench) -> None:
    updated(bench)
    edit(bench.wt, {b"README": Node(b"more\n")})
    bench.commit()
    edit(bench.wt, {b"README": Node(b"still more\n")})
    git(bench, "commit", "-qa", "--amend", "-m", "amended")
    (readme,) = bench.propose().changes
    assert bench.content(readme.base_hash) == b"more\n"


def test_work_on_a_branch_of_its_own_is_not_held_against_an_older_base(bench: Bench) -> None:
    updated(bench)
    git(bench, "checkout", "-q", "-b", "feature")
    for content in (b"1\n", b"2\n"):
        edit(bench.wt, {b"README": Node(content)})
        bench.commit()
    edit(bench.wt, {b"README": Node(b"3\n")})
    bench.reopen()
    (readme,) = bench.propose().changes
    assert bench.content(readme.base_hash) == b"2\n"


def test_on_a_branch_that_no_update_has_reached_a_reset_takes_nothing_back(bench: Bench) -> None:
    bench.elsewhere({b"text": Node(TEXT)})
    bench.tree.update()
    git(bench, "checkout", "-q", "-b", "feature")
    bench.elsewhere({b"text": Node(b"theirs\n" + TEXT)})
    bench.tree.update()
    assert paths(bench) == []
    git(bench, "reset", "-q", "--hard")
    assert (bench.wt / "text").read_bytes() == TEXT
    assert paths(bench) == []
    bench.tree.update()
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()


def test_an_older_file_that_was_asked_for_by_name_is_a_change(bench: Bench) -> None:
    updated(bench)
    git(bench, "checkout", "-q", "HEAD~1", "--", "text")
    assert paths(bench) == [b"text"]
    git(bench, "checkout", "-q", "HEAD", "--", "text")
    git(bench, "-c", "user.name=a", "-c", "user.email=a@x", "revert", "--no-edit", "HEAD")
    assert paths(bench) == [b"gone", b"new", b"text"]


def aged(hub: Hub) -> None:
    """Have two versions of a file in git, and another file of the later one, when trunk begins."""
    for content in ("old\n", "new\n"):
        (hub.root / "aged").write_text(content)
        if content == "new\n":
            (hub.root / "later").write_text("x")
        for words in (["add", "."], ["commit", "-qm", f"aged {content}"]):
            subprocess.run(
                ["git", "-c", "user.name=u", "-c", "user.email=u@x", *words],
                cwd=hub.root,
                check=True,
            )
    hub.start()
    hub.stop()


def test_before_trunk_began_nothing_is_taken_back_unless_it_is_named(fresh_hub: Hub) -> None:
    aged(fresh_hub)
    bench = Bench(fresh_hub.root)
    assert bench.tree.changes() == ()
    git(bench, "reset", "-q", "--hard", ":/aged old")
    edit(bench.wt, {b"README": Node(b"mine\n")})
    with pytest.raises(Refused, match="aged: git was taken back to before trunk began") as caught:
        bench.propose()
    assert caught.value.reason == "gone-back"
    assert [one.path for one in bench.propose(b"README").changes] == [b"README"]
    assert [one.path for one in bench.propose(b"aged").changes] == [b"aged"]
    command = str(caught.value).partition("`")[2].partition(" -- ")[0]
    git(bench, *command.split()[1:], "--", "aged")
    assert [one.path for one in bench.propose().changes] == [b"README"]
    bench.close()


# --- where git cannot tell ---------------------------------------------------------------------

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@x")


def forget(bench: Bench, how: str) -> None:
    """Have git not know any more what the worktree, which is an older one, was taken back from."""
    match how:
        case "pruned":
            shutil.rmtree(bench.wt / ".git/logs")
            git(bench, "reflog", "expire", "--expire=now", "--all")
            git(bench, "gc", "--quiet", "--prune=now")
        case "removed":
            shutil.rmtree(bench.wt / ".git")
        case "another":
            shutil.rmtree(bench.wt / ".git")
            git(bench, "init", "-q")
            git(bench, "add", "-A")
            git(bench, *IDENTITY, "commit", "-qm", "x")
        case "unborn":
            git(bench, "checkout", "-q", "--orphan", "fresh")
        case "orphan":
            git(bench, "checkout", "-q", "--orphan", "fresh")
            git(bench, *IDENTITY, "commit", "-qm", "x")


FORGETFUL = ["pruned", "removed", "another", "unborn", "orphan"]


def assert_in_doubt(bench: Bench, *doubtful: str) -> str:
    """Have a commit of everything refused for *doubtful* alone; return what is said of it."""
    with pytest.raises(Refused, match="so nobody can tell whether this takes back") as caught:
        bench.propose()
    assert caught.value.reason == "gone-back"
    named, _colon, words = str(caught.value).partition(": ")
    assert named.split(", ") == list(doubtful)
    return words


@pytest.mark.parametrize("how", FORGETFUL)
def test_where_git_forgot_what_it_was_taken_back_from_others_work_is_not_undone_unnamed(
    bench: Bench, how: str
) -> None:
    updated(bench)
    git(bench, "reset", "-q", "--hard", "HEAD~1")
    forget(bench, how)
    edit(bench.wt, {b"README": Node(b"more\n"), b"fresh": Node(b"f\n")})
    words = assert_in_doubt(bench, "gone", "new", "text")
    bench.reopen()
    assert_in_doubt(bench, "gone", "new", "text")
    assert [one.path for one in bench.propose(b"fresh", b"text").changes] == [b"fresh", b"text"]
    command = words.partition("`")[2].partition(" -- ")[0]
    if how in ("unborn", "orphan"):
        git(bench, "reset", "-q", "--hard", "trunk")
        edit(bench.wt, {b"README": Node(b"more\n"), b"fresh": Node(b"f\n")})
    else:
        git(bench, *command.split()[1:], "--", "text", "new")
        (bench.wt / "gone").unlink()
    assert paths(bench) == [b"README", b"fresh"]
    edit(bench.wt, {b"text": Node(b"theirs\n" + TEXT + b"mine\n")})
    bench.commit()
    assert bench.tip_tree()[b"text"].content == b"theirs\n" + TEXT + b"mine\n"
    assert paths(bench) == []
    assert bench.tip_tree()[b"new"].content == b"n\n"


@pytest.mark.parametrize("how", FORGETFUL)
def test_an_edit_of_an_older_file_is_in_doubt_as_the_file_is(bench: Bench, how: str) -> None:
    updated(bench)
    git(bench, "reset", "-q", "--hard", "HEAD~1")
    edit(bench.wt, {b"text": Node(TEXT + b"mine\n"), b"gone": None, b"new": Node(b"n\n")})
    forget(bench, how)
    assert_in_doubt(bench, "text")
    bench.commit(b"text")  # who names it has looked
    assert paths(bench) == []
    edit(bench.wt, {b"text": Node(TEXT)})
    assert [one.path for one in bench.propose().changes] == [b"text"]


@pytest.mark.parametrize("how", FORGETFUL)
def test_where_git_forgot_the_slot_s_own_work_lands_unnamed(bench: Bench, how: str) -> None:
    updated(bench)
    bench.elsewhere({b"src/a.py": Node(b"theirs\n")})  # which the slot has never had
    edit(bench.wt, {b"own": Node(b"1\n")})
    bench.commit()
    git(bench, "reset", "-q", "--hard", "HEAD")
    edit(bench.wt, {b"own": None, b"README": Node(b"2\n"), b"src/a.py": Node(b"mine\n")})
    forget(bench, how)
    if how == "pruned":  # it is at our commit, which nothing can prune
        assert git(bench, "rev-parse", "HEAD") == git(bench, "rev-parse", "trunk")
    assert [one.path for one in bench.propose().changes] == [b"README", b"own", b"src/a.py"]


def test_without_git_nobody_knows_what_it_was_taken_back_to_until_it_is_there_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench.elsewhere({b"text": Node(TEXT)})
    bench.tree.update()
    bench.elsewhere({b"text": Node(b"theirs\n" + TEXT)})
    bench.tree.update()
    git(bench, "reset", "-q", "--hard", "HEAD~1")
    edit(bench.wt, {b"README": Node(b"more\n")})
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert assert_in_doubt(bench, "text").startswith("git is not in PATH")
    assert [one.path for one in bench.propose().changes] == [b"README"]
    edit(bench.wt, {b"text": Node(TEXT + b"mine\n")})
    text = bench.propose().changes[1]
    assert bench.content(text.base_hash) == TEXT


@pytest.mark.parametrize("how", ["removed", "another", "orphan"])
def test_what_git_had_before_trunk_began_is_in_doubt_too(fresh_hub: Hub, how: str) -> None:
    aged(fresh_hub)
    bench = Bench(fresh_hub.root)
    assert bench.tree.changes() == ()
    git(bench, "reset", "-q", "--hard", ":/aged old")
    edit(bench.wt, {b"README": Node(b"mine\n")})
    forget(bench, how)
    assert_in_doubt(bench, "aged", "later")
    bench.close()


def changes(tree: Worktree) -> None:
    tree.changes()


@pytest.mark.faults
def test_killed_while_it_follows_git_back_the_base_is_followed_up(bench: Bench) -> None:
    updated(bench)
    git(bench, "reset", "-q", "--hard", "HEAD~1")
    assert run(bench, "back.based", changes) == -9
    edit(bench.wt, {b"README": Node(b"more\n")})
    assert paths(bench) == [b"README"]
    bench.commit()
    assert git(bench, "status", "--porcelain") == ""
    bench.tree.update()
    assert_clean(bench)
