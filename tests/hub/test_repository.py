"""What we read from a repository file is what stock Fossil reads from it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Corrupt, HubError, Refused, Unavailable
from hub.repository import Entry, Repository
from hub.seed import seed
from hub.wording import starting
from slotgc import artifact
from tests.hub.gitrepo import FILE, FOSSIL, ODD_NAMES, GitRepo, checked_out, fossil

if TYPE_CHECKING:
    from collections.abc import Iterator

KIND_OF_MODE = {b"100644": "file", b"100755": "exec", b"120000": "link"}


class Checkout:
    """A stock check-out that stands directly on a trunk."""

    def __init__(self, trunk: str, into: Path) -> None:
        self.top = into
        self.trunk = trunk
        self.version = ""
        into.mkdir()
        fossil("open", trunk, cwd=into)
        fossil("user", "default", "operator", cwd=into)

    def put(self, path: str | bytes, content: bytes) -> None:
        target = os.path.join(os.fsencode(self.top), os.fsencode(path))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)

    def commit(self, message: str, *options: str) -> str:
        """Commit all there is as user ``ada``; return the check-in's hash."""
        fossil("addremove", "--dotfiles", "--ignore", ".fossil-home/*", cwd=self.top)
        said = fossil(
            "commit",
            *("--hash", "--no-prompt", "--no-warnings", "--user-override", "ada"),
            *("--comment", message, *options),
            cwd=self.top,
        )
        self.version = said.decode().partition("New_Version: ")[2].split()[0]
        return self.version

    def entries(self) -> dict[bytes, Entry]:
        """Return what a new check-out of the same check-in has."""
        into = self.top.with_name("again")
        try:
            fresh = checked_out(self.trunk, into, self.version)
        finally:
            shutil.rmtree(into)
        return {
            path: Entry(KIND_OF_MODE[mode], artifact.of_bytes(content))
            for path, (mode, content) in fresh.items()
        }


@pytest.fixture
def checkout(seeded: Path, tmp_path: Path) -> Checkout:
    return Checkout(f"{seeded}/.orchestrator/hub.fossil", tmp_path / "checkout")


@pytest.fixture
def repository(seeded: Path) -> Iterator[Repository]:
    with Repository(f"{seeded}/.orchestrator/hub.fossil") as opened:
        yield opened


def test_the_tree_of_a_check_in_is_what_stock_fossil_has_checked_out(
    checkout: Checkout, repository: Repository
) -> None:
    names = [b"with space", b"new\nline", b"tab\there", b"-dash", b'qu"ote', b"glob*?[a-z]", b"#a"]
    for name in names:
        checkout.put(b"odd/" + name, b"content of " + name)
    checkout.put("empty", b"")
    checkout.put("run", b"#!/bin/sh\n")
    os.chmod(checkout.top / "run", 0o755)
    os.symlink("../nowhere at all", checkout.top / "link")
    first = checkout.commit("odd names")
    assert {b"odd/" + name for name in names} < set(checkout.entries())
    assert repository.files(first) == checkout.entries()

    (checkout.top / "link").unlink()
    (checkout.top / "link").write_bytes(b"no link any more")
    (checkout.top / "src/a.py").unlink()
    checkout.put("src/b.py", b"print(3)\n")
    second = checkout.commit("as a delta", "--delta")
    manifest = repository.manifest(second)
    assert manifest.baseline == first
    assert manifest.parents == (first,)
    assert repository.files(second) == checkout.entries()
    assert {path: after for path, _before, after in repository.changes(second)} == {
        b"link": Entry("file", artifact.of_bytes(b"no link any more")),
        b"src/a.py": None,
        b"src/b.py": Entry("file", artifact.of_bytes(b"print(3)\n")),
    }

    run = artifact.of_bytes(b"#!/bin/sh\n")
    os.chmod(checkout.top / "run", 0o644)
    third = checkout.commit("mode alone", "--baseline")  # stock forgets it in a delta manifest
    assert repository.changes(third) == [(b"run", Entry("exec", run), Entry("file", run))]
    assert repository.files(third) == checkout.entries()


def test_names_that_only_git_takes_are_read_from_the_seeded_trunk(tmp_path: Path) -> None:
    repo = GitRepo(tmp_path / "git")
    tree = {b"d/" + name: (FILE, b"content of " + name) for name in ODD_NAMES}
    repo.commit_tree(tree)
    seed(repo.workspace(), FOSSIL, lambda _phase, _done, _total: None)
    with Repository(repo.workspace().repository) as repository:
        assert repository.files(repository.tip().hash) == {
            path: Entry("file", artifact.of_bytes(content))
            for path, (_mode, content) in tree.items()
        }


def test_a_chain_of_delta_and_full_manifests_is_read_right_at_every_step(
    checkout: Checkout, repository: Repository
) -> None:
    made = {}
    for number in range(12):
        checkout.put(f"src/{number % 3}", b"line\n" * 100 + b"%d\n" % number)
        if number % 4 == 3:
            (checkout.top / f"src/{(number + 1) % 3}").unlink()
        name = checkout.commit(f"step {number}", *["--delta"] * (number % 5 != 0))
        made[name] = checkout.entries()
    rows = repository.line()
    assert [row.hash for row in rows[-12:]] == list(made)
    assert [row.comment for row in rows[-12:]] == [f"step {number}" for number in range(12)]
    repository.forget()
    for name, entries in made.items():
        assert repository.files(name) == entries
    hashes = [row.hash for row in rows]
    for one in hashes:
        for other in hashes:
            before, after = repository.files(one), repository.files(other)
            assert repository.difference(one, other) == [
                (path, before.get(path), after.get(path))
                for path in sorted({*before, *after})
                if before.get(path) != after.get(path)
            ]
    together = {row.hash: changed for row, changed in repository.line_changes(rows)}
    for row in rows:
        repository.forget()
        assert repository.changes(row.hash) == together[row.hash]
        before = repository.files(row.parent) if row.parent else {}
        after = repository.files(row.hash)
        changed = repository.changes(row.hash)
        assert {path for path, _old, _new in changed} == {
            path for path in {*before, *after} if before.get(path) != after.get(path)
        }
        for _path, _old, new in changed:
            if new is not None:
                content = repository.content(new.hash)
                assert artifact.of_bytes(content) == new.hash
                assert repository.size(new.hash) == len(content)


def test_many_contents_read_together_are_those_read_alone(
    checkout: Checkout, repository: Repository
) -> None:
    names = set()
    for number in range(15):
        checkout.put("grows", b"".join(b"line %d\n" % line for line in range(number * 50)))
        names.add(checkout.commit(f"{number}", "--delta"))
    for name in list(names):
        names.update(entry.hash for entry in repository.files(name).values())
    assert repository._rows("SELECT count(*) FROM delta")[0][0] > 5
    together = dict(repository.contents(names))
    assert set(together) == names
    for name in names:
        assert repository.content(name) == together[name]
        assert artifact.of_bytes(together[name]) == name


def test_a_check_in_tells_who_when_and_what_and_is_found_by_its_names(
    checkout: Checkout, repository: Repository
) -> None:
    checkout.put("new", b"new")
    made = checkout.commit("two\nlines — and 🦀", "--date-override", "2031-02-03T04:05:06.789")
    tip = repository.tip()
    assert (tip.hash, tip.user, tip.comment) == (made, "ada", "two\nlines — and 🦀")
    assert tip.time == "2031-02-03T04:05:06.789"
    assert repository.manifest(made).date == tip.time
    root = repository.checkin("root")
    assert root.parent == ""
    assert root.comment.startswith("session base: ")
    assert [root, tip] == repository.line()
    assert tip.parent == root.hash
    assert repository.checkin("tip") == tip == repository.checkin(made[:10].upper())
    assert repository.line(after=root.hash) == [tip]
    assert repository.line(until=root.hash) == [root]
    assert repository.line(after=made) == []
    for name, reason in {
        "0" * 64: "no-such-checkin",
        "abc": "no-such-checkin",
        "trunk'--": "no-such-checkin",
        artifact.of_bytes(b"new"): "no-such-checkin",
    }.items():
        with pytest.raises(Refused) as refused:
            repository.checkin(name)
        assert refused.value.reason == reason
    with pytest.raises(Refused) as refused:
        repository.line(after=made, until=root.hash)
    assert refused.value.reason == "not-on-line"


def test_an_amended_comment_is_the_one_told(checkout: Checkout, repository: Repository) -> None:
    checkout.put("new", b"new")
    made = checkout.commit("first words")
    fossil("amend", made, "--comment", "better words", "--author", "eve", cwd=checkout.top)
    assert (repository.tip().comment, repository.tip().user) == ("better words", "eve")
    assert repository.tip().hash == made


def test_a_fork_a_branch_and_a_merge_do_not_mislead_the_line(
    checkout: Checkout, repository: Repository
) -> None:
    start = repository.tip().hash
    checkout.put("branched", b"1")
    branched = checkout.commit("on a branch", "--branch", "aside")
    assert repository.tip().hash == start
    assert repository.leaves() == [start]
    assert repository.forks() == 0
    fossil("update", "trunk", cwd=checkout.top)
    checkout.put("mine", b"1")
    mine = checkout.commit("on trunk")
    fossil("merge", "aside", cwd=checkout.top)
    merged = checkout.commit("merged")
    assert [row.hash for row in repository.line()][-3:] == [start, mine, merged]
    assert [path for path, _old, _new in repository.changes(merged)] == [b"branched"]
    assert repository.manifest(merged).parents == (mine, branched)
    assert repository.forks() == 0

    fossil("update", start, cwd=checkout.top)
    checkout.put("theirs", b"1")
    theirs = checkout.commit("a fork", "--allow-fork")
    assert repository.leaves() == [theirs, merged]
    assert repository.forks() == 1


def test_who_changed_a_path_last_is_known(checkout: Checkout, repository: Repository) -> None:
    checkout.put("with space", b"1")
    first = checkout.commit("first")
    checkout.put("other", b"1")
    second = checkout.commit("second", "--delta")
    fossil("mv", "--hard", "other", "moved", cwd=checkout.top)
    (checkout.top / "with space").unlink()
    third = checkout.commit("third", "--delta")

    def last(path: bytes, until: str = "") -> str | None:
        found = repository.last_change(path, until)
        return found.hash if found else None

    assert last(b"with space", first) == last(b"with space", second) == first
    assert last(b"with space") == last(b"other") == last(b"moved") == third
    assert last(b"other", second) == second
    assert last(b"README") == repository.checkin("root").hash
    assert last(b"moved", second) is last(b"never") is None


def test_ids_of_commits_lead_to_their_check_ins(checkout: Checkout, repository: Repository) -> None:
    ids = {}
    for number in range(4):
        checkout.put("file", b"%d" % number)
        ids[f"{number}" * 32] = made = checkout.commit(f"{number}")
        fossil("tag", "add", "commit-id", made, f"{number}" * 32, "--raw", cwd=checkout.top)
    assert repository.recent_ids(100) == ids
    assert repository.recent_ids(1) == {"3" * 32: ids["3" * 32]}
    assert repository.landed("1" * 32) == ids["1" * 32]
    assert repository.landed("9" * 32) is None


def test_what_another_process_writes_is_seen_at_once(
    checkout: Checkout, repository: Repository
) -> None:
    before = repository.data_version()
    assert repository.data_version() == before
    start = repository.tip()
    checkout.put("file", b"1")
    made = checkout.commit("theirs")
    assert repository.data_version() != before
    assert repository.tip().hash == made
    assert [row.hash for row in repository.line(after=start.hash)] == [made]


def test_what_is_absent_is_absent_a_phantom_too(repository: Repository) -> None:
    phantom = "f" * 64
    with sqlite3.connect(repository.path) as database:
        database.execute("INSERT INTO blob(rcvid, size, uuid) VALUES (0, -1, ?)", (phantom,))
    database.close()
    for name in (phantom, "e" * 64):
        assert not repository.has(name)
        assert repository.rid(name) is None
        for ask in (repository.size, repository.content, repository.manifest, repository.files):
            with pytest.raises(Refused, match=name) as refused:
                ask(name)
            assert refused.value.reason == "no-such-artifact"


def test_damage_is_named_and_not_passed_on(checkout: Checkout, repository: Repository) -> None:
    checkout.put("file", b"right" * 100)
    made = checkout.commit("a file")
    name = artifact.of_bytes(b"right" * 100)
    database = sqlite3.connect(repository.path, isolation_level=None)
    other = database.execute(
        "SELECT content FROM blob WHERE uuid=?", (artifact.of_bytes(b"hello\n"),)
    ).fetchone()[0]
    right = database.execute("SELECT content FROM blob WHERE uuid=?", (name,)).fetchone()[0]
    for wrong in (other, b"\0\0\0\5abc", b"", None):
        database.execute("UPDATE blob SET content=? WHERE uuid=?", (wrong, name))
        with pytest.raises(Corrupt, match=name):
            repository.content(name)
        with pytest.raises(Corrupt, match=name):
            list(repository.contents([name]))
    database.execute("UPDATE blob SET content=? WHERE uuid=?", (right, name))
    database.execute("INSERT INTO delta SELECT rid, rid FROM blob WHERE uuid=?", (name,))
    with pytest.raises(Corrupt, match="made from itself"):
        repository.content(name)
    with pytest.raises(Corrupt, match="made from itself"):
        list(repository.contents([name]))
    database.close()
    with pytest.raises(Corrupt, match=artifact.of_bytes(b"hello\n")):
        repository.files(artifact.of_bytes(b"hello\n"))
    assert b"file" in repository.files(made)


def test_what_is_no_repository_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=starting()):
        Repository(f"{tmp_path}/absent")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "text").write_bytes(b"no database at all" * 100)
    with pytest.raises(Corrupt):
        Repository(f"{tmp_path}/text")
    sqlite3.connect(tmp_path / "empty").close()
    with pytest.raises(Corrupt):
        Repository(f"{tmp_path}/empty")


def test_odd_paths_of_a_repository_are_no_riddle(repository: Repository, tmp_path: Path) -> None:
    odd = tmp_path / "100%?mode=memory#🦀"
    odd.mkdir()
    with sqlite3.connect(repository.path) as database, sqlite3.connect(odd / "x.fossil") as copy:
        database.backup(copy)
    database.close()
    copy.close()
    with Repository(f"{odd}/x.fossil") as opened:
        assert opened.tip() == repository.tip()


def test_nothing_can_be_written_through_it(repository: Repository) -> None:
    with pytest.raises(HubError, match="readonly"):
        repository._rows("DELETE FROM leaf")


def test_a_writer_who_never_ends_is_named(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.repository._BUSY_S", 0.05)
    writer = sqlite3.connect(repository.path, isolation_level=None)
    repository.close()
    writer.execute("PRAGMA journal_mode=DELETE")
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable, match="locked"):
        Repository(repository.path)
    writer.close()
