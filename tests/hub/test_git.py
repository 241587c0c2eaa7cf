"""What git says, and what it means for the user."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Corrupt, Refused, ToolFailed
from hub.git import Git, environment
from hub.git_errors import explain
from tests.hub.gitrepo import GitRepo

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("said", "kind", "reason"),
    [
        (
            "fatal: not a git repository (or any of the parent directories): .git",
            Refused,
            "not-git",
        ),
        ("fatal: unsafe repository ('/r' is owned by someone else)", Refused, "dubious-ownership"),
        ("error: unable to write file x\nfatal: No space left on device", Refused, "disk-full"),
        ("error: index file corrupt", Corrupt, "repository-corrupt"),
        ("fatal: loose object 12 (stored in .git/x) is corrupt", Corrupt, "repository-corrupt"),
        ("fatal: 'x' lazy fetching disabled", Refused, "partial-clone"),
        ("fatal: something new", ToolFailed, "git"),
        ("", ToolFailed, "git"),
    ],
)
def test_a_failure_of_git_has_a_name(said: str, kind: type[Exception], reason: str) -> None:
    error = explain(["git", "add"], 128, said, "/r", "/r/.orchestrator")
    assert isinstance(error, kind)
    assert error.reason == reason


def test_the_command_that_trusts_a_directory_is_git_s_own_or_quoted_for_a_shell() -> None:
    said = (
        "fatal: detected dubious ownership in repository at '/r'\nTo add an exception, call:\n\n"
        "\tgit config --global --add safe.directory /as/git/says"
    )
    assert "`git config --global --add safe.directory /as/git/says`" in str(
        explain(["git"], 128, said, "/r", "/s")
    )
    older = "fatal: unsafe repository ('/r' is owned by someone else)"
    root = "/it's here"
    assert f"safe.directory {shlex.quote(root)}`" in str(explain(["git"], 128, older, root, "/s"))


def test_git_s_environment_has_no_variable_of_a_caller_s_git(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("SUDO_UID", "1")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    env = environment()
    assert "GIT_DIR" not in env
    assert "SUDO_UID" not in env
    assert env["LC_ALL"] == "C.UTF-8"


def test_a_tree_is_listed_in_the_order_of_the_paths_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = GitRepo(tmp_path / "repo")
    monkeypatch.setenv("HOME", str(repo.home))
    names = [b"a.b", b"a/b", b"a-b", b"a0", b"A", b"\xff", b"a/" + b"x" * 200]
    commit = repo.commit_tree({name: (b"100644", name) for name in names})
    git = Git(repo.workspace(), str(tmp_path))
    assert [path for _mode, _oid, path in git.tree(commit)] == sorted(names)
    assert git.head() == commit
    assert git.user_name() == "Ada Lovelace"


def test_contents_come_in_the_order_asked_for_big_ones_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = GitRepo(tmp_path / "repo")
    monkeypatch.setenv("HOME", str(repo.home))
    made = {b"a": b"", b"b": b"x" * 1000, b"c": b"big" * 500_000, b"d": b"missing\n"}
    commit = repo.commit_tree({name: (b"100644", content) for name, content in made.items()})
    git = Git(repo.workspace(), str(tmp_path))
    oids = [oid for _mode, oid, _path in git.tree(commit)]
    with git.contents(reversed_ := oids[::-1], big_bytes=1001) as contents:
        found = [
            (oid, b"".join(contents.chunks()) if content is None else content)
            for oid, _size, content in contents
        ]
    assert [oid for oid, _content in found] == reversed_
    assert [content for _oid, content in found] == list(made.values())[::-1]
