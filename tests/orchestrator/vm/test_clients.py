"""What a client makes of a holder that is another's, ends, hangs, or cannot be spoken to."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from functools import partial
from pathlib import Path

import pytest

from foundation.errors import HubError, OwnedByAnother, Unavailable
from foundation.workspace import Workspace
from orchestrator import control, holding, protocol, requests
from orchestrator import holders as of_workspace
from orchestrator.cluster import Cluster
from orchestrator.control import SpawnConfig
from orchestrator.store import Store
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.holders import config, go_wrong, up
from tests.support import eventually, is_gone

pytestmark = pytest.mark.faults


def test_a_holder_whose_socket_was_deleted_is_not_told_as_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_WITHIN_S", 0.3)
    monkeypatch.setattr(control, "_ENDING_S", 0.3)
    vm = up(store, "web-1", "web-2", settings=holders.BLIND)["web-1"].pid
    holder = holders.holder_pid(store, "web-1")
    os.unlink(store.place("web-1").socket)
    assert control.is_running(store, "web-1")
    for ask in (control.get_status, control.stop):
        with pytest.raises(Unavailable, match=f"process {holder} has VM web-1.*--force") as said:
            ask(store, "web-1")
        assert said.value.reason == "no-answer"
    with pytest.raises(Unavailable, match="--force"):
        control.bring_up(store, config("web-1"))
    assert not is_gone(vm)
    assert control.get_status(store, "web-2").state == "running"
    assert control.end_holder(store, "web-1")
    assert is_gone(vm)


def test_a_copy_of_a_workspace_has_no_holder(store: Store, tmp_path: Path) -> None:
    up(store, "web")
    shutil.copytree(store.directory, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
    copy = Store(tmp_path / "copy")
    assert copy.holder_of("web") is not None, "its pidfile names a process that lives"
    assert not control.is_running(copy, "web")
    assert control.get_status(copy, "web").state == "stopped"
    try:
        assert up(copy, "web")["web"].state == "running"
        assert control.get_status(store, "web").state == "running"
    finally:
        holders.end_holders(copy)


def test_whoever_launched_a_holder_bones_down_finds_it(repo: Path) -> None:
    workspace = Workspace.find(str(repo))
    workspace.make_state()
    store = Store.of_workspace(workspace)
    vm = up(store, "web")["web"].pid  # by the library, which says nothing of a workspace
    pid = holders.holder_pid(store, "web")
    assert [(one.pid, one.members) for one in of_workspace.find(workspace)] == [(pid, ("web",))]
    moved = repo.rename(repo.parent / "moved")
    try:
        workspace = Workspace.find(str(moved))
        assert [one.pid for one in of_workspace.find(workspace)] == [pid], "it was moved"
        assert [one.pid for one in of_workspace.end(workspace)] == [pid]
        assert is_gone(pid)
        eventually(lambda: is_gone(vm))
    finally:
        moved.rename(repo)


def test_a_bound_cluster_does_not_join_what_would_not_end_with_it(store: Store) -> None:
    up(store, "web-1")
    with pytest.raises(OwnedByAnother, match="web-1 would not end with this process") as said:
        control.bring_up(store, config("web-1", "web-2", bound=True))
    assert said.value.reason == "running-elsewhere"
    assert not store.exists("web-2")
    assert control.get_status(store, "web-1").state == "running"


def test_a_start_that_gives_up_takes_back_its_own_and_nothing_of_before(
    store: Store, tmp_path: Path
) -> None:
    up(store, "web-1")
    control.stop(store, "web-1")
    go_wrong(store, "web-2", ready_gate=str(tmp_path / "never"))
    with pytest.raises(Unavailable, match="not up after 1 s: web-2"):
        control.bring_up(store, config("web-1", "web-2", bound=True), timeout_s=1)
    assert store.members() == ["web-1"]
    assert not control.is_running(store, "web-1")


def test_a_start_that_gives_up_leaves_those_to_whom_others_want_too(
    store: Store, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    for name in ("web-1", "web-2"):
        go_wrong(store, name, ready_gate=str(gate))
    patient: dict[str, control.Status] = {}

    def wait() -> None:
        patient.update(control.bring_up(store, config("web-1", "web-2"))[1])

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        eventually(lambda: control.running_members(store) == ["web-1", "web-2"])
        with pytest.raises(Unavailable, match=r"not up after 0\.5 s"):
            control.bring_up(store, config("web-1", "web-2"), timeout_s=0.5)
    finally:
        gate.touch()
        thread.join(30)
    assert [status.state for status in patient.values()] == ["running", "running"]


def test_who_fails_to_join_and_was_not_there_before_is_not_there_afterwards(store: Store) -> None:
    up(store, "web-1", "web-2")
    control.stop(store, "web-2")
    for name in ("web-2", "web-3"):
        go_wrong(store, name, fail="ready")
        with pytest.raises(HubError, match=name):
            control.add_member(store, "web-1", name, options=holders.SMALL)
    assert store.members() == ["web-1", "web-2"]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library launch holders of fakes."""
    monkeypatch.setattr(control, "SpawnConfig", partial(SpawnConfig, program=holders.PROGRAM))


@pytest.mark.usefixtures("fakes")
def test_a_cluster_whose_first_member_has_stopped_takes_members_in(store: Store) -> None:
    with Cluster(["web-1", "web-2"], store=store, disk_mb=1) as cluster:
        cluster.vm("web-1").stop()
        assert cluster.add("web-3").state == "running"
        assert cluster.add("web-1").state == "running"
        go_wrong(store, "web-2", fail="ready")
        cluster.vm("web-2").stop()
        with pytest.raises(HubError, match="web-2"):
            cluster.add("web-2")
        assert [vm.name for vm in cluster.vms] == ["web-1", "web-2", "web-3"]
        pids = [holders.holder_pid(store, name) for name in ("web-1", "web-3")]
        assert pids[0] == pids[1]
        cluster.destroy()
    assert store.members() == []


@pytest.mark.usefixtures("fakes")
def test_a_cluster_that_is_started_again_boots_who_has_stopped(store: Store) -> None:
    with Cluster(["web-1", "web-2"], store=store, disk_mb=1) as cluster:
        cluster.vm("web-1").stop()
        cluster.start()
        assert [vm.state for vm in cluster.vms] == ["running", "running"]
        for vm in cluster.vms:
            vm.stop()
        cluster.start()
        assert [vm.state for vm in cluster.vms] == ["running", "running"]
    assert [vm.state for vm in cluster.vms] == ["stopped", "stopped"]


def test_an_up_while_a_holder_ends_waits_for_that(store: Store) -> None:
    go_wrong(store, "web-1", stays=True)
    up(store, "web-1", settings={"stop_within_s": 4})
    ending = holders.holder_pid(store, "web-1")
    os.kill(ending, signal.SIGTERM)
    _session, found = control.bring_up(store, config("web-1", "web-2"))
    assert [status.state for status in found.values()] == ["running", "running"]
    assert is_gone(ending)
    assert holding.holder(store, "web-2") is not None
    assert control.end_holder(store, "web-2", grace_s=0)


def test_what_a_command_writes_is_kept_up_to_a_bound(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(store, "web")
    monkeypatch.setattr(requests, "MOST_COLLECTED", 1 << 20)
    with pytest.raises(HubError, match="yes wrote more than 1 MiB") as said:
        control.execute(store, "web", ["yes"])
    assert said.value.reason == "too-much-output"
    assert control.execute(store, "web", ["echo", "fine"]).stdout == b"fine\n"


def test_a_vm_that_does_not_run_on_is_told_with_the_reason(store: Store) -> None:
    go_wrong(store, "web", trouble="no room for its disk")
    status = up(store, "web")["web"]
    assert (status.state, status.error, status.reason) == (
        "running",
        "no room for its disk",
        "paused",
    )
