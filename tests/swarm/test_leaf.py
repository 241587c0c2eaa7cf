"""A leaf's life: joined, revived, taken over, away from its hub, closed. Real hub, real kills."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import owner
import swarm
from foundation.errors import HubError, LeaseLost, NotRunning, Refused, Unavailable
from foundation.workspace import Workspace
from hub.bus import Bus
from owner.guard import holder_of
from slotgc.leaf import DEAD, LIVE, look
from swarm.leaf.joining import LEASE_VARIABLE, join_lease, lease_path
from swarm.leaf.link import SUBJECT, Link
from swarm.slot import Slot
from tests.support import eventually, free_port, is_gone, kill
from tests.swarm.leaves import FREEZING, LOADED, events_of, join_and_die, lone_leaf, say

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from tests.support import Hub

pytestmark = pytest.mark.real


def write(slot: Slot, name: str, text: str) -> None:
    """Edit a file in the worktree."""
    (Path(slot.worktree) / name).write_text(text)


def state_of(slot: Slot) -> str:
    return look(Workspace(slot.root), slot.name).state


def freeze(slot: Slot) -> None:
    """Stop its leaf while it is not in the guard of its lease, where nobody else could join."""
    pid = slot.info["pid"]
    guard = f"{lease_path(Workspace(slot.root), slot.name)}.lock"

    def stands_outside() -> bool:
        kill(pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{pid}/task").glob("*/stat")
        if any(task.read_text().rpartition(")")[2].split()[0] != "T" for task in tasks):
            return False
        if holder_of(guard) != pid:
            return True
        kill(pid, signal.SIGCONT)
        return False

    eventually(stands_outside)


def test_a_join_makes_a_slot_with_a_living_leaf_and_a_second_one_finds_it(swarm_hub: Hub) -> None:
    first = swarm.join(swarm_hub.root, "alpha", "a task")
    again = swarm.join(swarm_hub.root, "alpha")
    assert first.info["joined"]
    assert not first.info["revived"]
    assert first.info["epoch"] == 1
    assert not again.info["joined"]
    assert again.info["pid"] == first.info["pid"]
    assert again.info["task"] == "a task"
    assert (Path(first.worktree) / "README").read_text() == "hello\n"
    assert state_of(first) == LIVE
    with pytest.raises(Refused, match="cannot name a slot"):
        swarm.join(swarm_hub.root, "../alpha")


def test_a_join_without_a_hub_names_the_way_out(hub: Hub) -> None:
    with pytest.raises(NotRunning, match="`bones up` starts one"):
        swarm.join(hub.root, "alpha")


def test_a_killed_leaf_leaves_its_work_and_the_next_join_goes_on_with_it(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    write(slot, "notes", "unsaved\n")
    kill(slot.info["pid"])
    eventually(lambda: state_of(slot) == DEAD)
    with pytest.raises(NotRunning, match="join --slot alpha") as caught:
        slot.status()
    assert caught.value.reason == "leaf-dead"
    revived = swarm.join(swarm_hub.root, "alpha")
    assert revived.info["revived"]
    assert revived.info["epoch"] == slot.info["epoch"] + 1
    assert [one.path for one in revived.changes()] == [b"notes"]


STEPS = (
    "join.leased",
    "join.made",
    "join.claimed",
    "join.recorded",
    "join.registered",
    "join.worktree",
    "join.serving",
)


@pytest.mark.faults
@pytest.mark.slow
def test_a_join_killed_at_any_step_is_carried_on_by_the_next(swarm_hub: Hub) -> None:
    for number, step in enumerate(STEPS):
        name = f"slot-{number}"
        join_and_die(swarm_hub.root, name, step)
        slot = swarm.join(swarm_hub.root, name)
        assert slot.info["joined"], step
        assert slot.info["epoch"] == 2, step
        assert slot.changes() == (), step
        write(slot, f"new-{number}", "x\n")
        assert slot.commit(step).new


@pytest.mark.faults
def test_who_joins_a_slot_that_is_being_joined_gets_the_same_leaf(swarm_hub: Hub) -> None:
    async def both() -> list[int]:
        joins = (asyncio.to_thread(swarm.join, swarm_hub.root, "alpha") for _ in range(6))
        return [slot.info["pid"] for slot in await asyncio.gather(*joins)]

    assert len(set(asyncio.run(both()))) == 1


@pytest.mark.faults
def test_a_frozen_leaf_is_taken_over_when_its_lease_has_ended(lone_hub: Hub) -> None:
    lone_hub.start(**{LEASE_VARIABLE: "0.6"})
    slot = swarm.join(lone_hub.root, "alpha")
    write(slot, "notes", "unsaved\n")
    freeze(slot)
    notes: list[object] = []
    taken = swarm.join(lone_hub.root, "alpha", progress=notes.append)
    assert taken.info["pid"] != slot.info["pid"]
    assert taken.info["epoch"] == 2
    assert taken.info["revived"]
    assert is_gone(slot.info["pid"])
    assert [one.path for one in taken.changes()] == [b"notes"]
    assert any("hangs" in str(note) for note in notes)


@pytest.mark.faults
def test_a_leaf_that_froze_as_it_renewed_its_lease_is_taken_over(swarm_hub: Hub) -> None:
    short = {LEASE_VARIABLE: "0.6"}
    with lone_leaf(swarm_hub.root, "alpha", program=FREEZING, **short) as (process, _answer):
        kill(process.pid, signal.SIGUSR1)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        notes: list[object] = []
        taken = swarm.join(swarm_hub.root, "alpha", progress=notes.append)
        process.wait(5)
    assert taken.info["epoch"] >= 2  # woken to obey, it may have had its lease again for a moment
    assert any("hangs in its lease" in str(note) for note in notes), (notes, taken.info)
    write(taken, "notes", "mine\n")
    assert taken.commit("mine").new


@pytest.mark.faults
def test_a_thawed_leaf_is_refused_and_says_who_has_its_slot(lone_hub: Hub) -> None:
    lone_hub.start(**{LEASE_VARIABLE: "0.6"})
    slot = swarm.join(lone_hub.root, "alpha")
    write(slot, "notes", "late\n")
    freeze(slot)
    workspace = Workspace(str(lone_hub.root))
    # A successor that has the lease and is registered, and was killed before it ended the old one.
    holders = iter(owner.watch(lease_path(workspace, "alpha")))
    while next(holders) is not None:
        pass
    with owner.join(lease_path(workspace, "alpha"), ttl_s=30) as mine:
        assert mine.is_owner

        async def register() -> None:
            link = Link(workspace, "alpha", on_change=print, on_superseded=print)
            await link.register(mine.epoch, 10)

        asyncio.run(register())
        before = len(events_of(lone_hub.root, "alpha"))
        kill(slot.info["pid"], signal.SIGCONT)
        with pytest.raises(LeaseLost):
            slot.commit("too late")
        eventually(lambda: is_gone(slot.info["pid"]))
        log = (Path(slot.directory) / "leaf.log").read_text()
        assert f"pid {os.getpid()} (epoch 2)" in log
        assert len(events_of(lone_hub.root, "alpha")) == before
    assert (Path(slot.worktree) / "notes").read_text() == "late\n"


@pytest.mark.faults
def test_a_leaf_that_slept_through_its_lease_has_its_slot_again_if_nobody_took_it(
    lone_hub: Hub,
) -> None:
    lone_hub.start(**{LEASE_VARIABLE: "0.6"})
    slot = swarm.join(lone_hub.root, "alpha")
    freeze(slot)
    holders = iter(owner.watch(lease_path(Workspace(slot.root), "alpha")))
    while next(holders) is not None:
        pass
    kill(slot.info["pid"], signal.SIGCONT)
    eventually(lambda: _epoch_or_zero(slot) == 2)
    write(slot, "notes", "awake\n")
    assert slot.commit("awake").new


def _epoch_or_zero(slot: Slot) -> int:
    try:
        return int(slot.status()["epoch"])
    except HubError:
        return 0


@pytest.mark.faults
def test_a_leaf_outlives_its_hub_and_finds_it_on_another_port(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    swarm_hub.stop("--force")
    eventually(lambda: slot.status()["phase"] == "hub-away")
    write(slot, "notes", "kept\n")
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="not known to have landed") as caught:
        slot.commit("while it is away", timeout_s=0.3)
    assert time.monotonic() - began_s < 3
    assert caught.value.exit_code == 75
    swarm_hub.start("--nats-port", str(free_port()))
    eventually(lambda: slot.status()["hub"] == "ready", 20)
    eventually(lambda: not slot.status()["pending"], 20)
    landed = slot.commit("while it is away")
    assert landed.checkin == slot.status()["landed"]
    assert slot.status()["commits"] == 1
    assert slot.info["pid"] == slot.status()["pid"]


@pytest.mark.faults
def test_a_commit_waits_for_a_hub_that_comes_back(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    write(slot, "notes", "patient\n")
    swarm_hub.stop("--force")

    async def meanwhile() -> str:
        landing = asyncio.create_task(asyncio.to_thread(slot.commit, "patient", timeout_s=30))
        await asyncio.to_thread(swarm_hub.start)
        return (await landing).checkin

    assert asyncio.run(meanwhile()) == slot.status()["landed"]


def test_a_leaf_whose_slot_was_deleted_says_so_and_ends(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    os.rename(slot.directory, f"{slot.directory}-moved")
    os.mkdir(slot.directory)
    os.rename(f"{slot.directory}-moved/leaf.sock", f"{slot.directory}/leaf.sock")
    with pytest.raises(Refused, match="removed or moved away"):
        slot.commit("into the void")
    eventually(lambda: is_gone(slot.info["pid"]))


@pytest.mark.faults
def test_a_slot_that_was_deleted_can_be_joined_anew(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    os.rename(slot.directory, f"{swarm_hub.root}/elsewhere")
    again = swarm.join(swarm_hub.root, "alpha")
    assert again.info["epoch"] == 2
    assert not again.info["revived"]
    assert is_gone(slot.info["pid"])


@pytest.mark.faults
def test_sigterm_ends_a_leaf_at_once_and_leaves_its_slot_to_be_revived(swarm_hub: Hub) -> None:
    swarm_hub.wait_ready()  # the streams are there
    slot = swarm.join(swarm_hub.root, "alpha")
    write(slot, "notes", "unsaved\n")
    began_s = time.monotonic()
    kill(slot.info["pid"], signal.SIGTERM)
    eventually(lambda: is_gone(slot.info["pid"]))
    assert time.monotonic() - began_s < 1.5
    assert owner.inspect(lease_path(Workspace(slot.root), "alpha")) is None
    assert [one.kind for one in events_of(swarm_hub.root, "alpha")] == ["joined", "left"]
    assert swarm.join(swarm_hub.root, "alpha").info["revived"]


def test_a_leaf_is_a_process_of_its_own(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    swarm_hub.wait_ready()
    pid = slot.info["pid"]
    own = Path(f"/proc/{pid}")
    assert (own / "cmdline").read_bytes().rstrip(b"\0") == b"bones-leaf\0alpha"
    assert b"BONES_SLOT=alpha" in (own / "environ").read_bytes().split(b"\0")
    assert os.readlink(own / "cwd") == "/"
    assert os.getsid(pid) == pid
    assert os.getpgid(pid) == pid
    trunk = swarm_hub.child("trunk")["pid"]
    links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(own / "fd")}
    of_trunk = {os.readlink(f"/proc/{trunk}/fd/{fd}") for fd in os.listdir(f"/proc/{trunk}/fd")}
    shared = {link for link in links & of_trunk if link.startswith(("socket:", "pipe:"))}
    assert shared == set()


def test_a_leaf_loads_nothing_after_its_birth(swarm_hub: Hub, tmp_path: Path) -> None:
    """An upgrade under a running hub must not load new modules into an old leaf."""
    said = tmp_path / "loaded"
    arguments = (swarm_hub.root, "alpha", str(said))
    with lone_leaf(*arguments, program=LOADED) as (process, answer):
        slot = Slot.open(swarm_hub.root, "alpha")
        assert b'"joined":true' in answer
        write(slot, "notes", "1\n")
        slot.commit("notes")
        slot.update()
        slot.status(changes=True)
        write(slot, "README", "2\n")
        slot.commit("named", ["README"])
        slot.run(["true"])
        with pytest.raises(Refused):
            slot.run(["no-such-program"])
        slot.close()
        assert process.wait(10) == 0
    assert said.read_text() == ""


def test_what_a_leaf_does_not_understand_is_refused_and_does_it_no_harm(swarm_hub: Hub) -> None:
    slot = swarm.join(swarm_hub.root, "alpha")
    root = swarm_hub.root

    def reason(line: bytes) -> str:
        return str(say(root, "alpha", line)["error"]["reason"])

    assert reason(b"no json\n") == "protocol"
    assert reason(b'{"v":1,"verb":"dance"}\n') == "unknown-verb"
    assert reason(b'{"v":99,"verb":"status"}\n') == "protocol-version"
    assert reason(b'{"v":1,"verb":"commit","message":"m","paths":["../x"]}\n') == "protocol"
    assert reason(b'{"v":1,"verb":"commit"}\n') == "protocol"
    assert reason(b"x" * 300_000) == "protocol"
    assert slot.status()["phase"] == "ready"


def test_a_leaf_whose_key_is_revoked_as_it_leaves_has_left(
    swarm_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may drop it before trunk's answer has come through."""
    workspace = Workspace(str(swarm_hub.root))
    lost: list[LeaseLost] = []
    request = Bus.request

    async def without_an_answer(bus: Bus, subject: str, *args: Any, **options: Any) -> Msg:
        answer = await request(bus, subject, *args, **options)
        if subject.startswith(f"{SUBJECT}.leave"):
            await asyncio.Event().wait()
        return answer

    async def leave() -> None:
        link = Link(workspace, "alpha", on_change=print, on_superseded=lost.append)
        with join_lease(workspace, "alpha", "") as mine:
            await link.register(mine.epoch, 10)
            await link.begin(10)
            await link.leave(10)
        await link.end()

    workspace.make_bones()
    monkeypatch.setattr(Bus, "request", without_an_answer)
    asyncio.run(leave())
    assert lost == []
