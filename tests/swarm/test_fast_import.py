"""What we write for fast-import is read by git as it was meant; messages, names, what stays out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm import fast_import
from swarm.git_tree import SUBMODULE, Kept
from swarm.trailers import message
from tests.hub.gitrepo import GitRepo

CHECKIN = "c" * 64
NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not name.startswith(b".") and b"\0" not in name and b"/" not in name
)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> GitRepo:
    return GitRepo(tmp_path_factory.mktemp("git") / "repo")


def run(repo: GitRepo, *commands: bytes) -> None:
    stream = b"".join(commands) + fast_import.DONE
    repo.git("fast-import", "--quiet", "--done", "--force", stdin=stream)


@settings(max_examples=25)
@given(paths=st.lists(st.lists(NAMES, min_size=1, max_size=2), max_size=6))
def test_any_path_is_the_path_that_git_stores(repo: GitRepo, paths: list[list[bytes]]) -> None:
    files = {b"%d/" % number + b"/".join(path) for number, path in enumerate(paths)}
    run(
        repo,
        *fast_import.blob(1, b"content"),
        fast_import.commit(
            "refs/heads/x",
            2,
            fast_import.person("ada"),
            0,
            "m",
            [(path, b"100644", 1) for path in files],
        ),
    )
    listed = repo.git("ls-tree", "-r", "-z", "--name-only", "x").split(b"\0")
    assert set(listed) - {b""} == files


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=20), comment=st.text(max_size=60), at_s=st.integers(-9, 2**33))
def test_any_user_and_comment_make_a_commit_that_git_finds_sound(
    repo: GitRepo, name: str, comment: str, at_s: int
) -> None:
    author = fast_import.person(name)
    text = message(comment, CHECKIN)
    run(repo, fast_import.commit("refs/heads/y", 1, author, at_s, text, []))
    raw = repo.git("cat-file", "commit", "y")
    assert b"author %s %d +0000\n" % (author, max(0, at_s)) in raw
    assert b"".join(raw.partition(b"\n\n")[2].split()) == b"".join(
        text.encode("utf-8", "replace").split()
    )
    trailers = repo.git("interpret-trailers", "--parse", stdin=raw.partition(b"\n\n")[2])
    assert trailers.splitlines()[-1] == f"Bones-Checkin: {CHECKIN}".encode()
    repo.git("fsck", "--strict", "--no-dangling", "y")


@pytest.mark.parametrize(
    ("name", "address", "written"),
    [
        ("auth", "", "auth <auth@bones.invalid>"),
        ("Ada Lovelace", "", "Ada Lovelace <Ada-Lovelace@bones.invalid>"),
        ("Ada Lovelace", "ada@example.org", "Ada Lovelace <ada@example.org>"),
        ("", "", "unknown <unknown@bones.invalid>"),
        ("a<b>\nc", "", "a b c <a-b-c@bones.invalid>"),
        ("日本", "", "日本 <unknown@bones.invalid>"),
        (" .x, ", "a<b\n", "x <ab>"),
    ],
)
def test_a_user_becomes_a_person(name: str, address: str, written: str) -> None:
    assert fast_import.person(name, address) == written.encode()


@pytest.mark.parametrize(
    ("comment", "before"),
    [
        ("subject", "subject\n\n"),
        ("  subject\r\n\r\nbody\n\n", "subject\n\nbody\n\n"),
        ("", "(no comment)\n\n"),
        ("\0", "\N{REPLACEMENT CHARACTER}\n\n"),
        ("fix: a colon", "fix: a colon\n\n"),
        ("subject\n\nSigned-off-by: A <a@b>", "subject\n\nSigned-off-by: A <a@b>\n"),
        ("subject\n\nNot-one: x\nas this is text", "subject\n\nNot-one: x\nas this is text\n\n"),
    ],
)
def test_the_trailer_ends_the_message(comment: str, before: str) -> None:
    assert message(comment, CHECKIN) == f"{before}Bones-Checkin: {CHECKIN}\n"


def test_deletions_come_first_so_that_a_file_can_become_a_directory() -> None:
    changes = [(b"a/b", b"100644", 1), (b"a", b"", 0)]
    command = fast_import.commit("refs/heads/x", 2, b"A <a@b>", 0, "m", changes, "p" * 40)
    assert command.endswith(b'from %s\nD "a"\nM 100644 :1 "a/b"\n\n' % (b"p" * 40))


def test_what_only_git_has_is_shielded_and_nothing_else() -> None:
    kept = Kept({b"lib/sub": SUBMODULE, b"d/_FOSSIL_": b"100644", b"big": b"100644"})
    for path in (b"lib", b"lib/sub", b"lib/sub/x/y", b"d", b"d/_FOSSIL_", b"big/below"):
        assert kept.refusal(path, "file"), path
        assert kept.refusal(path, ""), path
    for path in (b"library", b"lib/subs", b"lib/su", b"d/other", b"big", b"x"):
        assert kept.refusal(path, "file") == "", path


@pytest.mark.parametrize(
    ("path", "kind", "taken"),
    [
        (b"a/.git", "file", False),
        (b".GIT/x", "file", False),
        (b"a/.git /x", "file", False),
        (b".git::$INDEX_ALLOCATION/x", "file", False),
        (b"GIT~1/x", "file", False),
        (b".gitmodules", "link", False),
        (b".gitmodules", "file", True),
        (b".gitignore", "file", True),
        (b"x.git/config", "file", True),
        (b".github/x", "file", True),
        (b"git~10", "file", True),
        (b"../x", "file", False),
        (b".bones/x", "file", False),
    ],
)
def test_names_that_git_refuses_are_known(
    tmp_path: Path, path: bytes, kind: str, taken: bool
) -> None:
    assert (Kept({}).refusal(path, kind) == "") == taken
    repo = GitRepo(tmp_path / "repo")
    oid = repo.git("hash-object", "-w", "--stdin", stdin=b"x").decode()
    added = subprocess.run(
        ["git", "update-index", "--add", "-z", "--index-info"],
        cwd=repo.root,
        env=repo.env,
        input=b"%s %s 0\t%s\0" % (fast_import.MODES[kind], oid.encode(), path),
        check=False,
        capture_output=True,
    )
    refused = b"Ignoring path" in added.stderr or b"Invalid path" in added.stderr
    assert refused == (not taken and not path.startswith(b".bones"))
