"""An agent's git and our records go on in one repository, and neither loses what is the other's."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from foundation.errors import Corrupt
from swarm.gitrepo import branch
from swarm.gitrepo.repo import File, GitRepo
from tests.hub.gitrepo import FILE, Tree
from tests.support import CODE
from tests.swarm.agentgit import Slot, user_repository

TREE: Tree = {b"%s/%s" % (one, two): (FILE, b"1\n") for one in (b"a", b"b") for two in (b"x", b"y")}


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(user_repository(tmp_path))


@pytest.fixture
def repo(slot: Slot) -> GitRepo:
    return slot.check_out(TREE)


def contents(slot: Slot) -> dict[str, tuple[int, bytes]]:
    """Return all of the user's repository but the times.

    A git that would write an object which is there already renews its time, in alternates too.
    """
    return {name: (mode, content) for name, (mode, _time, content) in slot.user.snapshot().items()}


# --- what the agent does stays ---


def test_a_commit_of_the_agents_stays_in_the_log(slot: Slot, repo: GitRepo) -> None:
    slot.edit(b"a/x", b"agent\n")
    slot.git("commit", "--all", "--quiet", "--message", "the agent's")
    slot.edit(b"b/x", b"both\n")
    done = slot.record(repo)
    assert done.commit == slot.head()
    assert slot.git("log", "--format=%s") == b"record 1\nthe agent's\n\n"
    slot.assert_true()
    slot.assert_sound()


def test_what_the_agent_committed_and_trunk_has_not_shows_as_changed(
    slot: Slot, repo: GitRepo
) -> None:
    slot.edit(b"a/x", b"agent\n")
    slot.git("commit", "--all", "--quiet", "--message", "the agent's")
    slot.edit(b"b/x", b"2\n")
    changes = slot.changes()
    del changes[b"a/x"]
    assert repo.record(changes, "only b/x", time_s=1).commit == slot.head()
    assert slot.status() == b"M  a/x\n"
    slot.assert_sound()


def test_on_another_branch_only_ours_moves(slot: Slot, repo: GitRepo) -> None:
    slot.git("checkout", "--quiet", "-b", "agents")
    before = slot.head()
    slot.edit(b"a/x", b"2\n")
    done = slot.record(repo)
    assert (done.commit, done.why) == (repo.head(), "")
    assert slot.head() == before
    assert slot.status() == b" M a/x\n"
    slot.git("stash", "--quiet")
    slot.git("checkout", "--quiet", "trunk")
    slot.assert_true()
    slot.edit(b"a/y", b"3\n")
    slot.record(repo)
    slot.assert_true()
    slot.assert_sound()


@pytest.mark.parametrize("detached", ["HEAD", "HEAD~0"])
def test_a_branch_that_the_agent_removed_is_there_again(
    slot: Slot, repo: GitRepo, detached: str
) -> None:
    slot.edit(b"a/x", b"2\n")
    slot.record(repo)
    slot.git("checkout", "--quiet", "--detach", detached)
    slot.git("branch", "--quiet", "-D", "trunk")
    slot.edit(b"a/x", b"3\n")
    slot.record(repo)
    assert slot.git("log", "--format=%s", "trunk", "-2") == b"record 2\nrecord 1\n"
    slot.assert_sound()


def test_a_branch_that_is_none_is_left_alone_until_it_is_one(slot: Slot, repo: GitRepo) -> None:
    slot.git("branch", "other")
    slot.git("symbolic-ref", "refs/heads/trunk", "refs/heads/other")
    slot.edit(b"a/x", b"2\n")
    done = slot.record(repo)
    assert done.commit == ""
    assert "refs/heads/trunk" in done.why
    assert slot.git("symbolic-ref", "refs/heads/trunk") == b"refs/heads/other\n"
    slot.git("symbolic-ref", "--delete", "refs/heads/trunk")
    assert repo.flush().commit == repo.head()
    slot.assert_true()
    slot.assert_sound()


def test_a_base_that_the_agent_had_git_forget_is_not_built_upon(slot: Slot, repo: GitRepo) -> None:
    slot.write(b"deep/in/here", b"1\n")
    slot.record(repo)
    slot.git("reset", "--hard", "--quiet", "HEAD~1")
    slot.git("reflog", "expire", "--expire=now", "--all")
    slot.git("gc", "--quiet", "--prune=now")
    slot.edit(b"a/x", b"2\n")
    changes = slot.changes()
    with pytest.raises(Corrupt) as corrupt:
        repo.record({b"a/x": changes[b"a/x"]}, "m", time_s=1)
    assert corrupt.value.reason == "git-object"
    slot.assert_sound()


def test_what_the_agent_staged_stays_staged(slot: Slot, repo: GitRepo) -> None:
    slot.edit(b"a/x", b"staged\n")
    slot.git("add", "a/x")
    slot.write(b"new", b"intended\n")
    slot.git("add", "--intent-to-add", "new")
    slot.git("update-index", "--skip-worktree", "b/y")
    slot.edit(b"a/x", b"staged and edited\n")
    slot.edit(b"b/x", b"2\n")
    slot.write(b"a/added", b"2\n")
    wanted = {p: c for p, c in slot.changes().items() if p in (b"b/x", b"a/added")}
    repo.record(wanted, "m", time_s=1)
    assert slot.status() == b"MM a/x\n A new\n"
    assert slot.git("diff", "--cached", "a/x").endswith(b"+staged\n")
    assert slot.git("ls-files", "-v", "b/y") == b"S b/y\n"
    slot.assert_sound()


def test_a_conflict_of_the_agents_stays_one(slot: Slot, repo: GitRepo) -> None:
    slot.git("checkout", "--quiet", "-b", "other")
    for path in (b"a/x", b"b/x"):
        slot.edit(path, b"theirs\n")
    slot.git("commit", "--all", "--quiet", "--message", "theirs")
    slot.git("checkout", "--quiet", "trunk")
    for path in (b"a/x", b"b/x"):
        slot.edit(path, b"ours\n")
    slot.git("commit", "--all", "--quiet", "--message", "ours")
    assert slot.run("merge", "other").returncode == 1
    slot.write(b"a/z", b"aside\n")
    slot.edit(b"b/x", b"settled\n")
    changes = slot.changes()
    repo.record({path: changes[path] for path in (b"a/z", b"b/x")}, "m", time_s=1)
    assert slot.git("ls-files", "-u", "--format=%(stage) %(path)").split(b"\n") == [
        b"1 a/x",
        b"2 a/x",
        b"3 a/x",
        b"",
    ]
    assert slot.status() == b"UU a/x\n"


@pytest.mark.parametrize(
    "act",
    [
        ("stash",),
        ("stash", "--include-untracked"),
        ("reset", "--hard"),
        ("reset", "--hard", "HEAD~1"),
        ("reset", "--soft", "HEAD~1"),
        ("commit", "--all", "--message", "m"),
        ("commit", "--amend", "--all", "--message", "m"),
        ("clean", "-fdx"),
        ("rm", "--cached", "a/x"),
        ("mv", "a/x", "a/moved"),
        ("checkout", "HEAD~1", "--", "a"),
        ("gc", "--prune=now"),
        ("pack-refs", "--all"),
        ("repack", "-a", "-d"),
        ("update-index", "--index-version", "4", "--force-write-index"),
        ("-c", "core.splitIndex=true", "update-index", "--split-index"),
        ("sparse-checkout", "set", "--cone", "--sparse-index", "a"),
        ("checkout", "--orphan", "empty"),
        ("branch", "--move", "trunk", "renamed"),
        ("rebase", "--quiet", "--force-rebase", "HEAD~1"),
    ],
    ids=" ".join,
)
def test_records_go_on_after_the_agents(slot: Slot, repo: GitRepo, act: tuple[str, ...]) -> None:
    slot.edit(b"a/x", b"2\n")
    slot.record(repo)
    slot.edit(b"a/y", b"agent\n") if "rebase" not in act else None
    slot.write(b"untracked", b"agent\n") if "rebase" not in act else None
    before = contents(slot)
    slot.git(*act)
    slot.write(b"a/x", b"3\n")
    done = slot.record(repo)
    assert (done.commit, done.why) == (repo.head(), "")
    slot.assert_sound()
    if slot.git("branch", "--show-current") == b"trunk\n" and act[0] != "sparse-checkout":
        slot.assert_true()
    slot.write(b"b/y", b"4\n")
    slot.record(repo)
    slot.assert_sound()
    again = GitRepo(str(slot.wt), "auth")
    slot.write(b"b/x", b"5\n")
    slot.record(again)
    slot.assert_sound()
    listed = slot.git("ls-tree", "-r", "--name-only", "-z", "trunk").split(b"\0")[:-1]
    assert listed == sorted(slot.base)
    assert contents(slot) == before


# --- locks ---


@pytest.mark.parametrize("lock", ["index.lock", branch.LOCK])
def test_a_lock_of_gits_is_waited_for_and_never_broken(
    slot: Slot, repo: GitRepo, lock: str
) -> None:
    path = slot.wt / ".git" / lock
    path.write_bytes(b"git's")
    before = slot.head()
    for turn in (b"2\n", b"3\n"):
        slot.edit(b"a/x", turn)
        done = slot.record(repo, mark=turn.decode().strip())
        assert (done.commit, done.why) == ("", f"git has {lock}")
    assert repo.waits
    assert repo.mark == ""
    assert slot.head() == before
    assert path.read_bytes() == b"git's"
    path.unlink()
    done = repo.flush()
    assert (done.commit, done.why, repo.waits, repo.mark) == (slot.head(), "", False, "3")
    assert slot.git("log", "--format=%s", f"{before}..") == b"record 2\nrecord 1\n"
    slot.assert_true()
    slot.assert_sound()


def test_an_agent_that_commits_while_a_record_waits_keeps_its_commit(
    slot: Slot, repo: GitRepo
) -> None:
    lock = slot.wt / ".git/index.lock"
    lock.touch()
    slot.edit(b"a/x", b"2\n")
    slot.record(repo, wait_s=0)
    lock.unlink()
    slot.git("commit", "--all", "--quiet", "--message", "the agent's")
    slot.edit(b"b/x", b"2\n")
    slot.record(repo)
    assert slot.git("log", "--format=%s", "-3") == b"record 2\nrecord 1\nthe agent's\n"
    slot.assert_true()


@pytest.mark.slow
def test_git_and_records_at_the_same_time_lose_nothing(slot: Slot, repo: GitRepo) -> None:
    """The agent commits and looks as fast as it can; what fails it may try again."""
    script = (
        "n=0; while [ ! -e stop ]; do n=$((n+1)); echo $n > agent;"
        " git add agent 2>>errors && git commit -qm agent-$n agent 2>>errors && echo $n >> done;"
        " git status --porcelain >/dev/null 2>>errors; done"
    )
    slot.write(b"agent", b"0\n")
    slot.record(repo)
    with subprocess.Popen(["sh", "-c", script], cwd=slot.wt, env=slot.env) as agent:
        recorded: list[str] = []
        try:
            started = time.monotonic()
            while time.monotonic() < started + 1.5 or len(recorded) < 20:
                content = b"%d\n" % len(recorded)
                slot.edit(b"a/x", content)
                change = File("file", content, slot.stamps({b"a/x": None})[b"a/x"])
                recorded.append(f"ours-{len(recorded)}")
                repo.record({b"a/x": change}, recorded[-1], time_s=1, wait_s=1)
        finally:
            (slot.wt / "stop").touch()
            agent.wait()
    assert repo.flush(wait_s=1).why == ""
    subjects = slot.git("log", "--format=%s").decode().split("\n")
    assert [one for one in subjects if one.startswith("ours-")] == recorded[::-1]
    agents = [f"agent-{n}" for n in (slot.wt / "done").read_text().split()]
    assert len(agents) > 3
    assert [one for one in subjects if one.startswith("agent-")] == agents[::-1]
    slot.assert_sound()
    errors = (slot.wt / "errors").read_text()
    for line in errors.splitlines():  # nothing but that we were there at that moment
        assert not line.startswith("fatal:") or "lock" in line, errors


# --- kills ---

_KILLED = """
import os, sys
sys.path.insert(0, {code!r})
from swarm.gitrepo.repo import File, GitRepo
repo = GitRepo({wt!r}, "auth")
for turn in (b"2\\n", b"3\\n"):
    with open({wt!r} + "/a/x", "wb") as file:
        file.write(turn)
    changes = {{b"a/x": File("file", turn), b"new" + turn[:1]: File("file", turn)}}
    with open({wt!r} + "/new" + turn[:1].decode(), "wb") as file:
        file.write(turn)
    repo.record(changes, "record", time_s=1_700_000_000 + turn[0], mark=turn[:1].decode())
"""

POINTS = [
    "gitrepo.pack@2",
    "gitrepo.pack-index@2",
    "gitrepo.pack-placed@2",
    "gitrepo.packed@2",
    "gitrepo.pack-retired@1",
    "gitrepo.index-written@2",
    "gitrepo.branch-locked@2",
    "gitrepo.index-locked@2",
    "gitrepo.index-placed@2",
    "gitrepo.branch-moved@2",
    "gitrepo.unlocked@2",
    "gitrepo.noted@2",
]


@pytest.mark.faults
@pytest.mark.parametrize("point", POINTS)
def test_a_record_that_is_killed_is_made_good_by_the_next(
    slot: Slot, repo: GitRepo, point: str
) -> None:
    first = repo.head()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED.format(code=str(CODE), wt=str(slot.wt))],
        env=os.environ | {"HUB_FAILPOINT": point},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr.decode()
    # The agent's git can read it as it is.
    slot.assert_sound()
    subjects = slot.git("log", "--format=%s", f"{first}..").split()
    assert subjects in ([b"record"], [b"record"] * 2)
    slot.git("status")
    again = GitRepo(str(slot.wt), "auth")
    assert again.mark in ("2", "3")
    if again.mark == "2":  # what the leaf does: it tells again what came after that
        changes = slot.changes()
        done_again = again.record(
            {path: changes[path] for path in (b"a/x", b"new3")},
            "record",
            time_s=1_700_000_000 + ord("3"),
            mark="3",
        )
        assert done_again.why == ""
    assert again.mark == "3"
    slot.base = slot.tree()
    slot.assert_true()
    slot.assert_sound()
    assert slot.git("log", "--format=%s", f"{first}..").split() == [b"record"] * 2
    slot.edit(b"b/x", b"9\n")
    slot.git("commit", "--all", "--quiet", "--message", "no lock is left")


# --- the same second ---


def test_an_edit_in_the_second_of_the_record_is_seen(slot: Slot, repo: GitRepo) -> None:
    """Of the same size, so that only the time could tell; and after more records."""
    started = time.monotonic()
    turn = 0
    while time.monotonic() < started + 2.2:
        turn += 1
        slot.write(b"a/x", b"%06d\n" % turn)
        slot.record(repo)
        slot.edit(b"a/x", b"%06d\n" % (turn + 500_000))
        if turn % 3:
            slot.edit(b"b/x", b"%06d\n" % turn)
            changes = slot.changes()
            del changes[b"a/x"]
            slot.base[b"b/x"] = FILE, b"%06d\n" % turn
            repo.record(changes, "another file", time_s=1)
        assert slot.status() == b" M a/x\n", turn
        if turn % 5 == 0:
            slot.edit(b"a/x", b"%06d\n" % turn)
            assert slot.status() == b"", turn
    assert turn > 10


def test_an_edit_between_reading_a_file_and_recording_it_is_seen(slot: Slot, repo: GitRepo) -> None:
    for turn in range(1, 20):
        slot.edit(b"a/x", b"%06d\n" % turn)
        changes = slot.changes()
        slot.edit(b"a/x", b"%06d\n" % (turn + 500_000))
        repo.record(changes, "m", time_s=1)
        assert slot.status() == b" M a/x\n", turn
        slot.edit(b"a/y", b"%06d\n" % turn)
        changes = slot.changes()
        del changes[b"a/x"]
        repo.record(changes, "m", time_s=1)
        assert slot.status() == b" M a/x\n", turn


def test_what_a_git_is_reading_is_not_written_over(slot: Slot, repo: GitRepo) -> None:
    with ExitStack() as reading:
        read = []
        for turn in range(6):
            slot.edit(b"a/x", b"%d\n" % turn)
            slot.record(repo)
            file = reading.enter_context((slot.wt / ".git/index").open("rb"))
            mapped = reading.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            read.append((mapped, bytes(mapped)))
        for now, then in read:
            assert now[:] == then


def test_no_inode_is_made_or_removed_by_a_record_but_for_its_objects(
    slot: Slot, repo: GitRepo
) -> None:
    """Where there is no journal, ext4 makes each one dearer than the last."""
    for turn in range(3):
        slot.edit(b"a/x", b"%d\n" % turn)
        slot.record(repo)
        slot.write(b"new%d" % turn, b"")
    before = _inodes(slot)
    for turn in range(10):
        slot.edit(b"a/x", b"%d\n" % (turn + 10))
        slot.write(b"new%d" % (turn + 10), b"")
        slot.record(repo)
    assert _inodes(slot) == before
    slot.assert_true()


def _inodes(slot: Slot) -> set[int]:
    return {
        os.stat(os.path.join(directory, name)).st_ino
        for directory, _below, names in os.walk(slot.wt / ".git")
        for name in names
        if not directory.endswith("/pack")
    }
