"""What a diff shows is what git's own tools take: applied to the old tree it gives the new one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import unified
from swarm.unified import Version, difference, quoted
from tests.hub.gitrepo import ODD_NAMES
from tests.slotgc.worktrees import Node, Tree, plant, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES = [b"a", b"b", b"", b"\r", b"{", b"\xff\xfe", b"\t", b"-- ", b"@@ -1 +1 @@", b"x\fy"]
MODES = {"file": 0o644, "exec": 0o755, "link": 0}


def texts() -> st.SearchStrategy[bytes]:
    lines = st.lists(st.sampled_from(LINES), max_size=40)
    return st.builds(
        lambda parts, end: b"\n".join(parts) + end, lines, st.sampled_from([b"", b"\n"])
    )


def versions() -> st.SearchStrategy[Version | None]:
    files = st.builds(Version, st.sampled_from(["file", "exec"]), texts())
    links = st.builds(Version, st.just("link"), st.sampled_from([b"to", b"there/\xff", b"a b"]))
    return st.one_of(st.none(), files, files, links)


def node(version: Version) -> Node:
    return Node(version.content, MODES[version.kind])


def apply(place: Path, patch: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "apply", "-p1", "--unsafe-paths", "-"],
        cwd=place,
        input=patch,
        capture_output=True,
        check=False,
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Return a directory for trees, outside of any repository."""
    where = tmp_path / "tree"
    yield where
    shutil.rmtree(where, ignore_errors=True)


@settings(max_examples=25)
@given(
    names=st.permutations(ODD_NAMES),
    edits=st.lists(st.tuples(versions(), versions()), min_size=12, max_size=12),
)
def test_git_makes_the_new_tree_of_the_old_one_by_it(
    names: list[bytes],
    edits: list[tuple[Version | None, Version | None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("tree")
    paths = [b"d/%d %s" % (number, name) for number, name in enumerate(names)]
    chosen = list(zip(paths, edits, strict=False))
    old: Tree = {path: node(was) for path, (was, _now) in chosen if was}
    new: Tree = {path: node(now) for path, (_was, now) in chosen if now}
    patch = b"".join(difference(path, was, now) for path, (was, now) in chosen)
    plant(place, old)
    if patch:
        done = apply(place, patch)
        assert done.returncode == 0, done.stderr.decode() + patch.decode(errors="replace")
    assert tree_of(place) == new
    shutil.rmtree(place)


@given(text=texts(), edit=st.data())
def test_a_line_that_stays_is_shown_as_context_or_not_at_all(
    text: bytes, edit: st.DataObject
) -> None:
    lines = text.split(b"\n")
    at = edit.draw(st.integers(0, len(lines)))
    new = b"\n".join([*lines[:at], b"new", *lines[at:]])
    shown = difference(b"f", Version("file", text), Version("file", new))
    body = shown.partition(b"\n@@")[2]
    added = [line for line in body.split(b"\n") if line.startswith(b"+")]
    assert len(added) <= 2  # the one, and the one before it if that had no newline


def test_equal_versions_differ_in_nothing() -> None:
    same = Version("file", b"x\n")
    assert difference(b"f", same, same) == b""
    assert difference(b"f", None, None) == b""


def test_a_missing_newline_is_told() -> None:
    shown = difference(b"f", Version("file", b"a\nb"), Version("file", b"a\nc"))
    assert shown == (
        b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n"
        b"-b\n\\ No newline at end of file\n+c\n\\ No newline at end of file\n"
    )


def test_modes_are_told_as_git_tells_them() -> None:
    shown = difference(b"f", Version("file", b"x"), Version("exec", b"x"))
    assert shown == b"diff --git a/f b/f\nold mode 100644\nnew mode 100755\n"
    assert b"deleted file mode 120000\n" in difference(b"f", Version("link", b"to"), None)


def test_what_is_binary_or_too_large_is_named_and_not_shown() -> None:
    shown = difference(b"f", Version("file", b"\0"), Version("file", b"x"))
    assert shown.endswith(b"\nBinary files a/f and b/f differ\n")
    large = Version("file", b"x\n" * (unified.LARGEST_BYTES // 2 + 1))
    shown = difference(b"f", large, Version("file", b""))
    assert shown.endswith(
        b"\nFiles a/f and b/f differ (2.0 MiB and 0.0 MiB: too large to be shown)\n"
    )


def test_a_long_file_that_changed_all_over_is_shown_in_one_piece() -> None:
    old = b"".join(b"old %d\n" % number for number in range(3000))
    new = b"".join(b"new %d\n" % number for number in range(3000))
    shown = difference(b"f", Version("file", b"same\n" + old), Version("file", b"same\n" + new))
    assert shown.count(b"\n@@ ") == 1
    assert shown.count(b"\n-old") == shown.count(b"\n+new") == 3000


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_quoted_as_git_quotes_them(place: Path, name: bytes) -> None:
    plant(place, {name: Node(b"x")})
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    listed = subprocess.run(
        ["git", "-c", "core.quotePath=true", "ls-files", "-o"],
        cwd=place,
        capture_output=True,
        check=True,
    ).stdout
    assert listed == quoted(name) + b"\n"
