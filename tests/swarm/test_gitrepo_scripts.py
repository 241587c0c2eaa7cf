"""Whatever is edited, recorded and done with git in between: git agrees with a model."""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.gitrepo.repo import GitRepo
from tests.hub.gitrepo import EXECUTABLE, FILE, LINK, Tree
from tests.swarm.agentgit import Slot, user_repository

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.gitrepo import GitRepo as GitUser

TREE: Tree = {
    b"a/b/c": (FILE, b"1\n"),
    b"a.b": (FILE, b"1\n"),
    b"a-b/c": (EXECUTABLE, b"1\n"),
    b"link": (LINK, b"a.b"),
    **{b"many/%02d" % number: (FILE, b"%d\n" % number) for number in range(40)},
}

_NAMES = st.sampled_from([b"a", b"a.b", b"a-b", b"b", b"c", b"new\nline", b'\xe9"\\', b"many"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(b"/".join)
_CONTENTS = st.sampled_from([b"", b"1\n", b"2\n", b"\0\xff\r\n", b"x" * 3000])
_EDITS = st.tuples(_PATHS, st.sampled_from([FILE, FILE, EXECUTABLE, LINK, b""]), _CONTENTS)
_ACTS = st.sampled_from(
    [
        (),
        (),
        (),
        ("open anew",),
        ("stash",),
        ("stash", "--include-untracked"),
        ("reset", "--hard"),
        ("add", "--all"),
        ("commit", "--all", "--allow-empty", "--message", "the agent's"),
        ("checkout", "-B", "agents"),
        ("checkout", "trunk"),
        ("gc", "--quiet"),
    ]
)

_SCRIPTS = st.lists(st.tuples(st.lists(_EDITS, max_size=4), _ACTS), min_size=2, max_size=6)


@pytest.mark.slow
def test_git_agrees_with_a_model(tmp_path: Path) -> None:
    user = user_repository(tmp_path)
    user.commit_tree(TREE, check_out=False)
    before = _contents(user)
    numbers = itertools.count()

    @settings(max_examples=15)
    @given(script=_SCRIPTS)
    def git_agrees(script: list[tuple[list[tuple[bytes, bytes, bytes]], tuple[str, ...]]]) -> None:
        slot = Slot(user, f"slot{next(numbers)}")
        for path, (mode, content) in TREE.items():
            slot.write(path, content, mode)
        repo = slot.make("HEAD")
        for edits, act in script:
            _edit(slot, edits)
            if act == ("open anew",):
                repo = GitRepo(str(slot.wt), slot.name)
            elif act:
                slot.run(*act)  # it may well refuse
            done = slot.record(repo)
            assert (done.commit, done.why) == (repo.head(), "")
            if (slot.wt / ".git/HEAD").read_bytes() == b"ref: refs/heads/trunk\n":
                slot.assert_true()
            else:
                listed = slot.git("ls-tree", "-r", "-z", "--name-only", "trunk").split(b"\0")[:-1]
                assert listed == sorted(slot.base)
        slot.assert_sound()
        shutil.rmtree(slot.wt)

    git_agrees()
    assert _contents(user) == before


def _edit(slot: Slot, edits: list[tuple[bytes, bytes, bytes]]) -> None:
    for path, mode, content in edits:
        if mode:
            slot.write(path, b"to" + content[:1].strip(b"\0") if mode == LINK else content, mode)
        else:
            slot.remove(path)


def _contents(user: GitUser) -> dict[str, tuple[int, bytes]]:
    """Return all of the user's repository but the times, which git renews in alternates too."""
    return {name: (mode, content) for name, (mode, _time, content) in user.snapshot().items()}
