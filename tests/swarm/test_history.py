"""Reading trunk's history, and the request that undoes a check-in."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Refused
from foundation.workspace import Workspace
from hub.commits import Change
from hub.repository import Repository
from slotgc import artifact
from swarm import history
from tests.slotgc.worktrees import Node, plant, tree_of
from tests.swarm.stock import Checkout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hub.repository import Difference


@pytest.fixture
def checkout(seeded: Path, tmp_path: Path) -> Checkout:
    """Return a stock check-out of a small trunk."""
    return Checkout(Workspace(str(seeded)).repository, tmp_path / "stock/co")


@pytest.fixture
def trunk(seeded: Path) -> Iterator[Repository]:
    """Return its repository, open."""
    with history.open_repository(Workspace(str(seeded)).repository) as repository:
        yield repository


def shown(repository: Repository, found: list[Difference]) -> bytes:
    return b"".join(one.diff for one in history.diff(repository, found))


def named(content: bytes) -> str:
    return artifact.of_bytes(content)


def test_the_log_is_newest_first_with_the_slot_and_the_message(
    checkout: Checkout, trunk: Repository
) -> None:
    first = checkout.commit({b"new": Node(b"1\n")}, "first\nmore", "auth")
    second = checkout.commit({b"new": Node(b"2\n")}, "second", "api")
    rows = list(history.log(trunk))
    assert [row.hash for row in rows][:2] == [second, first]
    assert [row.user for row in rows] == ["api", "auth", "hub"]
    assert history.title(rows[1]) == "first"
    assert rows[-1].parent == ""
    assert [row.hash for row in history.log(trunk, slot="auth")] == [first]


def test_a_diff_of_two_check_ins_turns_one_tree_into_the_other(
    checkout: Checkout, trunk: Repository, tmp_path: Path
) -> None:
    old = {
        b"changed": Node(b"1\n2\n3\n"),
        b"gone": Node(b"x\n"),
        b"binary": Node(b"\0\1"),
        b"run.sh": Node(b"true\n"),
        b"link": Node(b"changed", 0),
    }
    new = {
        b"changed": Node(b"1\ntwo\n3"),
        b"gone": None,
        b"run.sh": Node(b"true\n", 0o755),
        b"link": Node(b"run.sh", 0),
        b"with space \xc3\xa4": Node(b""),
    }
    first = trunk.checkin(checkout.commit(old, "first"))
    before = checkout.tree()
    second = trunk.checkin(checkout.commit(new, "second"))
    patch = shown(trunk, trunk.difference(first.hash, second.hash))
    assert patch == shown(trunk, trunk.changes(second.hash))
    plant(tmp_path / "tree", before)
    subprocess.run(["git", "apply", "-"], cwd=tmp_path / "tree", input=patch, check=True)
    assert tree_of(tmp_path / "tree") == checkout.tree()
    back = shown(trunk, trunk.difference(second.hash, first.hash))
    subprocess.run(["git", "apply", "-"], cwd=tmp_path / "tree", input=back, check=True)
    assert tree_of(tmp_path / "tree") == before
    (binary,) = history.diff(
        trunk, [one for one in trunk.changes(first.hash) if one[0] == b"binary"]
    )
    assert binary.diff.endswith(b"Binary files /dev/null and b/binary differ\n")


def test_the_root_shows_all_its_files_as_new(trunk: Repository) -> None:
    found = list(history.diff(trunk, trunk.changes(trunk.root().hash)))
    assert [one.path for one in found] == [b"README", b"src/a.py", b"src/b.py"]
    assert all(one.old_kind == "" and b"\nnew file mode 100644\n" in one.diff for one in found)


def test_a_check_in_is_found_by_its_first_digits_and_those_near_are_named(
    checkout: Checkout, trunk: Repository
) -> None:
    made = checkout.commit({b"new": Node(b"1\n")}, "the one that was meant", "auth")
    assert history.find(trunk, made[:8].upper()).hash == made
    assert history.find(trunk, "tip").hash == made
    wrong = made[:5] + "".join("0" if digit != "0" else "1" for digit in made[5:12])
    with pytest.raises(Refused, match=rf"{made[:10]} \(auth: the one that was meant\)"):
        history.find(trunk, wrong)
    for name in ("", "no-such", "ab", "f" * 64):
        with pytest.raises(Refused, match="bones log"):
            history.find(trunk, name)


def test_undoing_asks_for_what_was_and_says_what_was_made(
    checkout: Checkout, trunk: Repository
) -> None:
    first = {b"a": Node(b"1\n"), b"gone": Node(b"x\n"), b"run": Node(b"r\n")}
    checkout.commit(first, "first")
    bad = checkout.commit(
        {b"a": Node(b"bad\n"), b"gone": None, b"run": Node(b"r\n", 0o755), b"more": Node(b"m\n")},
        "bad\nvery",
    )
    tip = checkout.commit({b"later": Node(b"l\n")}, "later")
    proposal = history.undoing(trunk, bad[:12])
    assert (proposal.slot, proposal.epoch, proposal.base) == ("operator", 0, tip)
    assert proposal.message == f"revert {bad[:10]}: bad"
    assert proposal.contents == {}
    assert {one.path: one for one in proposal.changes} == {
        path: Change(path=path, kind=kind, hash=content, base_kind=base_kind, base_hash=base)
        for path, kind, content, base_kind, base in [
            (b"a", "file", named(b"1\n"), "file", named(b"bad\n")),
            (b"gone", "file", named(b"x\n"), "", ""),
            (b"run", "file", named(b"r\n"), "exec", named(b"r\n")),
            (b"more", "", "", "file", named(b"m\n")),
        ]
    }
    assert history.undoing(trunk, "tip", "away with it").message == "away with it"


def test_what_cannot_be_undone_is_refused_by_name(checkout: Checkout, trunk: Repository) -> None:
    root = trunk.root().hash
    checkout.commit({b"a": Node(b"1\n")}, "first")
    checkout.new_version("--allow-empty", "-m", "nothing")
    for name, words in (("root", f"{root[:10]} is the root"), ("tip", "has changed nothing")):
        with pytest.raises(Refused, match=words) as refused:
            history.undoing(trunk, name)
        assert refused.value.reason == "not-revertible"
    checkout.fossil("update", root)
    (checkout.top / "b").write_text("elsewhere\n")
    checkout.fossil("add", "b")
    aside = checkout.new_version("--branch", "aside", "-m", "aside")
    with pytest.raises(Refused, match="is not on trunk"):
        history.undoing(trunk, aside)


def test_without_a_trunk_the_way_to_one_is_named(repo: Path) -> None:
    with pytest.raises(Refused, match="bones up"):
        history.open_repository(Workspace(str(repo)).repository)
