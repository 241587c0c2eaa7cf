"""VM clusters on the bus: a holder and its guests, each with rights of their own, and no more."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation import codec
from foundation.errors import LeaseLost, Refused, from_wire
from hub import logins, nats
from hub.bus import Bus, connect
from hub.creds import new_key
from hub.trunk import registry
from hub.trunk.accounts import CLUSTER_SUBJECTS, SUBJECTS
from hub.trunk.streams import CONFIGS, ensure
from tests.hub.bus_server import Server, make_workspace
from tests.hub.test_accounts import accounts_of, denied, entry, last_seq

if TYPE_CHECKING:
    from hub.trunk.accounts import Accounts

real = pytest.mark.real
A_KEY, B_KEY, C_KEY = (new_key()[1] for _ in range(3))


async def holder(
    server: Server, accounts: Accounts, cluster: str = "c", epoch: int = 1
) -> tuple[Bus, Bus]:
    """Register new keys for *cluster*; return its holder and a guest, logged in."""
    (seed, public), (guest_seed, guest) = new_key(), new_key()
    login = logins.of_cluster(cluster)
    await accounts.register(login, epoch, public, guest)
    return (
        await connect(server.workspace, seed=seed, name=login),
        await connect(server.workspace, seed=guest_seed, name=logins.of_guests(cluster)),
    )


async def heard_nothing(bus: Bus, subject: str) -> None:
    with pytest.raises(Refused) as refused:
        await bus.subscribe(subject, lambda *_message: None)
    assert refused.value.reason == "denied"


# --- who may do what -----------------------------------------------------------------------


@real
async def test_a_holder_announces_its_members_and_answers_for_its_cluster_only(
    server: Server,
) -> None:
    async def echo(subject: str, payload: bytes, _headers: object) -> bytes:
        return subject.encode() + payload

    async with (
        await connect(server.workspace, "hub") as hub,
        await connect(server.workspace, "operator") as operator,
        accounts_of(server.workspace) as accounts,
    ):
        await ensure(hub, CONFIGS["EVENTS"])
        await hub.serve(CLUSTER_SUBJECTS, echo)
        c, guest = await holder(server, accounts)
        async with c, guest:
            assert (await c.publish("vm.c.c-1.event.started", b"{}", msg_id="1")).seq == 1
            leaving = await c.request("clusters.request.leave.c", b"!")
            assert leaving.data == b"clusters.request.leave.c!"
            await c.serve("vm.c.request.*", echo)
            asked = await operator.request("vm.c.request.status", b"?")
            assert asked.data == b"vm.c.request.status?"
            for subject in (
                "vm.d.d-1.event.started",
                "vm.c.c-1.guest.x",
                "vm.c.request.stop",
                "clusters.request.register",
                "clusters.request.leave.d",
                "slots.request.register",
                "slot.c.event.x",
                "trunk.request.commit.c",
                "hub.event.x",
                "_INBOX_c.x",
                "_INBOX_guest:c.x",
                "$JS.API.STREAM.INFO.EVENTS",
                "$SYS.REQ.SERVER.PING",
            ):
                await denied(c, subject)
            for subject in (
                ">",
                "vm.>",
                "vm.d.request.*",
                "vm.c.*.guest.>",
                "_INBOX_c.>",
                "_INBOX_guest:c.>",
                "slot.*.log",
            ):
                await heard_nothing(c, subject)
            assert await last_seq(hub) == 1


@real
async def test_a_guest_speaks_below_its_own_subject_and_reaches_nothing_else(
    server: Server,
) -> None:
    async with (
        await connect(server.workspace, "hub") as hub,
        await connect(server.workspace, "operator") as operator,
        accounts_of(server.workspace) as accounts,
    ):
        await ensure(hub, CONFIGS["EVENTS"])

        async def answer(_subject: str, payload: bytes, _headers: object) -> bytes:
            return payload + b"!"

        await operator.serve("vm.*.*.guest.ask", answer)
        c, guest = await holder(server, accounts)
        async with c, guest:
            assert (await guest.request("vm.c.c-1.guest.ask", b"x")).data == b"x!"
            heard: asyncio.Queue[bytes] = asyncio.Queue()
            await guest.subscribe(
                "vm.c.*.guest.>", lambda _subject, payload, _headers: heard.put_nowait(payload)
            )
            await operator.send("vm.c.c-2.guest.told", b"hello")
            assert await asyncio.wait_for(heard.get(), 10) == b"hello"
            for subject in (
                "vm.c.c-1.event.started",
                "vm.d.d-1.guest.x",
                "vm.c.request.stop",
                "slot.a.event.x",
                "slot.a.log",
                "slot.c.event.x",
                "task.1.event.won",
                "hub.event.x",
                "trunk.event.checkin",
                "trunk.request.commit.a",
                "clusters.request.register",
                "clusters.request.leave.c",
                "slots.request.register",
                "$JS.API.STREAM.INFO.EVENTS",
                "$JS.API.DIRECT.GET.EVENTS.slot.a.event.x",
                "$JS.API.CONSUMER.CREATE.EVENTS.mine",
                "$SYS.REQ.SERVER.PING",
                "_INBOX_vm:c.x",
                "_INBOX_operator.x",
            ):
                await denied(guest, subject)
            for subject in (
                ">",
                "vm.>",
                "vm.c.*.event.>",
                "vm.d.*.guest.>",
                "slot.*.event.>",
                "trunk.started",
                "_INBOX_vm:c.>",
                "_INBOX_guest:d.>",
            ):
                await heard_nothing(guest, subject)
            assert await last_seq(hub) == 0


@real
async def test_a_question_to_oneself_is_no_leave_to_answer_into_anothers_events(
    server: Server,
) -> None:
    """Whoever may answer may publish, once, wherever the question says."""
    async with (
        await connect(server.workspace, "hub") as hub,
        accounts_of(server.workspace) as accounts,
    ):
        await ensure(hub, CONFIGS["EVENTS"])
        c, guest = await holder(server, accounts)
        async with c, guest:
            heard = asyncio.Event()
            await guest.subscribe("vm.c.*.guest.>", lambda *_message: heard.set())
            await guest.send("vm.c.m.guest.x", b"{}", reply="slot.a.event.forged")
            await asyncio.wait_for(heard.wait(), 10)
            await denied(guest, "slot.a.event.forged")
            assert await last_seq(hub) == 0


@real
async def test_a_slot_and_a_cluster_of_one_name_are_strangers(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        seed, public = new_key()
        await accounts.register("c", 7, public)
        c, guest = await holder(server, accounts, epoch=3)
        async with c, guest, await connect(server.workspace, seed=seed, name="c") as slot:
            for subject in ("_INBOX_vm:c.>", "_INBOX_guest:c.>", "vm.c.request.*"):
                await heard_nothing(slot, subject)
            await denied(slot, "vm.c.c-1.event.x")
            accounts.check("c", 7)
            accounts.check("vm:c", 3)
            with pytest.raises(LeaseLost, match=r"slot c: .* another leaf"):
                accounts.check("c", 3)


# --- epochs --------------------------------------------------------------------------------


@real
async def test_a_later_holder_ends_the_one_before_and_its_guests(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        c, guest = await holder(server, accounts, epoch=1)
        other, stranger = await holder(server, accounts, "d")
        async with c, guest, other, stranger:
            later, later_guest = await holder(server, accounts, epoch=2)
            async with later, later_guest:
                for one in (c, guest):
                    await asyncio.wait_for(one.closed.wait(), 10)
                    assert isinstance(one.closed_because, Refused)
                for one in (other, stranger, later, later_guest):
                    assert not one.closed.is_set()
            with pytest.raises(LeaseLost, match=r"cluster c: .* another holder") as lost:
                await accounts.register("vm:c", 1, A_KEY, B_KEY)
            assert lost.value.reason == "superseded"
            with pytest.raises(LeaseLost):
                await accounts.leave("vm:c", 1)


@real
async def test_a_holder_that_leaves_takes_its_guests_along(server: Server) -> None:
    async with accounts_of(server.workspace) as accounts:
        c, guest = await holder(server, accounts, epoch=4)
        async with c, guest:
            await accounts.leave("vm:c", 4)
            for one in (c, guest):
                await asyncio.wait_for(one.closed.wait(), 10)
            assert registry.read(server.workspace).logins["vm:c"].epoch == 4
            assert registry.keys(registry.read(server.workspace).logins) == {}


@real
@pytest.mark.parametrize("cluster", ["", "a.b", "*", "a>", "x" * 64, "a b", "vm:a", "-5"])
async def test_what_cannot_name_a_cluster_gets_no_key(server: Server, cluster: str) -> None:
    async with accounts_of(server.workspace) as accounts:
        with pytest.raises(Refused) as refused:
            await accounts.register(logins.of_cluster(cluster), 1, A_KEY, B_KEY)
        assert refused.value.reason == "cluster-name"


@real
async def test_a_key_that_would_stop_the_server_is_refused_to_a_cluster_too(
    server: Server,
) -> None:
    async with accounts_of(server.workspace) as accounts:
        await accounts.register("a", 1, A_KEY)
        operator = nats.read_users(server.workspace)["operator"]
        for public, guest in ((A_KEY, C_KEY), (C_KEY, A_KEY), (C_KEY, C_KEY), (C_KEY, operator)):
            with pytest.raises(Refused) as refused:
                await accounts.register("vm:c", 1, public, guest)
            assert refused.value.reason == "cluster-key"
        await accounts.register("vm:c", 1, B_KEY, C_KEY)
        with pytest.raises(Refused) as refused:
            await accounts.register("b", 1, C_KEY)
        assert refused.value.reason == "slot-key"


@real
async def test_requests_for_clusters_are_answered_with_what_became_of_them(server: Server) -> None:
    async with (
        await connect(server.workspace, "hub") as hub,
        await connect(server.workspace, "operator") as operator,
        accounts_of(server.workspace) as accounts,
    ):
        for subjects in (SUBJECTS, CLUSTER_SUBJECTS):
            await hub.serve(subjects, accounts.answer)

        async def ask(subject: str, **body: object) -> dict[str, object]:
            asked = await operator.request(subject, codec.dumps(body).encode())
            return codec.loads_object(asked.data)

        told = {"v": 1, "cluster": "c", "epoch": 2, "public": A_KEY, "guest": B_KEY}
        assert await ask("clusters.request.register", **told) == {"v": 1}
        assert accounts.logins["vm:c"].guest == B_KEY
        assert await ask("clusters.request.leave.c", v=1, cluster="c", epoch=2) == {"v": 1}
        late = from_wire((await ask("clusters.request.register", **told))["error"])
        assert isinstance(late, LeaseLost)
        for subject, body in (
            ("clusters.request.register", {**told, "guest": 1}),
            ("clusters.request.register", {"v": 1, "slot": "c", "epoch": 2, "public": A_KEY}),
            ("clusters.request.leave.d", {"v": 1, "cluster": "c", "epoch": 2}),
            ("slots.request.register", {**told, "slot": "c"}),
        ):
            wrong = from_wire((await ask(subject, **body))["error"])
            assert wrong.reason == "protocol", subject


# --- the registry --------------------------------------------------------------------------


def test_clusters_are_read_as_they_were_written(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    known = {"c": entry(1, A_KEY), "vm:c": entry(9, B_KEY).replace(guest=C_KEY), "vm:d": entry(3)}
    registry.write(workspace, known)
    assert registry.read(workspace) == registry.Loaded(logins=known, damage="")
    assert registry.keys(known) == {"c": A_KEY, "vm:c": B_KEY, "guest:c": C_KEY}


def test_of_clusters_that_left_the_latest_are_remembered_and_slots_for_ever() -> None:
    slots = {f"s{number}": entry(1) for number in range(600)}
    living = {"vm:old": entry(1, A_KEY)}
    left = {f"vm:c{number}": entry(1000 - number) for number in range(600)}
    kept = registry.without_oldest({**left, **slots, **living})
    latest = dict(list(left.items())[: registry.LEFT_KEPT])
    assert kept == {**slots, **living, **latest}
    assert registry.without_oldest(kept) == kept


def test_a_registry_of_a_hub_that_knew_no_clusters_is_read(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    registry.write(workspace, {"a": entry(1, A_KEY)})
    content = json.loads(Path(nats.slots_path(workspace)).read_text())
    del content["clusters"]
    Path(nats.slots_path(workspace)).write_text(json.dumps(content))
    assert registry.read(workspace) == registry.Loaded(logins={"a": entry(1, A_KEY)}, damage="")


@pytest.mark.parametrize("damage", [3, {"c": 3}, {"a.b": {"epoch": 1, "public": "", "joined": ""}}])
def test_damage_among_clusters_costs_no_slot_its_login(tmp_path: Path, damage: object) -> None:
    workspace = make_workspace(tmp_path)
    registry.write(workspace, {"a": entry(1, A_KEY)})
    content = {**json.loads(Path(nats.slots_path(workspace)).read_text()), "clusters": damage}
    Path(nats.slots_path(workspace)).write_text(json.dumps(content))
    loaded = registry.load(workspace)
    assert loaded.damage
    assert loaded.logins == {"a": entry(1, A_KEY)}


def test_a_key_of_guests_that_stands_twice_lets_nobody_in_twice(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    twice = {"a": entry(1, A_KEY), "vm:c": entry(1, B_KEY).replace(guest=A_KEY)}
    registry.write(workspace, twice)
    assert registry.keys(registry.read(workspace).logins) == {"a": A_KEY}
