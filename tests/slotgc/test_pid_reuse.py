"""A dead leaf's number given to a stranger, for real: in a pid namespace numbers can be chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.process import Identity
from foundation.workspace import Workspace
from slotgc import dead_slots, live_slots, prune_dead
from slotgc.ending import REFUSED, end
from slotgc.leaf import UNKNOWN, look
from tests.slotgc.leaves import LEAF, has_pid_namespaces, in_pid_namespace, make_slot
from tests.support import CODE

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not has_pid_namespaces(), reason="no unprivileged pid namespaces here"),
]

STAGE = r"""
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from foundation.process import Identity
from foundation.workspace import Workspace
from slotgc import dead_slots, kill, live_slots
from slotgc.leaf import look, write_record

root, signed = sys.argv[2], sys.argv[3] == "signed"
workspace = Workspace(root)
slot = f"{workspace.swarm}/a"
os.makedirs(slot)

def child():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            time.sleep(100)
    return pid

def end(pid):
    os.kill(pid, 9)
    os.waitpid(pid, 0)

def dead_leaf():
    leaf = child()
    write_record(slot, Identity.of(leaf))
    if not signed:
        os.unlink(f"{slot}/leaf.json")
    end(leaf)
    return leaf

def stranger_with(pid):
    for attempt in range(100):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(pid - 1))
        got = child()
        if got == pid:
            return got
        end(got)
    sys.exit("no reuse")

def naive_kill():
    with open(f"{slot}/leaf.pid") as file:
        pid = int(file.read())
    os.kill(pid, signal.SIGTERM)

def survives(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None

victim = stranger_with(dead_leaf())
naive_kill()
print("naive:", signal.Signals(os.waitid(os.P_PID, victim, os.WEXITED).si_status).name)

victim = stranger_with(dead_leaf())
found = look(workspace, "a")
assert found.pid == victim
print("ours:", found.state, dead_slots(root), [s.name for s in live_slots(root)],
      kill(found.pid, workspace_dir=root, grace_s=0.1), kill(found.pid, grace_s=0.1))
print("stranger:", "lives" if survives(victim) else "dead")
end(victim)
"""


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("signed", "ours: dead ['a'] [] False False"),
        ("number", "ours: unknown [] ['a'] False False"),
    ],
)
def test_the_naive_kill_hits_the_stranger_and_ours_does_not(
    tmp_path: Path, kind: str, verdict: str
) -> None:
    own = Identity.of(os.getpid())
    if own is None or own.inode == 0:
        pytest.skip("this kernel's pidfds share one inode: ticks alone may be equal")
    done = subprocess.run(
        in_pid_namespace(sys.executable, "-c", STAGE, str(CODE), str(tmp_path), kind),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["naive: SIGTERM", verdict, "stranger: lives"], done.stderr


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "number"])
def test_a_live_leaf_in_another_pid_namespace_stays(tmp_path: Path, *, signed: bool) -> None:
    """Its number is nobody's here; its record is of elsewhere, and its lock is held."""
    slot = make_slot(tmp_path)
    newest = int(Path("/proc/sys/kernel/ns_last_pid").read_text())
    # Below it: what is above may be given to anybody in the next moment.
    numbers = (*range(newest, 300, -1), *range(30000, 32000))
    unused = next(pid for pid in numbers if not Path(f"/proc/{pid}").exists())
    program = f'echo {unused - 1} > /proc/sys/kernel/ns_last_pid; exec 3<&0; "$@" <&3 & wait'
    with subprocess.Popen(
        in_pid_namespace(
            *("sh", "-c", program, "sh"),
            *(sys.executable, "-c", LEAF, str(CODE), str(tmp_path), "a"),
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as container:
        assert container.stdout is not None
        number = int(container.stdout.readline())
        assert number == unused
        assert not Path(f"/proc/{number}").exists()
        if not signed:
            (slot / "leaf.json").unlink()
        found = look(Workspace(str(tmp_path)), "a")
        assert found.state == UNKNOWN
        assert dead_slots(tmp_path) == []
        assert [slot.name for slot in live_slots(tmp_path)] == ["a"]
        assert prune_dead(str(tmp_path)) == []
        assert slot.is_dir()
        if signed:  # no number is told that another process may have here
            assert (found.pid, end(found.pid).outcome) == (0, REFUSED)
        container.communicate()
    if signed:
        return  # a record of elsewhere stays unknown for ever
    assert dead_slots(tmp_path) == ["a"]
