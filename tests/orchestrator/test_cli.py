"""``bones``: the verbs on trunk and the screen that says how things stand."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from foundation.workspace import Workspace
from hub.seed import seed
from orchestrator.cli import app
from slotgc.pruning import prune
from tests.slotgc.leaves import leaf
from tests.slotgc.worktrees import Node, make_slot, plant
from tests.support import CODE, HUB, data_of, git
from tests.swarm.stock import FOSSIL, Checkout

if TYPE_CHECKING:
    from tests.support import Hub

BONES = CODE / "bin/bones"
VERBS = ("up", "status", "log", "diff", "revert", "apply", "events", "down", "purge")
TREE = {b"a": Node(b"1\n")}


def bones(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BONES, *words],
        cwd=root,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=50,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    told = json.loads(done.stdout)
    assert told["error"]["exit_code"] == done.returncode
    error: dict[str, Any] = told["error"]
    return error


def test_without_a_hub_each_program_says_how_it_starts_one(repo: Path) -> None:
    for words in (["events"], ["log"], ["swarm", "join", "--slot", "a"], ["hub", "events"]):
        done = bones(repo, *words)
        assert done.returncode in (1, 3), done
        assert "`bones up`" in done.stderr
    done = subprocess.run(
        [HUB, "events"], cwd=repo, capture_output=True, text=True, check=False, timeout=50
    )
    assert "`hub start --detach`" in done.stderr


@pytest.fixture
def checkout(seeded: Path, tmp_path: Path) -> Checkout:
    """Return a stock check-out of a small trunk."""
    return Checkout(Workspace(str(seeded)).repository, tmp_path / "stock/co")


def help_of(*words: str) -> str:
    shown = CliRunner().invoke(
        app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    )
    assert shown.exit_code == 0
    return shown.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_screen_of_help_with_an_example(verb: str) -> None:
    text = help_of(verb)
    assert "Example:  bones " in text
    assert "--json" in text
    assert "--root" in text
    assert len(text.splitlines()) <= 40


def test_the_help_names_every_verb_whole_and_every_exit_code() -> None:
    text = help_of()
    for verb in VERBS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {verb} ")]
        assert not line.endswith("...")
    for code in ("0 ok", "2 usage", "3 no hub", "75 try again", "100 owned"):
        assert code in " ".join(text.split())


def test_log_is_a_line_a_check_in_and_more_in_json(seeded: Path, checkout: Checkout) -> None:
    hashes = [
        checkout.commit(
            {b"f": Node(b"%d\n" % number)}, f"number {number}\nmore", f"slot{number % 2}"
        )
        for number in range(3)
    ]
    done = bones(seeded, "log", "-n", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [hashes[2][:10], hashes[1][:10]]
    assert lines[0].endswith("  slot0         number 2")
    told = data_of(bones(seeded, "log", "--json", "--all").stdout)["checkins"]
    assert [one["hash"] for one in told][:3] == hashes[::-1]
    assert told[0]["parent"] == hashes[1]
    assert (told[0]["slot"], told[0]["message"]) == ("slot0", "number 2\nmore")
    assert told[0]["time"].endswith("Z") or told[0]["time"].count(":") == 2
    assert bones(seeded, "log", "--slot", "slot1").stdout.split()[0] == hashes[1][:10]
    assert "--lines" in bones(seeded, "log", "-n", "0").stderr


def test_no_message_steers_the_terminal(seeded: Path, checkout: Checkout) -> None:
    checkout.commit({b"f": Node(b"\x1b[2J\n")}, "\x1b]0;title\x07 in a message", "auth")
    for words in (["log"], ["status"]):
        assert "\x1b" not in bones(seeded, *words).stdout
    ours, theirs = pty.openpty()
    try:
        subprocess.run([BONES, "diff"], cwd=seeded, stdout=theirs, check=True)
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"+\\x1b[2J" in shown
    assert b"\x1b" not in shown


def test_diff_is_of_the_last_check_in_of_a_named_one_or_between_two(
    seeded: Path, checkout: Checkout
) -> None:
    first = checkout.commit({b"f": Node(b"1\n"), b"\xc3\xa4": Node(b"\xfe\n")}, "first")
    second = checkout.commit({b"f": Node(b"2\n")}, "second")
    last = subprocess.run([BONES, "diff"], cwd=seeded, capture_output=True, check=True).stdout
    assert last == b"diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-1\n+2\n"
    named = subprocess.run(
        [BONES, "diff", first[:9]], cwd=seeded, capture_output=True, check=True
    ).stdout
    assert b'diff --git "a/\\303\\244" "b/\\303\\244"\n' in named
    assert b"\n+\xfe\n" in named, "bytes, as they are"
    between = bones(seeded, "diff", second[:9], first[:9]).stdout
    assert between.endswith("@@ -1 +1 @@\n-2\n+1\n")
    same = bones(seeded, "diff", "tip", second)
    assert (same.returncode, same.stdout) == (0, "")
    assert "no differences" in same.stderr
    told = data_of(bones(seeded, "diff", first, "--json").stdout)
    assert told["to"] == first
    assert [one["path"] for one in told["files"]] == [
        "f",
        "\N{LATIN SMALL LETTER A WITH DIAERESIS}",
    ]
    assert told["files"][0]["diff"].endswith("+1\n")
    assert list(told["files"][1]["diff"]) == ["b64"]


@pytest.mark.parametrize("verb", ["diff", "revert"])
def test_a_check_in_that_is_none_is_named_with_the_way_out(seeded: Path, verb: str) -> None:
    done = bones(seeded, verb, "deadbeef")
    assert (done.returncode, done.stdout) == (1, "")
    assert "deadbeef" in done.stderr
    assert "bones log" in done.stderr
    assert error_of(bones(seeded, verb, "nope", "--json"))["reason"] == "no-such-checkin"


def test_a_reader_of_a_diff_who_has_seen_enough_ends_it_without_a_word(
    seeded: Path, checkout: Checkout
) -> None:
    checkout.commit({b"f": Node(b"line\n" * 100_000)}, "much")
    piped = subprocess.run(
        ["sh", "-c", f"{BONES} diff | head -1"], cwd=seeded, capture_output=True, check=False
    )
    assert piped.stdout == b"diff --git a/f b/f\n"
    assert piped.stderr == b""


def test_without_a_trunk_every_verb_names_the_way_to_one(repo: Path) -> None:
    for words in (["log"], ["diff"], ["revert", "tip"], ["apply"]):
        done = bones(repo, *words)
        assert done.returncode == 1
        assert "bones up" in done.stderr
    status = bones(repo, "status")
    assert (status.returncode, status.stderr) == (3, "")
    assert status.stdout.startswith(f"stopped   {repo}\n          `bones up` starts it\n")
    events = bones(repo, "events")
    assert (events.returncode, events.stderr[:6]) == (3, "bones:")


def test_apply_says_what_is_new_and_where(seeded: Path, checkout: Checkout) -> None:
    made = checkout.commit({b"f": Node(b"1\n")}, "a file", "auth")
    dry = bones(seeded, "apply", "--branch", "swarm", "--dry-run")
    assert dry.stdout.split()[:2] == [made[:10], "auth"]
    assert "1 check-in would be applied to swarm" in dry.stderr
    assert git(seeded, "branch", "--list", "swarm") == ""
    done = bones(seeded, "apply", "--branch", "swarm")
    assert done.stdout == f"swarm {git(seeded, 'rev-parse', 'swarm')}"
    assert "1 check-in applied to swarm" in done.stderr
    assert git(seeded, "log", "-1", "--format=%an %s", "swarm") == "auth a file\n"
    again = data_of(bones(seeded, "apply", "--branch", "swarm", "--json").stdout)
    assert again["added"] == []
    assert again["checkin"] == made


def test_apply_promises_no_merge_that_git_would_refuse(repo: Path, tmp_path: Path) -> None:
    (repo / "README").write_text("changed, and not committed\n")
    workspace = Workspace(str(repo))
    workspace.make_state()
    dirty = seed(workspace, FOSSIL, lambda *_said: None).tip
    stock = Checkout(workspace.repository, tmp_path / "stock/co")
    stock.commit({b"f": Node(b"1\n")}, "a file", "auth")
    done = bones(repo, "apply", "--branch", "swarm")
    assert "uncommitted in your work tree (README)" in done.stderr
    assert f"when trunk began is on it, as check-in {dirty[:10]}" in done.stderr
    git(repo, "stash")
    git(repo, "merge", "swarm")
    git(repo, "stash", "pop")
    assert git(repo, "status", "--porcelain") == ""
    assert (repo / "README").read_text() == "changed, and not committed\n"


def test_status_says_on_one_screen_what_needs_a_person(seeded: Path, checkout: Checkout) -> None:
    first = checkout.commit({b"f": Node(b"1\n")}, "a file", "auth")
    Workspace(str(seeded)).make_bones()
    plant(make_slot(seeded, "old", TREE, checkin=first), {b"a": Node(b"rescued\n")})
    prune(str(seeded))
    plant(make_slot(seeded, "dead", TREE, checkin=first), {b"a": Node(b"unsaved\n")})
    make_slot(seeded, "clean", TREE, checkin=first)
    make_slot(seeded, "silent", TREE, checkin=first)
    tip = checkout.commit({b"f": Node(b"2\n")}, "another", "api")
    with leaf(seeded, "silent"):
        done = bones(seeded, "status")
        told = data_of(bones(seeded, "status", "--json").stdout)
        slots = data_of(bones(seeded, "swarm", "status", "--json").stdout)["slots"]
        listed = bones(seeded, "swarm", "status").stdout
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) <= 24
    text = done.stdout
    assert f"tip       {tip[:10]}  " in text
    assert "  api: another\n" in text
    assert "slots     1 live, 2 dead\n" in text
    assert f"dead      at {first[:10]} (1 behind)" in " ".join(text.split(" ")), text
    needs = text.partition("needs you\n")[2]
    assert "slot dead: " in needs
    assert "`bones swarm join --slot dead` goes on" in needs
    assert "slot silent: " in needs
    assert "does not answer" in needs
    assert "slot clean" not in needs
    assert "`bones swarm rescue ls`" in needs
    assert "2 check-ins not applied yet" in text
    assert told["tip"]["hash"] == tip
    assert "slots wait for a hub: `bones up`" in needs
    assert (told["unapplied"], len(told["rescues"]), len(told["needs"])) == (2, 1, 4)
    assert told["hub"]["state"] == "stopped"
    by_name = {one["name"]: one for one in told["slots"]}
    assert by_name["dead"]["has_work"]
    assert by_name["dead"]["behind"] == 1
    assert not by_name["clean"]["has_work"]
    assert slots == told["slots"]
    assert [line.split()[0] for line in listed.splitlines()] == ["clean", "dead", "silent"]


def test_status_names_a_project_file_that_keeps_every_commit_out(seeded: Path) -> None:
    assert data_of(bones(seeded, "status", "--json").stdout)["project"] == ""
    (seeded / "bones.toml").write_text("[trunk\n")
    needs = bones(seeded, "status").stdout.partition("needs you\n")[2]
    assert f"{seeded}/bones.toml: it is not TOML" in needs
    assert "No commit lands" in needs


@pytest.mark.real
def test_up_starts_a_hub_that_takes_commits_and_then_says_it_runs(hub: Hub) -> None:
    done = bones(hub.root, "up")
    assert done.returncode == 0, done.stderr
    hub_line, tip_line = done.stdout.splitlines()
    assert hub_line.startswith(f"hub is up in {hub.root}: fossil http://127.0.0.1:")
    assert tip_line.startswith("trunk is at ")
    assert hub.child("trunk")["phase"] == "ready"
    again = data_of(bones(hub.root, "up", "--json").stdout)
    assert again["hub"]["already_running"]
    assert len(again["tip"]["hash"]) == 64
    status = bones(hub.root, "status")
    assert status.returncode == 0, status.stdout
    assert "needs you" not in status.stdout
    events = bones(hub.root, "events", "--json")
    assert data_of(events.stdout)["events"][0]["subject"] == "hub.event.ready"
    followed = subprocess.Popen([BONES, "events", "-f"], cwd=hub.root, stdout=subprocess.PIPE)
    assert followed.stdout is not None
    assert b"hub.event.ready" in followed.stdout.readline()
    followed.send_signal(signal.SIGINT)
    followed.communicate(timeout=20)
    assert followed.returncode == 130


def test_up_where_no_hub_can_be_says_why(tmp_path: Path) -> None:
    done = bones(tmp_path, "up", "--json")
    assert error_of(done)["reason"] == "not-git"
