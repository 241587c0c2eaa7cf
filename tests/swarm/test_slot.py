"""A slot as an agent has it: commit, close, run, and what each refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import swarm
from foundation import codec
from foundation.control import encode
from foundation.errors import NotRunning, Refused, Unavailable
from hub.commits import INLINE_BYTES, Conflicted
from hub.repository import Repository
from swarm import aio
from swarm.reverting import revert
from swarm.slot import Slot, slot_at
from tests.support import CODE, eventually, git, is_gone, kill
from tests.swarm.leaves import end_leaves, events_of
from tests.swarm.stock import FOSSIL

if TYPE_CHECKING:
    from tests.support import Hub

pytestmark = pytest.mark.real


def refusal(caught: pytest.ExceptionInfo[Refused]) -> str:
    return caught.value.reason


def test_a_commit_lands_what_was_changed_and_then_there_is_nothing_more(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    top = Path(slot.worktree)
    (top / "README").write_text("changed\n")
    (top / "other").write_text("other\n")
    first = slot.commit("only one", ["README"])
    assert (first.files, first.new, first.message) == (1, True, "only one")
    assert [one.path for one in slot.changes()] == [b"other"]
    second = slot.commit("the rest")
    assert second.parent == first.checkin
    assert slot.status()["landed"] == second.checkin
    with pytest.raises(Refused) as caught:
        slot.commit("nothing")
    assert refusal(caught) == "nothing-to-commit"


def test_what_others_changed_too_is_refused_with_its_place_and_touched_by_nobody(
    swarm_hub: Hub,
) -> None:
    swarm_hub.wait_ready()
    first = swarm.join(swarm_hub.root, "first")
    second = swarm.join(swarm_hub.root, "second")
    (Path(first.worktree) / "README").write_text("one\n")
    (Path(second.worktree) / "README").write_text("two\n")
    theirs = first.commit("one")
    with pytest.raises(Conflicted) as caught:
        second.commit("two")
    (conflict,) = caught.value.conflicts
    assert (conflict.path, conflict.theirs_slot) == (b"README", "first")
    assert conflict.theirs_checkin == theirs.checkin
    assert "README" in str(caught.value)
    assert (Path(second.worktree) / "README").read_text() == "two\n"
    (Path(second.worktree) / "large").write_bytes(os.urandom(INLINE_BYTES + 1))
    with pytest.raises(Conflicted):
        second.commit("two, and what goes by the spool")
    assert os.listdir(swarm_hub.workspace.spool) == []
    with pytest.raises(Conflicted):
        second.update()
    done = second.update(markers=True)
    assert (done.conflicted, done.checkin) == ((b"README",), theirs.checkin)
    assert "<<<<<<<" in (Path(second.worktree) / "README").read_text()
    eventually(lambda: "conflict" in [one.kind for one in events_of(swarm_hub.root, "second")])


def test_edits_of_different_lines_go_together(swarm_hub: Hub) -> None:
    first = swarm.join(swarm_hub.root, "first")
    lines = [f"line {number}\n" for number in range(20)]
    (Path(first.worktree) / "long").write_text("".join(lines))
    first.commit("a long file")
    second = swarm.join(swarm_hub.root, "second")
    (Path(first.worktree) / "long").write_text("".join(["first\n", *lines[1:]]))
    (Path(second.worktree) / "long").write_text("".join([*lines[:-1], "second\n"]))
    first.commit("the first line")
    landed = second.commit("the last line")
    assert landed.merged == (b"long",)
    both = "".join(["first\n", *lines[1:-1], "second\n"])
    assert (Path(second.worktree) / "long").read_text() == both
    assert (first.update().files, second.changes()) == (1, ())
    assert (Path(first.worktree) / "long").read_text() == both


@pytest.mark.faults
def test_a_commit_that_was_not_answered_lands_once(swarm_hub: Hub) -> None:
    swarm_hub.wait_ready()
    slot = swarm.join(swarm_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    trunk = int(swarm_hub.child("trunk")["pid"])
    kill(trunk, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="not known") as caught:
            slot.commit("patience", timeout_s=0.3)
        assert caught.value.reason == "commit-unknown"
        assert len(slot.status()["pending"]) == 32
    finally:
        kill(trunk, signal.SIGCONT)
    eventually(lambda: comments_of(swarm_hub).count("patience") == 1)  # nobody asks but the leaf
    landed = slot.commit("patience")
    assert landed.message == "patience"
    assert slot.status()["pending"] == ""
    assert comments_of(swarm_hub).count("patience") == 1


def comments_of(hub: Hub) -> list[str]:
    with Repository(hub.workspace.repository) as trunk:
        return [one.comment for one in trunk.line()]


@pytest.mark.faults
def test_a_commit_while_no_hub_runs_is_kept_by_the_leaf_and_lands_with_the_next(
    lone_hub: Hub,
) -> None:
    lone_hub.start()
    slot = swarm.join(lone_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    lone_hub.stop("--force")
    for _again in range(2):
        with pytest.raises(Unavailable, match="`bones up` starts one") as caught:
            slot.commit("patience", timeout_s=0.3)
        assert caught.value.reason == "commit-unknown"
    lone_hub.start()
    eventually(lambda: comments_of(lone_hub).count("patience") == 1)
    assert slot.commit("patience").message == "patience"
    with pytest.raises(Refused, match="nothing in slot alpha differs"):
        slot.commit("patience")
    assert comments_of(lone_hub).count("patience") == 1


@pytest.mark.faults
def test_a_commit_whose_leaf_was_killed_lands_once(swarm_hub: Hub) -> None:
    swarm_hub.wait_ready()
    slot = swarm.join(swarm_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    trunk = int(swarm_hub.child("trunk")["pid"])
    kill(trunk, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            slot.commit("cut off", timeout_s=0.3)
        kill(slot.info["pid"])
    finally:
        kill(trunk, signal.SIGCONT)
    revived = swarm.join(swarm_hub.root, "alpha")
    try:
        revived.commit("cut off")
    except Refused as error:
        assert error.reason == "nothing-to-commit"  # noqa: PT017 - either is right
    assert revived.changes() == ()
    with Repository(swarm_hub.workspace.repository) as trunk_now:
        comments = [one.comment for one in trunk_now.line()]
    assert comments.count("cut off") == 1


def test_a_leaf_tells_of_itself_while_a_commit_waits(swarm_hub: Hub) -> None:
    swarm_hub.wait_ready()
    slot = swarm.join(swarm_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    trunk = int(swarm_hub.child("trunk")["pid"])

    async def both() -> str:
        landing = asyncio.create_task(asyncio.to_thread(slot.commit, "waiting"))
        try:
            while not (await asyncio.to_thread(slot.status))["pending"]:
                assert not landing.done()
        finally:
            kill(trunk, signal.SIGCONT)
        return (await landing).message

    kill(trunk, signal.SIGSTOP)
    assert asyncio.run(both()) == "waiting"


@pytest.mark.faults
def test_a_slot_whose_end_cannot_be_told_stays_open(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    swarm_hub.stop("--force")
    with pytest.raises(Unavailable) as caught:
        slot.close(artifact=False, timeout_s=0.3)
    assert caught.value.reason == "hub-away"
    swarm_hub.start()
    assert slot.close(artifact=False).outcome == "removed"


def test_paths_are_of_the_slot_however_they_are_named(swarm_hub: Hub, tmp_path: Path) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    (tmp_path / "link").symlink_to(slot.worktree)
    (Path(slot.worktree) / "a link").symlink_to("/etc")
    assert slot.path_of(f"{slot.worktree}/src/a.py") == b"src/a.py"
    assert slot.path_of(tmp_path / "link/src/a.py") == b"src/a.py"
    assert slot.path_of("a link") == b"a link"
    assert slot.path_of(slot.worktree) == b"."
    for path in ("/etc/passwd", "../../../../README", ".git/config", ".fslckout"):
        with pytest.raises(Refused) as caught:
            slot.commit("m", [path])
        assert refusal(caught) == "not-in-slot"
    with pytest.raises(Refused) as caught:
        slot.commit(" \n")
    assert refusal(caught) == "no-message"
    assert slot_at(f"{slot.worktree}/src") == (str(swarm_hub.root), "alpha")
    assert slot_at(slot.directory) == (str(swarm_hub.root), "alpha")
    assert slot_at(swarm_hub.root) is None


def test_success_needs_a_commit_and_nothing_left_behind(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    with pytest.raises(Refused) as caught:
        slot.close()
    assert refusal(caught) == "no-artifact"
    (Path(slot.worktree) / "one").write_text("1\n")
    slot.commit("one")
    (Path(slot.worktree) / "two").write_text("2\n")
    with pytest.raises(Refused, match="two") as caught:
        slot.close()
    assert refusal(caught) == "uncommitted"
    assert slot.status()["phase"] == "ready"
    slot.commit("two")
    closed = slot.close(summary="done")
    assert (closed.commits, closed.outcome) == (2, "removed"), closed
    assert is_gone(slot.info["pid"])
    assert not os.path.exists(slot.directory)
    assert slot.close().outcome == "gone"
    assert events_of(swarm_hub.root, "alpha")[-1].kind == "closed"
    again = swarm.join(swarm_hub.root, "alpha")
    assert again.info["epoch"] > slot.info["epoch"]
    assert not again.info["revived"]


def test_a_success_that_needed_no_commit_has_left_nothing_uncommitted_either(
    swarm_hub: Hub,
) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    top = Path(slot.worktree)
    (top / "notes").write_text("unsaved\n")
    (top / "README").write_text("changed\n")
    for artifact in (True, False):
        with pytest.raises(Refused, match=r"2 changes.*README, notes.*--result fail") as caught:
            slot.close(artifact=artifact)
        assert refusal(caught) == "uncommitted"
    git(top, "add", ".")
    git(top, "commit", "-qm", "in the worktree's git alone")
    with pytest.raises(Refused) as caught:
        slot.close(artifact=False)
    assert refusal(caught) == "uncommitted"
    assert slot.status()["phase"] == "ready"
    closed = slot.close("fail")
    assert (closed.outcome, closed.changes) == ("rescued", 2)


def test_a_stock_commit_counts_for_the_slot_and_counts_once(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    other = swarm.join(swarm_hub.root, "beta")
    top = Path(slot.worktree)

    def fossil(*words: str) -> None:
        # Again where trunk has just written: stock Fossil then gives up ("database is locked").
        eventually(
            lambda: (
                not subprocess.run(
                    [FOSSIL, *words], cwd=top, check=False, capture_output=True
                ).returncode
            )
        )

    def landed() -> tuple[int, str, str]:
        now = slot.status(changes=True)
        with Repository(f"{swarm_hub.root}/.orchestrator/hub.fossil") as trunk:
            tip = trunk.tip()
        return now["commits"], now["landed"], tip.hash if tip.user == "alpha" else ""

    before = slot.status()["checkin"]
    # Longer: within a second Fossil sees a change by the size alone.
    (top / "README").write_text("by stock fossil\n")
    fossil("commit", "-m", "stock")
    count, last, tip = landed()
    assert (count, last) == (1, tip)
    (top / "README").write_text("ours\n")
    ours = slot.commit("ours").checkin
    assert landed() == (2, ours, ours)
    (Path(other.worktree) / "theirs").write_text("theirs\n")
    other.commit("theirs")
    fossil("update")
    assert landed() == (2, ours, "")
    fossil("update", before[:16])
    assert landed()[0] == 2
    fossil("update")
    assert landed()[0] == 2
    (top / "README").write_text("stock again\n")
    fossil("commit", "-m", "stock again")
    closed = slot.close()
    assert (closed.commits, closed.outcome) == (3, "removed")
    with Repository(f"{swarm_hub.root}/.orchestrator/hub.fossil") as trunk:
        assert closed.checkin == trunk.tip().hash


def test_what_a_closed_slot_had_not_committed_is_rescued(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    (Path(slot.worktree) / "notes").write_text("unsaved\n")
    closed = slot.close("fail")
    assert closed.outcome == "rescued", closed
    rescue = swarm_hub.root / ".bones/rescue" / closed.rescue
    assert (rescue / "wt/notes").read_text() == "unsaved\n"
    assert not os.path.exists(slot.directory)


def test_a_slot_in_which_somebody_works_is_closed_and_stays(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    with subprocess.Popen(["sleep", "1000"], cwd=slot.worktree) as shell:
        closed = slot.close("success", artifact=False)
        again = slot.close()
        shell.kill()
    assert (closed.outcome, closed.before) == ("kept", False)
    assert str(shell.pid) in closed.reason
    assert again == closed.replace(before=True)
    assert slot.close().outcome == "removed"


def test_nothing_lands_once_a_slot_is_closed_and_a_close_beside_it_is_the_second(
    swarm_hub: Hub,
) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    (Path(slot.worktree) / "late").write_text("1\n")
    verbs: list[dict[str, object]] = [
        {"v": 1, "verb": "close", "result": "fail", "artifact": False},
        {"v": 1, "verb": "commit", "message": "after it"},
        {"v": 1, "verb": "close", "result": "fail", "artifact": False},
        {"v": 1, "verb": "changes"},
    ]
    directory = os.open(slot.directory, os.O_PATH)
    with ExitStack() as stack:
        stack.callback(os.close, directory)
        asking = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _verb in verbs]
        for connection, verb in zip(asking, verbs, strict=True):
            connection.connect(f"/proc/self/fd/{directory}/leaf.sock")
            connection.sendall(encode(verb))
        lines = [stack.enter_context(connection.makefile()) for connection in asking]
        answers = [codec.loads_object(line.readline()) for line in lines]
    assert answers[0]["data"]["changes"] == 1
    assert [answer["error"]["reason"] for answer in answers[1:]] == ["closed"] * 3
    with Repository(swarm_hub.workspace.repository) as trunk:
        assert len(trunk.line()) == 1
    eventually(lambda: is_gone(slot.info["pid"]))


def test_two_who_close_a_slot_at_once_both_have_closed_it(swarm_hub: Hub) -> None:
    swarm.join(swarm_hub.root, "alpha")
    with ThreadPoolExecutor() as threads:
        closing = [
            threads.submit(Slot.open(swarm_hub.root, "alpha").close, "fail") for _one in range(2)
        ]
    assert sorted(one.result().before for one in closing) == [False, True]


def test_of_however_many_changes_all_are_told(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    names = [f"{number:0120}" for number in range(2000)]
    for name in names:
        (Path(slot.worktree) / name).touch()
    assert [one.path.decode() for one in slot.changes()] == names


def test_what_a_commit_could_not_take_is_told(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    os.mkfifo(f"{slot.worktree}/pipe")
    os.mkdir(f"{slot.worktree}/inner")
    subprocess.run(["git", "init", "-q"], cwd=f"{slot.worktree}/inner", check=True)
    (Path(slot.worktree) / "inner/f").write_text("1\n")
    done = slot.commit("what there is")
    assert done.files == 1
    assert {path.partition(b"/")[0] for path, _why in done.left_out} >= {b"inner"}
    assert all(why for _path, why in done.left_out)


def test_a_slot_whose_leaf_was_killed_is_not_closed(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    kill(slot.info["pid"])
    eventually(lambda: is_gone(slot.info["pid"]))
    with pytest.raises(NotRunning) as caught:
        slot.close()
    assert caught.value.reason == "leaf-dead"


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("step", ["close.announced", "close.left"])
def test_a_close_that_is_killed_can_be_done_again(lone_hub: Hub, step: str) -> None:
    lone_hub.start(HUB_FAILPOINT=step)
    slot = swarm.join(lone_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    slot.commit("one")
    with pytest.raises(Exception, match="ended before it answered"):
        slot.close()
    lone_hub.stop("--force")
    lone_hub.start()
    assert swarm.join(lone_hub.root, "alpha").close(artifact=False).outcome == "removed"


def leaf_is_gone(hub: Hub) -> None:
    """Wait for the end of slot alpha's leaf: its connections end a moment before it does."""
    pid = int((hub.root / ".bones/swarm/alpha/leaf.pid").read_text())
    eventually(lambda: is_gone(pid))


@pytest.mark.faults
def test_what_landed_while_its_leaf_was_killed_is_not_landed_again_over_what_came_since(
    lone_hub: Hub,
) -> None:
    lone_hub.start(HUB_FAILPOINT="commit.answered")
    slot = swarm.join(lone_hub.root, "alpha")
    (Path(slot.worktree) / "both").write_text("one\n")
    with pytest.raises(Unavailable):
        slot.commit("one")
    revert(lone_hub.workspace, "tip")
    (Path(slot.worktree) / "mine").write_text("mine\n")
    leaf_is_gone(lone_hub)
    lone_hub.stop()
    lone_hub.start()
    again = swarm.join(lone_hub.root, "alpha")
    assert [one.path for one in again.changes()] == [b"mine"]
    again.commit("mine")
    with Repository(lone_hub.workspace.repository) as trunk:
        files = trunk.files(trunk.tip().hash)
        assert b"mine" in files
        assert b"both" not in files
    assert again.update().files
    assert not (Path(slot.worktree) / "both").exists()
    end_leaves(lone_hub.root)


@pytest.mark.faults
def test_a_commit_whose_leaf_was_killed_before_it_knew_is_answered_by_the_next(
    lone_hub: Hub,
) -> None:
    lone_hub.start(HUB_FAILPOINT="commit.answered")
    slot = swarm.join(lone_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    with pytest.raises(Unavailable):
        slot.commit("one")
    leaf_is_gone(lone_hub)
    lone_hub.stop()
    lone_hub.start()
    again = swarm.join(lone_hub.root, "alpha")
    with Repository(lone_hub.workspace.repository) as trunk:
        tip = trunk.tip().hash
        assert again.commit("one").checkin == tip
        assert len(trunk.line()) == 2
    assert (
        subprocess.run(
            ["git", "status", "--porcelain"], cwd=again.worktree, capture_output=True, check=True
        ).stdout
        == b""
    )
    end_leaves(lone_hub.root)


def test_an_agent_runs_in_the_worktree_and_what_it_says_is_heard(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    heard: list[str] = []
    ran = slot.run(
        ["sh", "-c", "pwd; echo oops >&2; echo $BONES_SLOT; echo made > made; exit 3"],
        commit_on_exit=True,
        message="by the agent",
        output=heard.extend,
    )
    assert ran.status == 3
    assert heard == [slot.worktree, "oops", "alpha"]
    assert slot.status()["landed"] == ran.checkin != ""
    assert slot.changes() == ()
    assert "oops\n" in (Path(slot.directory) / "leaf.log").read_text()
    heard.clear()
    slot.run(["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' '\\377'"], output=heard.extend)
    assert "".join(heard) == "\\xff" * 300_000
    with pytest.raises(Refused) as caught:
        slot.run(["no-such-program"])
    assert refusal(caught) == "not-executable"
    kinds = [one.kind for one in events_of(swarm_hub.root, "alpha")]
    assert kinds == ["joined", *["run-started", "run-ended"] * 2]


RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from swarm.slot import Slot
slot = Slot.open(sys.argv[2], "alpha")
slot.run(["sh", "-c", sys.argv[3]], output=lambda lines: print(lines[0], flush=True))
"""


POLITE = "trap 'echo ended > ended; exit 1' TERM; echo $$; sleep 1000 & wait"


def runner(slot: Slot, script: str) -> subprocess.Popen[str]:
    """Run an agent that says its pid, from a process of its own."""
    argv = [sys.executable, "-c", RUN, str(CODE), slot.root, script]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


@pytest.mark.faults
def test_an_agent_ends_with_whoever_ran_it(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    with runner(slot, POLITE) as client:
        assert client.stdout is not None
        agent = int(client.stdout.readline())
        client.kill()
    eventually(lambda: is_gone(agent))
    eventually((Path(slot.worktree) / "ended").exists)
    eventually(lambda: slot.status()["agent"] == 0)


@pytest.mark.faults
def test_an_agent_dies_with_its_leaf(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    with runner(slot, "echo $$; exec sleep 1000") as client:
        assert client.stdout is not None
        agent = int(client.stdout.readline())
        with pytest.raises(Refused) as caught:
            slot.run(["true"])
        assert refusal(caught) == "busy"
        kill(slot.info["pid"], signal.SIGKILL)
        client.wait(20)
    eventually(lambda: is_gone(agent))


def test_the_same_from_asyncio(swarm_hub: Hub) -> None:
    async def work() -> tuple[str, str]:
        slot = await aio.join(swarm_hub.root, "alpha")
        (Path(slot.worktree) / "one").write_text("1\n")
        landed = await slot.commit("one")
        assert (await slot.status())["landed"] == landed.checkin
        assert await slot.changes() == ()
        return (await slot.close()).outcome, landed.checkin

    outcome, checkin = asyncio.run(work())
    assert outcome == "removed"
    assert checkin


@pytest.mark.faults
def test_a_slot_s_questions_share_a_connection_and_find_the_leaf_that_comes_next(
    swarm_hub: Hub,
) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    slot.status()
    (connection,) = slot._kept
    with pytest.raises(Refused):
        slot.commit("nothing")
    assert slot.changes() == ()
    assert slot._kept == [connection]
    first = slot.status()["pid"]
    kill(first)
    eventually(lambda: is_gone(first))
    with pytest.raises(NotRunning):
        slot.status()
    second = swarm.join(swarm_hub.root, "alpha")
    (Path(slot.worktree) / "one").write_text("1\n")
    assert slot.commit("by the former object").new
    assert slot.status()["pid"] == second.info["pid"]


def test_a_connection_that_waits_for_its_next_question_keeps_no_slot_from_closing(
    swarm_hub: Hub,
) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    waiting = Slot.open(swarm_hub.root, "alpha")
    waiting.status()
    assert slot.close(artifact=False).outcome == "removed"
    with pytest.raises(Refused) as caught:
        waiting.status()
    assert refusal(caught) == "no-slot"
    again = swarm.join(swarm_hub.root, "alpha")
    assert waiting.status()["epoch"] == again.info["epoch"]


@pytest.mark.faults
def test_an_answer_that_comes_too_late_answers_no_later_question(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    leaf = slot.status()["pid"]
    kill(leaf, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable) as caught:
            slot.ask("changes", patience_s=0.05)
        assert caught.value.reason == "no-answer"
    finally:
        kill(leaf, signal.SIGCONT)
    assert slot.status()["pid"] == leaf


def test_a_forked_child_asks_by_a_connection_of_its_own(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    slot.status()
    (connection,) = slot._kept
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            closed = connection.fileno() == -1
            os.write(write, b"%d %d" % (closed, slot.status()["pid"]))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == f"1 {slot.info['pid']}"
    assert slot.status()["pid"] == slot.info["pid"]
    assert slot._kept == [connection]


def test_threads_that_share_a_slot_get_each_their_own_answer(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")

    def ask(number: int) -> bool:
        name = "status" if number % 2 else "changes"
        return ("pid" in slot.ask(name, patience_s=10)) == bool(number % 2)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(200)))
    assert len(slot._idle) <= 8


def test_joining_loads_neither_asyncio_nor_json() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import swarm.slot; "
        "from foundation import codec; print(codec.dumps(sorted(sys.modules)))"
    )
    argv = [sys.executable, "-I", "-S", "-c", program, str(CODE)]
    done = subprocess.run(argv, capture_output=True, check=True, text=True)
    heavy = {"asyncio", "json", "re", "enum", "typing", "socket", "signal", "subprocess", "pathlib"}
    assert heavy.isdisjoint(codec.loads(done.stdout))
