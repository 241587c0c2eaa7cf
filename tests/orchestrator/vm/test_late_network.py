"""The network as a holder of ours has it: with whatever QEMU there is, and news of its gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from foundation import procfs
from foundation.errors import HubError
from orchestrator import control
from orchestrator.cluster import VM
from orchestrator.control import SpawnConfig
from orchestrator.holder.ours import LateNetwork
from orchestrator.packages import QEMU
from orchestrator.store import Options
from tests.orchestrator.net.test_network import breakable, gateway_pid, qemu, soon
from tests.orchestrator.vm.fake_parts import FakeNetwork
from tests.orchestrator.vm.holders import events, holder_pid
from tests.orchestrator.vm.test_member import made
from tests.support import accepts, eventually, kill

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.store import Store


def quiet(_words: str) -> None:
    """Nobody is told."""


@pytest.mark.vm
async def test_a_qemu_that_cannot_be_confined_has_a_gateway_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *-sandbox*) echo no option group >&2; exit 1;; esac\n'
        f'exec {qemu()} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv(QEMU, str(program))
    network = LateNetwork("web", [], egress=True)
    await network.open(quiet)
    try:
        network.port("web-1").close()
        assert accepts(await network.forward("web-1", 22))
    finally:
        network.close()


@pytest.mark.vm
@pytest.mark.faults
async def test_a_gateway_that_failed_is_news_of_every_member_and_there_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, broken = breakable(tmp_path)
    monkeypatch.setenv(QEMU, str(program))
    told: list[tuple[str, str, dict[str, Any]]] = []
    network = LateNetwork("web", [], egress=True)
    network.announce = lambda *event: told.append(event)
    assert network.trouble == ""
    assert network.forwards("web-1") == {}
    assert not await network.unforward("web-1", 80)
    await network.open(quiet)
    try:
        for member in ("web-1", "web-2"):
            network.port(member).close()
        host_port = await network.forward("web-1", 22)
        broken.touch()
        assert network._network is not None
        kill(gateway_pid(network._network))
        await soon(lambda: len(told) == 2)
        assert [event[:2] for event in told] == [
            ("web-1", "gateway-failed"),
            ("web-2", "gateway-failed"),
        ]
        assert "no luck" in told[0][2]["error"]
        assert "failed for good" in network.trouble
        with pytest.raises(HubError, match="no luck") as failed:
            await network.open(quiet)
        assert failed.value.reason == "gateway"
        broken.unlink()
        await asyncio.gather(*(network.open(quiet) for _member in range(3)))
        assert network.trouble == ""
        assert [event[:2] for event in told[2:]] == [
            ("web-1", "gateway-restarted"),
            ("web-2", "gateway-restarted"),
        ]
        assert accepts(host_port)
        assert await network.unforward("web-1", host_port)
    finally:
        network.close()


async def test_a_member_that_runs_says_what_is_wrong_with_its_network() -> None:
    network = FakeNetwork()
    member = made(None, network=network)
    network.trouble = "no way out"
    assert (member.status().error, member.status().reason) == ("", "")
    member.state = "running"
    assert (member.status().error, member.status().reason) == ("no way out", "gateway")
    member.error = HubError("worse", reason="vm-died")
    assert (member.status().error, member.status().reason) == ("worse", "vm-died")


def gateway_of(holder: int) -> int:
    """Return the pid of the gateway of a *holder*, 0 if it has none just now."""
    for pid in procfs.pids():
        words = procfs.command_line(pid) or [] if procfs.parent_of(pid) == holder else []
        if b"-netdev" in words and b"-kernel" not in words:
            return pid
    return 0


@pytest.mark.vm
@pytest.mark.real
@pytest.mark.faults
@pytest.mark.timeout(120)
def test_a_real_vm_says_that_its_gateway_has_failed_and_up_starts_it_anew(store: Store) -> None:
    config = SpawnConfig(names=("web-3",), bound=False, options=Options(disk_mb=0))
    control.spawn(store, config).close()
    assert control.wait_members(store, ["web-3"], 60)["web-3"].ip == "10.77.0.13"
    holder, vm = holder_pid(store, "web-3"), VM(store, "web-3")
    host_port = vm.forward(80)

    def has_failed() -> bool:
        gateway = gateway_of(holder)
        if gateway:
            kill(gateway)
        return "failed for good" in vm.status().error

    eventually(has_failed, 20)
    assert vm.status().reason == "gateway"
    assert vm.state == "running"
    assert ("web-3", "gateway-failed") in events(store, "web-3")
    assert not accepts(host_port)
    control.bring_up(store, config, timeout_s=30)
    assert vm.status().error == ""
    assert ("web-3", "gateway-restarted") in events(store, "web-3")
    assert vm.forwards() == {host_port: 80}
    assert accepts(host_port)
    assert vm.execute(["ping", "-c", "1", "-W", "5", "10.77.0.1"]).status == 0
