"""``bones vm rm`` killed at every step: there is a whole VM or none, and the next one finishes."""

from __future__ import annotations

import ast
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation import failpoint
from foundation.workspace import Workspace
from orchestrator import control, vm_verbs
from orchestrator.store import Store
from orchestrator.vm_cli import app  # noqa: F401 - loaded once, before the forks
from owner import private
from swarm import asking  # noqa: F401 - likewise
from tests.orchestrator.vm.holders import SMALL, config, end_holders, holder_pid, up
from tests.support import CODE, eventually, kill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.faults]

VERB = ("rm.asked", "rm.stopped", "rm.destroyed")
DESTROY = (
    "destroy.locked",
    "destroy.renamed",
    "destroy.synced",
    "destroy.removed",
    "destroy.unlocked",
)
WITHIN = ("gc.removing", "gc.removing@3")
"""Between the files of the member's directory."""
SWEEP = ("sweep.removed",)
STEPS = (*VERB, *DESTROY, *WITHIN)
DEAR = b"dear"


@pytest.fixture
def vms(repo: Path) -> Iterator[Store]:
    """Return the store of a workspace that has no VMs yet."""
    Workspace(str(repo)).make_state()
    store = Store(repo / ".orchestrator/vms")
    store.make()
    yield store
    end_holders(store)


def killed_at(step: str, act: Callable[[], int]) -> None:
    """Have a process of its own *act*, which is killed at *step*."""
    child = os.fork()
    if child == 0:
        os.environ[failpoint.VARIABLE] = step
        failpoint._hits.clear()
        os._exit(act())
    _pid, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, step


def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Return what ``bones vm ls`` shows, by name."""
    capsys.readouterr()
    assert vm_verbs.ls(root=str(root), as_json=True) == 0
    return {vm["name"]: vm for vm in json.loads(capsys.readouterr().out)["data"]["vms"]}


def mark(store: Store, name: str) -> None:
    """Write to the disk of *name* what must not be lost, nor come back."""
    with open(store.place(name).disk, "r+b") as disk:
        disk.write(DEAR)


def content(store: Store, name: str) -> bytes:
    return Path(store.place(name).disk).read_bytes()[: len(DEAR)]


def created(store: Store, name: str) -> None:
    """Create *name*, with a disk, as one that has been stopped."""
    lock = store.take(name)
    assert lock is not None
    store.create(name, SMALL)
    private.close(lock)
    Path(store.place(name).disk).write_bytes(DEAR.ljust(1 << 20, b"\0"))


def is_whole_or_gone(
    store: Store, root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> bool:
    """Tell whether *name* is there, with all that is its own; else nothing says that it is."""
    shown = listed(root, capsys)
    place = store.place(name)
    if name not in shown:
        assert not os.path.exists(place.directory)
        assert not store.exists(name)
        return False
    assert (shown[name]["state"], shown[name]["error"]) in {("running", ""), ("stopped", "")}
    assert content(store, name) == DEAR
    assert {"config.json", "disk.raw", "console.log"} <= set(os.listdir(place.directory))
    assert store.config(name).options == SMALL
    return True


@pytest.mark.parametrize("step", STEPS)
def test_an_rm_that_is_killed_at_a_step_leaves_a_vm_or_none_and_no_other_is_touched(
    vms: Store, repo: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    before = up(vms, "web-1", "web-2")
    holder = holder_pid(vms, "web-2")
    created(vms, "db")
    mark(vms, "web-1")
    mark(vms, "web-2")

    def rm() -> int:
        return vm_verbs.rm(["web-1"], yes=True, root=str(repo))

    def others_are_as_before() -> None:
        assert control.get_status(vms, "web-2") == before["web-2"]
        assert holder_pid(vms, "web-2") == holder
        assert content(vms, "web-2") == content(vms, "db") == DEAR

    killed_at(step, rm)
    was_there = is_whole_or_gone(vms, repo, "web-1", capsys)
    assert was_there == (step in {"rm.asked", "rm.stopped", "destroy.locked"})
    others_are_as_before()

    _session, found = control.bring_up(vms, config("web-1"), timeout_s=30)
    assert found["web-1"].running
    assert content(vms, "web-1") == (DEAR if was_there else bytes(len(DEAR)))
    assert os.path.getsize(vms.place("web-1").disk) == SMALL.disk_mb << 20
    mark(vms, "web-1")

    killed_at(step, rm)
    is_whole_or_gone(vms, repo, "web-1", capsys)
    was_known = vms.exists("web-1") or "web-1" in vms.half_removed()
    capsys.readouterr()
    assert rm() == (0 if was_known else 1)
    said = capsys.readouterr()
    assert said.out == "web-1 removed\n" if was_known else "no such VM" in said.err
    assert not is_whole_or_gone(vms, repo, "web-1", capsys)
    assert sorted(os.listdir(f"{vms.directory}/web")) == ["web-2"], "nothing of it is left"
    others_are_as_before()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("then", ["rm", "prune"])
def test_a_whole_cluster_that_is_half_removed_is_finished_by_whatever_comes_next(
    vms: Store, repo: Path, capsys: pytest.CaptureFixture[str], step: str, then: str
) -> None:
    created(vms, "db")
    created(vms, "web")
    killed_at(step, lambda: vm_verbs.rm(["web"], yes=True, root=str(repo)))
    left = list(listed(repo, capsys))
    assert left in (["db"], ["db", "web"])
    half = vms.half_removed()
    assert half in ([], ["web"])
    if then == "prune":
        assert vm_verbs.prune(root=str(repo), as_json=True) == 0
        assert json.loads(capsys.readouterr().out)["data"] == {"cleared": [], "removed": half}
        if "web" in left:
            assert vm_verbs.rm(["web"], yes=True, root=str(repo)) == 0
    else:
        assert vm_verbs.rm(["web"], yes=True, root=str(repo)) == (0 if half or "web" in left else 1)
        vms.sweep()  # where there was nothing to remove, an empty directory may be left
    assert os.listdir(vms.directory) == ["db"]
    assert content(vms, "db") == DEAR


@pytest.mark.parametrize("step", [*SWEEP, *WITHIN])
def test_what_finishes_a_removal_may_be_killed_too(
    vms: Store, repo: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    def rm() -> int:
        return vm_verbs.rm(everything=True, yes=True, root=str(repo))

    created(vms, "web-1")
    created(vms, "web-2")
    for name in ("web-1", "web-2"):  # so that there is enough to be killed within
        for number in range(3):
            Path(vms.place(name).directory, f"file-{number}").touch()
    killed_at("destroy.renamed", lambda: int(vms.destroy("web-1")))
    assert vms.half_removed() == ["web-1"]
    killed_at(step, rm)
    assert set(listed(repo, capsys)) <= {"web-2"}
    assert rm() == 0
    assert os.listdir(vms.directory) == []


def test_a_cluster_of_which_only_half_a_removal_is_left_is_removed_by_its_name(
    vms: Store, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    created(vms, "web-1")
    killed_at("destroy.synced", lambda: int(vms.destroy("web-1")))
    assert listed(repo, capsys) == {}
    assert vm_verbs.rm(["web"], yes=True, root=str(repo)) == 0
    assert capsys.readouterr().out == "web-1 removed\n"
    assert os.listdir(vms.directory) == []


def test_a_vm_whose_holder_was_killed_is_removed_like_any_other(
    vms: Store, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up(vms, "web")
    kill(holder_pid(vms, "web"))
    eventually(lambda: not control.is_running(vms, "web"))
    assert vm_verbs.rm(["web"], yes=True, root=str(repo)) == 0
    assert capsys.readouterr().out == "web removed\n"
    assert os.listdir(vms.directory) == []


def _failpoints(path: str, function: str) -> set[str]:
    """Return the names at which *function* of the module at *path* can be killed."""
    tree = ast.parse((CODE / path).read_text())
    (found,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    return {
        str(call.args[0].value)
        for call in ast.walk(found)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "hit"
        and isinstance(call.args[0], ast.Constant)
    }


def test_no_failpoint_of_a_removal_is_left_out() -> None:
    assert _failpoints("orchestrator/vm_removal.py", "rm") == set(VERB)
    assert _failpoints("orchestrator/store.py", "destroy") == set(DESTROY)
    assert _failpoints("orchestrator/store.py", "sweep") == set(SWEEP)
    within = {step.partition("@")[0] for step in WITHIN}
    assert _failpoints("slotgc/removal.py", "_empty") == within
    assert _failpoints("slotgc/removal.py", "remove_tree") == set()
