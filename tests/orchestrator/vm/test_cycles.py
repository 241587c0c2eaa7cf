"""A hundred times up and down: nothing of a VM, nor of a holder, is left."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from bench import vm_cycles
from orchestrator import control
from tests.orchestrator.vm.holders import config
from tests.support import run_python

if TYPE_CHECKING:
    from orchestrator.store import Store

CYCLES = 100
WHOLE = 5
MARK = "of-a-test"


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> str:
    """Mark what is started from now on; return the mark."""
    mark = f"{MARK}-{os.getpid()}"
    monkeypatch.setenv(vm_cycles.MARK, mark)
    return mark


def test_a_vm_that_joins_and_leaves_a_hundred_times_leaves_nothing(
    store: Store, marked: str
) -> None:
    found = vm_cycles.members(store, config("web"), CYCLES, vm_cycles.WARM, marked)
    assert found.leaks == []
    assert found.after.processes == 2, "the holder and its one VM"
    assert found.after.threads <= 2
    assert control.running_members(store) == []


def test_holders_that_come_and_go_leave_nothing(store: Store, marked: str) -> None:
    found = vm_cycles.holders(store, config("web-1", "web-2"), WHOLE, 1, marked)
    assert found.leaks == []
    assert found.after.processes == 0
    assert not [path for path in found.after.files if path.endswith((".sock", ".pid"))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"processes": 3}, "processes: 2 before, 3 after"),
        ({"descriptors": {"socket": 5}}, "descriptors"),
        ({"threads": 2}, "threads"),
        ({"files": ("a", "b")}, "files"),
        ({"rss_kb": 30001 + vm_cycles.ALLOWED_KB}, "memory"),
    ],
)
def test_what_is_left_is_named(change: dict[str, Any], words: str) -> None:
    before = vm_cycles.Footprint(2, {"socket": 4}, 1, ("a",), 30000)
    (leak,) = before._replace(**change).leaks(before)
    assert words in leak
    assert before.leaks(before) == []


@pytest.mark.vm
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_campaign_with_real_vms_finds_nothing_left() -> None:
    done = run_python(
        "import sys; from bench.__main__ import main\n"
        "sys.argv[1:] = ['vm-cycles', '--smoke', '--json']; main()"
    )
    told = json.loads(done.stdout)
    assert [kind["leaks"] for kind in told["kinds"]] == [[], []]
    assert told["processes_left"] == 0
    members, holders = told["kinds"]
    assert members["after"]["processes"] == 3, "the holder, its gateway and a VM"
    assert holders["after"]["processes"] == 0
