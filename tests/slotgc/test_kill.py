"""What is provably ours is ended; nobody else is even signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from foundation.process import PID_MAX
from slotgc import ending, kill
from slotgc.ending import ABSENT, ENDED, KILLED, REFUSED, Ending, end
from tests.slotgc.leaves import STUBBORN, leaf, make_slot, mark, process, sign
from tests.support import eventually, run_python, stranger


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


# --- ours --------------------------------------------------------------------------------------


def test_a_process_with_our_mark_ends(tmp_path: Path) -> None:
    with process(variables=mark(tmp_path)) as running:
        assert kill(running.pid)
        assert running.wait() == -signal.SIGTERM
        assert kill(running.pid)  # it is gone: nothing is left to do


def test_a_leaf_ends_and_lets_go_of_its_slot(tmp_path: Path) -> None:
    make_slot(tmp_path)
    with leaf(tmp_path) as running:
        assert end(running.pid, workspace_dir=tmp_path) == Ending(
            pid=running.pid, outcome=ENDED, reason=f"pid {running.pid} ended after SIGTERM"
        )
        assert running.wait() == -signal.SIGTERM


def test_a_process_that_a_leaf_record_names_ends_without_a_mark(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process() as running:
        sign(slot, running.pid)
        assert kill(running.pid, workspace_dir=tmp_path)
        assert running.wait() == -signal.SIGTERM


def test_the_records_of_the_workspace_around_count(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = make_slot(repo)
    monkeypatch.chdir(repo / "src")
    with process() as running:
        assert not kill(running.pid)
        sign(slot, running.pid)
        assert kill(running.pid)
        assert running.wait() == -signal.SIGTERM


def test_the_stubborn_is_killed_at_the_end_of_grace(tmp_path: Path) -> None:
    with process(*STUBBORN, variables=mark(tmp_path), ready=True) as running:
        ended = end(running.pid, grace_s=0.05)
        assert ended.outcome == KILLED
        assert "0.05 s" in ended.reason
        assert running.wait() == -signal.SIGKILL


def test_a_stopped_process_is_woken_to_obey(tmp_path: Path) -> None:
    with process(variables=mark(tmp_path)) as running:
        running.send_signal(signal.SIGSTOP)
        eventually(lambda: is_stopped(running.pid))
        assert end(running.pid, grace_s=10).outcome == ENDED
        assert running.wait() == -signal.SIGTERM


def test_a_stopped_and_stubborn_process_is_killed(tmp_path: Path) -> None:
    with process(*STUBBORN, variables=mark(tmp_path), ready=True) as running:
        running.send_signal(signal.SIGSTOP)
        assert end(running.pid, grace_s=0.05).outcome == KILLED
        assert running.wait() == -signal.SIGKILL


def test_its_end_is_noticed_at_once_whoever_brings_it_about(tmp_path: Path) -> None:
    with process(*STUBBORN, variables=mark(tmp_path), ready=True) as running:
        assassin = threading.Timer(0.1, running.kill)
        assassin.start()
        began = time.monotonic()
        assert kill(running.pid, grace_s=30)
        assert time.monotonic() - began < 10
        assassin.join()


def test_one_that_ends_between_the_proof_and_the_signal_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = ending._is_ours
    with process(variables=mark(tmp_path)) as running:

        def prove_and_lose(*arguments: object) -> bool:
            proved = prove(*arguments)  # type: ignore[arg-type] # passed on as they came
            running.kill()
            running.wait()
            return proved

        monkeypatch.setattr(ending, "_is_ours", prove_and_lose)
        assert end(running.pid).outcome == ABSENT


def test_nobody_and_a_zombie_are_gone_already(tmp_path: Path) -> None:
    assert end(PID_MAX).outcome == ABSENT
    with process(variables=mark(tmp_path)) as running:
        running.kill()
        eventually(lambda: end(running.pid).outcome == ABSENT)
        os.kill(running.pid, 0)  # it still answers
        assert kill(running.pid)


def test_a_thread_s_number_is_nobody_and_its_process_lives() -> None:
    gate, numbers = threading.Event(), [0]

    def run() -> None:
        numbers[0] = threading.get_native_id()
        gate.wait()

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: numbers[0] != 0)
    assert end(numbers[0]).outcome == ABSENT
    assert thread.is_alive()
    gate.set()
    thread.join()


# --- not ours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pid", [0, 1, -1, -2, -(2**31), PID_MAX + 1, 2**31, 2**63, 2**64])
def test_a_number_that_is_no_process_of_ours_is_refused(pid: int) -> None:
    assert not kill(pid)
    assert end(pid).outcome == REFUSED


@pytest.mark.parametrize("value", [True, False, None, "123", b"123", 123.0, 1e3, [123], "self"])
def test_what_is_no_int_is_a_mistake(value: object) -> None:
    with pytest.raises(TypeError, match="pid"):
        kill(value)  # type: ignore[arg-type] # the point


@pytest.mark.parametrize("grace_s", [-0.1, float("nan"), float("inf")])
def test_what_is_no_time_is_a_mistake(grace_s: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        kill(PID_MAX, grace_s=grace_s)


def test_this_process_and_those_above_it_are_refused(tmp_path: Path) -> None:
    """All of them carry our mark: an agent that cleans up must not take itself along."""
    itself = "import os; from slotgc.ending import end; print(end(os.getpid()).outcome)"
    assert run_python(itself, BONES_WORKSPACE=str(tmp_path)).stdout == "refused\n"
    above = """
import os, subprocess, sys
below = "import sys; from slotgc.ending import end; print(end(int(sys.argv[1])).outcome)"
middle = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)"
subprocess.run([sys.executable, "-c", middle, below, str(os.getpid())], check=True)
print("alive")
"""
    assert run_python(above, BONES_WORKSPACE=str(tmp_path)).stdout == "refused\nalive\n"


def test_a_stranger_lives(tmp_path: Path) -> None:
    with stranger() as one:
        make_slot(tmp_path, "a", one.pid)
        assert end(one.pid) == end(one.pid, workspace_dir=tmp_path)
        assert end(one.pid).reason == f"nothing proves that pid {one.pid} is ours"


def test_the_mark_of_another_workspace_is_no_proof_for_this_one(tmp_path: Path) -> None:
    for foreign in (mark(tmp_path / "other"), mark(tmp_path / "here" / "below"), mark(Path("/"))):
        with process(variables=foreign) as running:
            assert not kill(running.pid, workspace_dir=tmp_path / "here")
            assert running.poll() is None
            assert kill(running.pid)


@pytest.mark.parametrize(
    "variables",
    [
        {"BONES_WORKSPACE": ""},
        {"XBONES_WORKSPACE": "/x"},
        {"BONES_WORKSPACES": "/x"},
        {"OTHER": "BONES_WORKSPACE=/x"},
        {"OTHER": "\nBONES_WORKSPACE=/x"},
    ],
)
def test_what_only_resembles_the_mark_is_no_proof(variables: dict[str, str]) -> None:
    with process(variables=variables) as running:
        assert not kill(running.pid)
        assert running.poll() is None


def test_a_mark_in_the_arguments_is_no_proof(tmp_path: Path) -> None:
    with process("sh", "-c", "read line", f"BONES_WORKSPACE={tmp_path}") as running:
        assert not kill(running.pid)
        assert running.poll() is None


def test_a_workspace_by_way_of_a_link_is_the_same_workspace(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    with process(variables=mark(tmp_path / "here")) as running:
        assert kill(running.pid, workspace_dir=tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's process")
def test_another_user_s_process_is_refused_although_root_could(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process("setpriv", "--reuid=65534", "sleep", "1000", variables=mark(tmp_path)) as running:
        eventually(lambda: os.stat(f"/proc/{running.pid}").st_uid == 65534)
        sign(slot, running.pid)
        assert end(running.pid, workspace_dir=tmp_path).outcome == REFUSED
        assert running.poll() is None


def test_a_refusal_sends_no_signal_at_all() -> None:
    """Not even one that would be ignored: this process would tell of it."""
    telltale = "trap 'echo signalled' TERM CONT; echo ready; while read line; do echo $line; done"
    with process("sh", "-c", telltale, ready=True) as running:
        assert not kill(running.pid)
        out, _ = running.communicate(b"asked\n")
        assert out == b"asked\n"


def test_no_descriptor_is_left_by_any_of_it(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process(variables=mark(tmp_path)) as ours, stranger() as other:
        sign(slot, ours.pid)
        before = len(os.listdir("/proc/self/fd"))
        for pid in (0, PID_MAX, other.pid, os.getpid(), ours.pid, ours.pid):
            kill(pid, workspace_dir=tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_hundred_processes_in_turn_are_all_gone(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(["sleep", "1000"], env={**os.environ, **mark(tmp_path)})
        for _turn in range(100)
    ]
    assert all(kill(one.pid, workspace_dir=tmp_path) for one in running)
    assert {one.wait() for one in running} == {-signal.SIGTERM}
