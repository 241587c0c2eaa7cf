"""A holder on a machine that fails it: a full disk, a directory that has gone, too many at once."""

from __future__ import annotations

import itertools
import os
import resource
import select
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError, Refused, Unavailable
from orchestrator import control, protocol
from orchestrator.net.addresses import FIRST, LAST
from orchestrator.store import Store
from owner import private
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.holders import config, go_wrong, up
from tests.support import CODE, eventually, kill

if TYPE_CHECKING:
    from orchestrator.control import SpawnConfig

pytestmark = pytest.mark.faults


def changed(before: str) -> tuple[str, ...]:
    """Return the program of a holder that runs the statements *before* first."""
    program = holders.HOLDER.replace("os._exit(", f"{before}\nos._exit(")
    return (sys.executable, "-c", program, str(CODE))


def begun(store: Store, wanted: SpawnConfig) -> None:
    """Have a detached holder up."""
    control.spawn(store, wanted).close()
    control.wait_members(store, wanted.names, 30)


# --- a full disk ---------------------------------------------------------------------------

_FULL = """
import signal
def full(*_signal):
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.dup2(1, 2)
    print("a holder that cannot write is here", file=open(os.environ["SEEN"], "w"))
signal.signal(signal.SIGUSR1, full)
"""


def test_a_log_that_cannot_be_written_keeps_no_vm_from_its_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setenv("SEEN", str(seen))
    begun(store, config("web-1", "web-2").replace(program=changed(_FULL)))
    holder = holders.holder_pid(store, "web-1")
    vms = {name: control.get_status(store, name).pid for name in ("web-1", "web-2")}
    kill(holder, 10)
    eventually(seen.exists)
    assert control.add_member(store, "web-1", "web-3", options=holders.SMALL).running
    assert control.stop(store, "web-1") == "agent"
    kill(vms["web-2"])
    eventually(lambda: control.get_status(store, "web-2").state == protocol.ERROR)
    assert control.stop(store, "web-3") == "agent"
    holders.gone(holder, *vms.values())


def test_a_join_that_fails_half_way_leaves_no_member(store: Store) -> None:
    up(store, "web-1")
    in_the_way = Path(store.place("web-2").socket)
    in_the_way.mkdir(parents=True)
    with pytest.raises(HubError, match="directory"):
        control.add_member(store, "web-1", "web-2", options=holders.SMALL)
    assert not control.is_running(store, "web-2")
    assert not store.exists("web-2"), "it did not exist before"
    in_the_way.rmdir()
    assert control.add_member(store, "web-1", "web-2", options=holders.SMALL).running
    control.stop(store, "web-2")
    in_the_way.mkdir()
    with pytest.raises(HubError, match="directory"):
        control.add_member(store, "web-1", "web-2")
    in_the_way.rmdir()
    assert store.exists("web-2"), "it did"
    assert Path(store.place("web-2").disk).exists()


def test_an_error_of_before_is_forgotten_by_who_boots_again(store: Store) -> None:
    up(store, "web-1")
    go_wrong(store, "web-2", fail="start")
    control.request_member(store, "web-1", "web-2", options=holders.SMALL)
    eventually(lambda: control.get_status(store, "web-2").state == protocol.ERROR)
    go_wrong(store, "web-2")
    control.add_member(store, "web-1", "web-2")
    control.stop(store, "web-2")
    status = control.get_status(store, "web-2")
    assert (status.state, status.error) == ("stopped", "")


def test_a_setting_that_is_none_is_named(store: Store) -> None:
    with pytest.raises(HubError, match="boot_within_s=0: a number above 0") as caught:
        control.spawn(store, config("web-1", settings={"boot_within_s": 0}))
    assert caught.value.reason == "holder-died"


def test_a_holder_that_is_out_of_descriptors_serves_again_when_it_has_some(store: Store) -> None:
    up(store, "web-1")
    holder = holders.holder_pid(store, "web-1")
    before = resource.prlimit(holder, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{holder}/fd")}
    free = next(number for number in itertools.count() if number not in used)
    resource.prlimit(holder, resource.RLIMIT_NOFILE, (free + 3, before[1]))
    waiting = [wire for wire in (control.connect(store, "web-1") for _ in range(10)) if wire]
    eventually(lambda: "Too many open files" in holders.log_of(store, "web-1"))
    resource.prlimit(holder, resource.RLIMIT_NOFILE, before)
    for wire in waiting:
        with wire:
            assert wire.ask(protocol.STATUS, within_s=20)["state"] == "running"


# --- a directory that has gone -------------------------------------------------------------


def test_a_holder_whose_store_was_moved_ends_and_leaves_it_in_order_there(
    store: Store, tmp_path: Path
) -> None:
    found = up(store, "web-1", "web-2", settings={"look_every_s": 0.1})
    holder = holders.holder_pid(store, "web-1")
    os.rename(store.directory, tmp_path / "moved")
    holders.gone(holder, *(status.pid for status in found.values()))
    assert not os.path.exists(store.directory), "nothing is made again where it was"
    moved = Store(tmp_path / "moved")
    for name in found:
        status = control.get_status(moved, name)
        assert (status.state, status.error) == ("stopped", "")
        assert not os.path.exists(moved.place(name).socket)
    assert up(moved, "web-1")["web-1"].running
    holders.end_holders(moved)


def test_a_holder_whose_store_was_deleted_ends(store: Store) -> None:
    found = up(store, "web-1", settings={"look_every_s": 0.1})
    holder = holders.holder_pid(store, "web-1")
    shutil.rmtree(store.directory)
    holders.gone(holder, found["web-1"].pid)
    assert not os.path.exists(store.directory)


def test_a_moved_holder_takes_nobody_in_and_touches_nothing_of_who_is_there_now(
    store: Store, tmp_path: Path
) -> None:
    up(store, "web-1", settings={"look_every_s": 1000})
    holder = holders.holder_pid(store, "web-1")
    moved = Store(tmp_path / "moved")
    os.rename(store.directory, moved.directory)
    shutil.copytree(
        moved.directory, store.directory, ignore=shutil.ignore_patterns("*.sock", "*.pid")
    )
    other = up(store, "web-1")["web-1"]
    with pytest.raises(Unavailable, match="this holder is ending"):
        control.request_member(moved, "web-1", "web-2", options=holders.SMALL)
    holders.gone(holder)
    assert not store.exists("web-2")
    assert control.get_status(store, "web-1") == other


def test_a_socket_and_a_pidfile_that_somebody_removed_are_there_again(store: Store) -> None:
    found = up(store, "web-1", settings={"look_every_s": 0.1})
    holder = holders.holder_pid(store, "web-1")
    following = control.logs(store, "web-1", follow=True)
    assert next(following) == b"web-1 boots\n"
    place = store.place("web-1")
    os.unlink(place.socket)
    os.unlink(place.pidfile)
    eventually(lambda: os.path.exists(place.socket) and os.path.exists(place.pidfile))
    assert control.get_status(store, "web-1") == found["web-1"]
    assert holders.holder_pid(store, "web-1") == holder
    with Path(place.console).open("ab") as file:
        file.write(b"more\n")
    assert next(following) == b"more\n", "who was connected is served on"
    assert control.stop(store, "web-1") == "agent"
    assert list(following) == []
    assert not os.path.exists(place.socket)
    holders.gone(holder)


# --- a start that hangs --------------------------------------------------------------------


_CLIENT = """
import sys
from orchestrator import control
from orchestrator.store import Store
from tests.orchestrator.vm.holders import config
session = control.spawn(Store(sys.argv[1]), config("web-1", bound=True))
print(session.pid, flush=True)
sys.stdin.read()
"""


def test_a_start_that_hangs_keeps_no_holder_whose_client_was_killed(
    store: Store, tmp_path: Path
) -> None:
    gate = str(tmp_path / "never")
    go_wrong(store, "web-1", start_gate=gate)
    with holders.client(_CLIENT, store.directory) as client:
        holder = int(holders.line_of(client))
        eventually(lambda: control.get_status(store, "web-1").state == protocol.STARTING)
        began_s = time.monotonic()
        client.kill()
        holders.gone(holder)
        assert time.monotonic() - began_s < 2.0


def test_who_has_little_time_waits_no_longer_for_a_start_that_hangs(
    store: Store, tmp_path: Path
) -> None:
    up(store, "web-1")
    go_wrong(store, "web-2", start_gate=str(tmp_path / "never"))
    control.request_member(store, "web-1", "web-2", options=holders.SMALL)
    eventually(lambda: control.get_status(store, "web-2").state == protocol.STARTING)
    began_s = time.monotonic()
    assert control.stop(store, "web-2", timeout_s=1) == "not-booted"
    assert time.monotonic() - began_s < 2.0


# --- too many at once ----------------------------------------------------------------------


def test_of_many_boots_few_run_at_once_and_none_is_late_by_that(
    store: Store, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    names = ["web-1", "web-2", "web-3"]
    for name in names:
        go_wrong(store, name, start_gate=str(gate))
    settings = {"boots_at_once": 1, "boot_within_s": 30.0}
    with control.spawn(store, config(*names, bound=True, settings=settings)):
        said = []

        def announce(words: str) -> None:
            said.append(words)
            states = [control.get_status(store, name).state for name in names]
            assert sorted(states) == ["downloading", "downloading", "starting"]
            until_s = time.monotonic() + 1.2  # longer than the boot may take
            eventually(lambda: time.monotonic() > until_s)
            gate.touch()

        found = control.wait_members(store, names, 1.0, announce)
    assert said == ["waiting until others have booted"]
    assert all(status.running for status in found.values())


def test_a_network_is_given_no_more_members_than_it_has_addresses_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert protocol.MEMBERS == LAST - FIRST + 1
    monkeypatch.setattr(protocol, "MEMBERS", 2)
    with pytest.raises(Refused, match="web-3 would be member 3") as caught:
        control.spawn(store, config("web-1", "web-2", "web-3"))
    assert caught.value.reason == "network-full"
    assert store.members() == []
    few = "from orchestrator import protocol; protocol.MEMBERS = 2"
    begun(store, config("web-1").replace(program=changed(few)))
    with pytest.raises(Refused, match="web-3 would be member 3"):
        control.bring_up(store, config("web-2", "web-3"))
    assert store.members() == ["web-1"], "not one of them is made"
    monkeypatch.undo()
    assert control.add_member(store, "web-1", "web-2", options=holders.SMALL).running
    with pytest.raises(Refused, match="web-3 would be member 3"):
        control.add_member(store, "web-1", "web-3", options=holders.SMALL)
    assert store.members() == ["web-1", "web-2"]


def test_a_name_that_is_taken_for_a_moment_keeps_nobody_waiting_but_who_wants_it(
    store: Store,
) -> None:
    patient = "from orchestrator.holder import holder; holder.MOMENTARY_S = 30"
    begun(store, config("web-1").replace(program=changed(patient)))
    lock = store.take("web-2")
    assert lock is not None
    wire = control.connect(store, "web-1")
    assert wire is not None
    with wire:
        wire.send(protocol.ADD_MEMBER, name="web-2", options=holders.SMALL.as_dict())
        assert control.get_status(store, "web-1").running
        assert not select.select([wire], [], [], 0)[0], "it is not refused yet"
        private.close(lock)
        assert wire.answer(within_s=20)["name"] == "web-2"
