"""What is as it was planted is not read before it goes; all else is, and nothing is lost."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.filesystem import kind_of
from slotgc import base, planted, work
from slotgc.pruning import prune
from tests.slotgc.worktrees import (
    CHECKIN,
    Node,
    Tree,
    age,
    make_planted_slot,
    make_trunk,
    put_on_trunk,
    retell,
    tree_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slotgc.base import Row

TREE: Tree = {
    b"a": Node(b"one\n"),
    b"bin/run": Node(b"#!/bin/sh\n", 0o755),
    b"link": Node(b"a", 0),
    b"src/b": Node(b"two\n"),
}
PATHS = sorted(TREE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a workspace whose file system moves the ctime at the first write to a mapped page."""
    if kind_of(str(tmp_path)) not in planted.FILE_SYSTEMS:
        pytest.skip(f"{kind_of(str(tmp_path))} is none that a stamp is believed of")
    return workspace(tmp_path)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Return a workspace on tmpfs, where writing through a mapping may move no stamp."""
    if not os.path.isdir("/dev/shm") or kind_of("/dev/shm") != "tmpfs":
        pytest.skip("no tmpfs here")
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield workspace(place)
    shutil.rmtree(place)


def workspace(root: Path) -> Path:
    make_trunk(root)
    make_planted_slot(root, "s", TREE)
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the paths of what has been read, as it grows."""
    paths: list[bytes] = []
    has_content = work.has_content

    def note(top: bytes, path: bytes, kind: str, row: Row) -> bool:
        paths.append(path)
        return has_content(top, path, kind, row)

    monkeypatch.setattr(work, "has_content", note)
    return paths


def slot_of(root: Path) -> Path:
    return root / ".bones/swarm/s"


def commit(slot: Path) -> None:
    """Have the base be what the worktree is now, as a commit would."""
    made = base.index(f"{slot}/wt", checkin=CHECKIN)
    base.write(f"{slot}/base.json", made)
    put_on_trunk(slot.parents[2], {row[2] for row in made.files.values()})
    age(slot)


def rescued(root: Path) -> Tree:
    """Clean up; return what was rescued of the slot."""
    name = prune(str(root)).rescued["s"]
    return tree_of(root / ".bones/rescue" / name / "wt")


def test_what_is_as_it_was_planted_goes_unread(root: Path, read: list[bytes]) -> None:
    assert prune(str(root)).removed == ["s"]
    assert read == []


def forget(slot: Path) -> None:
    (slot / planted.NAME).unlink()


def move_another_there(slot: Path) -> None:
    shutil.copytree(slot / "wt", slot / "wt.new", symlinks=True)
    shutil.rmtree(slot / "wt")
    (slot / "wt.new").rename(slot / "wt")
    commit(slot)


DOUBTS: dict[str, Callable[[Path], object]] = {
    "no word of it": forget,
    "another worktree": move_another_there,
    "another boot": lambda slot: retell(slot, boot="0" * 36),
    "another schema": lambda slot: retell(slot, schema=2),
    "no time": lambda slot: retell(slot, until_ns="soon"),
    "junk": lambda slot: (slot / planted.NAME).write_text("{"),
    "planted later": lambda slot: retell(slot, until_ns=1),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_with_any_doubt_all_is_read(root: Path, read: list[bytes], doubt: str) -> None:
    DOUBTS[doubt](slot_of(root))
    assert prune(str(root)).removed == ["s"]
    assert sorted(read) == PATHS


def test_a_file_too_young_when_the_worktree_was_handed_over_is_read(
    root: Path, read: list[bytes]
) -> None:
    """Two changes within one tick of the kernel's clock look like one."""
    slot = slot_of(root)
    ctime_ns = os.lstat(slot / "wt/src/b").st_ctime_ns
    retell(slot, until_ns=ctime_ns + base.TICK_NS)
    assert prune(str(root)).removed == ["s"]
    assert b"src/b" in read


def test_on_tmpfs_all_is_read(in_memory: Path, read: list[bytes]) -> None:
    assert prune(str(in_memory)).removed == ["s"]
    assert sorted(read) == PATHS


def keep_mtime(path: Path, act: Callable[[], object]) -> None:
    status = os.lstat(path)
    act()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def through_a_mapping(path: Path, *, look_first: bool) -> None:
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4)
    if look_first:
        assert mapped[:] == b"two\n"
    mapped[:] = b"TWO\n"
    mapped.close()


def replace(path: Path) -> None:
    other = path.parent / "other"
    other.write_text("TWO\n")
    other.rename(path)


WRITES: dict[str, Callable[[Path], object]] = {
    "in place": lambda path: keep_mtime(path, lambda: path.write_text("TWO\n")),
    "by another file": lambda path: keep_mtime(path, lambda: replace(path)),
    "through a mapping": lambda path: through_a_mapping(path, look_first=False),
    "through a mapping that was read first": lambda path: through_a_mapping(path, look_first=True),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("ahead_s", [0, 10**6], ids=["in order", "the clock was set back"])
def test_what_was_written_since_is_work(root: Path, write: str, ahead_s: int) -> None:
    slot = slot_of(root)
    until_ns = os.lstat(slot / planted.NAME).st_mtime_ns + ahead_s * 10**9
    retell(slot, until_ns=until_ns)
    path = slot / "wt/src/b"
    WRITES[write](path)
    assert rescued(root) == {b"src/b": Node(b"TWO\n")}


@pytest.mark.parametrize("look_first", [False, True])
def test_what_was_written_through_a_mapping_on_tmpfs_is_work(
    in_memory: Path, look_first: bool
) -> None:
    path = slot_of(in_memory) / "wt/src/b"
    through_a_mapping(path, look_first=look_first)
    assert rescued(in_memory) == {b"src/b": Node(b"TWO\n")}


def test_what_was_committed_while_it_was_mapped_is_read(root: Path) -> None:
    """All its stamps are those of the base, and it was written to since."""
    slot = slot_of(root)
    path = slot / "wt/src/b"
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4)
    mapped[0] = mapped[0]
    retell(slot, until_ns=os.lstat(path).st_ctime_ns - 1)  # it was handed over before
    commit(slot)
    before = os.lstat(path)
    mapped[:] = b"TWO\n"
    mapped.close()
    assert os.lstat(path).st_ctime_ns == before.st_ctime_ns
    assert rescued(root) == {b"src/b": Node(b"TWO\n")}


def test_a_name_more_or_less_is_work(root: Path) -> None:
    (slot_of(root) / "wt/src/new").write_text("new")
    (slot_of(root) / "wt/a").unlink()
    assert rescued(root) == {b"src/new": Node(b"new")}
