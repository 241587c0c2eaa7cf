"""Unsaved work: everything that is saved nowhere else is seen, and nothing else is."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.workspace import Workspace
from slotgc import base
from slotgc.history import Trunk, trunk_holds
from slotgc.work import Work, judge
from tests.slotgc.worktrees import (
    CHECKIN,
    Node,
    Tree,
    age,
    make_slot,
    make_trunk,
    plant,
    put_on_trunk,
)
from tests.support import git

TREE: Tree = {
    b"a": Node(b"one\n"),
    b"bin/run": Node(b"#!/bin/sh\n", 0o755),
    b"link": Node(b"a", 0),
    b"src/deep/b": Node(b"two\n"),
}
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# more\n"


@pytest.fixture
def wt(tmp_path: Path) -> Path:
    """Return the clean worktree of a dead slot."""
    make_trunk(tmp_path)
    return make_slot(tmp_path, "one", TREE)


def judged(wt: Path) -> Work:
    return judge(Workspace(str(wt.parents[3])), str(wt.parent))


def changes(wt: Path) -> dict[bytes, str]:
    return {change.path: change.change for change in judged(wt).changes}


def test_a_worktree_that_is_as_its_base_holds_none(wt: Path) -> None:
    assert not judged(wt).exists()
    age(wt.parent)  # and the same by stat
    assert not judged(wt).exists()
    for path in wt.rglob("*"):
        if path.is_file():
            os.utime(path)  # and by content, where stat says nothing
    assert not judged(wt).exists()


@pytest.mark.parametrize("aged", [False, True], ids=["young", "aged"])
def test_every_kind_of_change_is_seen(wt: Path, aged: bool) -> None:
    if aged:
        age(wt.parent)
    (wt / "a").write_text("two\n")  # as long as before
    (wt / "bin/run").chmod(0o644)
    (wt / "link").unlink()
    (wt / "link").symlink_to("b")
    (wt / "src/deep/b").unlink()
    (wt / "src/new\n\udcff").write_text("")
    assert changes(wt) == {
        b"a": "changed",
        b"bin/run": "mode",
        b"link": "changed",
        b"src/deep/b": "deleted",
        b"src/new\n\xff": "added",
    }
    assert judged(wt).describe() == "2 changed, 1 with another mode, 1 added, 1 deleted"


def test_a_file_for_a_link_and_a_directory_for_a_file_are_changes(wt: Path) -> None:
    (wt / "link").unlink()
    (wt / "link").write_text("a")  # the content that the link's target had as text
    (wt / "a").unlink()
    (wt / "a").mkdir()
    (wt / "a/x").touch()
    assert changes(wt) == {b"a": "deleted", b"a/x": "added", b"link": "changed"}


def test_what_git_ignores_is_work_too(wt: Path) -> None:
    (wt / ".gitignore").write_text("*.log\n")
    (wt / "run.log").touch()
    assert changes(wt) == {b".gitignore": "added", b"run.log": "added"}


def test_an_edit_that_leaves_size_and_mtime_alone_is_seen(wt: Path) -> None:
    age(wt.parent)
    before = os.lstat(wt / "a")
    (wt / "a").write_text("1ne\n")
    os.utime(wt / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changes(wt) == {b"a": "changed"}


def test_an_edit_within_the_tick_of_the_index_is_seen(wt: Path) -> None:
    # As if the clock had not moved between: the base holds what stat says now.
    known = base.read(f"{wt.parent}/base.json")
    assert known is not None
    (wt / "a").write_text("1ne\n")
    status = os.lstat(wt / "a")
    row = known.files[b"a"]
    stamps = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    files = {**known.files, b"a": (*row[:3], *stamps)}
    young = known.replace(files=files, indexed_ns=status.st_ctime_ns)
    base.write(f"{wt.parent}/base.json", young)
    assert changes(wt) == {b"a": "changed"}


def test_caches_sockets_pipes_and_empty_directories_are_no_work(wt: Path) -> None:
    for cache in (".pytest_cache", "src/target"):
        (wt / cache / "v").mkdir(parents=True)
        (wt / cache / "CACHEDIR.TAG").write_bytes(TAG)
        (wt / cache / "v/data").touch()
    (wt / "src/__pycache__").mkdir()
    (wt / "src/__pycache__/b.cpython-311.pyc").touch()
    (wt / "empty/deeper").mkdir(parents=True)
    os.mkfifo(wt / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(wt, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
    assert not judged(wt).exists()


def test_what_only_looks_like_a_cache_is_work(wt: Path) -> None:
    (wt / "CACHEDIR.TAG").write_bytes(TAG)  # it would make the whole worktree one
    (wt / "results").mkdir()
    (wt / "results/CACHEDIR.TAG").write_bytes(b"Signature: something else")
    (wt / "linked").mkdir()
    (wt / "linked/CACHEDIR.TAG").symlink_to("../CACHEDIR.TAG")
    (wt / "__pycache__").mkdir()
    (wt / "__pycache__/notes.txt").touch()
    (wt / "x.pyc").touch()
    assert set(changes(wt)) == {
        b"CACHEDIR.TAG",
        b"results/CACHEDIR.TAG",
        b"linked/CACHEDIR.TAG",
        b"__pycache__/notes.txt",
        b"x.pyc",
    }


def test_a_file_of_the_base_is_not_lost_to_a_cache_tag(wt: Path) -> None:
    (wt / "src/CACHEDIR.TAG").write_bytes(TAG)
    (wt / "src/deep/b").write_text("edited")
    assert changes(wt) == {b"src/deep/b": "changed"}


def test_a_pipe_or_a_directory_named_like_bookkeeping_hides_nothing(wt: Path) -> None:
    (wt / ".fslckout-shm").mkdir()
    (wt / ".fslckout-shm/notes").touch()
    (wt / "src/.git").mkdir()
    (wt / "src/.git/HEAD").touch()
    assert changes(wt) == {b".fslckout-shm/notes": "added", b"src/.git/HEAD": "added"}


def test_links_are_not_followed(wt: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (wt / "out").symlink_to(tmp_path / "outside")
    (wt / "loop").symlink_to(".")
    assert changes(wt) == {b"out": "added", b"loop": "added"}


def test_without_a_worktree_there_is_none(wt: Path) -> None:
    subprocess.run(["rm", "-r", wt], check=True)
    assert not judged(wt).exists()
    (wt.parent / "wt.new").mkdir()
    (wt.parent / "wt.new/a").touch()  # a worktree in the making
    (wt.parent / "leaf.log").touch()
    (wt.parent / "base.json.1.2.tmp").touch()
    assert not judged(wt).exists()


def test_a_worktree_that_is_no_directory_cannot_be_judged(wt: Path, tmp_path: Path) -> None:
    wt.rename(tmp_path / "elsewhere")
    wt.symlink_to(tmp_path / "elsewhere")
    assert judged(wt).doubts == ("wt is not a directory",)


def test_what_lies_beside_the_worktree_is_work(wt: Path) -> None:
    (wt.parent / "notes\x1b.txt").touch()
    (wt.parent / "leaf.notes").touch()
    assert judged(wt).apart == (
        "leaf.notes lies beside its worktree",
        "notes\\x1b.txt lies beside its worktree",
    )


def test_what_we_put_beside_the_worktree_is_no_work(wt: Path) -> None:
    for name in ("leaf.log", "leaf.log.1", "leaf.json", "leaf.sock", "leaf.pid.1.2.tmp"):
        (wt.parent / name).touch()
    assert not judged(wt).exists()


def test_without_a_sound_base_everything_is_work(wt: Path) -> None:
    everything = dict.fromkeys(TREE, "added")
    (wt.parent / "base.json").write_text('{"schema":1')
    assert changes(wt) == everything
    assert "base.json cannot be used" in judged(wt).describe()
    (wt.parent / "base.json").unlink()
    assert changes(wt) == everything
    plant(wt, {})
    assert not judged(wt).exists()


@pytest.mark.parametrize("checkin", ["", "d" * 64])
def test_a_base_that_is_not_on_trunk_saves_nothing(tmp_path: Path, checkin: str) -> None:
    make_trunk(tmp_path)
    wt = make_slot(tmp_path, "one", TREE, checkin=checkin)
    assert changes(wt) == dict.fromkeys(TREE, "same")
    assert "is not all on this trunk" in judged(wt).describe()


def test_a_base_of_which_a_single_file_is_not_on_trunk_saves_nothing(wt: Path) -> None:
    # As one that an agent has made up: its work as the base, and a check-in that trunk has.
    (wt / "precious").write_text("work")
    base.write(f"{wt.parent}/base.json", base.index(str(wt), checkin=CHECKIN))
    age(wt.parent)
    assert changes(wt) == dict.fromkeys([*TREE, b"precious"], "same")
    assert "is not all on this trunk" in judged(wt).describe()


def test_without_a_trunk_no_base_saves_anything(wt: Path) -> None:
    (wt.parents[3] / ".orchestrator/hub.fossil").unlink()
    assert changes(wt) == dict.fromkeys(TREE, "same")


def test_a_check_in_is_found_in_the_log_of_a_hub_that_runs_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    make_trunk(tmp_path, "a" * 64)
    path = tmp_path / ".orchestrator/hub.fossil"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("INSERT INTO blob(size, uuid) VALUES (1, ?)", (CHECKIN,))
    writer.execute("INSERT INTO blob(size, uuid) VALUES (-1, ?)", ("b" * 64,))  # a phantom
    writer.commit()
    try:
        before = {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()}
        assert before.keys() == {"hub.fossil", "hub.fossil-wal", "hub.fossil-shm"}
        assert trunk_holds(str(path), {CHECKIN, "a" * 64})
        assert trunk_holds(str(path), ["a" * 64])
        assert not trunk_holds(str(path), [CHECKIN, "b" * 64])
        assert {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()} == before
    finally:
        writer.close()
    assert trunk_holds(str(path), [CHECKIN])
    assert [p.name for p in path.parent.iterdir()] == ["hub.fossil"]
    path.write_bytes(b"SQLite format 3\0" + b"junk" * 1000)
    assert not trunk_holds(str(path), [CHECKIN])


def test_what_is_known_of_a_trunk_is_not_believed_of_the_next_one(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    trunk = Trunk(str(tmp_path / ".orchestrator/hub.fossil"))
    assert trunk.holds({CHECKIN})
    assert not trunk.holds({CHECKIN, "b" * 64})
    (tmp_path / ".orchestrator").rename(tmp_path / "old")
    assert not trunk.holds({CHECKIN})
    make_trunk(tmp_path, "a" * 64)
    assert not trunk.holds({CHECKIN})


# --- an agent's git ------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return the clean worktree of a dead slot that is a git repository with one commit."""
    make_trunk(tmp_path)
    wt = make_slot(tmp_path, "one", TREE)
    git(wt, "init", "-q", "-b", "main")
    git(wt, "add", ".")
    git(wt, "commit", "-q", "-m", "base")
    base.write(f"{wt.parent}/base.json", base.index(str(wt), checkin=CHECKIN))
    assert not judged(wt).exists()
    return wt


def land(wt: Path) -> None:
    """Have trunk and the base have what the worktree has; what they know of its git stays."""
    path = f"{wt.parent}/base.json"
    was = base.read(path)
    assert was is not None
    now = base.index(str(wt), checkin=CHECKIN)
    put_on_trunk(wt.parents[3], {row[2] for row in now.files.values()})
    since_ns = was.git_since_ns or was.indexed_ns
    kept = {"git_head": was.git_head, "git_refs": was.git_refs, "git_since_ns": since_ns}
    base.write(path, now.replace(**kept))


COMMITTED = [["add", "."], ["commit", "-q", "-m", "mine"]]


@pytest.mark.parametrize(
    ("commands", "named"),
    [
        (COMMITTED, "refs/heads/main"),
        ([["checkout", "-q", "-b", "other"], *COMMITTED], "HEAD, refs/heads/other"),
        ([["checkout", "-q", "--detach"], *COMMITTED], "HEAD"),
        ([["checkout", "-q", "-b", "b"], *COMMITTED, ["pack-refs", "--all"]], "HEAD, refs/heads/b"),
    ],
)
def test_commits_of_an_agent_are_work(
    repository: Path, commands: list[list[str]], named: str
) -> None:
    (repository / "a").write_text("committed, and changed again\n")
    for command in commands:
        git(repository, *command)
    (repository / "a").write_bytes(TREE[b"a"].content)
    found = judged(repository)
    assert not found.changes
    assert found.apart == (f"its git has commits or stashes of its own: {named}",)


@pytest.mark.parametrize(
    ("commands", "named"),
    [
        ([["tag", "-m", "words", "here"]], "refs/tags/here"),
        ([["worktree", "add", "-q", "--detach", "../../../elsewhere"]], "worktrees/elsewhere/HEAD"),
        ([["rm", "-q", "a"], ["stash", "-q"]], "refs/stash"),
        (
            [
                ["checkout", "-q", "-b", "other"],
                ["mv", "a", "b"],
                ["commit", "-q", "-m", "moved"],
                ["checkout", "-q", "main"],
            ],
            "refs/heads/other",
        ),
    ],
)
def test_what_git_was_told_to_keep_is_work_although_trunk_has_its_contents(
    repository: Path, commands: list[list[str]], named: str
) -> None:
    for command in commands:
        git(repository, *command)
    found = judged(repository)
    assert not found.changes
    assert found.apart == (f"its git has commits or stashes of its own: {named}",)


@pytest.mark.parametrize(
    "commands",
    [
        [["add", "."]],
        [["add", "."], ["repack", "-q"]],
        COMMITTED,
        [*COMMITTED, ["commit", "-q", "--amend", "-m", "and once more"]],
        [*COMMITTED, ["reset", "-q", "--soft", "HEAD~"]],
        [["stash", "-q"], ["stash", "pop", "-q"]],
    ],
    ids=["staged", "repacked", "committed", "amended", "undone", "stashed and popped"],
)
def test_what_was_staged_or_committed_and_then_landed_is_no_work(
    repository: Path, commands: list[list[str]]
) -> None:
    (repository / "a").write_text("landed\n")
    (repository / "src/empty").touch()
    for command in commands:
        git(repository, *command)
    assert judged(repository).apart, "before it has landed"
    land(repository)
    if ["commit", "-q", "-m", "mine"] in commands and commands[-1][0] != "reset":
        know_head(repository)
    found = judged(repository)
    assert not found.exists()
    assert found.is_history() == ("commit" in str(commands) or "stash" in str(commands))


def know_head(wt: Path) -> None:
    """Have the base know a commit that is made on what the agent has committed, as ours are."""
    git(wt, "commit", "-q", "--allow-empty", "-m", "ours")
    path = f"{wt.parent}/base.json"
    known = base.read(path)
    assert known is not None
    base.write(
        path, known.replace(git_refs={"refs/heads/main": git(wt, "rev-parse", "HEAD").strip()})
    )


@pytest.mark.parametrize(
    "commands",
    [
        [["checkout", "-q", "-b", "other"]],
        [["checkout", "-q", "--detach"]],
        [["tag", "here"]],
        [["branch", "b"], ["pack-refs", "--all"]],
        [["commit", "-q", "--allow-empty", "-m", "words alone"]],
    ],
)
def test_names_for_what_trunk_has_are_no_work(repository: Path, commands: list[list[str]]) -> None:
    for command in commands:
        git(repository, *command)
    assert not judged(repository).exists()


def test_a_version_in_between_that_was_committed_to_git_alone_is_work(repository: Path) -> None:
    for text in ("first\n", "second\n"):
        (repository / "a").write_text(text)
        git(repository, "commit", "-q", "-a", "-m", text)
    land(repository)
    found = judged(repository)
    assert found.is_history()
    assert found.apart == ("its git has commits or stashes of its own: refs/heads/main",)
    (repository / "a").write_text("third\n")
    assert not judged(repository).is_history()


def holding(content: bytes) -> Callable[[Path], object]:
    def write(one: Path) -> None:
        one.chmod(0o600)
        one.write_bytes(content)

    return write


def be_a_link(one: Path) -> None:
    one.rename(one.parents[2] / "elsewhere")
    one.symlink_to(one.parents[2] / "elsewhere")


def be_in_a_linked_directory(one: Path) -> None:
    one.parent.rename(one.parents[2] / "info/elsewhere")
    one.parent.symlink_to(one.parents[2] / "info/elsewhere")


def be_a_pipe(one: Path) -> None:
    one.unlink()
    os.mkfifo(one)


SPOILT: dict[str, Callable[[Path], object]] = {
    "torn": holding(zlib.compress(b"blob 7\0landed\n")[:-3]),
    "empty": holding(b""),
    "longer than it says": holding(zlib.compress(b"blob 1\0" + bytes(10**7))),
    "shorter than it says": holding(zlib.compress(b"blob 8\0landed\n")),
    "of a size beyond all": holding(zlib.compress(b"blob 99999999999999999999\0x")),
    "of no kind": holding(zlib.compress(b"glob 1\0x")),
    "a pipe": be_a_pipe,
    "a link": be_a_link,
    "unfinished": lambda one: one.rename(one.with_name("tmp_obj_x")),
    "beside a submodule": lambda one: (one.parents[2] / "modules/sub").mkdir(parents=True),
    "beside a pack of nothing": lambda one: (one.parents[1] / "pack/a.pack").write_text("PACK"),
    "in a linked directory": be_in_a_linked_directory,
    "beside half a pack": lambda one: (one.parents[1] / "pack/tmp_pack_x").touch(),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_git_has_stored_and_cannot_be_read_is_work(repository: Path, spoil: str) -> None:
    (repository / "a").write_text("landed\n")
    name = git(repository, "hash-object", "-w", "a").strip()
    land(repository)
    assert not judged(repository).exists()
    SPOILT[spoil](repository / ".git/objects" / name[:2] / name[2:])
    assert judged(repository).apart == (
        "its git has stored something since: staged, or committed and undone",
    )


def test_a_stash_of_an_agent_is_work_although_the_files_are_as_before(repository: Path) -> None:
    (repository / "a").write_text("edited")
    git(repository, "stash", "-q")
    found = judged(repository)
    assert not found.changes
    assert found.apart == ("its git has commits or stashes of its own: refs/stash",)


def test_what_an_agent_has_staged_and_then_lost_from_its_files_is_work(repository: Path) -> None:
    (repository / "a").write_text("staged")
    git(repository, "add", "a")
    (repository / "a").write_bytes(TREE[b"a"].content)
    found = judged(repository)
    assert not found.changes
    assert found.apart == ("its git has stored something since: staged, or committed and undone",)


def test_what_an_agent_has_committed_and_undone_is_work_although_it_was_packed(
    repository: Path,
) -> None:
    (repository / "a").write_text("committed")
    git(repository, "commit", "-q", "-a", "-m", "mine")
    git(repository, "gc", "-q")
    git(repository, "reset", "-q", "--hard", "HEAD~")
    found = judged(repository)
    assert not found.changes
    assert found.apart == ("its git has stored something since: staged, or committed and undone",)


def test_what_git_does_by_itself_is_no_work(repository: Path) -> None:
    git(repository, "gc", "-q")  # the maker's, or the committer's: before the base
    base.write(f"{repository.parent}/base.json", base.index(str(repository), checkin=CHECKIN))
    git(repository, "status")
    git(repository, "pack-refs", "--all")
    assert not judged(repository).exists()


@pytest.mark.parametrize("damage", ["file", "link", "reftable", "ref-link", "HEAD", "packed"])
def test_a_git_that_cannot_be_judged_is_work(repository: Path, damage: str, tmp_path: Path) -> None:
    own = repository / ".git"
    if damage == "file":
        own.rename(tmp_path / "git")
        own.write_text(f"gitdir: {tmp_path}/git\n")
    elif damage == "link":
        own.rename(tmp_path / "git")
        own.symlink_to(tmp_path / "git")
    elif damage == "reftable":
        (own / "reftable").mkdir()
    elif damage == "ref-link":
        (own / "refs/heads/x").symlink_to("main")
    elif damage == "HEAD":
        (own / "HEAD").unlink()
        (own / "HEAD").mkdir()
    else:
        (own / "packed-refs").write_bytes(b"x" * 5000 + b" refs/heads/x")
    assert judged(repository).apart[0].startswith("its git")


# --- an agent's fossil ---------------------------------------------------------------------


def checkout(wt: Path, *statements: str) -> Path:
    path = wt / ".fslckout"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE vvar(name, value)")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()
    return path


def test_a_check_out_without_a_stash_is_no_work(wt: Path) -> None:
    checkout(wt)
    assert not judged(wt).exists()
    (wt / ".fslckout").unlink()
    checkout(wt, "CREATE TABLE stash(stashid)")
    assert not judged(wt).exists()


@pytest.mark.parametrize(
    "kind", ["stash", "junk", "journal", "directory", "link", "endless", "slow"]
)
def test_a_stash_or_a_check_out_that_cannot_be_judged_is_work(wt: Path, kind: str) -> None:
    path = wt / ".fslckout"
    if kind == "stash":
        checkout(wt, "CREATE TABLE stash(stashid)", "INSERT INTO stash VALUES (1)")
    elif kind == "junk":
        path.write_text("junk " * 1000)
    elif kind == "journal":
        checkout(wt).with_name(".fslckout-journal").write_text("hot")
    elif kind == "directory":
        path.mkdir()
        (path / "notes").touch()
    elif kind == "link":
        path.symlink_to("a")
    elif kind == "slow":
        blob = "zeroblob(300000000)"
        checkout(wt, f"CREATE VIEW stash AS SELECT 1 WHERE instr({blob}, {blob} || x'01')")
    else:
        endless = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n)"
        checkout(wt, f"CREATE VIEW stash AS {endless} SELECT i FROM n WHERE i < 0")
    assert judged(wt).exists()
    assert judged(wt).describe().count(".fslckout") >= 1
