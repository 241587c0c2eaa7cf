"""Commits over the real bus: landed once whatever is killed, announced once and in order."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from foundation import codec
from foundation.errors import Corrupt, HubError, LeaseLost, Refused
from hub.bus import Bus, StreamRefused, connect
from hub.commits import STARTED, SUBJECT, Conflicted, decode_answer, encode
from hub.creds import new_key
from hub.repository import Repository
from hub.trunk import accounts, checkins, service
from hub.trunk.streams import CONFIGS, ensure
from tests.hub.bus_server import Server, Trunk, make_workspace
from tests.hub.committing import FossilServer, assert_sound, files, propose
from tests.hub.test_writer import Checkout
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foundation.workspace import Workspace
    from hub.commits import Landed, Proposal
    from tests.support import Hub

pytestmark = [pytest.mark.real]

ASKED_WITHIN_S = 40.0


class Servers:
    """Fossil, NATS and trunk of a seeded workspace, without a supervisor to restart them."""

    def __init__(self, root: Path) -> None:
        self.fossil = FossilServer(root, guarded=False)  # trunk sees to it
        self.nats = Server(root)
        self.workspace: Workspace = self.fossil.workspace
        self.trunk = Trunk(self.workspace)

    def __enter__(self) -> Self:
        self.fossil.start()
        self.nats.start()
        self.trunk.start()
        self.trunk.until_ready()
        return self

    def __exit__(self, *_raised: object) -> None:
        self.trunk.kill()
        self.nats.kill()
        self.fossil.kill()


@pytest.fixture
def servers(seeded: Path) -> Iterator[Servers]:
    with Servers(seeded) as running:
        yield running


class Committers:
    """Slots that commit without pause in a thread, each commit until it is answered."""

    def __init__(self, workspace: Workspace, number: int) -> None:
        self.landed: list[Landed] = []
        self.failed: list[BaseException] = []
        self._workspace = workspace
        self._number = number
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.failed:
            raise self.failed[0]

    def more(self, number: int, within_s: float = 30.0) -> None:
        """Wait until *number* more have landed."""
        due = len(self.landed) + number
        eventually(lambda: len(self.landed) >= due or bool(self.failed), within_s)

    async def _run(self) -> None:
        async with await connect(self._workspace, "hub") as bus:
            await bus.subscribe(STARTED, lambda *_told: bus.resend())
            await asyncio.gather(*(self._slot(bus, number) for number in range(self._number)))

    async def _slot(self, bus: Bus, number: int) -> None:
        for count in itertools.count():
            if self._stopping.is_set():
                return
            proposal = propose({f"{number}/{count}": b"%d" % count}, slot=f"s{number}", epoch=0)
            try:
                self.landed.append(await ask(bus, proposal))
            except Exception as error:  # noqa: BLE001 - told by the test's own thread
                self.failed.append(error)
                return


async def ask(bus: Bus, proposal: Proposal) -> Landed:
    """Ask for *proposal* until it is answered."""
    answer = await bus.request(
        f"{SUBJECT}.{proposal.slot}", encode(proposal), within_s=ASKED_WITHIN_S, per_try_s=2.0
    )
    return decode_answer(answer.data)


def commit(workspace: Workspace, *proposals: Proposal) -> list[Any]:
    """Ask for *proposals* at once; return what landed, or the errors."""

    async def run() -> list[Any]:
        async with await connect(workspace, "hub") as bus:
            asked = (ask(bus, proposal) for proposal in proposals)
            return list(await asyncio.gather(*asked, return_exceptions=True))

    return asyncio.run(run())


def announced(workspace: Workspace) -> list[dict[str, Any]]:
    """Return every event of a check-in, in the order of the stream."""

    async def run() -> list[dict[str, Any]]:
        async with await connect(workspace, "operator") as bus:
            try:
                last = (await bus.call("STREAM.INFO.EVENTS"))["state"]["last_seq"]
            except StreamRefused:
                return []
            found = []
            for seq in range(1, int(last) + 1):
                message = (await bus.call("STREAM.MSG.GET.EVENTS", {"seq": seq}))["message"]
                if message["subject"] == checkins.SUBJECT:
                    found.append(codec.loads_object(base64.b64decode(message["data"])))
            return found

    return asyncio.run(run())


def checkin_of(event: dict[str, Any]) -> Any:
    """Return which check-in *event* announces, None if it announces nothing."""
    return event.get("data", {}).get("checkin")


def assert_announced(workspace: Workspace) -> None:
    """Every check-in of the line has been announced once, in order."""
    with Repository(workspace.repository) as repository:
        line = [row.hash for row in repository.line()]
    eventually(lambda: len(announced(workspace)) >= len(line), 20)
    assert [checkin_of(event) for event in announced(workspace)] == line


# --- landing -------------------------------------------------------------------------------


def test_sixteen_slots_commit_and_each_of_their_commits_is_announced(servers: Servers) -> None:
    with Committers(servers.workspace, 16) as committers:
        committers.more(200)
    assert_sound(servers.workspace, committers.landed)
    assert_announced(servers.workspace)


def test_an_event_says_what_a_checkin_is(servers: Servers) -> None:
    base = {"README": b"hello\n"}
    changed: dict[str, bytes | None] = {"README": None, "src/new": b"x\n"}
    (landed,) = commit(
        servers.workspace, propose(changed, base=base, slot="auth", message="m" * 2000)
    )
    assert_announced(servers.workspace)
    event = announced(servers.workspace)[-1]
    assert event == {
        "time": landed.time,
        "kind": "checkin",
        "data": {
            "checkin": landed.checkin,
            "parent": landed.parent,
            "slot": "auth",
            "message": "m" * checkins.LONGEST_MESSAGE,
            "files": ["README", "src/new"],
            "count": 2,
        },
    }


def test_a_commit_asked_for_twice_at_once_lands_once(servers: Servers) -> None:
    proposal = propose({"f": b"1"}, slot="a")
    one, two = commit(servers.workspace, proposal, proposal)
    assert one == two
    assert_sound(servers.workspace, [one])


def test_the_operator_may_commit(servers: Servers) -> None:
    (landed,) = commit(servers.workspace, propose({"f": b"1"}, slot="operator", epoch=0))
    assert_sound(servers.workspace, [landed])


def test_conflicts_that_no_message_can_hold_are_answered(servers: Servers) -> None:
    base = {f"f{n}": b"0" for n in range(4000)}
    (first,) = commit(servers.workspace, propose(base))
    other = propose(dict.fromkeys(base, b"1"), slot="b")  # both have added them
    (told,) = commit(servers.workspace, other)
    assert isinstance(told, Conflicted)
    assert told.conflicts[0].theirs_checkin == first.checkin
    assert told.left_out > 0
    assert len(told.conflicts) + told.left_out == len(base)
    assert f"and {len(base) - 5} more" in str(told)
    assert_sound(servers.workspace, [first])


def test_what_is_no_commit_or_in_anothers_name_is_refused(servers: Servers) -> None:
    async def run() -> list[HubError]:
        refused: list[HubError] = []
        async with await connect(servers.workspace, "hub") as bus:
            for subject, payload in (
                ("s1", b"junk"),
                ("s1", b'{"v":99}\n'),
                ("s1", encode(propose({"f": b"1"}, slot="s2"))),
                ("hub", encode(propose({"f": b"1"}, slot="hub"))),
                ("s1", encode(propose({"f": b"1"}, slot="s1")) + b"more"),
            ):
                answer = await bus.request(f"{SUBJECT}.{subject}", payload)
                with pytest.raises(Refused) as told:
                    decode_answer(answer.data)
                refused.append(told.value)
        return refused

    assert [error.reason for error in asyncio.run(run())] == ["protocol"] * 5
    assert_sound(servers.workspace, [])


def test_registering_a_slot_makes_it_a_fossil_user_and_fences_the_leaf_before_it(
    servers: Servers, tmp_path: Path
) -> None:
    async def as_operator(slot: str, epoch: int) -> None:
        async with await connect(servers.workspace, "operator") as bus:
            await register(bus, slot, epoch)

    asyncio.run(as_operator("auth", 1))
    (first,) = commit(servers.workspace, propose({"f": b"1"}, slot="auth", epoch=1))
    asyncio.run(as_operator("auth", 2))
    late, second = commit(
        servers.workspace,
        propose({"g": b"1"}, slot="auth", epoch=1),
        propose({"h": b"1"}, slot="auth", epoch=2),
    )
    assert isinstance(late, LeaseLost)
    assert late.reason == "superseded"
    assert_sound(servers.workspace, [first, second])
    assert "New_Version" in Checkout(servers.fossil, tmp_path / "wt", "auth").commit("s", "stock\n")
    assert_announced(servers.workspace)
    assert announced(servers.workspace)[-1]["data"]["slot"] == "auth"


@pytest.mark.faults
@pytest.mark.parametrize("killed", [False, True])
def test_a_slot_s_next_leaf_is_registered_when_what_its_former_one_has_asked_for_has_landed(
    servers: Servers, killed: bool
) -> None:
    journal = Path(servers.workspace.journal, "batch")

    async def run() -> tuple[Landed, Landed]:
        async with (
            await connect(servers.workspace, "hub") as bus,
            await connect(servers.workspace, "operator") as operator,
        ):
            await bus.subscribe(STARTED, lambda *_told: bus.resend())
            await register(operator, "auth", 1)
            first = await ask(bus, propose({"e": b"1"}, slot="auth", epoch=1))
            servers.fossil.freeze()
            late = propose({"f": b"1"}, slot="auth", epoch=1)
            asked = asyncio.create_task(ask(bus, late))
            while not journal.stat().st_size:  # noqa: ASYNC110, ASYNC240 - the gate is a file
                await asyncio.sleep(0.01)
            if killed:
                servers.trunk.kill()
                servers.trunk.start()
            registered = asyncio.create_task(register(operator, "auth", 2))
            # Another slot is not kept waiting, and by then the first is heard.
            await register(operator, "other", 1)
            assert not registered.done()
            servers.fossil.thaw()
            await registered
            with Repository(servers.workspace.repository) as trunk:
                tip = trunk.tip().hash
            landed = await asked
            assert landed.checkin == tip
            return first, landed

    assert_sound(servers.workspace, asyncio.run(run()))


async def register(bus: Bus, slot: str, epoch: int) -> None:
    body = {"v": 1, "slot": slot, "epoch": epoch, "public": new_key()[1]}
    subject = f"{accounts.SUBJECTS[:-1]}register"
    answer = await bus.request(
        subject, codec.dumps(body).encode(), within_s=ASKED_WITHIN_S, per_try_s=2.0
    )
    assert codec.loads_object(answer.data) == {"v": 1}


def test_a_verify_that_fails_refuses_the_commit_with_its_output(servers: Servers) -> None:
    Path(servers.workspace.root, "bones.toml").write_text(
        '[trunk]\nverify = "test ! -e bad || { echo it is bad; exit 1; }"\n'
    )
    told = commit(servers.workspace, *(propose({name: b"1"}, slot=name) for name in ("bad", "ok")))
    assert isinstance(told[0], Refused)
    assert "it is bad" in str(told[0])
    assert_sound(servers.workspace, [told[1]])


# --- faults --------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("step", ["planned", "journalled", "posted", "synced", "answered"])
def test_trunk_killed_at_any_step_of_a_batch_loses_and_doubles_nothing(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with Committers(servers.workspace, 8) as committers:
        committers.more(10)
        servers.trunk.kill()
        monkeypatch.setenv("HUB_FAILPOINT", f"trunk.{step}@3")
        servers.trunk.start()
        assert servers.trunk.ended_within(20) == -9
        servers.trunk.kill()
        monkeypatch.delenv("HUB_FAILPOINT")
        servers.trunk.start()
        committers.more(10)
    assert_sound(servers.workspace, committers.landed)
    assert_announced(servers.workspace)


@pytest.mark.faults
@pytest.mark.slow
def test_everything_killed_in_turn_and_stock_among_it_loses_and_doubles_nothing(
    servers: Servers, tmp_path: Path
) -> None:
    checkout = Checkout(servers.fossil, tmp_path / "stock")
    stock = 0
    with Committers(servers.workspace, 16) as committers:
        for turn in range(6):
            committers.more(20)
            if turn % 3 == 0:
                servers.trunk.kill()
                servers.trunk.start()
            elif turn % 3 == 1:
                servers.fossil.kill()
                servers.fossil.start()
            else:
                servers.nats.kill()
                servers.nats.start()
            checkout("update", check=False)
            stock += "New_Version" in checkout.commit(f"stock{turn}", "x\n", check=False)
        committers.more(20)
    assert_sound(servers.workspace, committers.landed, others=stock)
    assert_announced(servers.workspace)


@pytest.mark.faults
def test_commits_land_although_the_stream_of_events_is_broken(seeded: Path) -> None:
    async def break_stream() -> None:
        async with await connect(made.workspace, "hub") as bus:
            await bus.call("STREAM.CREATE.EVENTS", {**CONFIGS["EVENTS"], "storage": "memory"})

    made = Servers(seeded)
    with made.fossil, made.nats:
        asyncio.run(break_stream())
        with made.trunk as trunk:
            trunk.until_ready()
            told = commit(made.workspace, *(propose({f"f{n}": b"1"}) for n in range(3)))
            assert trunk.complaints()[0]["reason"] == "stream-config"
    assert_sound(made.workspace, told)


@pytest.mark.faults
async def test_a_repository_that_cannot_be_read_for_the_events_is_an_error_of_ours(
    server: Server, seeded: Path, tmp_path: Path
) -> None:
    """Trunk tries again after one of ours, and leaves the commits' connection alone."""
    path = tmp_path / "damaged.fossil"
    shutil.copy(seeded / ".orchestrator/hub.fossil", path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE mlink")
    async with asyncio.timeout(20), await connect(server.workspace, "hub") as bus:
        await ensure(bus, CONFIGS["EVENTS"])
        announcing = checkins.Checkins(str(path), asyncio.get_running_loop())
        announcing.opened()
        with pytest.raises(Corrupt, match="mlink"):
            await announcing.serve(bus)


async def test_a_bug_of_one_part_of_trunk_is_told_once_and_ends_no_part(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    turns = 0
    fine = asyncio.Event()

    async def part() -> None:
        nonlocal turns
        turns += 1
        if turns < 3:
            raise ZeroDivisionError("of the part")
        fine.set()

    keeping = asyncio.ensure_future(service.Trunk(make_workspace(tmp_path))._keep("checkins", part))
    async with asyncio.timeout(10):
        await fine.wait()
    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait({keeping})
    (told,) = [codec.loads_object(line) for line in capfd.readouterr().err.splitlines()]
    assert told["event"] == "bug"
    assert told["message"].startswith("checkins")
    assert "ZeroDivisionError: of the part" in told["trace"]


@pytest.mark.faults
def test_check_ins_made_without_a_trunk_are_announced_by_the_next(
    seeded: Path, tmp_path: Path
) -> None:
    made = Servers(seeded)
    with made.fossil, made.nats:
        checkout = Checkout(made.fossil, tmp_path / "stock")
        for turn in range(3):
            for number in range(2):
                checkout.commit(f"{turn}-{number}", "x\n")
            with made.trunk as trunk:
                trunk.until_ready()
                assert_announced(made.workspace)


@pytest.mark.faults
def test_a_message_of_somebody_elses_is_not_taken_for_an_announcement(servers: Servers) -> None:
    async def forge() -> None:
        async with await connect(servers.workspace, "hub") as bus:
            await bus.publish(checkins.SUBJECT, b'{"stream":"EVENTS","seq":7}', msg_id="forged")

    (first,) = commit(servers.workspace, propose({"f": b"1"}))
    assert_announced(servers.workspace)
    asyncio.run(forge())
    (second,) = commit(servers.workspace, propose({"g": b"1"}))
    eventually(lambda: checkin_of(announced(servers.workspace)[-1]) == second.checkin)
    told = [checkin_of(event) for event in announced(servers.workspace)]
    assert told[-3:] == [first.checkin, None, second.checkin]


@pytest.mark.faults
def test_a_forced_fork_is_an_event(servers: Servers, tmp_path: Path) -> None:
    async def forks() -> int:
        async with await connect(servers.workspace, "operator") as bus:
            request = {"last_by_subj": checkins.FORKED}
            try:
                answer = await bus.call("STREAM.MSG.GET.EVENTS", request)
            except StreamRefused:
                return 0
            body = codec.loads_object(base64.b64decode(answer["message"]["data"]))
            return len(body["data"]["leaves"])

    checkout = Checkout(servers.fossil, tmp_path / "stock")
    commit(servers.workspace, propose({"f": b"1"}))
    checkout.commit("theirs", "stock\n", "--allow-fork")
    eventually(lambda: asyncio.run(forks()) == 2)


def test_a_hub_that_is_started_takes_commits_and_keeps_them_over_a_restart(hub: Hub) -> None:
    hub.start()
    landed = commit(hub.workspace, *(propose({f"f{n}": b"1"}) for n in range(5)))
    hub.run("restart")
    landed += commit(hub.workspace, *(propose({f"g{n}": b"1"}) for n in range(5)))
    assert_sound(hub.workspace, landed)
    assert len([name for name in files(hub.workspace) if name[1:].isdigit()]) == 10
    assert os.path.exists(f"{hub.workspace.journal}/contract.json")
