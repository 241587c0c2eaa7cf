"""What an agent's git is taken back to: the slot's own work lands, that of others is not undone."""

from __future__ import annotations

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


def test_before_trunk_began_nothing_is_taken_back_unless_it_is_named(fresh_hub: Hub) -> None:
    for content in ("old\n", "new\n"):
        (fresh_hub.root / "aged").write_text(content)
        for words in (["add", "aged"], ["commit", "-qm", f"aged {content}"]):
            subprocess.run(
                ["git", "-c", "user.name=u", "-c", "user.email=u@x", *words],
                cwd=fresh_hub.root,
                check=True,
            )
    fresh_hub.start()
    fresh_hub.stop()
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
