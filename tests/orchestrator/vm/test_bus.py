"""A holder on the bus: it never waits for a hub, and loses nothing to the absence of one."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import threading
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation import codec
from foundation.errors import LeaseLost, Refused, Unavailable, from_wire
from hub import bus as hub_bus
from hub.events import read
from hub.outgoing import KEPT
from orchestrator.bus import Bus
from orchestrator.buses import Buses
from orchestrator.epochs import next_epoch
from orchestrator.forgetting import forget
from tests.support import CODE, free_port, port_of, run_python

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from hub.events import Event
    from tests.support import Hub

real = pytest.mark.real
faults = pytest.mark.faults


@asynccontextmanager
async def holder(hub: Hub, epoch: int = 1, **options: Any) -> AsyncIterator[Bus]:
    bus = Bus(str(hub.root), "web", epoch, **options)
    try:
        yield bus
    finally:
        await bus.close()


async def until(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait until *holds*, and let the loop run meanwhile."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.01)


async def told(hub: Hub) -> list[Event]:
    """Return what the stream holds of VMs."""
    return [one async for one in read(hub.workspace) if one.subject.startswith("vm.")]


async def ask(hub: Hub, verb: str, **body: object) -> dict[str, Any]:
    """Ask the holder of cluster web, as a person does."""
    async with await hub_bus.connect(hub.workspace) as operator:
        subject = f"vm.web.request.{verb}"
        answer = await operator.request(subject, codec.dumps(body).encode(), within_s=10.0)
    return codec.loads_object(answer.data)


# --- announcing ----------------------------------------------------------------------------


@real
@faults
async def test_events_wait_for_a_hub_in_order_and_are_all_there_when_it_comes(hub: Hub) -> None:
    async with holder(hub) as bus:
        bus.announce("web-1", "starting", {"pid": 0, "ip": ""})
        for number in range(50):
            bus.announce("web-2", "running", {"number": number})
        await asyncio.to_thread(hub.start)
        await until(lambda: bus.waiting == 0)
        events = await told(hub)
        assert events[0].subject == "vm.web.web-1.event.starting"
        assert events[0].data == {"pid": 0, "ip": ""}
        assert [one.data["number"] for one in events[1:]] == list(range(50))
        shown = hub.run("events").stdout
        assert "vm.web.web-1.event.starting  starts" in shown


@real
@faults
async def test_events_outlive_a_hub_that_is_killed_and_comes_back_on_another_port(
    hub: Hub,
) -> None:
    await asyncio.to_thread(hub.start)
    turns: list[str] = []
    async with holder(hub, on_hub=lambda: turns.append("turn")) as bus:
        bus.announce("web", "event", {"number": 0})
        await until(lambda: bus.is_connected and bus.waiting == 0)
        os.kill(hub.pids()["hub"], signal.SIGKILL)
        await until(lambda: not bus.is_connected)
        turned = len(turns)
        for number in range(1, 30):
            bus.announce("web", "event", {"number": number})
        port = free_port()
        await asyncio.to_thread(hub.start, "--nats-port", str(port))
        await until(lambda: bus.waiting == 0)
        assert (await bus.guest_access()).nats_port == port
        assert [one.data["number"] for one in await told(hub)] == list(range(30))
        assert len(turns) > turned >= 2


async def test_without_a_hub_nothing_is_started_waited_for_or_loaded(seeded: Path) -> None:
    """In a process of its own, which shows what it has loaded."""
    program = """
import asyncio, sys, time
from orchestrator.bus import Bus

async def main():
    for root in (sys.argv[1], ""):
        bus = Bus(root, "web", 1)
        bus.serve(None)
        for number in range(3000):
            bus.announce("web-1", "running", {"number": number})
        await asyncio.sleep(0.05)
        assert not bus.is_connected
        assert bus.waiting == 1000, bus.waiting
        began = time.monotonic()
        await bus.close(60)
        assert time.monotonic() - began < 10
        bus.announce("web-1", "stopped", {})
        assert bus.waiting == 1000

asyncio.run(main())
print(*{"nats", "nkeys", "nacl"} & set(sys.modules))
"""
    done = await asyncio.to_thread(run_python, program, str(seeded))
    assert done.stdout.strip() == ""
    assert not (seeded / ".orchestrator/hub.sock").exists()
    assert KEPT == 1000


async def test_what_cannot_be_told_never_stops_who_tells_it(tmp_path: Path) -> None:
    complaints: list[str] = []
    bus = Bus(str(tmp_path), "web", 1, complain=lambda what, _error: complaints.append(what))
    odd: tuple[Any, ...] = ({"x": object()}, {"x": {1, 2}}, {1: b"\xff"}, {"x": "\ud800"})
    for data in odd:
        bus.announce("web", "odd", data)
    for member, kind in (("a.b", "x"), ("*", "x"), ("", "x"), ("a", "x y"), ("a", "\r\nPUB x")):
        bus.announce(member, kind, None)
    assert bus.waiting == 4
    assert complaints == ["event-not-json"] * (len(complaints) - 5) + ["event-impossible"] * 5
    await bus.close()


@real
async def test_what_the_bus_refuses_is_passed_over_and_the_rest_arrives(hub: Hub) -> None:
    await asyncio.to_thread(hub.start)
    complaints: list[str] = []
    async with holder(hub, complain=lambda what, _error: complaints.append(what)) as bus:
        bus.announce("web", "long", {"x": "y" * 2_000_000})
        bus.announce("web", "running", {})
        await until(lambda: bus.waiting == 0)
        assert [one.subject for one in await told(hub)] == ["vm.web.web.event.running"]
        assert complaints == ["event-refused"]


@real
async def test_closing_publishes_what_waits_and_gives_the_login_up(hub: Hub) -> None:
    await asyncio.to_thread(hub.start)
    async with holder(hub) as bus:
        await until(lambda: bus.is_connected)
        guest = await guest_bus(hub, (await bus.guest_access()).seed)
        for number in range(20):
            bus.announce("web", "stopped", {"number": number})
    assert [one.data["number"] for one in await told(hub)] == list(range(20))
    async with guest:
        await asyncio.wait_for(guest.closed.wait(), 10)
    assert isinstance(guest.closed_because, Refused)


async def test_a_cluster_that_is_over_at_once_has_told_all_of_it(hub: Hub) -> None:
    await asyncio.to_thread(hub.start)
    bus = Bus(str(hub.root), "web", 1)
    bus.announce("web", "starting", {})
    bus.announce("web", "stopped", {})
    await bus.close(within_s=10.0)
    assert [one.kind for one in await told(hub)] == ["starting", "stopped"]


@real
@faults
async def test_a_trunk_that_is_killed_as_a_holder_registers_keeps_nobody_out(hub: Hub) -> None:
    await asyncio.to_thread(hub.start)
    async with holder(hub) as bus:
        bus.announce("web", "running", {})
        os.kill((await asyncio.to_thread(hub.child, "trunk"))["pid"], signal.SIGKILL)
        await until(lambda: bus.waiting == 0)
        await until(lambda: "vm.web" in logins_of_fossil(hub))
        assert len(await told(hub)) == 1


def logins_of_fossil(hub: Hub) -> set[str]:
    with closing(sqlite3.connect(hub.workspace.repository)) as db:
        return {row[0] for row in db.execute("SELECT login FROM user")}


# --- being asked ---------------------------------------------------------------------------


@real
@faults
async def test_requests_are_answered_over_every_hub_and_errors_told_as_they_are(
    hub: Hub,
) -> None:
    async def handler(verb: str, request: dict[str, Any]) -> dict[str, Any]:
        if verb == "stop":
            raise Refused("no", reason="not-now")
        if verb == "bug":
            raise ZeroDivisionError
        return {"verb": verb, **request}

    bugs: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: bugs.append(type(context["exception"]))
    )
    await asyncio.to_thread(hub.start)
    async with holder(hub) as bus:
        await until(lambda: bus.is_connected)
        early = from_wire((await ask(hub, "status"))["error"])
        assert (type(early), early.reason) == (Unavailable, "starting")
        bus.serve(handler)
        assert await ask(hub, "status", name="web-1") == {
            "v": 1,
            "data": {"verb": "status", "name": "web-1"},
        }
        refused = from_wire((await ask(hub, "stop"))["error"])
        assert (type(refused), refused.reason) == (Refused, "not-now")
        assert from_wire((await ask(hub, "bug"))["error"]).reason == "bug"
        assert bugs == [ZeroDivisionError]
        await asyncio.to_thread(hub.stop, "--force")
        await until(lambda: not bus.is_connected)
        await asyncio.to_thread(hub.start, "--nats-port", str(free_port()))
        assert (await ask(hub, "list"))["data"] == {"verb": "list"}


# --- epochs --------------------------------------------------------------------------------


@real
async def test_a_later_holder_silences_the_one_before_and_its_guests(hub: Hub) -> None:
    await asyncio.to_thread(hub.start)
    async with holder(hub, 1) as old:
        await until(lambda: old.is_connected)
        guest = await guest_bus(hub, (await old.guest_access()).seed)
        old.announce("web", "running", {"of": "old"})
        await until(lambda: old.waiting == 0)
        async with guest, holder(hub, 2) as new:
            await until(lambda: new.is_connected)
            await until(lambda: old.superseded is not None)
            await asyncio.wait_for(guest.closed.wait(), 10)
            old.announce("web", "running", {"of": "old, late"})
            new.announce("web", "running", {"of": "new"})
            await until(lambda: new.waiting == 0)
            assert [one.data["of"] for one in await told(hub)] == ["old", "new"]


@real
async def test_a_holder_of_an_old_epoch_is_refused_and_closes_at_once(hub: Hub) -> None:
    await asyncio.to_thread(hub.start)
    async with holder(hub, 5) as new:
        await until(lambda: new.is_connected)
        complaints: list[str] = []
        old = Bus(str(hub.root), "web", 4, complain=lambda what, _e: complaints.append(what))
        old.announce("web", "running", {})
        await until(lambda: old.superseded is not None)
        assert isinstance(old.superseded, LeaseLost)
        assert complaints == ["superseded"]
        async with asyncio.timeout(10):
            await old.close(60)
        assert await told(hub) == []
        assert new.is_connected


def test_epochs_only_grow_whoever_takes_them(tmp_path: Path) -> None:
    taken: list[int] = []

    def take() -> None:
        taken.extend(next_epoch(str(tmp_path)) for _ in range(50))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 200
    (tmp_path / ".epoch").write_text("99999999999999")
    assert next_epoch(str(tmp_path)) == 100000000000000
    now_ms = time.time_ns() // 1_000_000
    for junk in ("", "nonsense", "-5", "\0" * 20):
        (tmp_path / ".epoch").write_text(junk)
        assert next_epoch(str(tmp_path)) >= now_ms


# --- guests --------------------------------------------------------------------------------


async def guest_bus(hub: Hub, seed: str) -> hub_bus.Bus:
    return await hub_bus.connect(hub.workspace, seed=seed, name="guest:web")


@real
async def test_a_guest_reaches_the_hub_with_what_it_is_given_and_no_slots_subject(
    hub: Hub, tmp_path: Path
) -> None:
    async with holder(hub) as bus:
        before = await bus.guest_access()
        assert (before.nats_port, before.fossil_port) == (0, 0)
        assert set(before.files("10.77.0.1", "web-1")) == {"nats.nk", "nats.inbox", "nats.subject"}
        info = await asyncio.to_thread(hub.start)
        await until(lambda: bus.is_connected)
        access = await bus.guest_access()
        assert access == before.replace(
            nats_port=port_of(info["nats_url"]), fossil_port=port_of(info["fossil_url"])
        )
        files = access.files("127.0.0.1", "web-1")
        values = {name: content.decode().strip() for name, content in files.items()}
        login = hub_bus.Login(values["nats.nk"], values["nats.inbox"].removeprefix("_INBOX_"))
        async with hub_bus.Bus(values["nats.url"], login) as guest:
            await guest.open()
            async with await hub_bus.connect(hub.workspace) as operator:
                heard = asyncio.Event()
                await operator.subscribe("vm.web.*.guest.>", lambda *_message: heard.set())
                await guest.send(f"{values['nats.subject']}.progress", b"half")
                await asyncio.wait_for(heard.wait(), 10)
            for subject in ("slot.auth.event.x", "vm.web.web-1.event.x", "vm.db.db.guest.x"):
                with pytest.raises(Refused):
                    await guest.request(subject, b"")
        clone = tmp_path / "guest.fossil"
        done = await asyncio.to_thread(fossil, "clone", values["fossil.url"], clone)
        assert clone.exists(), done


def fossil(*arguments: object) -> str:
    import subprocess  # noqa: PLC0415 - in a thread, beside the loop

    from hub.fossil import environment, find  # noqa: PLC0415

    clone = Path(str(arguments[-1]))
    return subprocess.run(
        [find(), *map(str, arguments)],
        env=environment(str(clone.parent)),
        cwd=clone.parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


async def test_a_port_that_a_stopped_hub_had_is_not_given_to_guests(hub: Hub) -> None:
    """Whoever has it by then is none of a guest's business."""
    await asyncio.to_thread(hub.start)
    async with holder(hub) as bus:
        assert (await bus.guest_access()).nats_port
        await asyncio.to_thread(hub.stop)
        assert hub_bus.read_url(hub.workspace)
        access = await bus.guest_access()
        assert (access.nats_port, access.fossil_port) == (0, 0)


# --- several clusters ----------------------------------------------------------------------


@real
async def test_members_of_several_clusters_speak_each_for_their_own(hub: Hub) -> None:
    async def handler(verb: str, _request: dict[str, Any]) -> dict[str, Any]:
        return {"verb": verb}

    await asyncio.to_thread(hub.start)
    buses = Buses(str(hub.root), next_epoch(hub.workspace.state))
    buses.announce("web-1", "running", {})
    buses.serve(handler)
    buses.announce("db-1", "running", {})
    await until(lambda: buses.of("web").is_connected and buses.of("db").is_connected)
    assert (await ask(hub, "list"))["data"] == {"verb": "list"}
    one, other = await buses.guest_access("web-1"), await buses.guest_access("db-1")
    assert one.seed != other.seed
    await buses.close(5.0)
    subjects = {event.subject for event in await told(hub)}
    assert subjects == {"vm.web.web-1.event.running", "vm.db.db-1.event.running"}


# --- what a killed holder leaves -----------------------------------------------------------

KILLED = """
import asyncio, sys
from orchestrator.bus import Bus

async def main():
    bus = Bus(sys.argv[1], "web", 1)
    while not bus.is_connected:
        await asyncio.sleep(0.01)
    print((await bus.guest_access()).seed, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@real
@faults
async def test_the_logins_that_a_killed_holder_leaves_can_be_revoked(hub: Hub) -> None:
    await asyncio.to_thread(hub.start)
    assert not await forget(str(hub.root), "web")
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, str(hub.root)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    )
    assert killed.stdout is not None
    seed = (await killed.stdout.readline()).decode().strip()
    killed.kill()
    await killed.wait()
    guest = await guest_bus(hub, seed)
    async with guest:
        assert await forget(str(hub.root), "web")
        await asyncio.wait_for(guest.closed.wait(), 10)
    assert not await forget(str(hub.root), "web")
    async with holder(hub, 2) as bus:
        await until(lambda: bus.is_connected)
