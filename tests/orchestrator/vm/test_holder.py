"""The holder's parts: how it is recognised, what it is made of, and the life of a member."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.process import Identity
from orchestrator import control, protocol
from orchestrator.holder import (
    get_runner_vm_names,
    is_runner,
    remove_pidfile,
    write_pidfile,
)
from orchestrator.holder.bound import ParentWatch
from orchestrator.holder.life import NEXT, step
from tests.orchestrator.vm import holders
from tests.support import CODE, run_python

if TYPE_CHECKING:
    from orchestrator.store import Store

# --- a holder's process --------------------------------------------------------------------


def test_a_holder_is_known_by_its_first_argument() -> None:
    argv = ["bones", protocol.RUNNER_FLAG, "web-1,web-2"]
    assert is_runner(argv)
    assert get_runner_vm_names(argv) == ["web-1", "web-2"]
    for other in (["bones"], [], ["bones", "vm", protocol.RUNNER_FLAG, "web-1"]):
        assert not is_runner(other)
        assert get_runner_vm_names(other) == []
    assert get_runner_vm_names(["bones", protocol.RUNNER_FLAG]) == []
    assert not is_runner(), "and this is none"


_RUN = """
import sys
from orchestrator.holder import run
sys.exit(run())
"""


@pytest.mark.parametrize(
    "options",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"v":1}',
        '{"v":1,"store":"/x","clusters":{},"members":{},"settings":1}',
    ],
)
def test_what_was_not_launched_as_a_holder_is_none(options: str) -> None:
    done = run_python(
        _RUN, protocol.RUNNER_FLAG, "web", check=False, **{protocol.OPTIONS_VARIABLE: options}
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert "not launched as a holder" in done.stdout or "does not match" in done.stdout


def test_nothing_in_production_has_the_fake() -> None:
    """What would be selected by a variable would have to be imported somewhere."""
    for source in itertools.chain(
        *((CODE / room).rglob("*.py") for room in ("orchestrator", "hub"))
    ):
        assert "backends.fake" not in source.read_text(), source
        assert "import fake" not in source.read_text(), source


# --- who has a member ----------------------------------------------------------------------


def test_a_pidfile_names_this_very_process(store: Store) -> None:
    Path(store.place("web").directory).mkdir(parents=True)
    write_pidfile(store, "web")
    identity = store.holder_of("web")
    assert identity == Identity.own()
    assert identity is not None
    assert identity.state() == "alive"
    remove_pidfile(store, "web")
    assert store.holder_of("web") is None
    remove_pidfile(store, "web")


def test_a_parent_is_the_process_that_launched_us_and_no_other() -> None:
    assert not ParentWatch(os.getppid()).gone
    assert not ParentWatch(os.getppid()).has_ended()
    assert ParentWatch(os.getpid()).gone, "whoever has the number now is not the parent"
    told = []
    ParentWatch(os.getpid()).begin(lambda: told.append("gone"))
    assert told == ["gone"], "who is gone before it is watched is news, too"


@pytest.mark.faults
def test_a_holder_outlives_the_thread_that_launched_it(store: Store) -> None:
    sessions: list[control.Session] = []
    config = holders.config("web", bound=True)
    thread = threading.Thread(target=lambda: sessions.append(control.spawn(store, config)))
    thread.start()
    thread.join()
    with sessions[0]:
        assert control.wait_members(store, ["web"], 30)["web"].running


# --- a member's life -----------------------------------------------------------------------


def test_every_state_that_is_not_over_can_be_stopped_and_can_end() -> None:
    for state in protocol.STATES - protocol.OVER:
        assert (state, "stop") in NEXT
        assert step(state, "ended") in protocol.OVER
    assert {state for state, _event in NEXT} == protocol.STATES - protocol.OVER


def test_only_what_was_to_end_is_stopped() -> None:
    assert step("stopping", "ended") == "stopped"
    for state in protocol.STATES - protocol.OVER - {"stopping"}:
        assert step(state, "ended") == "error"


def test_nothing_makes_a_stopping_member_run_again() -> None:
    after = {new for (state, _event), new in NEXT.items() if state == "stopping"}
    assert after == {"stopping", "stopped"}


def test_an_impossible_step_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="ready while stopped"):
        step("stopped", "ready")
