"""Updating a worktree in which somebody works: nothing of theirs is lost, nothing of trunk's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Refused, Unavailable
from hub.commits import Conflicted
from tests.slotgc.worktrees import Node, tree_of
from tests.swarm.benches import Bench, assert_clean, edit, git, without_git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.swarm.benches import Edits

TEXT = b"".join(b"line %d\n" % number for number in range(20))


@pytest.fixture
def bench(seeded: Path) -> Iterator[Bench]:
    made = Bench(seeded)
    made.elsewhere({b"text": Node(TEXT), b"binary": Node(b"\0\1\2"), b"gone": Node(b"here\n")})
    assert made.tree.changes() == ()
    yield made
    made.close()


def paths(bench: Bench) -> list[bytes]:
    return [one.path for one in bench.tree.changes()]


def test_what_was_changed_here_stays_changed(bench: Bench) -> None:
    tip = bench.elsewhere({b"README": Node(b"theirs\n"), b"new": Node(b"n\n"), b"gone": None})
    edit(bench.wt, {b"src/a.py": Node(b"mine\n"), b"untracked": Node(b"u\n"), b"src/b.py": None})
    before = bench.tree.changes()
    done = bench.tree.update()
    assert (done.checkin, done.files) == (tip, 3)
    assert bench.tree.changes() == before
    wanted = bench.tip_tree() | {b"src/a.py": Node(b"mine\n"), b"untracked": Node(b"u\n")}
    del wanted[b"src/b.py"]
    assert without_git(tree_of(bench.wt)) == wanted
    assert bench.fossil("changes").split() == ["EDITED", "src/a.py", "MISSING", "src/b.py"]
    assert git(bench, "status", "--porcelain").split() == [
        *("M", "src/a.py"),
        *("D", "src/b.py"),
        *("??", "untracked"),
    ]
    landed = bench.commit()
    assert landed.parent == tip
    assert_clean(bench)


def test_what_both_changed_apart_is_merged_and_stays_a_change(bench: Bench) -> None:
    bench.elsewhere({b"text": Node(TEXT.replace(b"line 2\n", b"theirs\n"))})
    edit(bench.wt, {b"text": Node(TEXT.replace(b"line 15\n", b"mine\n"), 0o755)})
    done = bench.tree.update()
    assert (done.merged, done.files) == ((b"text",), 0)
    assert tree_of(bench.wt)[b"text"] == Node(
        TEXT.replace(b"line 15\n", b"mine\n").replace(b"line 2\n", b"theirs\n"), 0o755
    )
    assert paths(bench) == [b"text"]
    assert "+mine" in bench.fossil("diff")
    assert "theirs" not in bench.fossil("diff", "-c", "0")
    bench.commit()
    assert_clean(bench)


CONFLICTS = {
    "same lines": (Node(TEXT + b"mine\n"), Node(TEXT + b"theirs\n"), "both changed the same lines"),
    "changed, deleted": (Node(b"mine\n"), None, "changed here, deleted there"),
    "deleted, changed": (None, Node(b"theirs\n"), "deleted here, changed there"),
    "a link": (Node(b"README", 0), Node(b"theirs\n"), "both changed what it is"),
}


@pytest.mark.parametrize("kind", CONFLICTS)
def test_what_does_not_go_together_is_named_and_nothing_is_touched(bench: Bench, kind: str) -> None:
    mine, theirs, reason = CONFLICTS[kind]
    edit(bench.wt, {b"text": mine})
    theirs_checkin = bench.elsewhere({b"text": theirs, b"README": Node(b"theirs\n")}, "carol")
    before, changes = tree_of(bench.wt), bench.tree.changes()
    with pytest.raises(Conflicted) as caught:
        bench.tree.update()
    (conflict,) = caught.value.conflicts
    assert (conflict.path, conflict.reason) == (b"text", reason)
    assert (conflict.theirs_checkin, conflict.theirs_slot) == (theirs_checkin, "carol")
    assert tree_of(bench.wt) == before
    assert bench.tree.changes() == changes


def test_markers_show_both_and_the_rest_is_brought_along(bench: Bench) -> None:
    edit(
        bench.wt,
        {
            b"text": Node(b"mine\n" + TEXT),
            b"binary": Node(b"\0mine"),
            b"gone": None,
            b"src/a.py": Node(b"mine\n"),
        },
    )
    tip = bench.elsewhere(
        {
            b"text": Node(b"theirs\n" + TEXT),
            b"binary": Node(b"\0theirs"),
            b"gone": Node(b"changed\n"),
            b"src/a.py": None,
            b"README": Node(b"new\n"),
        }
    )
    done = bench.tree.update(markers=True)
    assert (done.checkin, done.files) == (tip, 1)
    assert set(done.conflicted) == {b"text", b"binary", b"gone", b"src/a.py"}
    tree = tree_of(bench.wt)
    assert tree[b"text"].content == (
        b"<<<<<<< auth\nmine\n=======\ntheirs\n>>>>>>> trunk %s\n" % tip[:10].encode() + TEXT
    )
    assert tree[b"binary"].content == b"\0mine"
    assert tree[b"gone"].content == b"changed\n"
    assert tree[b"src/a.py"].content == b"mine\n"
    assert tree[b"README"].content == b"new\n"
    assert paths(bench) == [b"binary", b"src/a.py", b"text"]
    with pytest.raises(Refused, match="text: conflict markers are left") as caught:
        bench.propose()
    assert caught.value.reason == "unresolved"
    # What only looks like the markers of an update, as in a text about them, is none.
    edit(bench.wt, {b"text": Node(b"<<<<<<< HEAD\nmine and theirs\n" + TEXT)})
    bench.commit()
    assert_clean(bench)
    assert bench.tree.base.marked == {}


@pytest.mark.parametrize("markers", [False, True])
def test_what_nobody_committed_is_never_overwritten(bench: Bench, markers: bool) -> None:
    bench.elsewhere({b".gitignore": Node(b"*.o\nbuilt/\n")})
    bench.tree.update()
    mine = {
        b"x.o": Node(b"built\n"),
        b"built/deep": Node(b"built\n"),
        b"as-dir/inside": Node(b"mine\n"),
        b"as-file": Node(b"mine\n"),
    }
    edit(bench.wt, dict(mine))
    bench.elsewhere(
        {
            b"x.o": Node(b"theirs\n"),
            b"built/deep": Node(b"theirs\n"),
            b"as-dir": Node(b"theirs\n"),
            b"as-file/inside": Node(b"theirs\n"),
        }
    )
    before = tree_of(bench.wt)
    with pytest.raises(Refused) as caught:
        bench.tree.update(markers=markers)
    assert caught.value.reason == "in-the-way"
    for name in ("x.o", "built/deep", "as-dir", "as-file"):
        assert name in str(caught.value)
    assert str(caught.value).endswith("move it away, then update again")
    assert tree_of(bench.wt) == before


def test_of_what_git_ignores_nobody_is_told_that_it_can_be_merged(bench: Bench) -> None:
    bench.elsewhere({b".gitignore": Node(b"*.o\n")})
    bench.tree.update()
    edit(bench.wt, {b"x.o": Node(b"built\n")})
    bench.elsewhere({b"x.o": Node(b"theirs\n")})
    with pytest.raises(Refused, match=r"move it away, then update again$"):
        bench.tree.update()
    (bench.wt / "x.o").rename(bench.root.parent / "x.o")
    bench.tree.update()
    assert (bench.wt / "x.o").read_bytes() == b"theirs\n"


def test_what_both_added_is_in_the_way_until_markers_are_asked_for(bench: Bench) -> None:
    edit(bench.wt, {b"new": Node(b"mine\n"), b"same": Node(b"same\n")})
    bench.elsewhere({b"new": Node(b"theirs\n"), b"same": Node(b"same\n")})
    with pytest.raises(Refused, match=r"new: trunk has a file there.*`--markers` merges it"):
        bench.tree.update()
    done = bench.tree.update(markers=True)
    assert done.conflicted == (b"new",)
    assert b"mine\n=======\ntheirs\n" in (bench.wt / "new").read_bytes()
    assert paths(bench) == [b"new"]


def test_a_directory_that_trunk_empties_may_become_a_file(bench: Bench) -> None:
    bench.elsewhere({b"src/a.py": None, b"src/b.py": None, b"src": Node(b"file\n")})
    bench.tree.update()
    assert tree_of(bench.wt)[b"src"] == Node(b"file\n")
    bench.elsewhere({b"src": None, b"src/a.py": Node(b"back\n")})
    bench.tree.update()
    assert_clean(bench)


def test_no_link_leads_an_update_out_of_the_worktree(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.py").write_text("print(1)\n")
    edit(bench.wt, {b"src/a.py": None, b"src/b.py": None})
    (bench.wt / "src").symlink_to(outside) if not (bench.wt / "src").exists() else None
    bench.elsewhere({b"src/a.py": Node(b"theirs\n"), b"src/new": Node(b"theirs\n")})
    with pytest.raises((Refused, Conflicted)):
        bench.tree.update()
    with pytest.raises((Refused, Conflicted)):
        bench.tree.update(markers=True)
    assert os.listdir(outside) == ["a.py"]
    assert (outside / "a.py").read_text() == "print(1)\n"


def test_a_file_that_is_changed_in_the_last_moment_is_not_overwritten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.elsewhere({b"README": Node(b"theirs\n"), b"new": Node(b"theirs\n")})

    def at_once(point: str) -> None:
        if point == "place.written":
            edit(bench.wt, {b"README": Node(b"mine!\n"), b"new": Node(b"mine!\n")})

    monkeypatch.setattr("swarm.worktree.placing.hit", at_once)
    with pytest.raises(Unavailable) as caught:
        bench.tree.update()
    assert caught.value.reason == "changed-meanwhile"
    assert (bench.wt / "README").read_bytes() == b"mine!\n"
    assert (bench.wt / "new").read_bytes() == b"mine!\n"
    assert set(paths(bench)) == {b"README", b"new"}


def test_commits_of_a_worktree_that_is_behind_leave_others_files_alone(bench: Bench) -> None:
    start = bench.tree.checkin
    bench.elsewhere({b"README": Node(b"theirs\n")})
    edit(bench.wt, {b"src/a.py": Node(b"mine\n"), b"added": Node(b"a\n"), b"gone": None})
    landed = bench.commit()
    assert landed.checkin != landed.parent != start == bench.tree.checkin
    assert (bench.wt / "README").read_bytes() == b"hello\n"
    assert_clean(bench)
    bench.reopen()
    assert_clean(bench)
    done = bench.tree.update()
    assert (done.checkin, done.files) == (landed.checkin, 1)
    assert_clean(bench)
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()


def test_stock_fossil_updates_a_worktree_that_has_committed_while_it_was_behind(
    bench: Bench,
) -> None:
    bench.elsewhere({b"README": Node(b"theirs\n")})
    edit(bench.wt, {b"src/a.py": Node(b"mine\n"), b"gone": None})
    landed = bench.commit()
    edit(bench.wt, {b"src/b.py": Node(b"more\n")})
    bench.fossil("update")
    assert paths(bench) == [b"src/b.py"]
    assert bench.tree.checkin == landed.checkin
    edit(bench.wt, {b"src/b.py": Node(b"print(2)\n")})
    assert_clean(bench)
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()


def test_what_trunk_merged_into_a_commit_is_brought_in(bench: Bench) -> None:
    theirs = TEXT.replace(b"line 2\n", b"theirs\n")
    mine = TEXT.replace(b"line 15\n", b"mine\n")
    both = mine.replace(b"line 2\n", b"theirs\n")
    bench.elsewhere({b"text": Node(theirs)})
    edit(bench.wt, {b"text": Node(mine), b"README": Node(b"mine\n")})
    proposal = bench.propose()
    landed = bench.land(proposal, merged={b"text": Node(both)})
    bench.tree.landed(proposal, landed)
    assert (bench.wt / "text").read_bytes() == both
    assert_clean(bench)


def test_what_was_edited_while_trunk_merged_it_stays_as_it_is(bench: Bench) -> None:
    theirs = TEXT.replace(b"line 2\n", b"theirs\n")
    mine = TEXT.replace(b"line 15\n", b"mine\n")
    both = mine.replace(b"line 2\n", b"theirs\n")
    bench.elsewhere({b"text": Node(theirs)})
    edit(bench.wt, {b"text": Node(mine)})
    proposal = bench.propose()
    landed = bench.land(proposal, merged={b"text": Node(both)})
    edit(bench.wt, {b"text": Node(mine + b"more\n")})
    bench.tree.landed(proposal, landed)
    assert (bench.wt / "text").read_bytes() == mine + b"more\n"
    (change,) = bench.tree.changes()
    assert bench.content(change.base_hash) == TEXT
    assert bench.tree.update().merged == (b"text",)
    assert (bench.wt / "text").read_bytes() == both + b"more\n"


def test_a_mode_that_was_changed_here_alone_stays_a_change(bench: Bench) -> None:
    edit(bench.wt, {b"text": Node(TEXT, 0o755)})
    bench.elsewhere({b"text": Node(b"theirs\n" + TEXT)})
    bench.tree.update()
    assert tree_of(bench.wt)[b"text"] == Node(b"theirs\n" + TEXT, 0o755)
    assert [(one.path, one.kind) for one in bench.tree.changes()] == [(b"text", "exec")]
    bench.elsewhere({b"text": Node(b"more\n" + TEXT)})
    bench.tree.update()
    assert tree_of(bench.wt)[b"text"] == Node(b"more\n" + TEXT, 0o755)
    bench.commit()
    assert_clean(bench)


FILE_TO_DIRECTORY: list[Edits] = [{b"both": None}, {b"both/in": Node(b"theirs\n")}]
DIRECTORY_TO_FILE: list[Edits] = [{b"src/a.py": None, b"src/b.py": None}, {b"src": Node(b"f\n")}]
BLOCKED: dict[str, tuple[Edits, list[Edits], str]] = {
    "changed file, directory": (
        {b"both": Node(b"mine\n")},
        FILE_TO_DIRECTORY,
        "both: trunk has a directory there, with both/in",
    ),
    "file made a link, directory": (
        {b"both": Node(b"README", 0)},
        FILE_TO_DIRECTORY,
        "both: trunk has a directory there, with both/in",
    ),
    "changed file in a directory, file": (
        {b"src/a.py": Node(b"mine\n")},
        DIRECTORY_TO_FILE,
        "src: trunk has a file there, the slot src/a.py",
    ),
    "link in a directory, file": (
        {b"src/link": Node(b"..", 0)},
        DIRECTORY_TO_FILE,
        "src: trunk has a file there, the slot src/link",
    ),
}


@pytest.mark.parametrize("markers", [False, True])
@pytest.mark.parametrize("what", BLOCKED)
def test_what_would_be_file_and_directory_at_once_is_refused_before_anything_is_touched(
    bench: Bench, what: str, markers: bool
) -> None:
    mine, theirs, words = BLOCKED[what]
    bench.elsewhere({b"both": Node(b"a file\n")})
    bench.tree.update()
    edit(bench.wt, dict(mine))
    bench.elsewhere({b"README": Node(b"theirs\n"), b"gone": None})
    for edits in theirs:
        bench.elsewhere(dict(edits))
    before, changes = tree_of(bench.wt), bench.tree.changes()
    with pytest.raises(Refused) as caught:
        bench.tree.update(markers=markers)
    assert caught.value.reason == "in-the-way"
    assert words in str(caught.value)
    assert tree_of(bench.wt) == before
    assert bench.tree.changes() == changes
    (path,) = mine
    (bench.wt / os.fsdecode(path)).rename(bench.root.parent / "aside")  # the way out
    bench.tree.update(markers=markers)
    assert_clean(bench)


def test_empty_directories_are_in_nobody_s_way(bench: Bench) -> None:
    (bench.wt / "src/empty/deep").mkdir(parents=True)
    (bench.wt / "fresh/deep").mkdir(parents=True)
    for edits in DIRECTORY_TO_FILE:
        bench.elsewhere(dict(edits))
    bench.elsewhere({b"fresh": Node(b"f\n")})
    bench.tree.update()
    assert_clean(bench)
