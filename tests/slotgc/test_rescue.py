"""A rescue loses nothing and comes back byte for byte; a restore harms nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundation.errors import Corrupt, HubError, Refused, Unavailable
from slotgc import passage, patch
from slotgc.pruning import prune
from slotgc.rescue import list_rescues
from slotgc.restore import Restored, restore
from tests.slotgc.worktrees import CHECKIN, Node, Tree, make_slot, make_trunk, plant, tree_of
from tests.support import git, run_python

BASE: Tree = {
    b"a": Node(b"one\n"),
    b"bin/run": Node(b"#!/bin/sh\n", 0o755),
    b"link": Node(b"a", 0),
    b"src/deep/b": Node(b"two\n"),
    b"gone/x": Node(b"x"),
}
EDITED: Tree = {
    b"a": Node(b"edited\n", 0o640),
    b"bin/run": Node(b"#!/bin/sh\n", 0o644),
    b"link": Node(b"src", 0),
    b"src/deep/b": Node(b"two\n"),
    b"new/.env": Node(b"KEY=1", 0o600),
    b"odd/n\nl \xff": Node(b"\0\n", 0o755),
}


def rescued(root: Path, edited: Tree, base: Tree = BASE, *, trunk: bool = True) -> str:
    """Rescue a slot that went from *base* to *edited*; return the rescue's name."""
    if trunk:
        make_trunk(root)
    wt = make_slot(root, "one", base)
    plant(wt, edited)
    pruned = prune(str(root))
    assert not pruned.failed
    assert not os.path.lexists(wt.parent)
    return pruned.rescued["one"]


def comes_out_as(base: Tree, edited: Tree) -> Tree:
    """Return what a copy of *base* must be after a restore: trunk knows content and exec bit."""
    result = dict(edited)
    for path, node in edited.items():
        before = base.get(path)
        if before is not None and is_same(before, node):
            result[path] = before
    return result


def is_same(one: Node, other: Node) -> bool:
    kinds = [(node.mode == 0, bool(node.mode & 0o100)) for node in (one, other)]
    return one.content == other.content and kinds[0] == kinds[1]


# --- round trips ---------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c.py", b"\xff", b"n\nl", b" ", b"-rf", b".git2", b"*"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
NODES = st.one_of(
    st.builds(
        Node,
        st.sampled_from([b"", b"x", b"y", b"\0" * 5000, b"C trap\nD 2020\n"]),
        st.sampled_from([0o644, 0o755, 0o600, 0o444, 0o4711, 0o654]),
    ),
    st.builds(Node, st.sampled_from([b"a", b"../..", b"/etc/passwd", b"\xfe nowhere"]), st.just(0)),
)


def without_conflicts(tree: Tree) -> Tree:
    """Drop what would need a file to be a directory."""
    return {
        path: node
        for path, node in tree.items()
        if not any(other.startswith(path + b"/") for other in tree)
    }


TREES = st.dictionaries(PATHS, NODES, max_size=8).map(without_conflicts)


@settings(max_examples=40)
@given(base=TREES, edited=TREES)
@example(base=BASE, edited=EDITED)
@example(base={b"a": Node(b"1")}, edited={b"a/b": Node(b"1")})
@example(base={b"a/b/c": Node(b"1")}, edited={b"a": Node(b"..", 0)})
@example(base=BASE, edited={})
def test_what_was_rescued_comes_back_byte_for_byte(base: Tree, edited: Tree) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_trunk(root)
        wt = make_slot(root, "one", base)
        plant(wt, edited)
        pruned = prune(str(root))
        changed = {p: n for p, n in edited.items() if p not in base or not is_same(base[p], n)}
        deleted = sorted(path for path in base if path not in edited)
        if not changed and not deleted:
            assert pruned.removed == ["one"]
            return
        name = pruned.rescued["one"]
        assert tree_of(root / ".bones/rescue" / name / "wt") == changed  # and nothing more

        done = restore(str(root), name, f"{root}/new")
        assert tree_of(root / "new") == changed
        assert list(done.written) == sorted(changed)
        assert sorted(done.deleted) == deleted

        plant(root / "copy", base)
        done = restore(str(root), name, f"{root}/copy")
        assert tree_of(root / "copy") == comes_out_as(base, edited)
        assert list(done.written) == sorted(changed)
        assert sorted(done.deleted) == deleted

        again = restore(str(root), name, f"{root}/copy")
        assert (again.unchanged, again.deleted) == (len(changed), ())
        assert tree_of(root / "copy") == comes_out_as(base, edited)


def test_where_the_base_is_saved_nowhere_everything_is_kept_and_comes_back(tmp_path: Path) -> None:
    name = rescued(tmp_path, EDITED, trunk=False)
    assert tree_of(tmp_path / ".bones/rescue" / name / "wt") == EDITED
    restore(str(tmp_path), name, f"{tmp_path}/new")
    assert tree_of(tmp_path / "new") == EDITED
    plant(tmp_path / "copy", BASE)
    restore(str(tmp_path), name, f"{tmp_path}/copy")
    assert tree_of(tmp_path / "copy") == comes_out_as(BASE, EDITED)


def test_what_is_no_work_takes_no_room_in_a_rescue(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    wt = make_slot(tmp_path, "one", BASE)
    (wt / "a").write_text("edited")
    (wt / "target/deep").mkdir(parents=True)
    (wt / "target/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55")
    (wt / "target/deep/big").touch()
    os.mkfifo(wt / "pipe")
    name = prune(str(tmp_path)).rescued["one"]
    assert os.listdir(tmp_path / ".bones/rescue" / name / "wt") == ["a"]


def test_directories_get_the_modes_that_they_had(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    wt = make_slot(tmp_path, "one", BASE)
    plant(wt, {**BASE, b"secret/deep/key": Node(b"k"), b"closed/x": Node(b"x")})
    (wt / "secret").chmod(0o700)
    (wt / "closed").chmod(0o555)
    name = prune(str(tmp_path)).rescued["one"]
    for _ in range(2):
        restore(str(tmp_path), name, f"{tmp_path}/new")
        modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "new").iterdir()}
        assert modes == {"secret": 0o700, "closed": 0o555}


def test_an_agent_s_commits_stay_in_the_rescue_and_are_named(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    wt = make_slot(tmp_path, "one", BASE)
    git(wt, "init", "-q", "-b", "main")
    git(wt, "add", ".")
    git(wt, "commit", "-q", "-m", "mine")
    commit = git(wt, "rev-parse", "HEAD")
    name = prune(str(tmp_path)).rescued["one"]
    done = restore(str(tmp_path), name, f"{tmp_path}/new")
    assert done.apart == ("its git has commits or stashes of its own: refs/heads/main",)
    assert os.listdir(tmp_path / "new") == []
    assert git(Path(done.path) / "wt", "rev-parse", "main") == commit
    assert git(Path(done.path) / "wt", "show", "main:a") == "one\n"


def test_a_nested_repository_is_whole_in_a_rescue(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    nested = make_slot(tmp_path, "one", BASE) / "nested"
    nested.mkdir()
    git(nested, "init", "-q", "-b", "main")
    git(nested, "commit", "-q", "--allow-empty", "-m", "mine")
    git(nested, "pack-refs", "--all")
    name = prune(str(tmp_path)).rescued["one"]
    where = tmp_path / ".bones/rescue" / name / "wt/nested"
    assert git(where, "log", "--format=%s") == "mine\n"


# --- patches -------------------------------------------------------------------------------


def refused(root: Path, name: str, target: Path) -> str:
    """Restore onto *target*, which must be refused and stay as it was; return the words."""
    before = tree_of(target)
    with pytest.raises(Refused, match="nothing was touched") as caught:
        restore(str(root), name, str(target))
    assert caught.value.reason == "conflict"
    assert tree_of(target) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "node"),
    [
        (b"a", Node(b"theirs\n")),
        (b"bin/run", Node(b"other", 0o755)),
        (b"link", Node(b"elsewhere", 0)),
        (b"new/.env", Node(b"KEY=2", 0o600)),
        (b"gone/x", Node(b"kept and edited")),
        (b"new", Node(b"a file where a directory comes")),
        (b"a/under", Node(b"a directory where a file comes")),
        (b"gone/x/y", Node(b"a directory where a file goes")),
    ],
)
def test_what_is_somebody_else_s_is_named_and_nothing_is_touched(
    tmp_path: Path, path: bytes, node: Node
) -> None:
    name = rescued(tmp_path, EDITED)
    theirs = {p: n for p, n in BASE.items() if not path.startswith(p + b"/")}
    plant(tmp_path / "theirs", {**theirs, path: node})
    words = refused(tmp_path, name, tmp_path / "theirs")
    assert path.decode().split("/")[0] in words


def test_what_others_changed_elsewhere_stays(tmp_path: Path) -> None:
    name = rescued(tmp_path, EDITED)
    more = {b"src/deep/b": Node(b"theirs"), b"gone/other": Node(b"theirs"), b"x": Node(b"a", 0)}
    plant(tmp_path / "theirs", {**BASE, **more})
    restore(str(tmp_path), name, f"{tmp_path}/theirs")
    assert tree_of(tmp_path / "theirs") == {**comes_out_as(BASE, EDITED), **more}


def test_no_link_leads_a_patch_out_of_its_tree(tmp_path: Path) -> None:
    name = rescued(tmp_path, EDITED)
    plant(tmp_path / "outside", {b"x": Node(b"x"), b"run": Node(b"#!/bin/sh\n", 0o755)})
    outside = tree_of(tmp_path / "outside")
    for directory in ("gone", "bin", "new"):
        plant(tmp_path / "theirs", BASE)
        shutil.rmtree(tmp_path / "theirs" / directory, ignore_errors=True)
        (tmp_path / "theirs" / directory).symlink_to("../outside")
        assert directory in refused(tmp_path, name, tmp_path / "theirs")
        assert tree_of(tmp_path / "outside") == outside


def test_a_file_of_a_rescue_does_not_become_state_of_ours(tmp_path: Path) -> None:
    planted = {b".bones/swarm/x/leaf.pid": Node(b"1"), b".orchestrator/hub.json": Node(b"{}")}
    name = rescued(tmp_path, {**BASE, **planted})
    plant(tmp_path / "theirs", {**BASE, b".bones/mine": Node(b""), b".orchestrator/m": Node(b"")})
    words = refused(tmp_path, name, tmp_path / "theirs")
    assert ".bones/swarm/x/leaf.pid" in words
    assert ".orchestrator/hub.json" in words


def test_a_file_of_a_rescue_does_not_become_a_hook_of_a_nested_repository(tmp_path: Path) -> None:
    nested = {b"sub/.git/HEAD": Node(b"ref"), b"sub/.git/hooks/post-commit": Node(b"#!", 0o755)}
    name = rescued(tmp_path, {**BASE, **nested})
    plant(tmp_path / "theirs", {**BASE, b"sub/.git/config": Node(b"")})
    words = refused(tmp_path, name, tmp_path / "theirs")
    assert "sub/.git/hooks/post-commit" in words
    restore(str(tmp_path), name, f"{tmp_path}/new")  # and again, as after a kill
    (tmp_path / "new/sub/.git/HEAD").rename(tmp_path / "new/sub/.git/.bones-restore-x")
    restore(str(tmp_path), name, f"{tmp_path}/new")
    assert (tmp_path / "new/sub/.git/HEAD").exists()


@pytest.mark.parametrize(
    ("point", "path"), [("restore.written", "src/deep/b"), ("restore.deleted", "gone/y")]
)
def test_what_somebody_saves_while_a_patch_is_applied_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, path: str
) -> None:
    base = {**BASE, b"gone/y": Node(b"y")}
    edited = {**EDITED, b"src/deep/b": Node(b"rescued")}
    make_trunk(tmp_path)
    plant(make_slot(tmp_path, "one", base), edited)
    name = prune(str(tmp_path)).rescued["one"]
    plant(tmp_path / "theirs", base)

    def hit(met: str) -> None:
        if met == point:
            (tmp_path / "theirs" / path).write_text("theirs, just now")

    monkeypatch.setattr(patch, "hit", hit)
    with pytest.raises(HubError, match=f"{path} was changed meanwhile"):
        restore(str(tmp_path), name, f"{tmp_path}/theirs")
    assert (tmp_path / "theirs" / path).read_text() == "theirs, just now"


def test_another_user_s_setuid_program_does_not_become_ours(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can have another user's files")
    make_trunk(tmp_path)
    wt = make_slot(tmp_path, "one", BASE)
    (wt / "evil").write_text("x")
    os.chown(wt / "evil", 65534, 65534)
    (wt / "evil").chmod(0o4755)
    name = prune(str(tmp_path)).rescued["one"]
    restore(str(tmp_path), name, f"{tmp_path}/new")
    assert os.stat(tmp_path / "new/evil").st_mode & 0o7777 == 0o755


def test_a_hole_stays_one(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    wt = make_slot(tmp_path, "one", BASE)
    with open(wt / "disk", "wb") as file:
        file.truncate(20 << 20)
        file.seek(10 << 20)
        file.write(b"middle")
    name = prune(str(tmp_path)).rescued["one"]
    restore(str(tmp_path), name, f"{tmp_path}/new")
    status = os.stat(tmp_path / "new/disk")
    assert status.st_size == 20 << 20
    assert status.st_blocks * 512 < 5 << 20
    assert (tmp_path / "new/disk").read_bytes().strip(b"\0") == b"middle"


# --- names, records ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "nope", "../swarm", "/etc", ".removing-x", "a\nb"])
def test_what_is_no_rescue_is_refused(tmp_path: Path, name: str) -> None:
    rescued(tmp_path, EDITED)
    with pytest.raises(Refused, match="holds no rescue"):
        restore(str(tmp_path), name, f"{tmp_path}/new")
    assert not (tmp_path / "new").exists()


def tampered(root: Path, name: str, **changes: Any) -> None:
    path = root / ".bones/rescue" / name / "rescue.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "path",
    ["../../x", "/etc/x", "a/../../x", ".git/hooks/post-commit", ".git", "", "a\0", 1, {"b64": 1}],
)
def test_a_record_that_names_a_path_outside_is_damaged(tmp_path: Path, path: object) -> None:
    name = rescued(tmp_path, EDITED)
    for row in ([path, "deleted", "", 0, 0, ""], [path, "added", "file", 420, 1, "0" * 64]):
        tampered(tmp_path, name, changes=[row])
        with pytest.raises(Corrupt, match=r"rescue\.json"):
            restore(str(tmp_path), name, f"{tmp_path}/new")
        [listed] = list_rescues(str(tmp_path))
        assert listed.state == "damaged"
    assert not (tmp_path / "new").exists()


ROW: list[Any] = ["a", "changed", "file", 420, 7, "0" * 64]


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"state": "x"},
        {"slot": 1},
        {"apart": "x"},
        {"apart": [1]},
        {"changes": {}},
        {"changes": [1]},
        {"changes": [ROW[:-1]]},
        {"changes": [ROW, ROW]},
        *(
            {"changes": [[*ROW[:at], wrong, *ROW[at + 1 :]]]}
            for at, wrong in (
                (1, "x"),
                (1, None),
                (1, []),
                (2, "dir"),
                (2, ""),
                (2, []),
                (3, -1),
                (3, 0o10000),
                (3, 1.0),
                (4, "1"),
                (5, "x"),
                (5, None),
            )
        ),
    ],
)
def test_a_record_that_is_not_sound_is_damaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    name = rescued(tmp_path, EDITED)
    tampered(tmp_path, name, **changes)
    assert list_rescues(str(tmp_path))[0].state == "damaged"
    with pytest.raises(Corrupt):
        restore(str(tmp_path), name, f"{tmp_path}/new")
    assert prune(str(tmp_path)).failed == {}  # it stays as it is, for a person


@pytest.mark.parametrize("state", ["done", "thinning"])
def test_a_record_that_was_there_before_the_rescue_has_no_say(tmp_path: Path, state: str) -> None:
    make_trunk(tmp_path)
    slot = make_slot(tmp_path, "one", BASE).parent
    plant(slot / "wt", EDITED)
    texts = {"slot": "two", "made_at": "", "checkin": "", "state": state, "reason": ""}
    made_up = json.dumps({"schema": 1, **texts, "apart": [], "changes": []})
    (slot / "rescue.json").write_text(made_up)
    (slot / "rescue.json.found-1").touch()
    name = prune(str(tmp_path)).rescued["one"]
    [listed] = list_rescues(str(tmp_path))
    assert (listed.state, listed.slot, listed.added, listed.changed) == ("done", "one", 2, 3)
    done = restore(str(tmp_path), name, f"{tmp_path}/new")
    assert len(done.written) == 5
    assert "rescue.json.found-2 lies beside its worktree" in done.apart
    assert (Path(done.path) / "rescue.json.found-2").read_text() == made_up


def test_a_rescue_whose_files_were_changed_is_not_restored(tmp_path: Path) -> None:
    name = rescued(tmp_path, EDITED)
    place = tmp_path / ".bones/rescue" / name / "wt"
    (place / "a").write_text("edotid\n")
    (place / "new/.env").unlink()
    plant(tmp_path / "copy", BASE)
    with pytest.raises(Corrupt, match=r"a, new/\.env"):
        restore(str(tmp_path), name, f"{tmp_path}/copy")
    assert tree_of(tmp_path / "copy") == BASE
    shutil.rmtree(place / "new")
    (place / "new").symlink_to(tmp_path)
    (tmp_path / ".env").write_text("KEY=1")
    with pytest.raises(Corrupt, match=r"new/\.env"):
        restore(str(tmp_path), name, f"{tmp_path}/new")
    assert not (tmp_path / "new").exists()


def test_one_bad_entry_does_not_break_a_listing(tmp_path: Path) -> None:
    name = rescued(tmp_path, EDITED)
    place = tmp_path / ".bones/rescue"
    (place / "file").touch()
    (place / "link").symlink_to("/etc")
    (place / "junk").mkdir()
    (place / "junk/rescue.json").write_bytes(b"\xff")
    (place / "pipe").mkdir()
    os.mkfifo(place / "pipe/rescue.json")
    (place / "two-20261121T053000Z-3").mkdir()
    found = {one.name: one for one in list_rescues(str(tmp_path))}
    states = {key: one.state for key, one in found.items()}
    assert states == {
        name: "done",
        "file": "damaged",
        "link": "damaged",
        "junk": "damaged",
        "pipe": "damaged",
        "two-20261121T053000Z-3": "unfinished",
    }
    done = found[name]
    assert (done.slot, done.added, done.changed, done.deleted) == ("one", 2, 3, 1)
    assert done.checkin == CHECKIN
    two = found["two-20261121T053000Z-3"]
    assert (two.slot, two.made_at) == ("two", "2026-11-21T05:30:00Z")


def test_without_rescues_the_list_is_empty(tmp_path: Path) -> None:
    assert list_rescues(str(tmp_path)) == []
    (tmp_path / ".bones").touch()
    assert list_rescues(str(tmp_path)) == []


@pytest.mark.parametrize("name", ["x", "x-", "-20261121T053000Z", "x-20261121T05300Z", "x-2"])
def test_a_name_that_is_none_of_ours_says_no_time(name: str) -> None:
    assert passage.parse_name(name) == (name, "")


def test_a_rescue_in_somebody_s_hand_is_not_restored(tmp_path: Path) -> None:
    name = rescued(tmp_path, EDITED)
    claimed = passage.claim(f"{tmp_path}/.bones/rescue/{name}")
    assert claimed is not None
    with pytest.raises(Unavailable):
        restore(str(tmp_path), name, f"{tmp_path}/new")
    os.close(claimed)
    assert isinstance(restore(str(tmp_path), name, f"{tmp_path}/new"), Restored)


@pytest.mark.parametrize(("target", "named"), [("file", "file"), ("no/such/parent", "no/such")])
def test_a_place_that_cannot_be_written_is_named_and_left_alone(
    tmp_path: Path, target: str, named: str
) -> None:
    name = rescued(tmp_path, EDITED)
    (tmp_path / "file").write_text("mine")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused, match=f"{tmp_path}/{named} is not a directory") as error:
        restore(str(tmp_path), name, f"{tmp_path}/{target}")
    assert error.value.reason == "no-target"
    assert set(os.listdir("/proc/self/fd")) <= before
    assert (tmp_path / "file").read_text() == "mine"


# --- kills ---------------------------------------------------------------------------------

RESTORE = """
import sys
from slotgc.restore import restore
restore(*sys.argv[1:])
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("point", "new"),
    [
        *((f"restore.copied@{turn}", new) for turn in (1, 5) for new in (True, False)),
        *((f"restore.written@{turn}", new) for turn in (1, 4) for new in (True, False)),
        ("restore.deleted", False),
        ("restore.deleted@2", False),
        ("restore.closed", True),
        ("restore.closed", False),
    ],
)
def test_a_restore_that_is_killed_goes_on_when_repeated(
    tmp_path: Path, point: str, new: bool
) -> None:
    make_trunk(tmp_path)
    base = {**BASE, b"was/file": Node(b"1"), b"was/other": Node(b"2")}
    wt = make_slot(tmp_path, "one", base)
    edited = {
        **EDITED,
        b"was": Node(b"a file now"),
        b"closed/y": Node(b"y"),
        b"closed/z": Node(b""),
    }
    plant(wt, edited)
    (wt / "closed").chmod(0o555)
    name = prune(str(tmp_path)).rescued["one"]
    target = tmp_path / "target"
    if not new:
        plant(target, base)
    arguments = (str(tmp_path), name, str(target))
    killed = run_python(RESTORE, *arguments, check=False, HUB_FAILPOINT=point)
    assert killed.returncode == -9, killed.stderr
    run_python(RESTORE, *arguments)
    expected = comes_out_as(base, edited)
    if new:
        expected = {p: n for p, n in expected.items() if p != b"src/deep/b"}
    assert tree_of(target) == expected
    assert not list(target.rglob(".bones-restore*"))
