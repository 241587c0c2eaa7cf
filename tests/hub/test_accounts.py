"""Slots on the bus: each speaks for itself alone, and a leaf of yesterday for nobody."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation import codec
from foundation.errors import HubError, LeaseLost, Refused, Unavailable, from_wire
from hub import nats
from hub.bus import Bus, connect
from hub.creds import new_key
from hub.trunk import registry
from hub.trunk.accounts import Accounts
from hub.trunk.registry import Entry
from hub.trunk.streams import CONFIGS, ensure
from owner import join
from tests.hub.bus_server import CODE, Server, make_workspace
from tests.support import Hub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from foundation.workspace import Workspace

real = pytest.mark.real
A_KEY, B_KEY = new_key()[1], new_key()[1]


@asynccontextmanager
async def accounts_of(workspace: Workspace) -> AsyncGenerator[Accounts]:
    """The accounts as trunk has them."""
    async with await connect(workspace, "sys") as sys_bus:
        accounts = Accounts(workspace, sys_bus)
        try:
            yield accounts
        finally:
            await accounts.close()


async def leaf(workspace: Workspace, accounts: Accounts, slot: str, epoch: int = 1) -> Bus:
    """Register a new key for *slot* and log in with it."""
    seed, public = new_key()
    await accounts.register(slot, epoch, public)
    return await connect(workspace, seed=seed, name=slot)


async def until_stored(bus: Bus, seq: int) -> None:
    """Wait until the stream has got to *seq*; each look is a round trip, so it does not spin."""
    async with asyncio.timeout(20):
        while await last_seq(bus) < seq:
            await bus.request("$JS.API.INFO")


async def last_seq(bus: Bus) -> int:
    return int((await bus.call("STREAM.INFO.EVENTS"))["state"]["last_seq"])


async def denied(bus: Bus, subject: str, within_s: float = 5.0) -> None:
    with pytest.raises(Refused) as refused:
        await bus.request(subject, b"{}", within_s=within_s)
    assert refused.value.reason == "denied"


# --- who may do what -----------------------------------------------------------------------


@real
async def test_a_slot_publishes_its_own_events_and_asks_trunk_in_its_own_name_only(
    server: Server,
) -> None:
    async def echo(subject: str, payload: bytes, _headers: object) -> bytes:
        return subject.encode() + payload

    async with (
        await connect(server.workspace, "hub") as hub,
        accounts_of(server.workspace) as accounts,
    ):
        for config in CONFIGS.values():
            await ensure(hub, config)
        await hub.serve("trunk.request.>", echo)
        await hub.serve("slots.request.>", echo)
        async with await leaf(server.workspace, accounts, "a") as a:
            assert (await a.publish("slot.a.event.joined", b"{}", msg_id="1")).seq == 1
            assert (await a.publish("slot.a.log", b"line", msg_id="2")).seq == 1
            answer = await a.request("trunk.request.commit.a", b"!")
            assert answer.data == b"trunk.request.commit.a!"
            assert (await a.request("slots.request.leave.a")).data == b"slots.request.leave.a"
            for subject in (
                "slot.b.event.joined",
                "slot.b.log",
                "hub.event.ready",
                "trunk.event.checkin",
                "task.1.event.won",
                "trunk.request.commit.b",
                "slots.request.register",
                "slots.request.leave.b",
                "trunk.started",
                "slot.a.request.stop",
                "_INBOX_b.x",
                "_INBOX_hub.x",
                "$JS.API.STREAM.INFO.EVENTS",
                "$JS.API.DIRECT.GET.EVENTS.slot.a.event.joined",
                "$JS.API.STREAM.PURGE.EVENTS",
                "$SYS.REQ.SERVER.PING",
            ):
                await denied(a, subject)
            assert await last_seq(hub) == 1


@real
async def test_a_slot_hears_what_is_for_it_and_nothing_else(server: Server) -> None:
    async with (
        await connect(server.workspace, "hub") as hub,
        accounts_of(server.workspace) as accounts,
        await leaf(server.workspace, accounts, "a") as a,
    ):
        started = asyncio.Event()
        await a.subscribe("trunk.started", lambda *_message: started.set())
        await hub.send("trunk.started", b"")
        await asyncio.wait_for(started.wait(), 10)

        async def answer(subject: str, payload: bytes, _headers: object) -> bytes:
            return subject.encode() + payload

        await a.serve("slot.a.request.>", answer)
        asked = await hub.request("slot.a.request.stop", b"!")
        assert asked.data == b"slot.a.request.stop!"
        for subject in (">", "_INBOX_hub.>", "_INBOX_b.>", "slot.b.request.>", "slot.*.log"):
            with pytest.raises(Refused) as refused:
                await a.subscribe(subject, lambda *_message: None)
            assert refused.value.reason == "denied"


@real
def test_what_the_server_answers_into_anothers_events_is_no_event(tmp_path: Path) -> None:
    """A reply subject is not checked against the permissions of whoever names it."""
    from hub.events import UNREADABLE, read  # noqa: PLC0415 - the only one that reads

    async def run() -> None:
        async with (
            await connect(server.workspace, "hub") as hub,
            accounts_of(server.workspace) as accounts,
        ):
            await ensure(hub, CONFIGS["EVENTS"])
            async with await leaf(server.workspace, accounts, "a") as a:
                event = codec.dumps({"kind": "x", "time": "2026-11-21T00:00:00.000Z", "data": {}})
                await a.send("slot.a.event.x", event.encode(), reply="slot.b.event.forged")
                await until_stored(hub, 2)
        found = [
            (one.subject, one.kind)
            async for one in read(server.workspace, find=lambda _ws: f"nats://127.0.0.1:{port}")
        ]
        assert found == [("slot.a.event.x", "x"), ("slot.b.event.forged", UNREADABLE)]

    with Server(tmp_path) as server:
        port = server.port
        asyncio.run(run())


# --- epochs --------------------------------------------------------------------------------


@real
async def test_a_higher_epoch_ends_the_connection_of_the_lower_before_it_is_answered(
    server: Server,
) -> None:
    async def flood(bus: Bus) -> None:
        number = 0
        while not bus.closed.is_set():
            number += 1
            try:
                await bus.send("slot.a.event.old", b"%d" % number)
            except HubError:
                return
            await asyncio.sleep(0)

    async with (
        await connect(server.workspace, "hub") as hub,
        accounts_of(server.workspace) as accounts,
    ):
        await ensure(hub, CONFIGS["EVENTS"])
        old = await leaf(server.workspace, accounts, "a", 1)
        other = await leaf(server.workspace, accounts, "b", 1)
        flooding = asyncio.create_task(flood(old))
        await until_stored(hub, 10)
        new = await leaf(server.workspace, accounts, "a", 2)
        await flooding
        fence = (await new.publish("slot.a.event.new", b"{}", msg_id="n")).seq
        await asyncio.wait_for(old.closed.wait(), 10)
        assert isinstance(old.closed_because, Refused)
        with pytest.raises(Unavailable) as closed:
            await old.publish("slot.a.event.old", b"{}", msg_id="late")
        assert closed.value.reason == "bus-closed"
        await other.publish("slot.b.event.x", b"{}", msg_id="o")
        assert await last_seq(hub) == fence + 1
        for bus in (old, new, other):
            await bus.close()


@real
async def test_a_leaf_of_yesterday_cannot_log_in_or_register(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        seed, public = new_key()
        await accounts.register("a", 4, public)
        await accounts.register("a", 5, new_key()[1])
        with pytest.raises(Refused) as refused:
            await connect(server.workspace, seed=seed, name="a")
        assert refused.value.reason == "denied"
        for epoch, key in ((4, public), (5, new_key()[1])):
            with pytest.raises(LeaseLost) as lost:
                await accounts.register("a", epoch, key)
            assert lost.value.reason == "superseded"
        with pytest.raises(LeaseLost):
            accounts.check("a", 4)
        accounts.check("a", 5)
        accounts.check("never-there", 0)


@real
async def test_registering_twice_is_registering_once(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        seed, public = new_key()
        await accounts.register("a", 1, public)
        reloads, entry = accounts.reloads, accounts.logins["a"]
        async with await connect(server.workspace, seed=seed, name="a") as a:
            await accounts.register("a", 1, public)
            assert (accounts.reloads, accounts.logins["a"]) == (reloads, entry)
            assert not a.closed.is_set()


@real
async def test_a_slot_that_left_has_no_key_and_keeps_its_epoch(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        seed, public = new_key()
        await accounts.register("a", 3, public)
        bus = await connect(server.workspace, seed=seed, name="a")
        await accounts.leave("a", 3)
        await accounts.leave("a", 3)
        await accounts.leave("never-there", 1)
        assert registry.read(server.workspace).logins["a"].public == ""
        await asyncio.wait_for(bus.closed.wait(), 10)
        with pytest.raises(LeaseLost, match="left"):
            await accounts.register("a", 3, public)
        with pytest.raises(LeaseLost):
            await accounts.leave("a", 2)
        async with await leaf(server.workspace, accounts, "a", 4):
            pass


@real
async def test_the_lease_has_the_last_word_on_epochs(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        path = f"{server.workspace.leases}/slot-a"
        for _ in range(3):
            with join(path, ttl_s=60) as owner:
                epoch = owner.epoch
        with pytest.raises(LeaseLost):
            await accounts.register("a", epoch - 1, new_key()[1])
        with pytest.raises(Refused) as refused:
            await accounts.register("a", epoch + 1, new_key()[1])
        assert refused.value.reason == "slot-epoch"
        await accounts.register("a", epoch, new_key()[1])


@real
@pytest.mark.parametrize("slot", ["", "a.b", "a>", "*", "hub", "x" * 64, 'a"', "a b"])
async def test_what_cannot_name_a_slot_gets_no_key(server: Server, slot: str) -> None:
    async with accounts_of(server.workspace) as accounts:
        with pytest.raises(Refused) as refused:
            await accounts.register(slot, 1, new_key()[1])
        assert refused.value.reason == "slot-name"


@real
async def test_a_key_that_would_stop_the_server_is_refused(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        await accounts.register("a", 1, A_KEY)
        operator = nats.read_users(server.workspace)["operator"]
        wrong = A_KEY[:-1] + ("A" if A_KEY[-1] != "A" else "B")
        for key in (A_KEY, operator, wrong, "", "U" * 56, "O" + A_KEY[1:], 'U"' + A_KEY[2:]):
            with pytest.raises(Refused) as refused:
                await accounts.register("b", 1, key)
            assert refused.value.reason == "slot-key"
        await accounts.register("b", 1, B_KEY)


@real
async def test_requests_over_the_bus_are_answered_with_what_became_of_them(server: Server) -> None:
    async with (
        await connect(server.workspace, "hub") as hub,
        await connect(server.workspace, "operator") as operator,
        accounts_of(server.workspace) as accounts,
    ):
        await hub.serve("slots.request.>", accounts.answer)

        async def ask(subject: str, **body: object) -> dict[str, object]:
            asked = await operator.request(subject, codec.dumps(body).encode())
            return codec.loads_object(asked.data)

        told = {"v": 1, "slot": "a", "epoch": 2, "public": A_KEY}
        assert await ask("slots.request.register", **told) == {"v": 1}
        assert await ask("slots.request.leave.a", v=1, slot="a", epoch=2) == {"v": 1}
        late = from_wire((await ask("slots.request.register", **told))["error"])
        assert isinstance(late, LeaseLost)
        for subject, body in (
            ("slots.request.register", {**told, "v": 2}),
            ("slots.request.register", {**told, "epoch": "2"}),
            ("slots.request.register", {**told, "slot": 1}),
            ("slots.request.leave.b", {"v": 1, "slot": "a", "epoch": 2}),
            ("slots.request.nonsense", told),
        ):
            wrong = from_wire((await ask(subject, **body))["error"])
            assert wrong.reason == "protocol"


# --- many at once --------------------------------------------------------------------------


@real
@pytest.mark.slow
async def test_a_hundred_joins_at_once_are_a_handful_of_reloads_and_disturb_nobody(
    server: Server,
) -> None:
    async with (
        await connect(server.workspace, "hub") as hub,
        accounts_of(server.workspace) as accounts,
    ):
        await ensure(hub, CONFIGS["EVENTS"])
        bystander = await leaf(server.workspace, accounts, "bystander")
        before = accounts.reloads
        seeds = {f"s{number}": new_key() for number in range(100)}

        async def one(name: str) -> None:
            seed, public = seeds[name]
            await accounts.register(name, 1, public)
            async with await connect(server.workspace, seed=seed, name=name) as bus:
                await bus.publish(f"slot.{name}.event.x", b"{}", msg_id=name, within_s=30)

        async with asyncio.TaskGroup() as group:
            for name in seeds:
                group.create_task(one(name))
            for number in range(20):
                await bystander.publish("slot.bystander.event.x", b"{}", msg_id=f"b{number}")
        assert accounts.reloads - before <= 5
        assert await last_seq(hub) == 120
        assert not bystander.closed.is_set()
        await bystander.close()


# --- what fails, and what is killed --------------------------------------------------------


@real
@pytest.mark.faults
def test_accounts_that_the_server_does_not_take_are_named_and_mended_by_the_next_call(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with accounts_of(server.workspace) as accounts:
            old = await leaf(server.workspace, accounts, "old")
            damage(config)
            _, public = new_key()
            with pytest.raises(Unavailable, match="old accounts") as failed:
                await accounts.register("a", 1, public)
            assert failed.value.reason == "accounts-reload"
            assert not old.closed.is_set()
            assert registry.read(server.workspace).logins["a"].public == public
            restore(config)
            await accounts.register("a", 1, public)
            async with await leaf(server.workspace, accounts, "b"):
                pass
            await old.close()

    def damage(path: Path) -> None:
        path.rename(f"{path}.whole")
        path.write_text("nonsense {")

    def restore(path: Path) -> None:
        assert registry.read(server.workspace).logins["a"].public in accounts_path.read_text()
        os.replace(f"{path}.whole", path)

    with Server(tmp_path) as server:
        config = Path(nats.config_path(server.workspace))
        accounts_path = Path(nats.accounts_path(server.workspace))
        asyncio.run(run())


@real
@pytest.mark.faults
async def test_a_registry_that_cannot_be_written_lets_nobody_in(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        place = nats.slots_path(server.workspace)
        os.mkdir(place)
        seed, public = new_key()
        with pytest.raises(Unavailable, match=r"slots\.json") as failed:
            await accounts.register("a", 1, public)
        assert failed.value.reason == "accounts-io"
        with pytest.raises(Refused):
            await connect(server.workspace, seed=seed, name="a")
        os.rmdir(place)
        await accounts.register("a", 1, public)
        async with await connect(server.workspace, seed=seed, name="a"):
            pass


@real
async def test_a_bug_in_recording_a_slot_is_told_and_the_next_call_tries_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("of the accounts")

    bugs: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: bugs.append(context["exception"])
    )
    async with accounts_of(server.workspace) as accounts:
        with monkeypatch.context() as patched:
            patched.setattr(nats, "write_accounts", fail)
            with pytest.raises(Unavailable, match="of the accounts") as failed:
                await accounts.register("a", 1, A_KEY)
        assert failed.value.reason == "bug"
        assert [type(bug) for bug in bugs] == [ZeroDivisionError]
        await accounts.register("a", 1, A_KEY)


@real
@pytest.mark.faults
@pytest.mark.slow
async def test_a_server_killed_while_slots_register_forgets_none_of_them(server: Server) -> None:
    """The supervisor writes the accounts as trunk does; neither loses what the other wrote."""
    async with accounts_of(server.workspace) as accounts:
        keys = {f"s{number}": new_key() for number in range(30)}

        async def register(name: str) -> None:
            while True:
                try:
                    await accounts.register(name, 1, keys[name][1])
                except Unavailable:
                    continue
                return

        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(keys):
                group.create_task(register(name))
                if number % 10 == 5:
                    server.kill()
                    await asyncio.to_thread(server.restart)
        for name, (seed, _) in keys.items():
            async with await connect(server.workspace, seed=seed, name=name, within_s=20):
                pass


@real
@pytest.mark.faults
async def test_a_registration_waits_for_a_server_that_is_being_restarted(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        await accounts.register("a", 1, A_KEY)
        server.kill()
        registering = asyncio.create_task(accounts.register("b", 1, B_KEY))
        await asyncio.to_thread(server.restart)
        await registering
        assert accounts.logins["b"].public == B_KEY


@real
async def test_slots_survive_a_restart_of_the_server(server: Server) -> None:
    async with (
        accounts_of(server.workspace) as accounts,
        await leaf(server.workspace, accounts, "a") as a,
    ):
        server.kill()
        os.unlink(nats.accounts_path(server.workspace))
        await asyncio.to_thread(server.restart)
        await denied(a, "hub.event.x", within_s=20.0)  # so it is in again


@real
@pytest.mark.faults
async def test_a_slot_that_the_server_forgot_is_let_in_when_it_registers_again(
    server: Server,
) -> None:
    """The registry was damaged when the server was started, and trunk lives."""
    async with accounts_of(server.workspace) as accounts:
        seed, public = new_key()
        await accounts.register("a", 1, public)
        bus = await connect(server.workspace, seed=seed, name="a")
        spoil(server.workspace)
        server.kill()
        await asyncio.to_thread(server.restart)
        await asyncio.wait_for(bus.closed.wait(), 20)
        await accounts.register("a", 1, public)
        async with await connect(server.workspace, seed=seed, name="a"):
            pass


@real
@pytest.mark.faults
@pytest.mark.slow
def test_a_slot_keeps_its_login_when_anything_of_the_hub_is_killed_or_it_restarts(
    hub: Hub,
) -> None:
    """Registered over the bus, with the real trunk; restarted by the real supervisor."""
    seed, public = new_key()
    told = codec.dumps({"v": 1, "slot": "a", "epoch": 1, "public": public}).encode()

    async def register() -> dict[str, object]:
        async with await connect(hub.workspace) as operator:
            answer = await operator.request("slots.request.register", told, within_s=20.0)
        return codec.loads_object(answer.data)

    async def speak(number: int) -> None:
        async with await connect(hub.workspace, seed=seed, name="a") as bus:
            await bus.publish("slot.a.event.x", b"{}", msg_id=str(number), within_s=20.0)

    hub.start()
    assert asyncio.run(register()) == {"v": 1}
    for number, name in enumerate(("nats", "trunk", "hub")):
        asyncio.run(speak(2 * number))
        os.kill(hub.pids()[name] if name != "trunk" else hub.child(name)["pid"], signal.SIGKILL)
        if name == "hub":
            hub.start()
        hub.wait_ready()
        asyncio.run(speak(2 * number + 1))
    hub.stop()
    hub.start()
    asyncio.run(speak(6))
    assert asyncio.run(register()) == {"v": 1}


KILLED_AT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from foundation.workspace import Workspace
from hub.bus import connect
from hub.trunk.accounts import Accounts

async def main():
    workspace = Workspace(sys.argv[2])
    async with await connect(workspace, "sys") as bus:
        await Accounts(workspace, bus).register("a", int(sys.argv[3]), sys.argv[4])

asyncio.run(main())
"""


@real
@pytest.mark.faults
@pytest.mark.parametrize("point", ["accounts.registered", "accounts.written", "accounts.reloaded"])
async def test_a_registration_killed_at_any_step_is_completed_by_the_next(
    server: Server, point: str
) -> None:
    async def again(old: Bus) -> None:
        async with accounts_of(server.workspace) as accounts:
            accounts.check("a", 2)
            with pytest.raises(LeaseLost):
                accounts.check("a", 1)
            await accounts.register("a", 2, public)
            async with await connect(server.workspace, seed=seed, name="a"):
                pass
            await asyncio.wait_for(old.closed.wait(), 10)

    seed, public = new_key()

    async with accounts_of(server.workspace) as accounts:
        old = await leaf(server.workspace, accounts, "a", 1)
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED_AT, str(CODE), server.workspace.root, "2", public),
        env={**os.environ, "HUB_FAILPOINT": point},
    )
    assert await killed.wait() == -9
    await again(old)
    await old.close()


# --- the registry --------------------------------------------------------------------------


def spoil(workspace: Workspace) -> None:
    Path(nats.slots_path(workspace)).write_bytes(b"\0" * 100)


def entry(epoch: int, public: str = "", joined: str = "2026-11-21T00:00:00.000Z") -> Entry:
    return Entry(epoch=epoch, public=public, joined=joined)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    assert registry.read(workspace) == registry.Loaded(logins={}, damage="")
    slots = {"a": entry(1, A_KEY), "b": entry(7), "c": entry(2, joined="")}
    registry.write(workspace, slots)
    assert registry.read(workspace) == registry.Loaded(logins=slots, damage="")
    assert registry.keys(slots) == {"a": A_KEY}
    assert os.stat(nats.slots_path(workspace)).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\0" * 50,
        b'{"schema":2,"slots":{}}',
        b'{"schema":1}',
        b'{"schema":1,"slots":[]}',
        b'{"schema":1,"slots":{"a":{"epoch":0,"public":"","joined":""}}}',
        b'{"schema":1,"slots":{"a":{"epoch":true,"public":"","joined":""}}}',
        b'{"schema":1,"slots":{"a":{"epoch":1,"public":"U","joined":""}}}',
        b'{"schema":1,"slots":{"a":3}}',
        b'{"schema":1,"slots":{"../a":{"epoch":1,"public":"","joined":""}}}',
    ],
)
def test_a_damaged_registry_stops_no_server_and_no_epoch_goes_back(
    tmp_path: Path, content: bytes
) -> None:
    workspace = make_workspace(tmp_path)
    for _ in range(3):
        with join(f"{workspace.leases}/slot-a", ttl_s=60) as owner:
            epoch = owner.epoch
    Path(nats.slots_path(workspace)).write_bytes(content)
    nats.write_config(workspace, port=4222, server_name="x")
    loaded = registry.load(workspace)
    assert loaded.damage
    assert loaded.logins["a"] == entry(epoch, joined="")
    assert Path(f"{nats.slots_path(workspace)}.damaged").read_bytes() == content


def test_of_a_damaged_registry_what_is_whole_is_kept(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    registry.write(workspace, {"a": entry(1, A_KEY), "b": entry(9, B_KEY), "c": entry(3, A_KEY)})
    content = json.loads(Path(nats.slots_path(workspace)).read_text())
    content["slots"]["b"]["public"] = "U" * 56
    Path(nats.slots_path(workspace)).write_text(json.dumps(content))
    loaded = registry.read(workspace)
    assert loaded.logins == {"a": entry(1, A_KEY)}
    assert "b, c" in loaded.damage
    text = nats.accounts_text(nats.read_users(workspace), registry.keys(loaded.logins))
    assert text.count(A_KEY) == 1


def test_a_missing_registry_takes_the_epochs_from_the_leases(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    with join(f"{workspace.leases}/slot-a", ttl_s=60) as owner:
        assert owner.epoch == 1
    os.unlink(f"{workspace.leases}/slot-a")  # the guard's copy is enough
    assert registry.load(workspace) == registry.Loaded(logins={"a": entry(1, joined="")}, damage="")


def test_a_slot_that_joins_while_the_supervisor_writes_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of trunk's writes fall between the supervisor's reading and its writing."""
    workspace = make_workspace(tmp_path)
    registry.write(workspace, {"a": entry(1, A_KEY)})
    write = nats.write_accounts
    joining = [{"a": entry(1, A_KEY), "b": entry(1, B_KEY)}]

    def overtaken(workspace: Workspace, slots: Mapping[str, str]) -> None:
        if joining:
            now = joining.pop()
            registry.write(workspace, now)
            write(workspace, registry.keys(now))
        write(workspace, slots)

    monkeypatch.setattr(nats, "write_accounts", overtaken)
    nats.write_config(workspace, port=4222, server_name="x")
    assert B_KEY in Path(nats.accounts_path(workspace)).read_text()


@real
async def test_a_leaf_whose_key_was_forgotten_registers_the_same_epoch_again(
    server: Server,
) -> None:
    with join(f"{server.workspace.leases}/slot-a", ttl_s=60) as owner:
        spoil(server.workspace)
        async with accounts_of(server.workspace) as accounts:
            assert accounts.damage
            with pytest.raises(LeaseLost):
                accounts.check("a", owner.epoch - 1)
            async with await leaf(server.workspace, accounts, "a", owner.epoch):
                pass
            with pytest.raises(LeaseLost):
                await accounts.register("a", owner.epoch, new_key()[1])


def test_the_registry_is_read_without_what_a_start_cannot_afford() -> None:
    script = f"import sys; sys.path.insert(0, {str(CODE)!r}); import hub.trunk.registry"
    listed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{script}; print(*sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    slow = {"re", "json", "typing", "enum", "base64", "asyncio", "owner", "nkeys"}
    assert not slow.intersection(listed)
