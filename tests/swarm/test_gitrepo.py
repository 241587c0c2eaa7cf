"""A slot's git repository says what is, whatever is recorded in it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from foundation.errors import Corrupt, Refused
from swarm.gitrepo.repo import File, GitRepo
from tests.hub.gitrepo import EXECUTABLE, FILE, LINK, ODD_NAMES, Tree
from tests.swarm.agentgit import Slot, user_repository

TREE: Tree = {
    b"README": (FILE, b"read me\n"),
    b"run.sh": (EXECUTABLE, b"#!/bin/sh\n"),
    b"link": (LINK, b"README"),
    b"empty": (FILE, b""),
    b"src/a.py": (FILE, b"a = 1\n"),
    b"src/a/b.py": (FILE, b"b = 1\n"),
    b"src/a-b.py": (FILE, b"ab = 1\n"),
    b"src/a.d/c.py": (FILE, b"c = 1\n"),
}


ATTRIBUTES = b"""\
* text=auto eol=crlf
*.bin filter=lfs diff=lfs merge=lfs -text
*.id ident
*.u16 text working-tree-encoding=UTF-16
"""


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(user_repository(tmp_path))


@pytest.fixture
def repo(slot: Slot) -> GitRepo:
    return slot.check_out(TREE)


def test_a_new_repository_is_at_the_users_commit_with_nothing_to_tell(slot: Slot) -> None:
    repo = slot.check_out(TREE)
    before = slot.user.snapshot()
    assert slot.head() == repo.head() == slot.user.git("rev-parse", "HEAD").decode()
    assert slot.git("branch", "--show-current") == b"trunk\n"
    assert b"record" not in slot.git("log")
    slot.assert_true()
    slot.assert_sound()
    assert slot.user.snapshot() == before


@pytest.mark.parametrize(
    "change",
    [
        {b"README": (FILE, b"changed\n")},
        {b"README": (EXECUTABLE, b"read me\n"), b"run.sh": (FILE, b"#!/bin/sh\n")},
        {b"README": (LINK, b"run.sh"), b"link": (FILE, b"now a file\n")},
        {b"new/in/deep/place": (FILE, b"x"), b"empty2": (FILE, b"")},
        {b"binary": (FILE, bytes(range(256)) * 40), b"README": (FILE, b"no newline")},
        {b"big": (FILE, os.urandom(9 << 20)), b"many": (FILE, b"lines\n" * 100_000)},
        {b"README": None},
        {b"src/a/b.py": None, b"src/a.d/c.py": None},
        {b"src/a.py": None, b"src/renamed.py": (FILE, b"a = 1\n")},
        {b"src/a/b.py": None, b"src/a": (FILE, b"was a directory\n")},
        {b"src": (LINK, b"README")},
        {b"README/inside": (FILE, b"was a file\n"), b"README/more/inside": (FILE, b"x\n")},
        {name: (FILE, name) for name in ODD_NAMES},
        dict.fromkeys(TREE),
    ],
    ids=lambda change: os.fsdecode(next(iter(change))),
)
def test_a_record_of(slot: Slot, repo: GitRepo, change: dict[bytes, tuple[bytes, bytes]]) -> None:
    for path, new in change.items():
        if new is None:
            slot.remove(path)
        else:
            slot.write(path, new[1], new[0])
    done = slot.record(repo)
    assert done.why == ""
    assert done.commit == slot.head()
    slot.assert_true()
    slot.assert_sound()


def test_a_record_is_a_commit_with_author_message_and_time(slot: Slot, repo: GitRepo) -> None:
    first = slot.head()
    slot.edit(b"README", b"more\n")
    slot.record(repo, "Say more\n\nBecause: <ünïcödé> \udcff\n")
    form = "--format=%an|%ae|%at|%cn|%P|%B"
    said = slot.git("log", "-1", form).decode().strip()
    assert said == (
        f"auth|auth@slot.invalid|1700000001|auth|{first}|Say more\n\nBecause: <ünïcödé> \\udcff"
    )
    assert slot.git("reflog", "-1", "--format=%gd %gs %gn") == (b"HEAD@{0} commit: Say more auth\n")
    assert slot.git("reflog", "trunk", "--format=%gs") == b"commit: Say more\n"
    assert slot.git("rev-parse", "trunk@{1}", "HEAD~1").split() == [first.encode()] * 2


def test_a_repository_without_commits_gets_its_first(slot: Slot) -> None:
    repo = slot.make("")
    assert slot.status() == b""
    assert repo.head() == ""
    slot.write(b"first", b"1\n")
    slot.record(repo)
    slot.assert_true()
    slot.assert_sound()
    assert slot.git("log", "--format=%P") == b"\n"


def test_records_go_on_after_the_repository_is_opened_anew(slot: Slot, repo: GitRepo) -> None:
    slot.edit(b"src/a/b.py", b"b = 2\n")
    assert slot.record(repo, mark="first").commit
    again = GitRepo(str(slot.wt), "auth")
    assert again.mark == "first"
    slot.write(b"src/a/new.py", b"new\n")
    slot.edit(b"README", b"second\n")
    slot.record(again, mark="second")
    slot.assert_true()
    slot.assert_sound()
    assert GitRepo(str(slot.wt), "auth").mark == "second"


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_objects_are_named_as_the_users_are(tmp_path: Path, object_format: str) -> None:
    user = user_repository(tmp_path, options=(f"--object-format={object_format}",))
    slot = Slot(user)
    repo = slot.check_out(TREE, object_format=object_format)
    slot.edit(b"src/a.py", b"a = 2\n")
    slot.record(repo)
    again = GitRepo(str(slot.wt), "auth")
    slot.write(b"src/b.py", b"b = 2\n")
    slot.record(again)
    slot.assert_true()
    slot.assert_sound()


def test_an_unknown_object_format_is_refused_by_name(slot: Slot) -> None:
    with pytest.raises(Refused, match="md5") as refused:
        slot.make("", object_format="md5")
    assert refused.value.reason == "git-object-format"


def test_what_is_not_in_the_worktree_is_not_missed(slot: Slot) -> None:
    """Submodules, and what seeding leaves out."""
    tree = TREE | {b"sub/module": (b"160000", b"1" * 40), b"left/out": (FILE, b"big")}
    head = slot.user.commit_tree(tree, check_out=False)
    for path, (mode, content) in TREE.items():
        slot.write(path, content, mode)
    repo = slot.make(head)
    assert slot.status() == b""
    slot.edit(b"README", b"changed\n")
    assert slot.record(repo).why == ""
    assert slot.status() == b""
    slot.edit(b"README", b"changed by the agent\n")
    slot.git("commit", "--all", "--message", "the agent's")
    assert slot.git("diff", "--name-only", f"{head}..HEAD") == b"README\n"
    slot.edit(b"README", b"stashed\n")
    for act in (
        ("stash",),
        ("checkout", "-b", "other", head),
        ("checkout", "trunk"),
        ("stash", "pop"),
        ("reset", "--hard"),
    ):
        slot.git(*act)
        assert slot.tree().keys() == TREE.keys(), act
    assert slot.status() == b""


def test_a_shallow_clone_of_the_users_is_enough(tmp_path: Path, slot: Slot) -> None:
    slot.user.commit({"a": "1"})
    slot.user.commit({"a": "2"})
    clone = tmp_path / "shallow" / "user"
    clone.parent.mkdir()
    slot.user.git("clone", "--quiet", "--depth=1", f"file://{slot.user.root}", str(clone))
    other = Slot(user_repository(clone.parent))
    other.write(b"a", b"2")
    repo = other.make(other.user.git("rev-parse", "HEAD").decode())
    other.edit(b"a", b"3")
    other.record(repo)
    other.assert_true()
    other.assert_sound()
    assert other.git("log", "--format=%s") == b"record 1\na commit\n"


def test_the_users_path_may_be_as_odd_as_it_likes(tmp_path: Path) -> None:
    place = tmp_path / 'new\nline "quoted" \\ : # \udced'
    place.mkdir()
    slot = Slot(user_repository(place))
    repo = slot.check_out(TREE)
    slot.edit(b"src/a/b.py", b"b = 2\n")
    slot.record(GitRepo(str(slot.wt), repo.name))
    slot.assert_true()
    slot.assert_sound()


def test_objects_are_read_from_packs_of_the_user(slot: Slot) -> None:
    tree = {b"d%d/f%d" % (one, two): (FILE, b"") for one in range(5) for two in range(40)}
    for turn in range(20):  # a file of each directory at a time: deltas of deltas of trees
        tree |= {b"d%d/f%d" % (one, turn): (FILE, b"%d\n" % one) for one in range(5)}
        slot.user.commit_tree(tree, check_out=False)
    slot.user.git("gc", "--quiet", "--aggressive", "--prune=now")
    assert b"chain length" in slot.user.git("verify-pack", "-v", *_packs(slot))
    repo = slot.check_out(tree)
    for one in range(5):
        slot.edit(b"d%d/f%d" % (one, one), b"changed\n")
        slot.record(repo)
    slot.assert_true()
    slot.assert_sound()


def _packs(slot: Slot) -> list[str]:
    return [str(one) for one in (slot.user.root / ".git/objects/pack").glob("*.idx")]


def test_no_attribute_of_the_users_makes_a_file_look_changed(slot: Slot) -> None:
    slot.user.git("config", "--global", "filter.lfs.clean", "false")
    slot.user.git("config", "--global", "filter.lfs.smudge", "false")
    slot.user.git("config", "--global", "filter.lfs.required", "true")
    slot.user.git("config", "--global", "core.autocrlf", "true")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    tree: Tree = {
        b".gitattributes": (FILE, ATTRIBUTES),
        b"unix.txt": (FILE, b"a\nb\n"),
        b"dos.txt": (FILE, b"a\r\nb\r\n"),
        b"mixed.txt": (FILE, b"a\r\nb\n"),
        b"large.bin": (FILE, pointer),
        b"one.id": (FILE, b"$Id$\n"),
        b"text.u16": (FILE, b"utf-8\n"),
    }
    repo = slot.check_out(tree)
    slot.assert_true()
    for path, (_mode, content) in tree.items():
        slot.edit(path, content.replace(b"a", b"A").replace(b"size 5", b"size 6") + b"# \r\n")
    slot.record(repo)
    _look_at_contents(slot)
    slot.assert_true()
    slot.git("rm", "-r", "--quiet", "--", ":/")
    slot.git("reset", "--hard", "--quiet")
    assert slot.tree() == slot.base
    slot.assert_true()


def _look_at_contents(slot: Slot) -> None:
    """Let git have nothing to go by but the contents."""
    for path in slot.base:
        os.utime(os.path.join(slot.top, path), (1, 1))


def test_the_users_ignore_rules_count_and_fossils_files_are_nobodys(slot: Slot) -> None:
    slot.user.git("config", "core.bare", "false")
    (slot.user.root / ".git/info/exclude").write_text("scratch-*")
    slot.check_out(TREE)
    for name in (b"scratch-1", b".fslckout", b".fslckout-journal", b"_FOSSIL_", b"_FOSSIL_-wal"):
        slot.write(name, b"x")
    assert slot.status() == b""
    slot.write(b"sub/.fslckout", b"x")
    assert slot.status() == b"?? sub/\n"


def test_a_copy_belongs_to_another_slot_and_is_as_exact(slot: Slot) -> None:
    tree = TREE | {b"one": (FILE, b"1111"), b"two": (FILE, b"2222")}
    template = slot.check_out(tree)
    slot.edit(b"README", b"of the template\n")
    slot.record(template)
    other = Slot(slot.user, "billing")
    other.wt.rmdir()
    shutil.copytree(slot.wt, other.wt, symlinks=True)
    same = time.time_ns() - 5_000_000_000
    for name in ("one", "two"):
        os.utime(other.wt / name, ns=(same, same))
    other.base = other.tree()
    repo = GitRepo.adopt(str(other.wt), "billing", stamps=other.stamps())
    assert other.status() == b""
    # As many bytes, as old: only the inodes tell.
    os.rename(other.wt / "one", other.wt / "kept")
    os.rename(other.wt / "two", other.wt / "one")
    os.rename(other.wt / "kept", other.wt / "two")
    assert other.status() == b" M one\n M two\n"
    other.record(repo)
    other.assert_true()
    other.assert_sound()
    assert other.git("log", "--format=%an", "-2") == b"billing\nauth\n"
    slot.assert_true()
    slot.edit(b"README", b"the template goes on\n")
    slot.record(template)
    slot.assert_true()
    other.assert_true()


def test_a_copy_without_its_stamps_needs_no_look_at_the_files(slot: Slot) -> None:
    head = slot.user.commit_tree(TREE, check_out=False)
    for path, (mode, content) in TREE.items():
        slot.write(path, content, mode)
        os.utime(os.path.join(slot.top, path), (1000, 1000), follow_symlinks=False)
    slot.make(head)
    other = Slot(slot.user, "billing")
    other.wt.rmdir()
    shutil.copytree(slot.wt, other.wt, symlinks=True)
    GitRepo.adopt(str(other.wt), "billing")
    before = (other.wt / ".git/index").read_bytes()
    assert other.status() == b""
    assert (other.wt / ".git/index").read_bytes() == before


@pytest.mark.parametrize("name", [b".GIT/config", b"a/.git/hooks/x", b"git~1", b"a/.git ."])
def test_what_git_would_take_for_a_repository_is_left_out(
    slot: Slot, repo: GitRepo, name: bytes
) -> None:
    slot.edit(b"README", b"changed\n")
    done = repo.record(
        {name: File("file", b"x"), b"README": File("file", b"changed\n")}, "m", time_s=1
    )
    assert done.commit == slot.head()
    assert b"README" in slot.git("log", "-1", "--stat")
    slot.assert_sound()
    assert slot.status() == b""


@pytest.mark.parametrize("how", ["link", "file", "gone", "anew", "objects", "refs/heads"])
def test_nothing_is_written_where_the_repository_is_not_ours_any_more(slot: Slot, how: str) -> None:
    repo = slot.check_out(TREE)
    slot.edit(b"README", b"once\n")
    slot.record(repo)
    theirs = slot.user.root / ".git"
    if (slot.wt / ".git" / how).is_dir():
        os.rename(slot.wt / ".git" / how, slot.wt / ".git/former")
        (slot.wt / ".git" / how).symlink_to(theirs / how)
    else:
        shutil.rmtree(slot.wt / ".git")
    if how == "link":
        (slot.wt / ".git").symlink_to(theirs)
    elif how == "file":
        (slot.wt / ".git").write_text(f"gitdir: {theirs}\n")
    elif how == "anew":
        slot.git("init", "--quiet")
    before = slot.user.snapshot()
    slot.edit(b"README", b"changed\n")
    with pytest.raises(Corrupt) as corrupt:
        slot.record(repo)
    assert corrupt.value.reason == "git-gone"
    assert slot.user.snapshot() == before


def test_a_repository_is_not_made_over_another(slot: Slot, repo: GitRepo) -> None:
    with pytest.raises(Refused) as refused:
        slot.make(repo.head())
    assert refused.value.reason == "git-exists"
    slot.assert_true()


@pytest.mark.faults
def test_a_making_that_is_killed_is_begun_anew(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_FAILPOINT", "gitrepo.made")
    pid = os.fork()
    if pid == 0:
        slot.check_out(TREE)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    monkeypatch.delenv("HUB_FAILPOINT")
    repo = slot.check_out(TREE)
    slot.edit(b"README", b"changed\n")
    slot.record(repo)
    slot.assert_true()
    slot.assert_sound()


def test_a_missing_object_is_named(slot: Slot) -> None:
    repo = slot.check_out(TREE)
    shutil.rmtree(slot.user.root / ".git/objects/pack", ignore_errors=True)
    shutil.rmtree(slot.user.root / ".git/objects")
    slot.edit(b"README", b"changed\n")
    with pytest.raises(Corrupt, match="git object") as corrupt:
        slot.record(repo)
    assert corrupt.value.reason == "git-object"
