"""git's ignore rules, asked of one git that stays, are those of git as it is now."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swarm.worktree.ignoring import Rules, ignored
from tests.support import git

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real


@pytest.fixture
def rules(repo: Path) -> Iterator[Rules]:
    made = Rules(str(repo))
    yield made
    made.close()


def new(repo: Path, name: str) -> bytes:
    path = repo / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return name.encode()


def test_rules_that_change_are_obeyed_at_once(repo: Path, rules: Rules) -> None:
    paths = [new(repo, "a.o"), new(repo, "deep/er/b.o"), new(repo, "odd\nname é.txt")]
    assert rules.ignored(paths) == frozenset()
    (repo / "deep/er/.gitignore").write_text("*.o\n")
    assert rules.ignored(paths) == {b"deep/er/b.o"}
    (repo / ".gitignore").write_text("*.o\nodd*\n!a.o\n")
    assert rules.ignored(paths) == {b"deep/er/b.o", b"odd\nname \xc3\xa9.txt"}
    (repo / "deep/er/.gitignore").unlink()
    (repo / ".gitignore").unlink()
    assert rules.ignored(paths) == frozenset()
    with (repo / ".git/info/exclude").open("a") as exclude:
        exclude.write("a.*\n")
    assert rules.ignored(paths) == {b"a.o"}


def test_the_users_own_rules_count(repo: Path, rules: Rules, tmp_path: Path) -> None:
    paths = [new(repo, "a.tmp"), new(repo, "b.swp")]
    assert rules.ignored(paths) == frozenset()
    mine = Path(os.environ["XDG_CONFIG_HOME"]) / "git/ignore"
    mine.parent.mkdir(parents=True)
    mine.write_text("*.tmp\n")
    assert rules.ignored(paths) == {b"a.tmp"}
    (tmp_path / "rules").write_text("*.swp\n")
    git(repo, "config", "core.excludesFile", str(tmp_path / "rules"))
    assert rules.ignored(paths) == {b"b.swp"}
    (tmp_path / "rules").write_text("# none\n")
    assert rules.ignored(paths) == frozenset()


def test_what_was_added_by_force_is_not_ignored(repo: Path, rules: Rules) -> None:
    (repo / ".gitignore").write_text("*.o\n")
    paths = [new(repo, "a.o"), new(repo, "b.o")]
    assert rules.ignored(paths) == set(paths)
    git(repo, "add", "-f", "a.o")
    assert rules.ignored(paths) == {b"b.o"}


def test_a_git_that_was_killed_is_replaced(repo: Path, rules: Rules) -> None:
    (repo / ".gitignore").write_text("*.o\n")
    path = new(repo, "a.o")
    assert rules.ignored([path]) == {path}
    assert rules._tool is not None
    os.kill(rules._tool._child.pid, 9)
    rules._tool.wait()
    assert rules.ignored([path]) == {path}
    assert rules.ignored([path]) == {path}
    assert rules._tool is not None


def test_many_paths_are_asked_as_well(repo: Path, rules: Rules) -> None:
    (repo / ".gitignore").write_text("*7\n")
    paths = [b"many/%d" % number for number in range(500)]
    expected = {path for path in paths if path.endswith(b"7")}
    assert rules.ignored(paths) == expected == ignored(str(repo), paths)


def test_one_git_answers_many_questions(rules: Rules) -> None:
    assert rules.ignored([b"a"]) == frozenset()
    assert rules._tool is not None
    first = rules._tool._child.pid
    for number in range(50):
        assert rules.ignored([b"src/%d" % number, b"x/y/z"]) == frozenset()
    assert rules._tool._child.pid == first
    rules.close()
    assert subprocess.run(["ps", "-p", str(first)], check=False, capture_output=True).returncode


def test_rules_named_by_an_included_configuration_are_obeyed_at_once(
    repo: Path, rules: Rules, tmp_path: Path
) -> None:
    paths = [new(repo, "a.one"), new(repo, "b.two")]
    included = tmp_path / "included"
    git(repo, "config", "include.path", str(included))
    assert rules.ignored(paths) == frozenset()
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"*.{name}\n")
        included.write_text(f"[core]\n excludesFile = {tmp_path / name}\n")
        assert rules.ignored(paths) == {path for path in paths if path.endswith(name.encode())}


def test_new_files_where_a_submodule_would_be_are_judged_like_others(
    repo: Path, rules: Rules
) -> None:
    git(repo, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub/module")
    (repo / ".gitignore").write_text("*.o\n")
    paths = [new(repo, name) for name in ("sub/module/a.o", "sub/module/b", "c.o", "d")]
    assert rules.ignored(paths) == {b"sub/module/a.o", b"c.o"}
    assert ignored(str(repo), paths) == {b"sub/module/a.o", b"c.o"}


def test_long_paths_do_not_fill_the_pipes_both_ways(repo: Path, rules: Rules) -> None:
    below = "/".join(["d" * 200] * 15)
    (repo / below).mkdir(parents=True)
    (repo / ".gitignore").write_text(f"*{'[a-z]' * 200}*\n")
    paths = [f"{below}/{number}".encode() for number in range(64)]
    rules.warm()
    assert rules._tool is not None
    for pipe in (rules._questions, rules._tool.stdout.fileno()):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    assert rules.ignored(paths) == set(paths)
