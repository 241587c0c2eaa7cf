"""A real VM through the holder's protocol, from its launch to its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError, Unavailable
from orchestrator import control
from orchestrator.control import SpawnConfig
from orchestrator.packages import QEMU
from orchestrator.store import Options, Store
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.test_holder_kills import ATTEMPTS, GONE_WITHIN_S, ended_within_s
from tests.support import eventually, free_port, is_gone, taken_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Hub

pytestmark = [pytest.mark.vm, pytest.mark.real, pytest.mark.slow]


@pytest.mark.timeout(180)
def test_a_vm_boots_runs_a_command_and_stops(store: Store) -> None:
    config = SpawnConfig(names=("web-1",), options=Options(disk_mb=40))
    with control.spawn(store, config) as session:
        status = control.wait_members(store, ["web-1"], 120)["web-1"]
        ran = control.execute(store, "web-1", ["sh", "-c", "hostname; cat; exit 7"], stdin=[b"in"])
        assert (ran.status, ran.stdout, ran.stderr) == (7, b"web-1\nin", b"")
        assert status.ip == "10.77.0.11"
        assert os.path.getsize(store.place("web-1").disk) == 40 << 20
        endless = ["sh", "-c", "sleep 999 & exec sleep 999"]
        for _ in range(9):  # more than a guest has channels
            with pytest.raises(Unavailable, match="was killed") as late:
                control.execute(store, "web-1", endless, timeout_s=0.05)
            assert late.value.reason == "timed-out"
        left = ["sh", "-c", "ps | grep 'sleep [9]99'"]
        eventually(lambda: control.execute(store, "web-1", left).stdout == b"")
        joined = control.add_member(store, "web-1", "web-2", options=Options(disk_mb=0))
        ran = control.execute(store, "web-1", ["ping", "-c", "1", "-W", "5", joined.ip])
        assert ran.status == 0, ran.stdout + ran.stderr
        assert control.stop(store, "web-2") in {"agent", "quit"}
        assert is_gone(joined.pid)
        assert control.stop(store, "web-1") in {"agent", "quit"}
        assert is_gone(status.pid)
    assert is_gone(session.pid)


@pytest.mark.timeout(180)
def test_a_guest_reaches_the_hub_wherever_it_moves_and_nothing_else_of_the_host(hub: Hub) -> None:
    store = Store.of_workspace(hub.workspace)
    hub.start()
    config = SpawnConfig(
        names=("web",), options=Options(disk_mb=0), settings={"workspace": str(hub.root)}
    )
    greet = "u=$(cat /run/bones/nats.url); p=${u##*:}; sleep 2 | nc 10.77.0.1 $p | head -c 5"
    try:
        with control.spawn(store, config), taken_port() as other:
            control.wait_members(store, ["web"], 120)
            assert control.execute(store, "web", ["sh", "-c", greet]).stdout == b"INFO "
            fetch = "wget -q -O - $(cat /run/bones/fossil.url | sed s,//.*@,//,)"
            assert b"<html" in control.execute(store, "web", ["sh", "-c", fetch]).stdout
            closed = ["nc", "-w", "3", "10.77.0.1", str(other)]
            assert control.execute(store, "web", closed).status != 0
            port = free_port()
            hub.stop()
            hub.start("--nats-port", str(port))

            def found() -> bool:
                ran = control.execute(store, "web", ["cat", "/run/bones/nats.url"])
                return ran.stdout.decode().strip() == f"nats://10.77.0.1:{port}"

            eventually(found, 30)
            assert control.execute(store, "web", ["sh", "-c", greet]).stdout == b"INFO "
    finally:
        holders.end_holders(store)


_BOUND = """
import sys
from orchestrator import control
from orchestrator.store import Options, Store
store, names = Store(sys.argv[1]), ("web-1", "web-2")
session = control.spawn(store, control.SpawnConfig(names=names, options=Options(disk_mb=0)))
found = control.wait_members(store, names, 120)
print(session.pid, *(status.pid for status in found.values()), flush=True)
sys.stdin.readline()
"""


@pytest.mark.faults
@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["holder", "client"])
def test_real_vms_are_gone_at_once_when_their_holder_or_its_client_is_killed(
    store: Store, victim: str
) -> None:
    took_s: list[float] = []
    while not took_s or (min(took_s) > GONE_WITHIN_S and len(took_s) < ATTEMPTS):
        with holders.client(_BOUND, store.directory) as client:
            holder, *vms = map(int, holders.line_of(client).split())
            pids = {"holder": holder, "client": client.pid}
            took_s.append(ended_within_s(pids[victim], *vms))
            holders.gone(holder)
    assert min(took_s) <= GONE_WITHIN_S, took_s


def test_a_qemu_that_is_too_old_is_named_by_the_holder_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "qemu"
    old.write_text("#!/bin/sh\necho QEMU emulator version 6.2.0\n")
    old.chmod(0o755)
    monkeypatch.setenv(QEMU, str(old))
    with control.spawn(store, SpawnConfig(names=("web",), options=Options(disk_mb=0))):
        with pytest.raises(HubError, match=r"QEMU 6\.2\.0; VMs need 7\.2") as named:
            control.wait_members(store, ["web"], 60)
        assert named.value.reason == "qemu-version"
