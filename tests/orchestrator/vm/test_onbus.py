"""A holder of a workspace on the bus of its hub: the guests of fakes, a real hub."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from foundation import codec
from foundation.errors import HubError, from_wire
from hub import bus as hub_bus
from hub.events import read
from orchestrator import control, protocol
from orchestrator.holder import telling
from orchestrator.holder.launch import Launch
from orchestrator.holder.onbus import OnBus
from orchestrator.store import Store
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.fake_parts import FakeNetwork
from tests.orchestrator.vm.holders import up
from tests.support import eventually, free_port

if TYPE_CHECKING:
    from tests.support import Hub

pytestmark = pytest.mark.real


async def _told(hub: Hub) -> list[tuple[str, dict[str, Any]]]:
    events = [one async for one in read(hub.workspace) if one.subject.startswith("vm.")]
    return [(one.subject, one.data) for one in events]


def told(hub: Hub) -> list[tuple[str, dict[str, Any]]]:
    """Return what the stream holds of VMs: subjects and data."""
    return asyncio.run(_told(hub))


def ask(hub: Hub, verb: str, **body: object) -> dict[str, Any]:
    """Ask the holder of cluster web over the bus, as a person does.

    Raises:
        HubError: what it answers.
    """

    async def asking() -> dict[str, Any]:
        async with await hub_bus.connect(hub.workspace) as operator:
            payload = codec.dumps(body).encode()
            answer = await operator.request(f"vm.web.request.{verb}", payload, within_s=10.0)
        return codec.loads_object(answer.data)

    answer = asyncio.run(asking())
    if "error" in answer:
        raise from_wire(answer["error"])
    data: dict[str, Any] = answer["data"]
    return data


def guest_file(store: Store, name: str, file: str) -> str:
    """Return what guest *name* finds in its /run/bones/*file*, "" if there is none."""
    path = Path(store.place(name).directory) / "guest/run/bones" / file
    return path.read_text().strip() if path.exists() else ""


def test_a_holder_without_a_hub_runs_and_tells_one_that_comes_everything(hub: Hub) -> None:
    store = Store.of_workspace(hub.workspace)
    try:
        found = up(store, "web-1", settings={"workspace": str(hub.root)})
        assert guest_file(store, "web-1", "nats.nk").startswith("SU")
        assert guest_file(store, "web-1", "nats.url") == "", "there is no hub to be reached"
        started = hub.start()
        nats_port = started["nats_url"].rpartition(":")[2]
        eventually(lambda: guest_file(store, "web-1", "nats.url") != "", 20)
        assert guest_file(store, "web-1", "nats.url") == f"nats://10.77.0.1:{nats_port}"
        eventually(lambda: len(told(hub)) == 2, 20)
        vm = {"pid": found["web-1"].pid, "ip": "10.77.0.11"}
        assert told(hub) == [
            ("vm.web.web-1.event.starting", {"pid": 0, "ip": ""}),
            ("vm.web.web-1.event.running", vm),
        ]
        assert ask(hub, "status", member="web-1")["state"] == "running"
        added = ask(hub, "add", member="web-2", options=holders.SMALL.as_dict())
        assert added["name"] == "web-2"
        assert control.wait_members(store, ["web-2"], 30)["web-2"].running
        members = ask(hub, "list")["members"]
        assert [member["name"] for member in members] == ["web-1", "web-2"]
        assert guest_file(store, "web-2", "nats.subject") == "vm.web.web-2.guest"
        assert ask(hub, "stop", member="web-1")["how"] == "agent"
        assert control.get_status(store, "web-1").state == protocol.STOPPED
        with pytest.raises(Exception, match="a holder answers no 'exec'"):
            ask(hub, "exec", member="web-2")
        assert control.stop(store, "web-2") == "agent"
        assert ("vm.web.web-2.event.stopped", {"pid": 0, "ip": "10.77.0.12"}) in told(hub)
    finally:
        holders.end_holders(store)


def test_guests_are_told_of_a_hub_that_moved_and_reach_no_port_of_before(hub: Hub) -> None:
    store = Store.of_workspace(hub.workspace)
    try:
        hub.start()
        up(store, "web-1", settings={"workspace": str(hub.root), "allow_ports": [1234]})
        eventually(lambda: guest_file(store, "web-1", "nats.url") != "", 20)
        before = guest_file(store, "web-1", "nats.url")
        hub.stop()
        port = free_port()
        hub.start("--nats-port", str(port))
        after = f"nats://10.77.0.1:{port}"
        eventually(lambda: guest_file(store, "web-1", "nats.url") == after, 30)
        log = [codec.loads_object(line) for line in holders.log_of(store, "web-1").splitlines()]
        old = int(before.rpartition(":")[2])
        assert any(old in line["ports"] for line in log if line["event"] == "disallowed")
        assert not any(1234 in line["ports"] for line in log if line["event"] == "disallowed")
    finally:
        holders.end_holders(store)


class _Guest:
    """A machine that is told things; it hangs, or refuses them at first."""

    def __init__(self, *, hangs: bool = False, refuses: int = 0) -> None:
        """Be told nothing yet."""
        self.told = 0
        self.is_told = asyncio.Event()
        self._hangs = hangs
        self._refuses = refuses

    async def put(self, _tar: bytes, _directory: str) -> None:
        """As it was made."""
        if self._hangs:
            await asyncio.Event().wait()
        self.told += 1
        if self.told > self._refuses:
            self.is_told.set()
        else:
            raise HubError("not now", reason="agent")


async def test_a_guest_that_hangs_keeps_no_other_waiting_and_one_that_refuses_is_told_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "vms").mkdir()
    launch = Launch(
        names=("web-1",),
        store=str(tmp_path / "vms"),
        parent=0,
        clusters={},
        locks={},
        listeners={},
        settings={},
    )
    bus = OnBus(str(tmp_path), launch, FakeNetwork())
    hanging, refusing, healthy = _Guest(hangs=True), _Guest(refuses=1), _Guest()
    try:
        async with asyncio.timeout(telling.WITHIN_S / 2):
            welcoming = asyncio.ensure_future(bus.welcome("web-1", cast("Any", hanging)))
            await asyncio.sleep(0)
            await bus.welcome("web-2", cast("Any", refusing))
            await bus.welcome("web-3", cast("Any", healthy))
            assert healthy.is_told.is_set()
            assert not welcoming.done()
            await refusing.is_told.wait()
    finally:
        welcoming.cancel()
        await bus.close()
