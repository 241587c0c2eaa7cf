"""Killed at any step of making, committing, updating: the next one converges, nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError, Refused, Unavailable
from foundation.failpoint import VARIABLE
from foundation.workspace import Workspace
from hub.commits import INLINE_BYTES, Landed
from hub.repository import Repository
from slotgc import base
from swarm.worktree import Worktree
from swarm.worktree import template as templates
from tests.slotgc.worktrees import Node, tree_of
from tests.swarm.benches import Bench, assert_clean, edit, git, without_git

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.swarm.benches import Edits

pytestmark = pytest.mark.faults

STORED = "its git has stored something since: staged, or committed and undone"
"""What a janitor may say of a slot whose leaf was killed while git was written: it errs to be
safe."""


@pytest.fixture
def bench(seeded: Path) -> Iterator[Bench]:
    made = Bench(seeded)
    yield made
    made.close()


def run(bench: Bench, point: str, do: Callable[[Worktree], None]) -> int:
    """Take the worktree up and *do*, in a process to be killed at *point*; return how it ended."""
    bench.close()
    child = os.fork()
    if child == 0:
        os.environ[VARIABLE] = point
        try:
            tree = bench.tree
            do(tree)
            tree.settle()
            tree.close()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "point",
    [
        "template.begun",
        "template.file",
        "template.planted",
        "template.made",
        "copy.directory",
        "worktree.copied",
        "worktree.planted",
        "base.written",
        "worktree.based",
        "worktree.made",
    ],
)
def test_making_is_taken_up_wherever_it_was_killed(bench: Bench, point: str) -> None:
    many = {b"many/%d" % number: Node(b"%d\n" % number) for number in range(256)}
    bench.elsewhere(dict(many))
    assert run(bench, point, lambda _tree: None) == -9
    assert (bench.wt.exists()) == (point == "worktree.made")
    assert_clean(bench)
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()
    assert not [name for name in os.listdir(bench.workspace.templates) if name.startswith(".")]
    assert sorted(os.listdir(bench.slot)) == ["base.json", "planted.json", "wt"]


@pytest.mark.parametrize(
    ("point", "behind"),
    [
        ("place.written", True),
        ("place.renamed", True),
        ("landed.merged", True),
        ("landed.merged", False),
        ("landed.checkout", True),
        ("landed.checkout", False),
        ("gitrepo.packed", False),
        ("gitrepo.index-placed", True),
        ("gitrepo.branch-moved", False),
        ("landed.git", True),
        ("landed.git", False),
        ("base.written", False),
        ("landed.logged", True),
        ("landed.logged", False),
    ],
)
def test_a_commit_is_known_wherever_its_bookkeeping_was_killed(
    bench: Bench, point: str, behind: bool
) -> None:
    text = b"".join(b"%d\n" % number for number in range(20))
    bench.elsewhere({b"text": Node(text), b"gone": Node(b"g\n")})
    assert bench.tree.changes() == ()
    if behind:
        bench.elsewhere({b"text": Node(b"theirs\n" + text), b"README": Node(b"theirs\n")})
    edit(
        bench.wt,
        {b"text": Node(text + b"mine\n"), b"src/a.py": Node(b"mine\n"), b"gone": None},
    )
    proposal = bench.propose()
    merged: Edits | None = {b"text": Node(b"theirs\n" + text + b"mine\n")} if behind else None
    landed = bench.land(proposal, merged)
    ended = run(bench, point, lambda tree: tree.landed(proposal, landed))
    assert ended == -9
    edit(bench.wt, {b"later": Node(b"later\n")})
    # Whatever the base does not know yet is on trunk; asked for again it lands as nothing.
    left = bench.propose()
    assert {one.path for one in left.changes} <= {*(c.path for c in proposal.changes), b"later"}
    with Repository(bench.workspace.repository) as trunk:
        tip = trunk.files(trunk.tip().hash)
    for one in left.changes:
        if one.path not in (b"later", b"text"):
            there = tip.get(one.path)
            assert (one.kind, one.hash) == (("", "") if there is None else tuple(there))
    bench.tree.update()
    assert [one.path for one in bench.tree.changes()] == [b"later"]
    bench.commit()
    assert_clean(bench, but=STORED if point.startswith("gitrepo.") else "")
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()


def update(tree: Worktree) -> None:
    tree.update(markers=True)


@pytest.mark.parametrize(
    "point",
    [
        "update.marked",
        "place.deleted",
        "place.written",
        "place.renamed",
        "place.renamed@2",
        "place.renamed@4",
        "update.written",
        "update.based",
        "update.checkout",
        "gitrepo.packed",
    ],
)
def test_an_update_goes_on_wherever_it_was_killed(bench: Bench, point: str) -> None:
    text = b"".join(b"%d\n" % number for number in range(20))
    bench.elsewhere({b"text": Node(text), b"gone": Node(b"g\n"), b"both": Node(text)})
    assert bench.tree.changes() == ()
    tip = bench.elsewhere(
        {
            b"text": Node(b"theirs\n" + text),
            b"README": Node(b"theirs\n"),
            b"both": Node(b"theirs\n" + text),
            b"gone": None,
            b"new/x": Node(b"x\n"),
        }
    )
    edit(
        bench.wt,
        {
            b"text": Node(text + b"mine\n"),
            b"src/a.py": Node(b"mine\n"),
            b"both": Node(b"mine\n" + text),
        },
    )
    assert run(bench, point, update) == -9
    bench.tree.update(markers=True)
    assert bench.tree.checkin == tip
    tree = tree_of(bench.wt)
    assert tree[b"text"].content == b"theirs\n" + text + b"mine\n"
    assert tree[b"src/a.py"].content == b"mine\n"
    assert b"<<<<<<< auth\nmine\n=======\ntheirs\n" in tree[b"both"].content
    bench.reopen()
    assert [one.path for one in bench.tree.changes()] == [b"both", b"src/a.py", b"text"]
    with pytest.raises(Refused, match="both: conflict markers are left"):
        bench.propose()
    edit(bench.wt, {b"both": Node(b"mine and theirs\n" + text)})
    bench.commit()
    assert_clean(bench, but=STORED if point.startswith("gitrepo.") else "")
    assert without_git(tree_of(bench.wt)) == bench.tip_tree()


def test_what_git_s_own_lock_kept_from_git_is_brought_later(bench: Bench) -> None:
    assert bench.tree.changes() == ()
    lock = bench.wt / ".git/index.lock"
    lock.touch()
    edit(bench.wt, {b"README": Node(b"mine\n")})
    bench.commit()
    lock.unlink()
    assert git(bench, "show", "HEAD:README") == "hello\n"
    bench.tree.settle()
    assert_clean(bench)
    lock.touch()
    edit(bench.wt, {b"README": Node(b"again\n")})
    bench.commit()
    bench.reopen()  # as after a kill, before it could be brought
    assert bench.tree.changes() == ()
    lock.unlink()
    bench.tree.settle()
    assert_clean(bench, but=STORED)


class Changing:
    """A worktree that changes while it is listed: as soon as its top was read."""

    def __init__(self, top: Path, change: Callable[[], object]) -> None:
        self._top = os.fsencode(top) + b"/"
        self._change = change
        self._scandir = os.scandir

    @contextmanager
    def scandir(self, path: bytes) -> Iterator[Iterator[os.DirEntry[bytes]]]:
        with self._scandir(path) as listing:
            met = list(listing)
        if path == self._top:
            self._change()
        yield iter(met)


def test_what_comes_and_goes_during_a_look_hides_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.tree.changes() == ()
    mine = {b"mine/%d" % number: Node(b"%d\n" % number) for number in range(9)}
    edit(bench.wt, {**mine, b"aaa": Node(b""), b"passing/x": Node(b"")})

    def pass_by() -> None:
        (bench.wt / "aaa").unlink()
        shutil.rmtree(bench.wt / "passing")

    with monkeypatch.context() as patched:
        patched.setattr("slotgc.work.os.scandir", Changing(bench.wt, pass_by).scandir)
        proposal = bench.propose()
    assert {one.path for one in proposal.changes} == mine.keys()
    assert bench.tree.skipped == ()


@pytest.mark.parametrize("named", [(), (b"docs",)])
def test_a_file_that_is_replaced_during_a_look_is_not_deleted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, named: tuple[bytes, ...]
) -> None:
    bench.elsewhere({b"docs/README": Node(b"x\n")})
    bench.tree.update()
    readme = bench.wt / "docs/README"
    readme.rename(bench.root / "aside")

    def come_back() -> None:
        (bench.root / "aside").rename(readme)

    edit(bench.wt, {b"docs/mine": Node(b"1\n")})
    with monkeypatch.context() as patched:
        looked = Changing(bench.wt / "docs", come_back)
        patched.setattr("slotgc.work.os.scandir", looked.scandir)
        proposal = bench.propose(*named)
    assert [one.path for one in proposal.changes] == [b"docs/mine"]


@pytest.mark.parametrize("instead", [Path.mkdir, lambda _path: None])
def test_what_stands_in_the_place_of_the_worktree_is_not_taken_for_it(
    bench: Bench, instead: Callable[[Path], object]
) -> None:
    assert bench.tree.changes() == ()
    bench.wt.rename(bench.root / "aside")
    instead(bench.wt)
    with pytest.raises(HubError, match="not the directory that was joined"):
        bench.propose()
    if bench.wt.exists():
        bench.wt.rmdir()
    (bench.root / "aside").rename(bench.wt)
    assert bench.tree.changes() == ()


@pytest.mark.parametrize("path", [b"README", b"new"])
def test_without_a_spool_a_large_file_is_neither_left_out_nor_deleted(
    bench: Bench, path: bytes
) -> None:
    assert bench.tree.changes() == ()
    spool = Path(bench.workspace.spool)
    shutil.rmtree(spool, ignore_errors=True)
    edit(bench.wt, {path: Node(os.urandom(INLINE_BYTES + 1))})
    spool.touch()
    with pytest.raises(Unavailable) as caught:
        bench.propose()
    assert caught.value.reason == "spool"
    spool.unlink()
    proposal = bench.propose()
    assert [(one.path, one.kind) for one in proposal.changes] == [(path, "file")]
    assert os.listdir(spool) == list(proposal.spooled) == [proposal.changes[0].hash]


def test_a_commit_that_cannot_be_written_down_has_landed_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.tree.changes() == ()

    def full(*_what: object, **_how: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("swarm.worktree.ledger.write_all", full)
        patched.setattr("slotgc.base.atomic.write_file", full)
        edit(bench.wt, {b"README": Node(b"mine\n")})
        bench.commit()
        assert "No space left" in bench.tree.trouble
        assert bench.tree.changes() == ()
        assert bench.work().exists()  # it is on trunk, but this janitor cannot know
    edit(bench.wt, {b"README": Node(b"more\n")})
    bench.commit()
    assert bench.tree.trouble == ""
    assert_clean(bench)


@pytest.mark.parametrize("torn", [1, 20, -1])
def test_a_torn_line_of_the_log_is_no_line(bench: Bench, torn: int) -> None:
    assert bench.tree.changes() == ()
    for number in range(3):
        edit(bench.wt, {b"README": Node(b"%d\n" % number)})
        bench.commit()
    log = bench.slot / "base.log"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6, "what is asked, what was answered"
    log.write_bytes(b"".join(lines[:5]) + lines[5][:torn])
    known = base.read(f"{bench.slot}/base.json")
    assert known is not None
    assert bench.content(known.files[b"README"][2]) == b"1\n"
    assert bench.work().exists()
    bench.reopen()
    left = bench.propose()
    assert [one.path for one in left.changes] == [b"README"]
    with Repository(bench.workspace.repository) as trunk:
        answer = bench.tree.landed
        tip = trunk.tip()
        answer(
            left,
            _landed(tip.hash, tip.parent, tip.time),
        )
    bench.tree.update()
    assert_clean(bench)


def _landed(checkin: str, parent: str, time: str) -> Landed:
    return Landed(checkin=checkin, parent=parent, time=time, slot="auth", message="m", new=False)


def test_a_lost_base_is_found_in_the_check_out(bench: Bench) -> None:
    assert bench.tree.changes() == ()
    edit(bench.wt, {b"README": Node(b"mine\n")})
    bench.close()
    (bench.slot / "base.json").unlink()
    assert [one.path for one in bench.tree.changes()] == [b"README"]
    bench.commit()
    assert bench.tree.changes() == ()
    assert bench.fossil("changes") == ""


# --- templates -------------------------------------------------------------------------------


def test_many_joins_at_once_make_one_template(seeded: Path) -> None:
    workspace = Workspace(str(seeded))
    workspace.make_bones()
    workspace.make_state()
    failed: list[BaseException] = []

    def join(name: str) -> None:
        try:
            (Path(workspace.swarm) / name).mkdir(mode=0o700)
            with Repository(workspace.repository) as trunk:
                Worktree.make(workspace, name, trunk).close()
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=join, args=(f"s{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(os.listdir(workspace.templates))[1:] == ["lock"]
    for number in range(8):
        assert (Path(workspace.swarm) / f"s{number}/wt/README").exists()


def test_a_template_that_trunk_has_left_behind_is_followed_by_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "REFRESH_PATHS", 3)
    assert bench.tree.changes() == ()
    for turn in range(1, 5):
        bench.elsewhere({b"f%d/%d" % (turn, number): Node(b"%d" % number) for number in range(4)})
        workspace, name = bench.workspace, f"s{turn}"
        (bench.slot.parent / name).mkdir(mode=0o700)
        with Repository(workspace.repository) as trunk:
            made = Worktree.make(workspace, name, trunk)
            assert made.checkin == trunk.tip().hash
            assert made.changes() == ()
            made.close()
        kept = [one for one in os.listdir(workspace.templates) if one.isdigit()]
        assert len(kept) == min(turn + 1, 2)


def test_a_template_that_is_not_as_it_was_made_is_not_used(bench: Bench) -> None:
    assert bench.tree.changes() == ()
    (generation,) = (one for one in os.listdir(bench.workspace.templates) if one.isdigit())
    (Path(bench.workspace.templates) / generation / "wt/README").write_text("tampered\n")
    (bench.slot.parent / "other").mkdir(mode=0o700)
    made = Worktree.make(bench.workspace, "other")
    assert (Path(made.directory) / "README").read_text() == "hello\n"
    made.close()
