"""What agents do in a worktree with stock fossil, git and rm: noticed, adopted, mended."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError, Refused
from hub.commits import LARGEST_BYTES, new_id
from hub.repository import Repository
from slotgc import artifact
from tests.slotgc.worktrees import Node, tree_of
from tests.swarm.benches import Bench, assert_clean, edit, git, without_git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def bench(seeded: Path) -> Iterator[Bench]:
    made = Bench(seeded)
    assert made.tree.changes() == ()
    yield made
    made.close()


def paths(bench: Bench) -> list[bytes]:
    return [one.path for one in bench.tree.changes()]


# --- fossil ----------------------------------------------------------------------------------


def test_a_stock_commit_lands_and_is_adopted(bench: Bench) -> None:
    edit(bench.wt, {b"README": Node(b"stock\n"), b"new": Node(b"n\n"), b"src/a.py": None})
    bench.fossil("addremove")
    bench.fossil("commit", "-m", "stock", "--no-warnings", "--user-override", "auth")
    edit(bench.wt, {b"src/b.py": Node(b"more\n")})
    assert paths(bench) == [b"src/b.py"]
    with Repository(bench.workspace.repository) as trunk:
        assert bench.tree.checkin == trunk.tip().hash
        assert (trunk.forks(), trunk.tip().user) == (0, "auth")
    assert git(bench, "status", "--porcelain").split() == ["M", "src/b.py"]
    bench.commit()
    assert_clean(bench)


def test_a_stock_update_that_merges_is_adopted(bench: Bench) -> None:
    text = b"".join(b"%d\n" % number for number in range(20))
    bench.elsewhere({b"text": Node(text)})
    bench.tree.update()
    edit(bench.wt, {b"text": Node(text + b"mine\n"), b"README": Node(b"mine\n")})
    tip = bench.elsewhere({b"text": Node(b"theirs\n" + text), b"src/a.py": None})
    bench.fossil("update")
    assert paths(bench) == [b"README", b"text"]
    assert bench.tree.checkin == tip
    bench.commit()
    assert_clean(bench)
    assert tree_of(bench.wt)[b"text"].content == b"theirs\n" + text + b"mine\n"


def test_a_stock_commit_to_a_branch_is_no_commit_to_trunk(bench: Bench) -> None:
    checkin = bench.tree.checkin
    edit(bench.wt, {b"README": Node(b"branched\n")})
    bench.fossil("commit", "-m", "x", "--branch", "mine", "--no-warnings")
    assert paths(bench) == [b"README"]
    assert bench.tree.checkin == checkin
    assert checkin.startswith(bench.at())
    bench.commit()
    assert_clean(bench)


def test_a_stock_checkout_of_an_old_version_becomes_the_base(bench: Bench) -> None:
    old = bench.tree.checkin
    tip = bench.elsewhere({b"README": Node(b"theirs\n")})
    bench.tree.update()
    bench.fossil("update", old[:16])
    assert paths(bench) == []
    assert bench.tree.checkin == old
    assert bench.tree.update().checkin == tip
    assert_clean(bench)


def test_what_stock_add_rm_and_mv_have_announced_is_in_the_next_commit(bench: Bench) -> None:
    edit(bench.wt, {b"new": Node(b"n\n")})
    bench.fossil("add", "new")
    bench.fossil("rm", "--hard", "README")
    bench.fossil("mv", "--hard", "src/a.py", "src/c.py")
    assert paths(bench) == [b"README", b"new", b"src/a.py", b"src/c.py"]
    bench.commit()
    assert_clean(bench)


@pytest.mark.parametrize("how", ["gone", "empty", "garbage", "link", "directory"])
def test_a_lost_check_out_is_made_anew(bench: Bench, how: str, tmp_path: Path) -> None:
    edit(bench.wt, {b"README": Node(b"first\n")})
    bench.commit()
    database = bench.wt / ".fslckout"
    database.unlink()
    other = tmp_path / "others"
    other.write_bytes(b"precious")
    match how:
        case "empty":
            database.write_bytes(b"")
        case "garbage":
            database.write_bytes(os.urandom(8192))
        case "link":
            database.symlink_to(other)
    edit(bench.wt, {b"README": Node(b"edited\n")})
    assert paths(bench) == [b"README"]
    assert bench.fossil("changes").split() == ["EDITED", "README"]
    assert other.read_bytes() == b"precious"
    bench.commit()
    assert_clean(bench)


def test_a_stock_stash_is_kept(bench: Bench) -> None:
    edit(bench.wt, {b"README": Node(b"stashed\n")})
    bench.fossil("stash", "save", "-m", "later")
    assert paths(bench) == []
    bench.elsewhere({b"src/a.py": Node(b"theirs\n")})
    bench.tree.update()
    assert "stash" in bench.work().describe()
    bench.fossil("stash", "pop")
    assert paths(bench) == [b"README"]


# --- git -------------------------------------------------------------------------------------


def test_the_user_s_repository_is_out_of_reach(bench: Bench) -> None:
    before = git_state(bench.root)
    edit(bench.wt, {b"README": Node(b"mine\n"), b"new": Node(b"n\n")})
    git(bench, "add", ".")
    git(bench, "commit", "-qam", "mine")
    git(bench, "checkout", "-q", "-b", "feature")
    git(bench, "stash", "list")
    git(bench, "reset", "--hard", "HEAD~1")
    git(bench, "clean", "-fdx")
    assert git_state(bench.root) == before


def git_state(root: Path) -> list[str]:
    return [
        subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout
        for words in (["status", "--porcelain"], ["for-each-ref"], ["log", "--format=%H"])
    ]


def test_git_clean_takes_away_nothing_that_cannot_be_mended(bench: Bench) -> None:
    edit(bench.wt, {b"junk": Node(b"j\n"), b"README": Node(b"mine\n")})
    git(bench, "clean", "-fdx")
    assert paths(bench) == [b"README"]
    assert bench.fossil("changes").split() == ["EDITED", "README"]
    bench.commit()
    assert_clean(bench)


def test_what_git_committed_is_proposed_all_the_same(bench: Bench) -> None:
    edit(bench.wt, {b"README": Node(b"mine\n"), b"new": Node(b"n\n")})
    git(bench, "add", ".")
    git(bench, "commit", "-qm", "mine")
    assert paths(bench) == [b"README", b"new"]
    landed = bench.commit()
    assert bench.tree.changes() == ()
    assert bench.tree.checkin == landed.checkin
    assert git(bench, "status", "--porcelain") == ""
    assert "mine" in git(bench, "log", "--format=%s")
    assert not bench.work().exists()  # trunk has all that git has
    edit(bench.wt, {b"README": Node(b"other\n")})
    git(bench, "commit", "-qam", "another")
    edit(bench.wt, {b"README": Node(b"mine\n"), b"src/a.py": Node(b"landed\n")})
    bench.commit()
    # What the agent committed and took back is in no place but this one.
    assert "commits or stashes of its own" in bench.work().describe()


def test_a_reset_brings_the_base_back_and_a_stash_keeps_the_rest(bench: Bench) -> None:
    edit(bench.wt, {b"README": Node(b"mine\n")})
    bench.commit()
    edit(bench.wt, {b"README": Node(b"more\n"), b"src/a.py": None})
    git(bench, "stash")
    assert paths(bench) == []
    git(bench, "stash", "pop")
    assert paths(bench) == [b"README", b"src/a.py"]
    git(bench, "reset", "-q", "--hard")
    assert paths(bench) == []
    assert tree_of(bench.wt)[b"README"].content == b"mine\n"


def test_on_a_branch_of_the_agent_s_own_ours_moves_alone(bench: Bench) -> None:
    git(bench, "checkout", "-q", "-b", "feature")
    edit(bench.wt, {b"README": Node(b"mine\n")})
    bench.commit()
    assert git(bench, "show", "trunk:README") == "mine\n"
    assert git(bench, "status", "--porcelain").split() == ["M", "README"]
    assert paths(bench) == []


@pytest.mark.parametrize("how", ["gone", "emptied", "another"])
def test_a_lost_git_repository_is_made_anew_before_git_finds_the_user_s(
    bench: Bench, how: str
) -> None:
    edit(bench.wt, {b"README": Node(b"first\n")})
    bench.commit()
    shutil.rmtree(bench.wt / ".git")
    if how == "emptied":
        (bench.wt / ".git").mkdir()
    if how == "another":
        git(bench, "init", "-q")
        edit(bench.wt, {b"new": Node(b"n\n")})
        git(bench, "add", "new")
        git(bench, "commit", "-qm", "precious")
    edit(bench.wt, {b"src/a.py": Node(b"mine\n")})
    assert b"src/a.py" in paths(bench)
    assert git(bench, "rev-parse", "--show-toplevel").strip() == str(bench.wt)
    assert git(bench, "status", "--porcelain", "src").split() == ["M", "src/a.py"]
    if how == "another":
        (aside,) = (path for path in bench.slot.iterdir() if path.name.startswith("git-"))
        log = subprocess.run(
            ["git", "log", "--format=%s"], cwd=aside, capture_output=True, check=True
        )
        assert log.stdout == b"precious\n"
        assert aside.name in bench.work().describe()
    else:
        bench.commit()
        assert_clean(bench)


def test_a_git_directory_that_leads_to_the_user_s_is_not_followed(bench: Bench) -> None:
    before = git_state(bench.root)
    shutil.rmtree(bench.wt / ".git")
    (bench.wt / ".git").symlink_to(bench.root / ".git")
    edit(bench.wt, {b"README": Node(b"mine\n")})
    bench.commit()
    bench.reopen()
    assert bench.tree.changes() == ()
    assert git(bench, "show", "HEAD:README") == "mine\n"
    assert git_state(bench.root) == before
    assert not (bench.root / ".git/objects/info/alternates").exists()
    assert not (bench.root / ".git/bones").exists()


# --- what a commit takes ---------------------------------------------------------------------


def test_what_git_ignores_is_left_out_and_refused_by_name(bench: Bench) -> None:
    edit(
        bench.wt,
        {
            b".gitignore": Node(b"*.o\nbuilt/\n"),
            b"a.o": Node(b"o"),
            b"built/x": Node(b"x"),
            b"forced.o": Node(b"f"),
            b"kept": Node(b"k"),
        },
    )
    git(bench, "add", "-f", "forced.o")
    assert paths(bench) == [b".gitignore", b"forced.o", b"kept"]
    with pytest.raises(Refused, match=r"a\.o, built/x: ignored by git"):
        bench.propose(b"a.o", b"built/x", b"kept")
    assert [one.path for one in bench.propose(b"forced.o").changes] == [b"forced.o"]
    bench.commit()
    edit(bench.wt, {b"forced.o": Node(b"changed")})
    assert paths(bench) == [b"forced.o"]


def test_a_path_names_what_is_below_it_and_what_is_gone(bench: Bench) -> None:
    edit(bench.wt, {b"src/a.py": None, b"src/new/x": Node(b"x"), b"README": Node(b"mine\n")})
    assert [one.path for one in bench.propose(b"src").changes] == [b"src/a.py", b"src/new/x"]
    assert [one.path for one in bench.propose(b"src/a.py").changes] == [b"src/a.py"]
    edit(bench.wt, {b"src/b.py": None, b"src/new/x": None})
    assert [one.path for one in bench.propose(b"src").changes] == [b"src/a.py", b"src/b.py"]
    assert len(bench.propose(b".").changes) == 3


def test_a_file_in_a_directory_s_place_takes_the_directory_along(bench: Bench) -> None:
    edit(bench.wt, {b"src/a.py": None, b"src/b.py": None, b"src": Node(b"file\n")})
    assert [one.path for one in bench.propose(b"src").changes] == [
        b"src",
        b"src/a.py",
        b"src/b.py",
    ]
    edit(bench.wt, {b"README": None, b"README/x": Node(b"x")})
    assert [one.path for one in bench.propose(b"README/x").changes] == [b"README", b"README/x"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"no-such", "no-such-path"),
        (b"../README", "no-such-path"),
        (b"/etc/passwd", "no-such-path"),
        (b".git/config", "no-such-path"),
        (b"sub/.fslckout", "unfit-name"),
        (b".bones/x", "unfit-name"),
        (b"socket", "not-a-file"),
        (b"nested/file", "nested-repository"),
        (b"huge", "too-large"),
    ],
)
def test_what_cannot_be_on_trunk_is_refused_by_name(bench: Bench, path: bytes, reason: str) -> None:
    awkward(bench)
    with pytest.raises(Refused) as caught:
        bench.propose(path)
    assert caught.value.reason == reason
    assert path.decode() in str(caught.value)


def awkward(bench: Bench) -> None:
    edit(
        bench.wt,
        {
            b"sub/.fslckout": Node(b"x"),
            b".bones/x": Node(b"x"),
            b"nested/file": Node(b"x"),
        },
    )
    git(bench, "init", "-q", "nested")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(bench.wt, os.O_PATH)
        sock.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    with (bench.wt / "huge").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)


def test_a_commit_of_everything_says_what_it_leaves_out(bench: Bench) -> None:
    awkward(bench)
    (bench.wt / "huge").unlink()
    edit(bench.wt, {b"fine": Node(b"x")})
    assert [one.path for one in bench.propose().changes] == [b"fine"]
    left = {one.path: one.reason for one in bench.tree.skipped}
    assert set(left) == {b".bones/x", b"sub/.fslckout", b"nested", b"socket"}
    bench.land(bench.propose())


def test_a_file_that_cannot_be_read_holds_up_nothing_but_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(bench.wt, {b"secret": Node(b"s"), b"README": Node(b"s"), b"fine": Node(b"x")})
    real = artifact.open_regular

    def closed(path: bytes | str, *, dir_fd: int | None = None) -> int:
        if os.path.basename(os.fsencode(path)) in (b"secret", b"README"):
            raise PermissionError(13, "Permission denied")  # root would not be denied it
        return real(path, dir_fd=dir_fd)

    monkeypatch.setattr(artifact, "open_regular", closed)
    assert [one.path for one in bench.propose().changes] == [b"fine"]
    assert {one.path for one in bench.tree.skipped} == {b"secret", b"README"}
    with pytest.raises(Refused, match="secret cannot be read: Permission denied"):
        bench.propose(b"secret", b"fine")


def test_there_is_nothing_to_commit_where_nothing_differs(bench: Bench) -> None:
    os.utime(bench.wt / "README")
    for words in ((), (b"README",), (b"src",)):
        with pytest.raises(Refused) as caught:
            bench.propose(*words)
        assert caught.value.reason == "nothing-to-commit"


def test_large_contents_go_through_the_spool_and_known_ones_do_not_travel(bench: Bench) -> None:
    large, small = os.urandom(700_000), os.urandom(100_000)
    edit(
        bench.wt,
        {
            b"large": Node(large),
            b"again": Node(large),
            b"small": Node(small),
            b"moved": Node(b"hello\n"),
            b"README": None,
        },
    )
    proposal = bench.propose()
    by_path = {one.path: one.hash for one in proposal.changes}
    assert proposal.spooled == (by_path[b"large"],)
    assert set(proposal.contents) == {by_path[b"small"]}
    assert os.listdir(bench.workspace.spool) == [by_path[b"large"]]
    bench.tree.landed(proposal, bench.land(proposal))
    assert_clean(bench)


def test_a_file_that_is_written_all_the_time_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(bench.wt, {b"log": Node(b"")})
    real = os.read

    def read(fd: int, count: int) -> bytes:
        with (bench.wt / "log").open("ab") as file:
            file.write(b"more\n")
        return real(fd, count)

    monkeypatch.setattr("swarm.worktree.reading.os.read", read)
    with pytest.raises(HubError) as caught:
        bench.propose(b"log")
    monkeypatch.undo()
    assert caught.value.reason == "being-written"
    assert "log" in str(caught.value)


def test_a_proposal_of_a_leaf_that_died_can_be_told_to_have_landed(bench: Bench) -> None:
    edit(bench.wt, {b"README": Node(b"mine\n"), b"src/a.py": None})
    proposal = bench.propose()
    landed = bench.land(proposal)
    bench.reopen().landed(proposal, landed)
    assert bench.tree.changes() == ()
    assert_clean(bench)


def test_a_workspace_that_was_moved_is_taken_up_in_its_new_place(
    bench: Bench, tmp_path: Path
) -> None:
    edit(bench.wt, {b"README": Node(b"mine\n")})
    bench.commit()
    edit(bench.wt, {b"src/a.py": Node(b"more\n")})
    bench.close()
    moved = tmp_path / "moved"
    bench.root.rename(moved)
    there = Bench(moved)
    assert [one.path for one in there.tree.changes()] == [b"src/a.py"]
    assert there.fossil("changes").split() == ["EDITED", "src/a.py"]
    assert git(there, "status", "--porcelain").split() == ["M", "src/a.py"]
    there.commit()
    assert_clean(there)
    there.close()
    moved.rename(bench.root)
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()
    assert new_id()
