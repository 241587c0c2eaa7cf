"""Which directory is the workspace, and what we do to its git."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.errors import Refused
from foundation.workspace import Workspace, make_private
from tests.support import git, make_repository

LINES = b"/.orchestrator/\n/.bones/\n"


def found(start: Path | None = None) -> Path:
    return Path(Workspace.find(None if start is None else str(start)).root)


def test_a_subdirectory_belongs_to_the_repository_above(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(repo) == found(repo / "src") == repo
    monkeypatch.chdir(repo / "src")
    assert found() == repo
    assert Path(Workspace.find("..").root) == repo


def test_a_linked_worktree_is_a_workspace_of_its_own(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "-q", str(tmp_path / "linked"))
    assert found(tmp_path / "linked/src") == tmp_path / "linked"
    assert Path(Workspace(str(tmp_path / "linked")).git_dir()) == repo / ".git"


def test_a_submodule_is_a_workspace_of_its_own(repo: Path, tmp_path: Path) -> None:
    make_repository(tmp_path / "other")
    git(
        repo,
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "-q",
        "add",
        str(tmp_path / "other"),
        "sub",
    )
    assert found(repo / "sub/src") == repo / "sub"
    assert Path(Workspace(str(repo / "sub")).git_dir()) == repo / ".git/modules/sub"


@pytest.mark.parametrize(
    "inside",
    [
        ".orchestrator",
        ".orchestrator/logs",
        ".bones/swarm/a/wt",
        ".bones/swarm/a/wt/src",
        ".bones/rescue/x",
        ".bones/swarm/a/wt/.orchestrator/logs",
    ],
)
def test_our_own_state_belongs_to_its_workspace(repo: Path, inside: str) -> None:
    Workspace(str(repo)).make_state()
    (repo / inside).mkdir(parents=True, exist_ok=True)
    (repo / ".bones/swarm/a/wt/.git").mkdir(parents=True)
    assert found(repo / inside) == repo


@pytest.mark.parametrize("above", [".bones", ".orchestrator", ".bones/.orchestrator/.bones"])
def test_a_repository_below_a_directory_with_our_name_is_none_of_our_state(
    tmp_path: Path, above: str
) -> None:
    root = make_repository(tmp_path / above / "project")
    assert found(root) == found(root / "src") == root
    make_repository(root / ".bones/swarm/a/wt")
    assert found(root / ".bones/swarm/a/wt/src") == root


def test_there_may_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="not in a git repository") as raised:
        found(tmp_path)
    assert raised.value.reason == "not-git"
    for start in (tmp_path / "absent", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(Refused) as raised:
            found(start)
        assert raised.value.reason == "not-git"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(Refused, match="deleted"):
        found()
    monkeypatch.chdir(tmp_path)


def test_a_bare_repository_is_none(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "bare.git"], check=True)
    for inside in (".", "hooks"):
        with pytest.raises(
            Refused, match=r"bare\.git is a bare repository; a hub needs a work tree"
        ):
            found(tmp_path / "bare.git" / inside)


def test_a_bare_repository_inside_a_work_tree_belongs_to_that(repo: Path) -> None:
    subprocess.run(["git", "init", "-q", "--bare", repo / "bare.git"], check=True)
    assert found(repo / "bare.git") == repo


def test_the_root_directory_may_be_a_workspace() -> None:
    workspace = Workspace("/")
    assert workspace.root == "/"
    assert workspace.state == "/.orchestrator"
    assert workspace.swarm == "/.bones/swarm"


ABOVE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from foundation.workspace import Workspace
os.chroot(sys.argv[2])
os.chdir("/src")
workspace = Workspace.find()
workspace.make_state()
print(workspace.root, workspace.git_dir(), sorted(os.listdir("/")))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
def test_a_repository_at_the_root_directory_is_found(repo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABOVE, Path(__file__).parents[2], repo],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("/ /.git ['.git', '.orchestrator', ")


def test_a_symbolic_link_leads_to_the_real_place(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repo)
    (tmp_path / "deep").symlink_to(repo / "src")
    assert found(tmp_path / "link") == found(tmp_path / "deep") == repo


def test_a_name_may_hold_any_byte(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/ \n\xff'\"$"
    os.makedirs(root + b"/.git")
    assert os.fsencode(Workspace.find(os.fsdecode(root)).root) == root


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"gitdir:", b"gitdir: /no/such/place", b"\xff\xfe", b"gitdir: \0", b"x" * 9000],
)
def test_a_broken_git_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".git").write_bytes(content)
    workspace = Workspace.find(str(tmp_path))
    if content == b"gitdir:":
        return  # names this very directory, which is there: git itself has the last word
    with pytest.raises(Refused) as raised:
        workspace.git_dir()
    assert raised.value.reason == "not-git"


def test_a_worktree_whose_repository_moved_is_refused(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "-q", str(tmp_path / "linked"))
    repo.rename(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="worktree repair"):
        Workspace(str(tmp_path / "linked")).git_dir()


# --- hidden from git -----------------------------------------------------------------------


def test_state_is_hidden_once(repo: Path) -> None:
    exclude = repo / ".git/info/exclude"
    before = exclude.read_bytes()
    for _turn in range(3):
        Workspace(str(repo)).make_state()
    content = exclude.read_bytes()
    assert content.startswith(before)
    assert content.endswith(LINES)
    assert content.count(LINES) == 1
    assert git(repo, "status", "--porcelain", "--ignored") == "!! .orchestrator/\n"
    assert os.listdir(repo / ".git/info") == ["exclude"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"C\n" + LINES),
        (b"*.o", b"*.o\nC\n" + LINES),
        (b"*.o\r\n", b"*.o\r\nC\n" + LINES),
        (b"/.bones/\n", b"/.bones/\nC\n/.orchestrator/\n"),
        (b"/.bones/\r\n/.orchestrator/", b"/.bones/\r\n/.orchestrator/"),
        (b"\xff\n", b"\xff\nC\n" + LINES),
    ],
)
def test_what_stood_there_stays(repo: Path, before: bytes, after: bytes) -> None:
    exclude = repo / ".git/info/exclude"
    exclude.write_bytes(before)
    Workspace(str(repo)).hide_from_git()
    comment = b"# state of the hub and its slots: hub stop, then delete these directories"
    assert exclude.read_bytes().replace(comment, b"C") == after


@pytest.mark.parametrize(
    "comment",
    [
        b"# state of the hub and its slots; `bones purge` removes it\n",
        b"# state of the hub and its slots: hub stop, then delete these directories\n",
    ],
)
def test_the_comment_is_written_once(repo: Path, comment: bytes) -> None:
    exclude = repo / ".git/info/exclude"
    exclude.write_bytes(comment + LINES)
    Workspace(str(repo)).hide_from_git()
    assert exclude.read_bytes() == comment + LINES
    exclude.write_bytes(comment + b"/.orchestrator/\n")
    Workspace(str(repo)).hide_from_git()
    assert exclude.read_bytes() == comment + LINES


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_is_kept(repo: Path, mode: int) -> None:
    exclude = repo / ".git/info/exclude"
    before = os.umask(0o077)
    try:
        for content in (b"*.o\n", b""):
            exclude.write_bytes(content)
            exclude.chmod(mode)
            Workspace(str(repo)).hide_from_git()
            assert stat.S_IMODE(exclude.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_linked_exclude_stays_a_link(repo: Path, tmp_path: Path) -> None:
    exclude = repo / ".git/info/exclude"
    (tmp_path / "mine").write_text("*.o\n")
    exclude.unlink()
    exclude.symlink_to(tmp_path / "mine")
    Workspace(str(repo)).hide_from_git()
    assert exclude.is_symlink()
    assert (tmp_path / "mine").read_bytes().endswith(LINES)
    exclude.unlink()
    exclude.symlink_to(tmp_path / "absent")
    Workspace(str(repo)).hide_from_git()
    assert (tmp_path / "absent").read_bytes().endswith(LINES)


def test_a_missing_info_directory_is_made(repo: Path) -> None:
    shutil.rmtree(repo / ".git/info")
    Workspace(str(repo)).hide_from_git()
    assert (repo / ".git/info/exclude").read_bytes().endswith(LINES)


def test_a_linked_worktree_is_hidden_where_git_looks(repo: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(repo, "worktree", "add", "-q", str(linked))
    Workspace(str(linked)).make_state()
    assert git(linked, "status", "--porcelain") == ""
    assert (repo / ".git/info/exclude").read_bytes().endswith(LINES)


# --- safe from git -------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["-fdx", "-fdX", "-fd"])
def test_git_clean_passes_our_state_by(repo: Path, options: str) -> None:
    workspace = Workspace(str(repo))
    workspace.make_state()
    (repo / ".orchestrator/hub.fossil").write_text("precious")
    (repo / "junk").touch()
    git(repo, "clean", options)
    assert (repo / ".orchestrator/hub.fossil").read_text() == "precious"
    assert git(repo, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.parametrize(
    "verb",
    [
        ["add", "-A"],
        ["add", "."],
        ["stash", "-a"],
        ["stash", "-u"],
        ["checkout", "-f"],
        ["reset", "-q", "--hard"],
        ["gc", "-q"],
    ],
)
def test_no_common_verb_takes_our_state(repo: Path, verb: list[str]) -> None:
    Workspace(str(repo)).make_state()
    (repo / ".orchestrator/hub.fossil").write_text("precious")
    (repo / "README").write_text("changed\n")
    git(repo, *verb)
    assert (repo / ".orchestrator/hub.fossil").read_text() == "precious"
    assert ".orchestrator" not in git(repo, "diff", "--cached", "--name-only")
    assert ".orchestrator" not in git(repo, "ls-files")


def test_state_is_its_owner_s_alone(repo: Path) -> None:
    before = os.umask(0)
    try:
        Workspace(str(repo)).make_state()
    finally:
        os.umask(before)
    for path in [repo / ".orchestrator", *(repo / ".orchestrator").rglob("*")]:
        assert path.is_file() or stat.S_IMODE(path.stat().st_mode) == 0o700, path


@pytest.mark.faults
@pytest.mark.parametrize("made", range(4))
def test_a_half_made_directory_is_completed(tmp_path: Path, made: int) -> None:
    steps: list[Callable[[], object]] = [
        (tmp_path / "state").mkdir,
        (tmp_path / "state/.git").mkdir,
        (tmp_path / "state/.git/objects").mkdir,
        (tmp_path / "state/.git/refs").mkdir,
    ]
    for step in steps[: made + 1]:
        step()
    make_private(str(tmp_path / "state"))
    assert (tmp_path / "state/.git/HEAD").read_text().startswith("ref: ")
    assert git(tmp_path / "state", "rev-parse", "--git-dir") == ".git\n"


def test_two_worktrees_of_one_repository_have_two_states(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "-q", str(tmp_path / "linked"))
    one, two = Workspace(str(repo)), Workspace(str(tmp_path / "linked"))
    assert one.state != two.state
    for workspace in (one, two):
        workspace.make_state()
    assert (repo / ".git/info/exclude").read_bytes().count(LINES) == 1


def test_a_state_that_another_is_just_making_is_not_taken_for_a_strangers(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(str(repo))
    os.mkdir(workspace.state)
    listed = os.listdir

    def meanwhile(path: str) -> list[str]:
        monkeypatch.setattr(os, "listdir", listed)
        workspace.make_state()  # the other one
        return listed(path)

    monkeypatch.setattr(os, "listdir", meanwhile)
    workspace.make_state()
    assert os.path.isdir(workspace.creds)
