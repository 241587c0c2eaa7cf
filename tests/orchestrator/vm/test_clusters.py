"""VMs in ``bones status``: who is there, where, and what needs a person; whatever hangs."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation import control as foundation_control
from foundation.errors import HubError
from foundation.workspace import Workspace
from orchestrator import clusters, control, verbs
from orchestrator.clusters import ClusterView, MemberView
from orchestrator.store import Store
from owner import private
from tests.orchestrator.vm.holders import BLIND, SMALL, end_holders, go_wrong, holder_pid, up
from tests.support import eventually, kill

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def vms(repo: Path) -> Iterator[Store]:
    """Return the store of a workspace that has no VMs yet."""
    Workspace(str(repo)).make_state()
    store = Store(repo / ".orchestrator/vms")
    store.make()
    yield store
    end_holders(store)


def seen(store: Store, repo: Path) -> dict[str, MemberView]:
    views, _half = clusters.look(Workspace(str(repo)))
    assert sorted(view.name for view in views) == store.clusters()
    return {member.name: member for view in views for member in view.members}


def shown(repo: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert verbs.status(root=str(repo)) == 3, "the exit code is the hub's: none runs"
    return capsys.readouterr().out


def told(repo: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert verbs.status(root=str(repo), as_json=True) == 3
    return json.loads(capsys.readouterr().out)["data"]


def test_who_has_no_vms_is_told_nothing_of_them(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\nvms" not in shown(repo, capsys)
    now = told(repo, capsys)
    assert (now["clusters"], now["half_removed"]) == ([], [])


def test_status_shows_clusters_with_their_members_states_and_addresses(
    vms: Store, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = up(vms, "web-1", "web-2", "web-10")
    up(vms, "db")
    control.stop(vms, "web-2")
    control.stop(vms, "db")
    text = shown(repo, capsys)
    assert "vms       db: 1 stopped; web: 2 running, 1 stopped\n" in text
    rows = [line.split() for line in text.partition("vms  ")[2].splitlines()[1:]]
    assert rows == [
        ["db", "stopped"],
        ["web-1", "running", found["web-1"].ip],
        ["web-2", "stopped"],
        ["web-10", "running", found["web-10"].ip],
    ]
    now = told(repo, capsys)
    assert now["needs"] == []
    assert [cluster["name"] for cluster in now["clusters"]] == ["db", "web"]
    assert now["clusters"][1]["members"][0] == {
        "name": "web-1",
        "state": "running",
        "ip": found["web-1"].ip,
        "pid": found["web-1"].pid,
        "error": "",
        "reason": "",
    }


@pytest.mark.faults
def test_what_went_wrong_is_what_needs_a_person(
    vms: Store, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up(vms, "web")
    kill(holder_pid(vms, "web"))
    eventually(lambda: not control.is_running(vms, "web"))
    go_wrong(vms, "bad", fail="start")
    with pytest.raises(HubError):
        up(vms, "bad")
    (vms_gone := repo / ".orchestrator/vms/db/.gone-db-1.1.1").mkdir(parents=True)
    members = seen(vms, repo)
    assert (members["web"].state, members["web"].reason) == ("stopped", "holder-killed")
    assert (members["bad"].state, members["bad"].reason) == ("error", "fake-start")
    needs = told(repo, capsys)["needs"]
    assert len(needs) == 3
    assert "`bones vm up bad`" in needs[0]
    assert "`bones vm prune`" in needs[1]
    assert "`bones vm rm db-1`" in needs[2]
    assert vms_gone.exists(), "who looks changes nothing"


@pytest.mark.faults
def test_a_holder_that_hangs_is_waited_for_a_moment_only(vms: Store, repo: Path) -> None:
    up(vms, "web-1", "web-2")
    up(vms, "db")
    pid = holder_pid(vms, "web-1")
    kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        members = seen(vms, repo)
        took_s = time.monotonic() - began
    finally:
        kill(pid, signal.SIGCONT)
    assert took_s < 3 * clusters.ANSWER_WITHIN_S, "for both of its members together"
    assert {members[name].reason for name in ("web-1", "web-2")} == {"no-answer"}
    assert "`bones vm down --force web-1`" in members["web-1"].need()
    assert members["db"].state == "running"


@pytest.mark.faults
def test_a_holder_whose_socket_is_gone_is_not_told_as_ended(vms: Store, repo: Path) -> None:
    up(vms, "web", settings=BLIND)
    Path(vms.place("web").socket).unlink()
    assert seen(vms, repo)["web"].reason == "no-answer"


@pytest.mark.faults
def test_a_holder_that_is_just_being_launched_is_starting(vms: Store, repo: Path) -> None:
    lock = vms.take("web")
    assert lock is not None
    vms.create("web", SMALL)
    listener = foundation_control.listen(vms.place("web").socket)
    view = seen(vms, repo)["web"]
    listener.close()
    private.close(lock)
    assert (view.state, view.need()) == ("starting", "")


def test_a_long_story_is_told_in_a_line() -> None:
    view = MemberView(name="web", state="error", error="it ended\nlast words", reason="vm-died")
    assert "last words" not in view.need()
    assert "it ended;" in view.need()


def test_many_vms_are_counted_not_listed(repo: Path) -> None:
    from hub.status import HubStatus  # noqa: PLC0415
    from orchestrator.status import VMS_SHOWN, Status, render  # noqa: PLC0415

    members = tuple(MemberView(name=f"web-{n}", state="stopped") for n in range(VMS_SHOWN + 5))
    now = Status(
        hub=HubStatus(state="stopped", root=str(repo)),
        tip=None,
        age_s=0.0,
        forks=0,
        slots=(),
        rescues=(),
        unapplied=0,
        clusters=(ClusterView(name="web", egress=True, members=members),),
    )
    text = render(now, as_json=False).stdout
    assert text.count("  web-") == VMS_SHOWN
    assert text.endswith("  and 5 more: `bones vm ls`\n")
