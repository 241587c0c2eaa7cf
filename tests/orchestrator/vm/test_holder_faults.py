"""A holder on a machine that fails it: a full disk, a directory that has gone, too many at once."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from orchestrator import control, protocol
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.holders import config, go_wrong
from tests.support import CODE, eventually, kill

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.control import SpawnConfig
    from orchestrator.store import Store

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
