"""``bones swarm``: a slot's work from the shell, as a person, an agent and a script meet it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from foundation.workspace import Workspace
from swarm.cli import app
from swarm.history import open_repository
from tests.slotgc.worktrees import Node, make_slot, make_trunk, plant
from tests.support import CODE, data_of, eventually, git, kill

if TYPE_CHECKING:
    from tests.support import Hub

BONES = CODE / "bin/bones"
VERBS = ("join", "commit", "update", "diff", "status", "cwd", "close", "run", "reap")
LIBRARY = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from swarm.cli import main
main(sys.argv[1:])
"""


def bones(
    place: Path | str, *words: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BONES, "swarm", *words],
        cwd=place,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=50,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )


def ok(place: Path | str, *words: str, **environment: str) -> str:
    """Run a verb that must go well and return what it prints."""
    done = bones(place, *words, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    told = json.loads(done.stdout)
    assert told["error"]["exit_code"] == done.returncode, done.stdout
    error: dict[str, Any] = told["error"]
    return error


@pytest.fixture
def ready(swarm_hub: Hub) -> Path:
    """Return a workspace whose hub takes commits."""
    swarm_hub.wait_ready()
    return swarm_hub.root


def join(root: Path, slot: str) -> Path:
    return Path(ok(root, "join", "--slot", slot).rstrip("\n"))


def help_of(*words: str) -> str:
    shown = CliRunner().invoke(
        app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
    )
    assert shown.exit_code == 0
    return shown.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_screen_of_help_with_an_example(verb: str) -> None:
    text = help_of(verb)
    assert "Example:" in text
    assert "bones swarm " in text
    assert "--json" in text
    assert "--root" in text
    assert len(text.splitlines()) <= 40


def test_the_help_names_every_verb_whole_and_every_exit_code() -> None:
    text = help_of()
    for verb in VERBS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {verb} ")]
        assert not line.endswith("...")
    for code in ("0 ok", "1 failed or conflict", "2 usage", "3 no hub", "75 try again"):
        assert code in " ".join(text.split())


@pytest.mark.real
def test_a_session_from_the_shell(ready: Path) -> None:
    joined = bones(ready, "join", "--slot", "auth", "--task", "log in by key")
    worktree = Path(joined.stdout.rstrip("\n"))
    assert worktree == ready / ".bones/swarm/auth/wt"
    assert "slot auth joined at check-in " in joined.stderr
    assert "(log in by key)" in joined.stderr
    assert ok(worktree / "src", "cwd") == joined.stdout
    assert ok(ready, "cwd", "--slot", "auth") == joined.stdout

    (worktree / "src/a.py").write_text("print(3)\n")
    (worktree / "src/new").write_text("new\n")
    (worktree / "README").unlink()
    status = ok(worktree, "status")
    assert "log in by key" in status
    assert [line for line in status.splitlines() if line[:2] == "  " and line[3:4] == " "] == [
        "  D README",
        "  M src/a.py",
        "  A src/new",
    ]
    shown = ok(worktree / "src", "diff", ".")
    assert shown.startswith("diff --git a/src/a.py b/src/a.py\n--- a/src/a.py\n+++ b/src/a.py\n@@")
    assert "README" not in shown

    first = bones(worktree / "src", "commit", "-m", "Only the new", "new")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    same = bones(worktree / "src", "commit", "-m", "Again", "new")
    assert same.returncode == 1
    assert same.stderr.endswith(" at or below new\n")
    assert " at or below src/new\n" in bones(worktree, "diff", "src/new").stderr
    everything = data_of(ok(worktree, "commit", "-m", "The rest", "--json"))
    assert everything["parent"] == first.stdout.rstrip("\n")
    assert (everything["slot"], everything["files"], everything["new"]) == ("auth", 2, True)
    with open_repository(Workspace(str(ready)).repository) as trunk:
        rows = trunk.line()[-2:]
        assert [(row.user, row.comment) for row in rows] == [
            ("auth", "Only the new"),
            ("auth", "The rest"),
        ]
        assert sorted(trunk.files(rows[-1].hash)) == [b"src/a.py", b"src/b.py", b"src/new"]
    nothing = bones(worktree, "commit", "-m", "nothing")
    assert nothing.returncode == 1
    assert ok(worktree, "diff") == ""

    other = join(ready, "api")
    (other / "src/b.py").write_text("print(4)\n")
    ok(other, "commit", "-m", "Another")
    seen = data_of(ok(ready, "status", "--json"))["slots"]
    assert [(one["name"], one["behind"], one["commits"]) for one in seen] == [
        ("api", 0, 1),
        ("auth", 1, 2),
    ]
    updated = bones(worktree, "update")
    assert updated.returncode == 0, updated.stderr
    assert "1 file new" in updated.stderr
    assert (worktree / "src/b.py").read_text() == "print(4)\n"

    closed = data_of(ok(ready, "close", "--slot", "auth", "--summary", "done", "--json"))
    assert (closed["outcome"], closed["commits"]) == ("removed", 2)
    assert not worktree.exists()
    again = bones(ready, "close", "--slot", "auth")
    assert (again.returncode, again.stdout) == (0, "")
    assert "no slot auth any more" in again.stderr
    assert git(ready, "status", "--porcelain") == ""
    assert data_of(ok(other, "close", "--json"))["outcome"] == "removed"


@pytest.mark.real
@pytest.mark.faults
def test_a_leaf_that_hangs_is_told_of_and_hides_no_other(ready: Path) -> None:
    join(ready, "fine")
    pid = data_of(ok(ready, "join", "--slot", "stopped", "--json"))["pid"]
    kill(pid, signal.SIGSTOP)
    try:
        told = {one["name"]: one for one in data_of(ok(ready, "status", "--json"))["slots"]}
    finally:
        kill(pid, signal.SIGCONT)
    assert told["fine"]["state"] == "ready"
    assert told["stopped"]["state"] == "live"
    assert "does not answer" in told["stopped"]["reason"]


@pytest.mark.real
def test_a_slot_closed_from_within_says_how_to_leave_it_and_that_does(ready: Path) -> None:
    worktree = join(ready, "auth")
    (worktree / "notes").write_text("unsaved\n")
    closing = f"cd {worktree} && {BONES} swarm close --result fail; echo $$"
    done = subprocess.run(
        ["sh", "-c", closing], cwd=ready, capture_output=True, text=True, check=True
    )
    assert f"you are in it (process {done.stdout.strip()} has its" in done.stderr
    assert "1 change that nobody committed" in done.stderr
    (way_out,) = re.findall(r"`([^`]*)`", done.stderr)
    assert worktree.exists()
    left = subprocess.run(
        ["sh", "-c", f"cd {worktree}; {way_out}; true"],
        cwd=ready,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{CODE}/bin:{os.environ['PATH']}"},
    )
    assert "`bones swarm rescue restore auth-" in left.stderr
    assert not worktree.exists()


@pytest.mark.real
def test_a_slot_closed_while_another_is_in_it_is_to_be_closed_once_more(ready: Path) -> None:
    worktree = join(ready, "auth")
    with subprocess.Popen(["sleep", "1000"], cwd=worktree) as other:
        done = bones(ready, "close", "--slot", "auth", "--no-artifact")
        other.kill()
    assert f"process {other.pid} has its working directory in it" in done.stderr
    assert "you are in it" not in done.stderr
    assert "once that is over, `bones swarm close --slot auth` removes it" in done.stderr
    assert "was closed already and removed" in bones(ready, "close", "--slot", "auth").stderr


def test_a_shell_completes_the_names_of_slots(repo: Path) -> None:
    make_slot(repo, "auth", {b"a": Node(b"1\n")})
    make_slot(repo, "api", {b"a": Node(b"1\n")})
    asked = {
        "_BONES_COMPLETE": "complete_bash",
        "COMP_WORDS": "bones swarm cwd --slot a",
        "COMP_CWORD": "4",
    }
    done = subprocess.run(
        [BONES], cwd=repo, capture_output=True, text=True, check=True, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["api", "auth"]


@pytest.mark.real
def test_a_conflict_names_each_path_both_versions_who_has_the_other_and_the_way_out(
    ready: Path,
) -> None:
    ours, theirs = join(ready, "ours"), join(ready, "theirs")
    for worktree, text in ((ours, "print('ours')\n"), (theirs, "print('theirs')\n")):
        (worktree / "src/a.py").write_text(text)
    (theirs / "README").unlink()
    (ours / "README").write_text("hello, all\n")
    landed = ok(theirs, "commit", "-m", "First").rstrip("\n")

    done = bones(ours, "commit", "-m", "Second")
    assert (done.returncode, done.stdout) == (1, "")
    elsewhere = bones(ready, "commit", "-m", "Second", "--slot", "ours")
    assert "`bones swarm update --markers --slot ours`" in elsewhere.stderr
    assert "src/a.py: " in done.stderr
    assert "README: " in done.stderr
    assert done.stderr.count(f"(slot theirs, check-in {landed[:10]})") == 2
    assert "theirs deleted" in done.stderr
    assert "`bones swarm update --markers`" in done.stderr
    error = error_of(bones(ours, "commit", "-m", "Second", "--json"))
    assert error["reason"] == "conflict"
    conflicts = {one["path"]: one for one in error["conflicts"]}
    assert set(conflicts) == {"README", "src/a.py"}
    assert conflicts["src/a.py"]["theirs_slot"] == "theirs"
    assert conflicts["src/a.py"]["theirs_checkin"] == landed
    assert (
        len({conflicts["src/a.py"][f"{which}_hash"] for which in ("base", "mine", "theirs")}) == 3
    )

    refused = bones(ours, "update")
    assert refused.returncode == 1
    assert "src/a.py: " in refused.stderr
    assert (ours / "src/a.py").read_text() == "print('ours')\n"
    marked = bones(ours, "update", "--markers")
    assert marked.returncode == 0, marked.stderr
    assert "conflict markers in" in marked.stderr
    assert " new\n" not in marked.stderr
    assert "<<<<<<<" in (ours / "src/a.py").read_text()
    (ours / "src/a.py").write_text("print('both')\n")
    assert len(ok(ours, "commit", "-m", "Both").rstrip("\n")) == 64


@pytest.mark.real
def test_both_doors_say_the_same(ready: Path) -> None:
    worktree = join(ready, "auth")
    (worktree / "odd\udcff").write_text("x")
    lines: list[tuple[Path, list[str]]] = [
        (worktree, ["cwd", "--json"]),
        (ready, ["cwd"]),
        (worktree, ["status"]),
        (worktree, ["status", "--json"]),
        (ready, ["status", "--json"]),
        (ready, ["join", "--slot", "auth", "--json"]),
        (ready, ["join", "--slot", "../x"]),
        (worktree, ["update", "--json"]),
        (worktree, ["commit", "-m", ""]),
        (worktree, ["commit", "-m", "x", "/etc/passwd", "--json"]),
        (worktree, ["close"]),
        (ready, ["close", "--slot", "nope", "--json"]),
    ]
    for place, words in lines:
        plain = bones(place, *words)
        library = subprocess.run(
            [sys.executable, "-I", "-c", LIBRARY, str(CODE), *words],
            cwd=place,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
        assert plain.returncode == library.returncode, words
        assert (plain.stdout, plain.stderr) == (library.stdout, library.stderr), words


@pytest.mark.real
def test_an_agent_is_run_in_its_slot_and_the_slot_closed_by_its_end(ready: Path) -> None:
    commit = f"{shlex.quote(str(BONES))} swarm commit -m mine"
    agent = f"pwd; echo to stderr >&2; echo x > made; cd /; {commit}"
    done = bones(ready, "run", "--slot", "auth", "--", "sh", "-c", agent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(ready / ".bones/swarm/auth/wt")
    assert "to stderr" in lines
    with open_repository(Workspace(str(ready)).repository) as trunk:
        assert (trunk.tip().user, trunk.tip().comment) == ("auth", "mine")
        assert trunk.tip().hash in lines
    assert not (ready / ".bones/swarm/auth").exists()

    left = data_of(
        ok(
            ready,
            "run",
            "--slot",
            "b",
            "--commit-on-exit",
            "-m",
            "left",
            "--json",
            "sh",
            "-c",
            "echo y > y",
        )
    )
    assert (left["status"], left["refused"]) == (0, "")
    with open_repository(Workspace(str(ready)).repository) as trunk:
        assert (trunk.tip().hash, trunk.tip().comment) == (left["checkin"], "left")

    failed = bones(ready, "run", "--slot", "c", "--", "sh", "-c", "echo z > z; exit 7")
    assert failed.returncode == 7
    assert "bones swarm rescue restore c-" in failed.stderr
    killed = bones(ready, "run", "--slot", "d", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 128 + signal.SIGKILL

    idle = bones(ready, "run", "--slot", "e", "--", "true")
    assert idle.returncode == 1
    assert "no success" in idle.stderr
    assert "--no-artifact" in idle.stderr
    lying = bones(ready, "run", "--slot", "e", "--", "sh", "-c", "echo x > x; exit 0")
    assert lying.returncode == 1
    assert "--commit-on-exit" in lying.stderr
    fresh = bones(ready, "run", "--slot", "h", "--", "./no-such-program")
    assert fresh.returncode == 1
    assert "slot h closed (fail) and removed" in fresh.stderr
    assert "./no-such-program cannot be run: No such file or directory (" in fresh.stderr
    (ready / "bones.toml").write_text("[trunk]\nverify = 'echo untested; exit 1'\n")
    unfit = bones(ready, "run", "--slot", "h", "--commit-on-exit", "--", "sh", "-c", "echo x > x")
    assert unfit.returncode == 1
    assert "untested" in unfit.stderr
    assert "slot h stays with what the agent left" in unfit.stderr
    (ready / "bones.toml").unlink()
    ok(ready, "close", "--result", "fail", "--slot", "h")
    ok(ready, "run", "--slot", "f", "--no-artifact", "--", "true")
    ok(ready, "run", "--slot", "g", "--keep", "--", "true")
    none = bones(ready, "run", "--slot", "g", "--keep", "--", "no-such-program")
    assert none.returncode == 1
    assert "no-such-program" in none.stderr
    assert os.listdir(ready / ".bones/swarm") == ["g"]


@pytest.mark.real
def test_a_slot_that_somebody_has_joined_is_not_run_in_nor_closed_unless_asked(
    ready: Path,
) -> None:
    worktree = join(ready, "auth")
    (worktree / "mine").write_text("mine\n")
    ok(worktree, "commit", "-m", "mine")
    refused = bones(ready, "run", "--slot", "auth", "--json", "--", "touch", "ran")
    error = error_of(refused)
    assert (refused.returncode, error["reason"]) == (100, "joined")
    assert "--keep" in error["message"]
    assert not (worktree / "ran").exists()
    ran = data_of(ok(ready, "run", "--slot", "auth", "--keep", "--json", "--", "touch", "ran"))
    assert (ran["status"], ran["result"], ran["outcome"]) == (0, "", "")
    assert (worktree / "ran").exists()
    assert "joined already" in bones(ready, "join", "--slot", "auth").stderr


@pytest.mark.real
def test_a_run_tells_a_script_what_became_of_the_work(ready: Path) -> None:
    for more in ([], ["--no-artifact"]):
        left = bones(ready, "run", "--slot", "a", *more, "--json", "--", "sh", "-c", "echo x > x")
        told = data_of(left.stdout)
        assert left.returncode == 1
        assert told["refused"]
        assert (told["result"], told["outcome"], told["reason"]) == ("fail", "rescued", "")
        assert (ready / ".bones/rescue" / told["rescue"] / "wt/x").read_text() == "x\n"
    done = data_of(
        ok(ready, "run", "--slot", "a", "--commit-on-exit", "--json", "--", "sh", "-c", "echo x >x")
    )
    assert (done["result"], done["outcome"], done["rescue"]) == ("success", "removed", "")


@pytest.mark.real
def test_an_agent_that_cannot_commit_what_it_left_keeps_its_slot(ready: Path) -> None:
    other = join(ready, "other")
    (other / "README").write_text("theirs\n")
    agent = f"echo mine > README; cd {other}; {BONES} swarm commit -m first"
    done = bones(ready, "run", "--slot", "auth", "--commit-on-exit", "--", "sh", "-c", agent)
    assert done.returncode == 1
    assert "README: " in done.stderr
    assert "update --markers --slot auth" in done.stderr
    assert (ready / ".bones/swarm/auth/wt/README").read_text() == "mine\n"


@pytest.mark.real
def test_an_interrupted_run_ends_its_agent(ready: Path) -> None:
    running = subprocess.Popen(
        [BONES, "swarm", "run", "--slot", "auth", "--", "sh", "-c", "echo $$; exec sleep 1000"],
        cwd=ready,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    agent = int(running.stdout.readline())
    running.send_signal(signal.SIGINT)
    _out, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "stays joined" in said
    assert "`bones swarm close --result fail --slot auth`" in said
    eventually(lambda: not Path(f"/proc/{agent}").exists())


@pytest.mark.real
def test_while_the_hub_is_away_a_commit_waits_and_then_says_try_again(
    hub: Hub, ready: Path
) -> None:
    worktree = join(ready, "auth")
    (worktree / "f").write_text("x\n")
    assert hub.run("stop", "--force").returncode == 0
    away = bones(worktree, "commit", "-m", "x", "--timeout", "1.5")
    assert away.returncode == 75, away.stderr
    waiting, _why = away.stderr.splitlines()
    assert waiting.startswith(f"bones: not landed yet: no hub runs in {ready}, `bones up` starts")
    assert "joined already" in bones(ready, "join", "--slot", "auth").stderr
    assert bones(ready, "join", "--slot", "new").returncode == 3
    hub.start()
    hub.wait_ready()
    status = data_of(ok(worktree, "status", "--json"))
    if not status["landed"]:
        ok(worktree, "commit", "-m", "x")
    with open_repository(Workspace(str(ready)).repository) as trunk:
        assert [row.user for row in trunk.line()].count("auth") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["bogus", "--json"],
        ["join", "--json"],
        ["commit", "--json"],
        ["commit", "-m", "--json"],
        ["close", "--result", "maybe", "--json"],
        ["update", "extra", "--json"],
        ["run", "--json", "--slot", "a"],
    ],
    ids=repr,
)
def test_a_wrong_command_line_is_an_error_like_any_other(repo: Path, words: list[str]) -> None:
    done = bones(repo, *words)
    if words == ["commit", "-m", "--json"]:  # a message is what follows -m, whatever it is
        assert done.stdout == ""
    else:
        assert json.loads(done.stdout)["schema"]["verb"] == f"swarm.{words[0]}"
    assert done.returncode == 2


def test_verbs_without_a_slot_or_a_leaf_name_the_way_out(repo: Path) -> None:
    make_trunk(repo)
    make_slot(repo, "dead", {b"a": Node(b"1\n")})
    for words in (["commit", "-m", "x"], ["update"], ["diff"], ["cwd"], ["close"]):
        none = bones(repo, *words)
        assert (none.returncode, none.stdout) == (2, "")
        assert "--slot" in none.stderr
        assert "there are dead" in none.stderr
        if words == ["cwd"]:
            continue
        dead = bones(repo, *words, "--slot", "dead")
        assert (dead.returncode, dead.stdout) == (3, "")
        assert "`bones swarm join --slot dead`" in dead.stderr
    assert bones(repo, "join", "--slot", "new").returncode == 3
    assert error_of(bones(repo, "join", "--slot", "no/slot", "--json"))["reason"] == "slot-name"


def test_reap_asks_before_dead_slots_go_and_saves_their_work(repo: Path) -> None:
    Workspace(str(repo)).make_bones()
    make_trunk(repo)
    make_slot(repo, "clean", {b"a": Node(b"1\n")})
    plant(make_slot(repo, "busy", {b"a": Node(b"1\n")}), {b"a": Node(b"unsaved\n")})
    dry = ok(repo, "reap", "--dry-run")
    assert "remove  clean: " in dry
    assert "rescue  busy: " in dry
    unasked = bones(repo, "reap")
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    assert sorted(os.listdir(repo / ".bones/swarm")) == ["busy", "clean"]
    plan = data_of(ok(repo, "reap", "--dry-run", "--json"))
    assert {one["name"]: one["action"] for one in plan["plan"]} == {
        "busy": "rescue",
        "clean": "remove",
    }
    done = data_of(ok(repo, "reap", "--yes", "--json"))
    assert (done["removed"], list(done["rescued"]), done["failed"]) == (["clean"], ["busy"], {})
    again = bones(repo, "reap")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing to clean up" in again.stderr
