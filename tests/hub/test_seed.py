"""The seeded trunk is what git tracks, and git does not notice."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation import codec
from foundation.errors import Corrupt, HubError, Refused
from foundation.spawn import SpawnedChild, spawn_child
from hub import fossil_repo, manifest
from hub.seed import SCRATCH, Seeded, password_path, seed
from tests.hub.bus_server import free_port
from tests.hub.gitrepo import (
    EXECUTABLE,
    FILE,
    FOSSIL,
    LINK,
    ODD_NAMES,
    GitRepo,
    Tree,
    checked_out,
    fossil,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

CODE = Path(__file__).parents[2]
SEEDER = f"import sys; sys.path.insert(0, {str(CODE)!r}); from hub.preparation import main; main()"
FAILPOINTS = [
    "seed.started",
    "seed.created",
    "seed.batch",
    "seed.read",
    "seed.blobs",
    "seed.stored",
    "seed.finished",
    "seed.password",
    "seed.password@2",
    "seed.synced",
    "seed.renamed",
]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitRepo:
    made = GitRepo(tmp_path / "repo")
    monkeypatch.setenv("HOME", str(made.home))
    return made


def seeded(repo: GitRepo) -> Seeded:
    return seed(repo.workspace(), FOSSIL, lambda _phase, _done, _total: None)


def tip_of(repo: GitRepo, tmp_path: Path, version: str = "trunk") -> Tree:
    return checked_out(f"{repo.root}/.orchestrator/hub.fossil", tmp_path / f"at-{version}", version)


def rows(repo: GitRepo, query: str, *values: str) -> list[Any]:
    database = sqlite3.connect(f"{repo.root}/.orchestrator/hub.fossil")
    database.text_factory = os.fsdecode
    try:
        return database.execute(query, values).fetchall()
    finally:
        database.close()


def odd_tree() -> Tree:
    tree: Tree = {name: (FILE, b"content of " + name) for name in ODD_NAMES}
    return tree | {
        b"bin/run": (EXECUTABLE, b"#!/bin/sh\n"),
        b"bin/same": (FILE, b"#!/bin/sh\n"),
        b"link": (LINK, b"plain.txt"),
        b"dangling link": (LINK, b"no/such\xff\nfile"),
        b"absolute": (LINK, b"/etc/passwd"),
        b"empty": (FILE, b""),
        b"binary": (FILE, bytes(range(256)) * 40),
        b"crlf": (FILE, b"one\r\ntwo\r\nmixed\n"),
        b"utf16": (FILE, "\ufeffhello\n".encode("utf-16")),
        b"no newline": (FILE, b"no newline"),
        b"big": (FILE, os.urandom(5_000_000)),
    }


def test_a_check_out_has_git_s_names_modes_and_bytes(repo: GitRepo, tmp_path: Path) -> None:
    tree = odd_tree()
    commit = repo.commit_tree(tree)
    result = seeded(repo)
    assert tip_of(repo, tmp_path) == tree
    assert (result.files, result.dirty, result.left_out, result.base) == (
        len(tree),
        False,
        (),
        commit,
    )
    assert result.root == result.tip
    assert rows(repo, "SELECT user, comment FROM event") == [
        ("hub", f"session base: {commit[:12]}")
    ]


def test_a_rebuild_and_a_clone_agree_with_the_seeded_repository(
    repo: GitRepo, tmp_path: Path
) -> None:
    tree = odd_tree()
    repo.commit_tree(tree)
    repo.write({b"plain.txt": b"changed\n"})
    seeded(repo)
    derived = "SELECT name, fid, mperm FROM mlink JOIN filename USING(fnid) ORDER BY mid, name"
    tags = "SELECT tagname, tagtype, value, rid FROM tagxref JOIN tag USING(tagid) ORDER BY 1, 4"
    events = "SELECT type, mtime, objid, user, comment FROM event ORDER BY objid"
    tables = [derived, tags, events, "SELECT * FROM leaf", "SELECT * FROM plink"]
    before = [rows(repo, table) for table in tables]
    repository = f"{repo.root}/.orchestrator/hub.fossil"
    assert b" 0 errors" in fossil("test-integrity", repository, cwd=tmp_path)
    fossil("clone", repository, "clone.fossil", cwd=tmp_path)
    fossil("rebuild", repository, cwd=tmp_path)
    assert [rows(repo, table) for table in tables] == before
    expected = tree | {b"plain.txt": (FILE, b"changed\n")}
    assert tip_of(repo, tmp_path) == expected
    fossil("settings", "allow-symlinks", "on", "-R", "clone.fossil", cwd=tmp_path)
    assert checked_out(tmp_path / "clone.fossil", tmp_path / "cloned") == expected


NAMES = st.lists(
    st.binary(min_size=1, max_size=12)
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"_"))
    .filter(lambda name: manifest.unfit_name(name) is None and name.lower() != b".git"),
    min_size=1,
    max_size=3,
).map(b"/".join)
FILES = st.tuples(st.sampled_from([FILE, EXECUTABLE]), st.binary(max_size=300)) | st.tuples(
    st.just(LINK), st.binary(min_size=1, max_size=40).filter(lambda target: b"\0" not in target)
)


@given(tree=st.dictionaries(NAMES, FILES, min_size=1, max_size=8))
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.slow
def test_any_tree_arrives_whole(
    tree: Tree, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in list(tree):  # a name cannot be both a file and a directory
        if any(other.startswith(path + b"/") for other in tree):
            del tree[path]
    place = tmp_path_factory.mktemp("any")
    repo = GitRepo(place / "repo")
    monkeypatch.setenv("HOME", str(repo.home))
    repo.git("config", "core.protectNTFS", "false")  # or git itself refuses git~1
    repo.commit_tree(tree)
    assert seeded(repo).files == len(tree)
    assert tip_of(repo, place) == tree


def test_uncommitted_changes_are_a_second_check_in_by_the_user(
    repo: GitRepo, tmp_path: Path
) -> None:
    repo.commit({"kept": "1\n", "edited": "1\n", "deleted": "1\n", "script": "1\n", "link": "x"})
    at_head = repo.root / "at-head"
    repo.write({"edited": "2\n", "staged/new": "n\n", "untracked": "u\n"})
    repo.git("add", "staged/new")
    (repo.root / "deleted").unlink()
    (repo.root / "script").chmod(0o755)
    (repo.root / "link").unlink()
    (repo.root / "link").symlink_to("kept")
    assert not at_head.exists()
    result = seeded(repo)
    assert result.dirty
    assert rows(repo, "SELECT user, comment FROM event ORDER BY mtime DESC")[0] == (
        "Ada Lovelace",
        "uncommitted changes of tracked files",
    )
    assert rows(repo, "SELECT uuid FROM leaf JOIN blob USING(rid)") == [(result.tip,)]
    assert tip_of(repo, tmp_path) == {
        b"kept": (FILE, b"1\n"),
        b"edited": (FILE, b"2\n"),
        b"script": (EXECUTABLE, b"1\n"),
        b"staged/new": (FILE, b"n\n"),
        b"link": (LINK, b"kept"),
    }
    assert tip_of(repo, tmp_path, result.root) == {
        name: (FILE, b"x" if name == b"link" else b"1\n")
        for name in (b"kept", b"edited", b"deleted", b"script", b"link")
    }


def test_a_clean_work_tree_makes_one_check_in(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    (repo.root / "a").touch()  # its time differs, its content does not
    assert not seeded(repo).dirty
    assert rows(repo, "SELECT count(*) FROM event") == [(1,)]


def test_an_edit_of_the_same_size_and_time_is_found(repo: GitRepo, tmp_path: Path) -> None:
    repo.commit({"a": "1\n"})
    info = (repo.root / "a").stat()
    index = repo.root / ".git/index"
    os.utime(index, ns=(info.st_mtime_ns, info.st_mtime_ns))  # racily clean, in git's words
    with (repo.root / "a").open("r+b") as file:
        file.write(b"2\n")
    os.utime(repo.root / "a", ns=(info.st_mtime_ns, info.st_mtime_ns))
    repo.git("config", "core.trustctime", "false")
    assert seeded(repo).dirty
    assert tip_of(repo, tmp_path)[b"a"] == (FILE, b"2\n")


def test_changed_files_pass_git_s_own_filters(repo: GitRepo, tmp_path: Path) -> None:
    repo.git("config", "filter.rot.clean", "tr a-z n-za-m")
    repo.git("config", "filter.rot.required", "true")
    repo.git("config", "core.safecrlf", "true")
    repo.commit(
        {
            ".gitattributes": "*.txt text eol=crlf\n*.id ident\n*.rot filter=rot\n",
            "a.txt": "one\r\ntwo\r\n",
            "b.id": "$Id$\n",
            "c.rot": "abc\n",
        }
    )
    repo.write({"a.txt": "one\r\nTWO\nthree\r\n", "b.id": "$Id: 123 $ new\n", "c.rot": "nop\n"})
    seeded(repo)
    tree = tip_of(repo, tmp_path)
    assert tree[b"a.txt"][1] == b"one\nTWO\nthree\n"
    assert tree[b"b.id"][1] == b"$Id$ new\n"
    assert tree[b"c.rot"][1] == b"abc\n"


def test_before_the_first_commit_what_is_staged_is_the_second_check_in(
    repo: GitRepo, tmp_path: Path
) -> None:
    repo.write({"a": "1\n", "b": "2\n"})
    repo.git("add", "a")
    result = seeded(repo)
    assert (result.base, result.dirty, result.files) == (None, True, 1)
    assert rows(repo, "SELECT comment FROM event ORDER BY mtime") == [
        ("session base: none",),
        ("uncommitted changes of tracked files",),
    ]
    assert tip_of(repo, tmp_path) == {b"a": (FILE, b"1\n")}


def test_a_repository_that_tracks_nothing_is_refused(repo: GitRepo) -> None:
    repo.write({"untracked": ""})
    with pytest.raises(Refused, match="git add") as caught:
        seeded(repo)
    assert caught.value.reason == "no-tracked-file"


def everything_odd_at_once(repo: GitRepo) -> Tree:
    """Bring the index into every state that git knows; return what the tip should be."""
    names = ("merged", "assumed", "skipped", "kept")
    repo.commit(dict.fromkeys(names, "base\n"))
    repo.git("checkout", "--quiet", "-b", "other")
    repo.commit({"merged": "theirs\n"})
    repo.git("checkout", "--quiet", "main")
    repo.commit({"merged": "ours\n"})
    subprocess.run(["git", "merge", "other"], cwd=repo.root, env=repo.env, capture_output=True,
                   check=False)  # fmt: skip
    repo.write({"intended": "intended\n", "assumed": "edited\n"})
    repo.git("add", "--intent-to-add", "intended")
    repo.git("update-index", "--assume-unchanged", "assumed")
    repo.git("update-index", "--skip-worktree", "skipped")
    (repo.root / "skipped").unlink()
    conflict = (repo.root / "merged").read_bytes()
    assert b"<<<<<<<" in conflict
    return {
        b"merged": (FILE, conflict),
        b"assumed": (FILE, b"base\n"),
        b"skipped": (FILE, b"base\n"),
        b"kept": (FILE, b"base\n"),
        b"intended": (FILE, b"intended\n"),
    }


def test_conflicts_intents_and_hidden_files_arrive_as_git_sees_them(
    repo: GitRepo, tmp_path: Path
) -> None:
    expected = everything_odd_at_once(repo)
    seeded(repo)
    assert tip_of(repo, tmp_path) == expected


def test_files_outside_a_sparse_checkout_are_not_deleted(repo: GitRepo, tmp_path: Path) -> None:
    repo.commit({"in/a": "1\n", "out/b": "1\n"})
    repo.git("sparse-checkout", "set", "--cone", "--sparse-index", "in")
    assert not (repo.root / "out").exists()
    repo.write({"in/a": "2\n"})
    seeded(repo)
    assert tip_of(repo, tmp_path) == {b"in/a": (FILE, b"2\n"), b"out/b": (FILE, b"1\n")}


def test_a_clone_without_a_check_out_has_no_changes(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    (repo.root / ".git/index").unlink()
    (repo.root / "a").unlink()
    result = seeded(repo)
    assert (result.dirty, result.files) == (False, 1)


def test_a_linked_worktree_is_seeded_from_its_own_head_and_index(
    repo: GitRepo, tmp_path: Path
) -> None:
    repo.commit({"a": "main\n"})
    repo.git("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    side = GitRepo.__new__(GitRepo)
    side.root, side.home = tmp_path / "side", repo.home
    side.commit({"a": "side\n"})
    side.write({"a": "side, edited\n"})
    result = seeded(side)
    assert tip_of(side, tmp_path) == {b"a": (FILE, b"side, edited\n")}
    assert result.base == side.git("rev-parse", "HEAD").decode()


@pytest.mark.parametrize("options", [("--object-format=sha256",), ('--separate-git-dir=../g:"d',)])
def test_unusual_repositories_are_seeded(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = GitRepo(tmp_path / "a repo: odd", options=options)
    monkeypatch.setenv("HOME", str(repo.home))
    repo.commit({"a": "1\n"})
    repo.write({"a": "2\n"})
    seeded(repo)
    assert tip_of(repo, tmp_path) == {b"a": (FILE, b"2\n")}


def test_a_split_index_is_read(repo: GitRepo, tmp_path: Path) -> None:
    repo.commit({"a": "1\n", "b": "1\n"})
    repo.git("update-index", "--split-index")
    repo.write({"a": "2\n"})
    repo.git("add", "a")
    before = set(repo.snapshot())
    seeded(repo)
    assert set(repo.snapshot()) == before
    assert tip_of(repo, tmp_path) == {b"a": (FILE, b"2\n"), b"b": (FILE, b"1\n")}


def test_variables_and_replacements_cannot_redirect_it(
    repo: GitRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"a": "right\n"})
    right = repo.git("rev-parse", "HEAD:a").decode()
    wrong = repo.git("hash-object", "-w", "--stdin", stdin=b"wrong\n").decode()
    repo.git("replace", right, wrong)
    other = GitRepo(tmp_path / "other")
    other.commit({"b": "other\n"})
    for name, value in {
        "GIT_DIR": str(other.root / ".git"),
        "GIT_WORK_TREE": str(other.root),
        "GIT_INDEX_FILE": str(other.root / ".git/index"),
        "GIT_OBJECT_DIRECTORY": "/nonexistent",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": "/nonexistent",
        "SUDO_UID": "12345",
    }.items():
        monkeypatch.setenv(name, value)
    seeded(repo)
    assert tip_of(repo, tmp_path) == {b"a": (FILE, b"right\n")}


@pytest.mark.parametrize("odd", [False, True])
def test_the_user_s_git_is_not_touched(repo: GitRepo, tmp_path: Path, odd: bool) -> None:
    ran = tmp_path / "hook-ran"
    if odd:
        everything_odd_at_once(repo)
    else:
        repo.commit({"a": "1\n", "b": "1\n", "c": "1\n"})
        repo.write({"a": "2\n", "new": "n\n"})
        repo.git("add", "new")
        (repo.root / "b").touch()
    for hook in ("post-index-change", "pre-commit", "post-checkout", "fsmonitor-watchman"):
        path = repo.root / ".git/hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
        path.chmod(0o755)
    repo.git("config", "core.fsmonitor", str(repo.root / ".git/hooks/fsmonitor-watchman"))
    repo.workspace()
    before = repo.snapshot()
    seeded(repo)
    assert repo.snapshot() == before
    assert not ran.exists()


def test_what_fossil_cannot_have_is_left_out_and_named(repo: GitRepo, tmp_path: Path) -> None:
    submodule = b"1" * 40
    tree: Tree = {
        b"kept": (FILE, b"kept\n"),
        b"sub/module": (b"160000", submodule),
        b"_FOSSIL_": (FILE, b"x"),
        b"deep/.fslckout": (FILE, b"x"),
        b"deep/.FSLCKOUT-journal": (FILE, b"x"),
        b".orchestrator/own": (FILE, b"x"),
        b".bones/own": (FILE, b"x"),
        b"deep/.bones/kept": (FILE, b"kept\n"),
    }
    repo.commit_tree(tree, check_out=False)
    repo.git("read-tree", "HEAD")
    (repo.root / ".git/index").unlink()
    result = seeded(repo)
    assert [name for name, _reason in result.left_out] == [
        b".bones/own",
        b".orchestrator/own",
        b"_FOSSIL_",
        b"deep/.FSLCKOUT-journal",
        b"deep/.fslckout",
    ]
    assert result.skipped_submodules == 1
    assert tip_of(repo, tmp_path) == {
        b"kept": (FILE, b"kept\n"),
        b"deep/.bones/kept": (FILE, b"kept\n"),
    }
    told = "\n".join(result.warnings())
    assert "_FOSSIL_" in told
    assert "1 submodule" in told


def test_a_changed_submodule_is_no_change(repo: GitRepo, tmp_path: Path) -> None:
    inner = GitRepo(tmp_path / "inner")
    inner.commit({"x": "1\n"})
    repo.commit({"a": "1\n"})
    repo.git("-c", "protocol.file.allow=always", "submodule", "add", "--quiet", str(inner.root))
    repo.commit()
    (repo.root / "inner/x").write_text("edited\n")
    result = seeded(repo)
    assert (result.dirty, result.skipped_submodules, result.files) == (False, 1, 2)


def evil(root: str) -> bytes:
    """Return a control artifact that would rewrite the comment of check-in *root*."""
    card = f"D 2030-01-01T00:00:00.000\nT +comment {root} HACKED\nU hub\n".encode()
    return card + b"Z %s\n" % hashlib.md5(card).hexdigest().encode()


def test_a_content_that_fossil_would_obey_is_left_out(repo: GitRepo, tmp_path: Path) -> None:
    artifact = evil("0" * 64)
    signed = (
        b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\n"
        + artifact
        + b"-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP SIGNATURE-----\n"
    )
    harmless = artifact[:-2] + b"x\n"
    big = b"D 1\n" + b"x" * 5_000_000 + b"\nZ %s\n" % (b"0" * 32)
    repo.commit({"a": artifact, "b": signed, "c": harmless, "d": b"Z \n", "e": "kept\n", "f": big})
    repo.write({"e": artifact, "g": artifact})
    repo.git("add", "g")
    result = seeded(repo)
    assert [name for name, _reason in result.left_out] == [b"a", b"b", b"e", b"f", b"g"]
    assert tip_of(repo, tmp_path) == {
        b"c": (FILE, harmless),
        b"d": (FILE, b"Z \n"),
        b"e": (FILE, b"kept\n"),
    }
    fossil("rebuild", f"{repo.root}/.orchestrator/hub.fossil", cwd=tmp_path)
    assert rows(repo, "SELECT count(*) FROM event") == [(1,)]


def test_only_its_two_users_can_do_anything(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    workspace = repo.workspace()
    result = seeded(repo)
    rights = dict(rows(repo, "SELECT login, cap FROM user"))
    assert {login for login, cap in rights.items() if cap} == {"hub", "operator"}
    assert not set("asxeU") & set(rights["hub"] + rights["operator"])
    for login in ("hub", "operator"):
        path = Path(password_path(workspace, login))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        password = path.read_text().removesuffix("\n")
        digest = fossil_repo.password_digest(result.hub_id, login, password)
        assert rows(repo, "SELECT pw FROM user WHERE login=?", login) == [(digest,)]


def test_the_file_is_private_in_wal_mode_and_alone(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    workspace = repo.workspace()
    seeded(repo)
    assert stat.S_IMODE(Path(workspace.repository).stat().st_mode) == 0o600
    assert Path(workspace.repository).read_bytes()[18:20] == b"\2\2"
    assert [p.name for p in Path(workspace.state).glob("hub.fossil*")] == ["hub.fossil"]
    assert rows(repo, "SELECT value FROM config WHERE name='backoffice-disable'") == [("1",)]
    assert not (repo.home / ".fossil").exists()


@pytest.mark.real
def test_a_stock_clone_needs_the_operator_s_password(repo: GitRepo, tmp_path: Path) -> None:
    repo.commit({"a": "1\n"})
    workspace = repo.workspace()
    seeded(repo)
    password = Path(password_path(workspace, "operator")).read_text().strip()
    with serving(workspace.repository, tmp_path) as port:
        with pytest.raises(AssertionError):
            fossil("clone", f"http://127.0.0.1:{port}/", "nobody.fossil", cwd=tmp_path)
        url = f"http://operator:{password}@127.0.0.1:{port}/"
        fossil("clone", "--save-http-password", url, "operator.fossil", cwd=tmp_path)
        tree = tmp_path / "tree"
        tree.mkdir()
        fossil("open", "../operator.fossil", cwd=tree)
        (tree / "a").write_text("pushed\n")
        fossil("commit", "-m", "pushed", "--user-override", "operator", cwd=tree)
    assert rows(repo, "SELECT comment FROM event ORDER BY mtime")[-1] == ("pushed",)


class serving:  # noqa: N801 - reads as a verb
    """A stock server of *repository* on a free port."""

    def __init__(self, repository: str, home: Path) -> None:
        self._port = free_port()
        argv = [FOSSIL, "server", "--localhost", "--nojail", "--port", str(self._port), repository]
        env = {"USER": "hub", "FOSSIL_HOME": str(home), "HOME": str(home), "PATH": os.defpath}
        self._server = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)

    def __enter__(self) -> int:
        assert self._server.stdout is not None
        assert str(self._port).encode() in self._server.stdout.readline()
        return self._port

    def __exit__(self, *_error: object) -> None:
        assert self._server.stdout is not None
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()


def test_an_existing_repository_is_never_touched(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    workspace = repo.workspace()
    Path(workspace.repository).write_bytes(b"precious")
    with pytest.raises(AssertionError):
        seeded(repo)
    assert Path(workspace.repository).read_bytes() == b"precious"


def refusal(repo: GitRepo) -> HubError:
    with pytest.raises(HubError) as caught:
        seeded(repo)
    state = repo.root / ".orchestrator"
    assert [path.name for path in state.glob("hub.fossil*")] == []
    return caught.value


def test_git_that_is_not_installed_is_named(repo: GitRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert refusal(repo).reason == "git-missing"


def test_fossil_that_cannot_be_run_is_an_error(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    with pytest.raises(HubError, match="nonexistent"):
        seed(repo.workspace(), "/nonexistent/fossil", lambda *_: None)


def test_a_directory_without_a_work_tree_is_refused(repo: GitRepo) -> None:
    workspace = repo.workspace()
    (repo.root / ".git/HEAD").unlink()
    with pytest.raises(Refused) as caught:
        seed(workspace, FOSSIL, lambda *_: None)
    assert caught.value.reason == "not-git"


def test_a_broken_repository_inside_another_is_not_taken_for_the_outer_one(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    inner = GitRepo(repo.root / "inner")
    workspace = inner.workspace()
    (inner.root / ".git/HEAD").unlink()
    with pytest.raises(Refused) as caught:
        seed(workspace, FOSSIL, lambda *_: None)
    assert caught.value.reason == "not-git"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_repository_of_another_user_is_refused_with_the_command_that_trusts_it(
    repo: GitRepo,
) -> None:
    repo.commit({"a": "1\n"})
    workspace = repo.workspace()
    for path in (repo.root, repo.root / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(Refused, match=r"git config --global --add safe\.directory") as caught:
        seed(workspace, FOSSIL, lambda *_: None)
    assert caught.value.reason == "dubious-ownership"
    assert str(repo.root) in str(caught.value).partition("safe.directory")[2]


@pytest.mark.parametrize("what", ["HEAD:a", "HEAD^{tree}", "HEAD"])
def test_a_missing_object_is_damage_not_an_empty_file(repo: GitRepo, what: str) -> None:
    repo.commit({"a": "1\n"})
    oid = repo.git("rev-parse", what).decode()
    (repo.root / ".git/objects" / oid[:2] / oid[2:]).unlink()
    error = refusal(repo)
    assert isinstance(error, Corrupt)
    assert error.reason == "repository-corrupt"
    assert "git fsck" in str(error)


@pytest.mark.parametrize("damage", [b"", b"DIRC damaged", b"0" * 500])
def test_a_damaged_index_is_damage(repo: GitRepo, damage: bytes) -> None:
    repo.commit({"a": "1\n"})
    (repo.root / ".git/index").write_bytes(damage)
    assert refusal(repo).reason == "repository-corrupt" if damage else "no-tracked-file"


def test_a_branch_file_emptied_by_a_power_cut_is_damage(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    (repo.root / ".git/refs/heads/main").write_bytes(b"")
    error = refusal(repo)
    assert error.reason == "repository-corrupt", str(error)


def test_a_partial_clone_is_refused_without_using_the_network(
    repo: GitRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"a": "1\n"})
    repo.git("config", "uploadpack.allowFilter", "true")
    repo.git("clone", "--quiet", "--no-checkout", "--filter=blob:none", f"file://{repo.root}",
             str(tmp_path / "partial"))  # fmt: skip
    partial = GitRepo(tmp_path / "partial")
    monkeypatch.setenv("HOME", str(partial.home))
    error = refusal(partial)
    assert error.reason == "partial-clone", str(error)
    assert "git fetch" in str(error)


def test_a_failing_filter_is_reported_in_git_s_words(repo: GitRepo) -> None:
    repo.git("config", "filter.no.clean", "false")
    repo.git("config", "filter.no.required", "true")
    repo.commit({"a": "1\n"})
    repo.write({".gitattributes": "a filter=no\n", "a": "22\n"})
    error = refusal(repo)
    assert error.reason == "git"
    assert "clean filter 'no' failed" in str(error)


def can_mount(tmp_path: Path) -> bool:
    argv = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.mark.faults
@pytest.mark.parametrize("kib", [60, 200, 400, 900, 2000, 3000])
def test_a_full_disk_is_named_and_leaves_nothing(repo: GitRepo, tmp_path: Path, kib: int) -> None:
    if not can_mount(tmp_path):
        pytest.skip("no right to mount a small disk")
    repo.commit({f"f{n}": os.urandom(300_000) for n in range(10)})
    repo.write({"f0": os.urandom(300_000)})
    workspace = repo.workspace()
    script = (
        f"mount -t tmpfs -o size={kib}k none {workspace.state} && mkdir {workspace.creds} && "
        f'"$@"; ls -A {workspace.state} >&2'
    )
    messages, said = report_of(repo, wrapper=["unshare", "--mount", "sh", "-c", script, "sh"])
    assert messages[-1]["fail"]["reason"] == "disk-full", messages[-1]
    assert said.split() == ["creds"]


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], pass_fds=(3,), check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Run a command and print its peak of memory in KiB. What pytest starts itself would count what
pytest needs: a process keeps the peak of what it was before its exec."""


def start(
    repo: GitRepo,
    *,
    report: int,
    wrapper: list[str] | None = None,
    env: Mapping[str, str] = {},
) -> tuple[SpawnedChild, IO[bytes]]:
    """Start a seeding process that writes its report to *report*; also return its stderr."""
    argv = [sys.executable, "-I", "-c", SEEDER, str(repo.root), FOSSIL]
    argv = [*(wrapper or []), *argv]
    read, write = os.pipe()
    with open(os.devnull, "rb") as null:
        child = spawn_child(
            [shutil.which(argv[0]) or argv[0], *argv[1:]],
            env=os.environ | dict(env),
            cwd="/",
            files={0: null.fileno(), 1: write, 2: write, 3: report},
        )
    os.close(write)
    return child, os.fdopen(read, "rb")


def ended(child: SpawnedChild) -> int:
    _pid, status = os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    return os.waitstatus_to_exitcode(status)


def report_of(
    repo: GitRepo, *, wrapper: list[str] | None = None, env: Mapping[str, str] = {}
) -> tuple[list[dict[str, Any]], str]:
    """Run a seeding process to its end; return its report and what it said."""
    read, write = os.pipe()
    child, stderr = start(repo, report=write, wrapper=wrapper, env=env)
    os.close(write)
    with os.fdopen(read, "rb") as report, stderr:
        messages = [codec.loads_object(line) for line in report]
        said = stderr.read().decode()
    ended(child)
    return messages, said


def test_a_seeding_process_reports_progress_and_its_result(repo: GitRepo) -> None:
    repo.commit({"a": "1\n", b"lat\xedn.pem": "k", "k.pem": "k"})
    repo.workspace()
    messages, said = report_of(repo)
    assert said == ""
    told = [message["progress"]["phase"] for message in messages if "progress" in message]
    assert set(told) == {"reading", "writing"}
    (warning,) = [message["warning"] for message in messages if "warning" in message]
    assert r"k.pem, lat\xedn.pem;" in warning
    assert messages[-1] == {"done": True}
    assert rows(repo, "SELECT count(*) FROM leaf") == [(1,)]


def test_a_seeding_process_reports_why_it_failed(repo: GitRepo) -> None:
    repo.workspace()
    messages, _said = report_of(repo)
    assert messages[-1]["fail"]["kind"] == "Refused"
    assert messages[-1]["fail"]["reason"] == "no-tracked-file"


def test_a_seeding_process_ends_when_nobody_listens(repo: GitRepo) -> None:
    repo.commit({"a": "1\n"})
    repo.workspace()
    read, write = os.pipe()
    os.close(read)
    child, stderr = start(repo, report=write)
    os.close(write)
    with stderr:
        stderr.read()
    assert ended(child) == 1
    assert not Path(repo.workspace().repository).exists()


def leftovers(repo: GitRepo) -> set[str]:
    return {path.name for path in (repo.root / ".orchestrator").iterdir()} - {
        ".git", "creds", "leases", "logs", "nats", "outbox", "pids", "hub.fossil",
        "journal", "spool", "templates"}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("point", FAILPOINTS)
def test_killed_at_any_step_the_next_call_converges(
    repo: GitRepo, tmp_path: Path, point: str
) -> None:
    repo.commit({"a": "1\n", "b": "1\n"})
    repo.write({"a": "2\n"})
    workspace = repo.workspace()
    before = repo.snapshot()
    messages, _said = report_of(repo, env={"HUB_FAILPOINT": point})
    assert not any("done" in message for message in messages)
    if point == "seed.renamed":
        assert Path(workspace.repository).exists()
    else:
        assert not Path(workspace.repository).exists()
        assert SCRATCH in leftovers(repo)
        seeded(repo)
        assert leftovers(repo) == set()
    assert tip_of(repo, tmp_path) == {b"a": (FILE, b"2\n"), b"b": (FILE, b"1\n")}
    password = Path(password_path(workspace, "hub")).read_text().strip()
    hub_id = rows(repo, "SELECT value FROM config WHERE name='project-code'")[0][0]
    assert rows(repo, "SELECT pw FROM user WHERE login='hub'") == [
        (fossil_repo.password_digest(hub_id, "hub", password),)
    ]
    assert repo.snapshot() == before


@pytest.mark.faults
def test_its_children_die_with_it(repo: GitRepo, tmp_path: Path) -> None:
    gate, hold = tmp_path / "gate", tmp_path / "hold"
    os.mkfifo(gate)
    os.mkfifo(hold)
    # The parent of the filter's shell is git; it tells us its pid and waits.
    repo.git("config", "filter.wait.clean", f"echo $PPID > '{gate}'; cat '{hold}'")
    repo.commit({"a": "1\n"})
    repo.write({".gitattributes": "a filter=wait\n", "a": "22\n"})
    repo.workspace()
    with open(os.devnull, "wb") as null:
        child, stderr = start(repo, report=null.fileno())
    pidfd = os.pidfd_open(int(gate.read_text()))
    signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    ended(child)
    stderr.close()
    assert select.select([pidfd], [], [], 10.0)[0], "git outlived the seeding"
    os.close(pidfd)
    hold.write_text("")  # and the filter, which is git's child, may end
    repo.git("config", "filter.wait.clean", "cat")
    assert seeded(repo).dirty


def test_the_check_ins_are_dated_now_whatever_git_says(repo: GitRepo) -> None:
    repo.write({"a": "1\n"})
    repo.git("add", "a")
    future = "2090-01-01T00:00:00Z"
    repo.git("commit", "-m", "x", env={"GIT_AUTHOR_DATE": future, "GIT_COMMITTER_DATE": future})
    seeded(repo)
    late = "SELECT count(*) FROM event WHERE mtime > julianday('now') + 1e-8"
    assert rows(repo, late) == [(0,)]


def test_progress_counts_files_and_ends_at_the_total(repo: GitRepo) -> None:
    repo.commit({f"f{n}": f"{n % 7}\n" for n in range(50)})
    repo.write({"f0": "x\n"})
    calls: list[tuple[str, int, int]] = []
    seed(repo.workspace(), FOSSIL, lambda *call: calls.append(call))
    reading = [(done, total) for phase, done, total in calls if phase == "reading"]
    assert reading == sorted(reading)
    assert reading[-1] == (50, 50)
    assert ("changes", 1, 1) in calls


@pytest.mark.slow
def test_a_file_of_a_hundred_megabytes_arrives_in_little_memory(
    repo: GitRepo, tmp_path: Path
) -> None:
    block = os.urandom(1 << 12) * 256  # its size matters here, not what zlib makes of it
    with (repo.root / "large").open("wb") as file:
        for _ in range(100):
            file.write(block)
    repo.commit()
    repo.workspace()
    with open(os.devnull, "wb") as null:
        child, peak = start(repo, report=null.fileno(), wrapper=[sys.executable, "-c", PEAK])
    with peak:
        # Of the largest of it, git and fossil: git maps the object's file.
        assert int(peak.read()) < 140_000
    assert ended(child) == 0
    tree = tip_of(repo, tmp_path)
    assert hashlib.sha256(tree[b"large"][1]).digest() == hashlib.sha256(block * 100).digest()


def test_a_file_that_is_too_large_for_fossil_is_left_out(
    repo: GitRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fossil_repo, "LARGEST_BYTES", 5_000_000)
    repo.commit({"at the limit": b"y" * 5_000_000, "beyond": b"x" * 5_000_001, "z": "after\n"})
    assert [name for name, _reason in seeded(repo).left_out] == [b"beyond"]
    assert set(tip_of(repo, tmp_path)) == {b"at the limit", b"z"}


def test_what_the_user_should_know_is_said_in_sentences(repo: GitRepo) -> None:
    repo.write({f"{n}.pem": "" for n in range(11)})
    repo.commit({".env": "PASSWORD=1\n", "_FOSSIL_": ""})
    secrets, left_out = seeded(repo).warnings()
    assert ".env, 0.pem" in secrets
    assert "and 2 more" in secrets
    assert left_out == "left out (Fossil's own name): _FOSSIL_"


@pytest.fixture(autouse=True)
def _no_user_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USER", raising=False)
