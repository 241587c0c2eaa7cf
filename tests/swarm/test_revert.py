"""`bones revert`: a check-in is undone by a new one, and nothing that came after it is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import NotRunning, Refused
from foundation.workspace import Workspace
from hub import commits
from hub.repository import Repository
from swarm import reverting
from swarm.history import open_repository
from tests.slotgc.worktrees import Node
from tests.support import CODE, data_of, eventually, kill
from tests.swarm.stock import Checkout

if TYPE_CHECKING:
    from tests.slotgc.worktrees import Tree
    from tests.support import Hub

BONES = CODE / "bin/bones"
LINES = b"1\n2\n3\n4\n5\n6\n7\n8\n"
MODES = {"file": 0o644, "exec": 0o755, "link": 0}


def trunk_of(repository: Repository) -> Tree:
    """Return the files of trunk's tip."""
    return {
        path: Node(repository.content(entry.hash), MODES[entry.kind])
        for path, entry in repository.files(repository.tip().hash).items()
    }


def revert(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BONES, "revert", *words], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.mark.real
def test_what_a_check_in_did_is_undone_and_what_came_after_stays(hub: Hub, tmp_path: Path) -> None:
    checkout = Checkout(hub.workspace.repository, tmp_path / "stock/co")
    good = {
        b"f": Node(LINES),
        b"gone": Node(b"x\n"),
        b"run": Node(b"r\n"),
        b"link": Node(b"f", 0),
    }
    checkout.commit(good, "good")
    bad = checkout.commit(
        {
            b"f": Node(LINES.replace(b"2", b"bad")),
            b"gone": None,
            b"run": Node(b"r\n", 0o755),
            b"link": Node(b"run", 0),
            b"more": Node(b"m\n"),
        },
        "bad\nin many ways",
    )
    later = {b"f": Node(LINES.replace(b"2", b"bad").replace(b"7", b"seven")), b"new": Node(b"n\n")}
    tip = checkout.commit(later, "later", "api")
    hub.start()
    hub.wait_ready()
    done = revert(hub.root, bad[:12])
    assert done.returncode == 0, done.stderr
    with open_repository(hub.workspace.repository) as trunk:
        row = trunk.tip()
        assert done.stdout == f"{row.hash}\n"
        assert (row.parent, row.user, row.comment) == (
            tip,
            "operator",
            f"revert {bad[:10]}: bad",
        )
        expected = {**good, b"f": Node(LINES.replace(b"7", b"seven")), b"new": Node(b"n\n")}
        found = trunk_of(trunk)
        assert {path: found.get(path) for path in (*expected, b"more")} == {
            **expected,
            b"more": None,
        }
    again = data_of(revert(hub.root, bad, "--json").stdout)
    assert (again["new"], again["checkin"]) == (False, row.hash)
    twice = revert(hub.root, row.hash, "-m", "bad is back")
    assert twice.returncode == 0
    with open_repository(hub.workspace.repository) as trunk:
        assert trunk.tip().comment == "bad is back"
        assert trunk_of(trunk)[b"more"] == Node(b"m\n")
        assert trunk.forks() == 0


@pytest.mark.real
def test_what_others_have_built_on_is_refused_by_name(hub: Hub, tmp_path: Path) -> None:
    checkout = Checkout(hub.workspace.repository, tmp_path / "stock/co")
    checkout.commit({b"f": Node(LINES), b"g": Node(b"g\n")}, "good")
    bad = checkout.commit({b"f": Node(LINES.replace(b"2", b"bad")), b"g": Node(b"bad\n")}, "bad")
    later = checkout.commit({b"f": Node(LINES.replace(b"2", b"worse"))}, "later", "api")
    hub.start()
    hub.wait_ready()
    done = revert(hub.root, bad[:12])
    assert (done.returncode, done.stdout) == (1, "")
    assert f"f: both changed the same lines (api, {later[:10]})" in done.stderr
    assert f"`bones revert {later[:10]}` first" in done.stderr
    error = json.loads(revert(hub.root, bad, "--json").stdout)["error"]
    (conflict,) = error["conflicts"]
    assert (conflict["path"], conflict["theirs_checkin"]) == ("f", later)
    with open_repository(hub.workspace.repository) as trunk:
        assert trunk.tip().hash == later
    with pytest.raises(reverting.RevertRefused) as refused:
        reverting.revert(hub.workspace, bad)
    assert [one.theirs_slot for one in refused.value.conflicts] == ["api"]


def test_without_a_hub_the_way_out_is_named(seeded: Path, tmp_path: Path) -> None:
    workspace = Workspace(str(seeded))
    Checkout(workspace.repository, tmp_path / "stock/co").commit({b"f": Node(b"1\n")}, "a file")
    with pytest.raises(NotRunning, match="bones up"):
        reverting.revert(workspace, "tip")


def test_more_than_trunk_takes_is_refused_by_name(
    seeded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(str(seeded))
    Checkout(workspace.repository, tmp_path / "stock/co").commit({b"f": Node(b"1\n")}, "a file")
    monkeypatch.setattr(commits, "MESSAGE_BYTES", 100)
    monkeypatch.setattr(commits, "PARCEL_BYTES", 100)
    with pytest.raises(Refused, match="1 changes are too many") as refused:
        reverting.revert(workspace, "tip")
    assert refused.value.reason == "too-many-changes"
    assert os.listdir(workspace.spool) == []


def unread(pid: int) -> int:
    """Return how many bytes wait in a process's TCP sockets. Source: proc_net_tcp(5)."""
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{fd}").partition("[")[2].rstrip("]")
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    }
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[9] in inodes)


@pytest.mark.real
@pytest.mark.faults
def test_a_trunk_that_is_killed_with_the_question_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    checkout = Checkout(hub.workspace.repository, tmp_path / "stock/co")
    bad = checkout.commit({b"f": Node(b"bad\n")}, "bad")
    hub.start()
    hub.wait_ready()
    trunk = int(hub.child("trunk")["pid"])
    kill(trunk, signal.SIGSTOP)
    asking = subprocess.Popen(
        [BONES, "revert", bad], cwd=hub.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        eventually(lambda: unread(trunk) > 0)  # the question: nobody will read it
        kill(trunk)
        said = asking.communicate(timeout=25)
    finally:
        asking.kill()
        asking.communicate()
    assert asking.returncode == 0, said
    with open_repository(hub.workspace.repository) as repository:
        assert said[0].decode() == f"{repository.tip().hash}\n"
