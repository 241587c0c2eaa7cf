"""The client's half: launching, asking, waiting, adding, stopping."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError, OwnedByAnother, Refused, Unavailable
from foundation.process import Identity, children_of, wait_exit
from orchestrator import control, protocol, requests
from orchestrator.cluster import VM
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.holders import config, go_wrong, up
from tests.support import CODE, eventually, is_gone, kill, stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.store import Store

pytestmark = pytest.mark.faults

# --- a launch ------------------------------------------------------------------------------


def test_a_detached_holder_leads_a_session_and_names_itself_for_each_member(store: Store) -> None:
    found = up(store, "web-1", "web-2")
    pid = holders.holder_pid(store, "web-1")
    assert pid == holders.holder_pid(store, "web-2")
    assert os.getsid(pid) == pid != os.getsid(0)
    assert [status.state for status in found.values()] == ["running", "running"]
    assert [status.ip for status in found.values()] == ["10.77.0.11", "10.77.0.12"]
    for name in found:
        socket = os.stat(store.place(name).socket)
        assert socket.st_mode & 0o777 == 0o600
        assert store.take(name) is None, "the holder has the lock for its life"
    assert os.readlink(f"/proc/{pid}/cwd") == "/", "it keeps nobody's worktree in use"


def test_a_launch_does_not_wait_for_the_boot(store: Store, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    go_wrong(store, "web", ready_gate=str(gate))
    with control.spawn(store, config("web", bound=True)):
        assert control.get_status(store, "web").state == protocol.STARTING
        assert control.is_running(store, "web")
        gate.touch()
        assert control.wait_members(store, ["web"], 30)["web"].running


def test_a_members_options_are_frozen_before_it_boots(store: Store, tmp_path: Path) -> None:
    go_wrong(store, "web", gate=str(tmp_path / "never"))
    with control.spawn(store, config("web", bound=True)):
        assert store.config("web").options == holders.SMALL


@pytest.mark.parametrize("names", [(), ("web", "web"), ("Web",), ("../web",), ("",)])
def test_a_launch_with_wrong_names_is_refused(store: Store, names: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        control.spawn(store, config(*names))
    assert caught.value.reason == "bad-name"
    assert store.members() == []


@pytest.mark.parametrize("bound", [True, False])
def test_a_holder_that_dies_at_once_is_told_with_its_last_words(store: Store, bound: bool) -> None:
    dying = config("web", bound=bound).replace(
        program=(holders.PROGRAM[0], "-c", "raise SystemExit('no luck')")
    )
    former = Path(store.place("web").pidfile)
    former.parent.mkdir(parents=True)
    former.write_text("of a holder that was killed")
    with pytest.raises(HubError, match="no luck") as caught:
        control.spawn(store, dying)
    assert not former.exists()
    assert caught.value.reason == "holder-died"
    assert not control.is_running(store, "web")


_OTHER_VERSION = """
import json, os, socket, sys, time
fd = json.loads(os.environ["BONES_VM_OPTIONS"])["members"]["web"][1]
client = socket.socket(fileno=fd).accept()[0]
client.recv(65536)
with open(os.environ["PID_FILE"], "w") as file:
    file.write(str(os.getpid()))
client.sendall(b'{"v":1,"data":{"version":99}}\\n')
time.sleep(1000)
"""


@pytest.mark.parametrize("bound", [True, False])
def test_a_holder_of_another_version_is_refused_loudly_and_ended(
    store: Store, bound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    other = config("web", bound=bound).replace(program=(holders.PROGRAM[0], "-c", _OTHER_VERSION))
    with pytest.raises(Unavailable, match=r"version 99, which does not match") as caught:
        control.spawn(store, other)
    assert caught.value.reason == "protocol-version"
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert store.exists("web") != bound, "what a detached one said is kept"


# --- waiting -------------------------------------------------------------------------------


def test_a_download_is_announced_once_and_not_charged_to_the_boot(
    store: Store, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    for name in ("web-1", "web-2"):
        go_wrong(store, name, downloads="fetching the kernel", gate=str(gate))
    said = []

    def announce(words: str) -> None:
        said.append(words)
        assert control.get_status(store, "web-1").state == protocol.DOWNLOADING
        until = time.monotonic() + 1.5  # longer than the boot may take
        eventually(lambda: time.monotonic() > until)
        gate.touch()

    with control.spawn(store, config("web-1", "web-2", bound=True)):
        found = control.wait_members(store, ["web-1", "web-2"], 1.2, announce)
    assert said == ["fetching the kernel"]
    assert all(status.state == protocol.RUNNING for status in found.values())


def test_an_error_of_one_is_told_at_once_though_another_hangs(store: Store, tmp_path: Path) -> None:
    go_wrong(store, "web-1", gate=str(tmp_path / "never"))
    go_wrong(store, "web-2", fail="ready")
    with control.spawn(store, config("web-1", "web-2", bound=True)):
        with pytest.raises(HubError, match="VM web-2: the fake was told to fail") as caught:
            control.wait_members(store, ["web-1", "web-2"], 60)
        assert caught.value.reason == "fake-ready"
        assert control.get_status(store, "web-1").state == protocol.STARTING


def test_a_boot_that_hangs_is_late_for_the_client_and_given_up_by_the_holder(
    store: Store, tmp_path: Path
) -> None:
    go_wrong(store, "web", ready_gate=str(tmp_path / "never"))
    with control.spawn(store, config("web", bound=True, settings={"boot_within_s": 0.6})):
        with pytest.raises(Unavailable, match=r"not up after 0\.1 s: web") as caught:
            control.wait_members(store, ["web"], 0.1)
        assert caught.value.reason == "boot-timeout"
        with pytest.raises(HubError, match=r"did not answer within 0\.6 s"):
            control.wait_members(store, ["web"], 60)


@pytest.mark.parametrize("step", ["prepare", "start", "ready"])
def test_a_failed_boot_is_an_error_and_costs_no_disk(store: Store, step: str) -> None:
    up(store, "web")
    control.stop(store, "web")
    disk = Path(store.place("web").disk)
    disk.write_bytes(b"dear to somebody")
    go_wrong(store, "web", fail=step)
    with control.spawn(store, config("web", bound=True)), pytest.raises(HubError, match=step):
        control.wait_members(store, ["web"], 30)
    status = control.get_status(store, "web")
    assert (status.state, status.running, status.reason) == ("error", False, f"fake-{step}")
    assert disk.read_bytes() == b"dear to somebody"
    go_wrong(store, "web")
    assert up(store, "web")["web"].error == ""


def test_a_detached_boot_that_fails_at_once_is_told_as_what_it_is(store: Store) -> None:
    for _ in range(5):
        go_wrong(store, "web", fail="prepare")
        with control.spawn(store, config("web")), pytest.raises(HubError) as caught:
            control.wait_members(store, ["web"], 30)
        assert caught.value.reason == "fake-prepare"


# --- states --------------------------------------------------------------------------------


def test_a_member_that_no_holder_has_is_as_the_disk_says(store: Store) -> None:
    with pytest.raises(Refused, match="no VM web") as caught:
        control.get_status(store, "web")
    assert caught.value.reason == "no-such-vm"
    up(store, "web")
    control.stop(store, "web")
    status = control.get_status(store, "web")
    assert (status.state, status.running, status.pid, status.error) == ("stopped", False, 0, "")
    assert not control.is_running(store, "web")


def test_a_member_whose_holder_was_killed_is_stopped_and_says_so(store: Store) -> None:
    up(store, "web")
    pid = holders.holder_pid(store, "web")
    kill(pid)
    holders.gone(pid)
    status = control.get_status(store, "web")
    assert (status.state, status.reason) == ("stopped", "holder-killed")
    assert str(pid) in status.error
    assert not control.is_running(store, "web")


def test_a_vm_that_dies_by_itself_is_an_error_at_once_and_the_others_go_on(store: Store) -> None:
    found = up(store, "web-1", "web-2")
    holder = holders.holder_pid(store, "web-1")
    kill(found["web-1"].pid)
    eventually(lambda: control.get_status(store, "web-1").state == protocol.ERROR)
    status = control.get_status(store, "web-1")
    assert status.reason == "vm-died"
    assert "killed by signal 9" in status.error
    assert ("web-1", "error") in holders.events(store, "web-1")
    place = store.place("web-1")
    assert not os.path.exists(place.socket)
    assert not os.path.exists(place.pidfile)
    assert control.get_status(store, "web-2").running
    kill(found["web-2"].pid)
    holders.gone(holder)


# --- stopping ------------------------------------------------------------------------------


def test_a_stop_answers_after_the_fact_and_the_last_one_ends_the_holder(store: Store) -> None:
    found = up(store, "web-1", "web-2")
    holder = holders.holder_pid(store, "web-1")
    assert control.stop(store, "web-1") == "agent"
    assert is_gone(found["web-1"].pid)
    place = store.place("web-1")
    assert not os.path.exists(place.socket)
    assert not os.path.exists(place.pidfile)
    assert not is_gone(holder)
    assert control.stop(store, "web-2") == "agent"
    assert is_gone(found["web-2"].pid)
    assert is_gone(holder)
    assert control.stop(store, "web-2") == "not-running"
    with pytest.raises(Refused, match="no VM web-3"):
        control.stop(store, "web-3")


def test_a_vm_that_does_not_go_is_killed_within_the_deadline(store: Store) -> None:
    go_wrong(store, "web", stays=True)
    found = up(store, "web")
    assert control.stop(store, "web", timeout_s=5.2) == "killed"
    assert is_gone(found["web"].pid)


@pytest.mark.parametrize("gate", ["gate", "start_gate", "ready_gate"])
def test_a_boot_can_be_stopped_wherever_it_is(store: Store, tmp_path: Path, gate: str) -> None:
    path = tmp_path / "gate"
    go_wrong(store, "web", **{gate: str(path)})
    with control.spawn(store, config("web", bound=True)) as session:
        if gate == "start_gate":  # what a start makes must be ended, too
            path.touch()
        assert control.stop(store, "web") in {"not-booted", "agent"}
        holders.gone(session.pid)
    assert control.get_status(store, "web").state == protocol.STOPPED


def test_a_vm_that_starts_while_it_is_stopped_is_ended_too(store: Store, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    go_wrong(store, "web-2", start_gate=str(gate))
    with control.spawn(store, config("web-1", "web-2", bound=True)) as session:
        sibling = control.wait_members(store, ["web-1"], 30)["web-1"]
        stopping = threading.Thread(target=control.stop, args=(store, "web-2"))
        stopping.start()
        eventually(lambda: control.get_status(store, "web-2").state == protocol.STOPPING)
        gate.touch()
        stopping.join()
        children = children_of(session.pid)
        for pidfd in children.values():
            os.close(pidfd)
        assert set(children) == {sibling.pid}


def test_one_signal_stops_all_members_side_by_side(store: Store) -> None:
    names = [f"web-{number}" for number in range(1, 6)]
    for name in names:
        go_wrong(store, name, stays=True)
    found = up(store, *names, settings={"stop_within_s": 5.5})
    holder = holders.holder_pid(store, names[0])
    pidfd = os.pidfd_open(holder)
    try:
        began = time.monotonic()
        kill(holder, 15)
        assert wait_exit(pidfd, 10)
        took_s = time.monotonic() - began
    finally:
        os.close(pidfd)
    assert 0.5 <= took_s < 2.0, "five times half a second, one after the other, is more"
    assert all(is_gone(status.pid) for status in found.values())
    assert {control.get_status(store, name).state for name in names} == {"stopped"}


def test_a_holder_that_hangs_is_ended_by_its_identity(store: Store) -> None:
    found = up(store, "web")
    holder = holders.holder_pid(store, "web")
    kill(holder, 19)
    with pytest.raises(Unavailable) as caught:
        control.stop(store, "web", timeout_s=-protocol.ANSWER_WITHIN_S + 0.1)
    assert caught.value.reason == "no-answer"
    assert control.end_holder(store, "web", grace_s=0.1)
    holders.gone(holder, found["web"].pid)
    assert not control.end_holder(store, "web")
    assert up(store, "web")["web"].running


def test_a_stranger_that_a_pidfile_names_is_not_touched(store: Store) -> None:
    up(store, "web")
    control.stop(store, "web")
    with stranger() as process:
        identity = Identity.of(process.pid)
        assert identity is not None
        Path(store.place("web").pidfile).write_text(json.dumps(identity.as_dict()))
        assert not control.end_holder(store, "web")
    Path(store.place("web").pidfile).unlink()


# --- joining -------------------------------------------------------------------------------


def test_a_member_joins_at_run_time_on_the_same_network(store: Store) -> None:
    up(store, "web-1")
    joined = control.add_member(store, "web-1", "web-2", options=holders.SMALL)
    assert (joined.state, joined.ip) == ("running", "10.77.0.12")
    assert holders.holder_pid(store, "web-1") == holders.holder_pid(store, "web-2")
    again = control.add_member(store, "web-1", "web-2")
    assert again == joined, "one that is a member already is not touched"
    control.stop(store, "web-2")
    assert control.add_member(store, "web-1", "web-2").ip == joined.ip
    assert store.config("web-2").options == holders.SMALL


def test_a_member_that_fails_to_join_harms_nobody(store: Store) -> None:
    up(store, "web-1")
    go_wrong(store, "web-2", fail="start")
    with pytest.raises(HubError, match="VM web-2"):
        control.add_member(store, "web-1", "web-2", options=holders.SMALL)
    assert control.get_status(store, "web-1").running
    go_wrong(store, "web-2")
    assert control.add_member(store, "web-1", "web-2").running


def test_who_is_another_holders_cannot_join(store: Store) -> None:
    up(store, "web-1")
    up(store, "db-1")
    with pytest.raises(OwnedByAnother) as caught:
        control.add_member(store, "web-1", "db-2", options=holders.SMALL)
    assert caught.value.reason == "taken"
    with pytest.raises(OwnedByAnother, match="VM web-1 is taken"):
        control.spawn(store, config("web-1"))
    with pytest.raises(OwnedByAnother) as caught:
        control.spawn(store, config("web-2"))
    assert caught.value.reason == "cluster-running"
    with pytest.raises(Unavailable, match="no holder that web-2 could join"):
        control.add_member(store, "web-9", "web-2")


def test_members_of_two_clusters_may_share_a_network_for_as_long_as_they_do(store: Store) -> None:
    up(store, "web-1", "db-1")
    assert holders.holder_pid(store, "web-1") == holders.holder_pid(store, "db-1")
    with pytest.raises(OwnedByAnother):
        control.spawn(store, config("db-2"))
    control.stop(store, "db-1")
    assert up(store, "db-2")["db-2"].ip == "10.77.0.11", "which is another network now"
    assert control.get_status(store, "web-1").running


_BRING_UP = """
import sys
from foundation.errors import HubError
from orchestrator import control
from orchestrator.store import Store
from tests.orchestrator.vm.holders import config
sys.stdin.readline()
store, verb, names = Store(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
try:
    if verb == "spawn":
        control.spawn(store, config(*names)).close()
        found = control.wait_members(store, names, 30)
    else:
        _session, found = control.bring_up(store, config(*names), timeout_s=30)
    print("up", *(status.pid for status in found.values()), flush=True)
except HubError as error:
    print(error.reason, flush=True)
"""


def _race(store: Store, verb: str, *contenders: str) -> list[str]:
    clients = [
        holders.begin_client(_BRING_UP, store.directory, verb, names) for names in contenders
    ]
    try:
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        return [holders.line_of(client) for client in clients]
    finally:
        for client in clients:
            client.communicate()


def test_of_two_that_launch_one_name_one_boots_it_and_the_other_is_told(store: Store) -> None:
    said = _race(store, "spawn", "web-1", "web-1", "web-1")
    assert [words.split()[0] for words in said].count("up") == 1
    assert {words.split()[0] for words in said} <= {"up", "taken", "cluster-running"}


def test_of_several_that_bring_up_one_cluster_all_get_the_same_vms(store: Store) -> None:
    said = _race(store, "bring_up", "web-1", "web-1", "web-1,web-2", "web-2")
    assert all(words.startswith("up ") for words in said), said
    pids = {name: control.get_status(store, name).pid for name in ("web-1", "web-2")}
    one, two = f"up {pids['web-1']}", f"up {pids['web-2']}"
    assert said == [one, one, f"{one} {pids['web-2']}", two]
    children = children_of(holders.holder_pid(store, "web-1"))
    assert set(children) == set(pids.values())
    for pidfd in children.values():
        os.close(pidfd)


def test_an_up_during_a_stop_waits_for_that_and_boots_again(store: Store) -> None:
    go_wrong(store, "web-1", stays=True)
    first = up(store, "web-1")["web-1"]
    with holders.client(_STOP, store.directory):
        eventually(lambda: control.get_status(store, "web-1").state == protocol.STOPPING)
        go_wrong(store, "web-1")
        former = holders.holder_pid(store, "web-1")
        _session, found = control.bring_up(store, config("web-1"), timeout_s=30)
    assert holders.holder_pid(store, "web-1") != former, "it ended with its last member"
    assert found["web-1"].running
    assert found["web-1"].pid != first.pid


_STOP = """
import sys
from orchestrator import control
from orchestrator.store import Store
control.stop(Store(sys.argv[1]), "web-1", timeout_s=5.5)
"""


# --- a guest -------------------------------------------------------------------------------


def test_a_command_runs_to_its_status_and_its_output_comes_as_it_is_written(
    store: Store, tmp_path: Path
) -> None:
    up(store, "web")
    ran = control.execute(
        store,
        "web",
        ["sh", "-c", "cat; echo $A >&2; exit 3"],
        stdin=[b"in", b"put"],
        env={"A": "b"},
    )
    assert (ran.status, ran.stdout, ran.stderr) == (3, b"input", b"b\n")
    gate, seen = tmp_path / "gate", []

    def output(which: int, content: bytes) -> None:
        seen.append((which, content))
        gate.touch()  # the command goes on only when its first line has come

    script = f"echo one; while ! [ -e {gate} ]; do sleep 0.01; done; echo two"
    ran = control.execute(store, "web", ["sh", "-c", script], output=output)
    assert (ran.status, ran.stdout) == (0, b"")
    assert seen == [(1, b"one\n"), (1, b"two\n")]
    big = control.execute(store, "web", ["head", "-c", "3000000", "/dev/zero"])
    assert len(big.stdout) == 3000000


_RUN = """
import sys
from orchestrator import control
from orchestrator.store import Store
control.execute(Store(sys.argv[1]), "web", ["sh", "-c", "echo $$; exec sleep 1000"],
                output=lambda which, content: print(content.decode(), end="", flush=True))
"""


def test_a_command_that_takes_too_long_is_killed_and_the_next_one_runs(store: Store) -> None:
    up(store, "web")
    vm = VM(store, "web")
    said: dict[int, bytes] = {}
    script = "cat >&2; echo $$; exec sleep 1000"
    with pytest.raises(Unavailable, match=r"sh had not ended after 1 s, and was killed") as late:
        vm.execute(
            ["sh", "-c", script],
            stdin=b"in",
            output=lambda which, content: said.update({which: content}),
            timeout_s=1,
        )
    assert (late.value.reason, late.value.exit_code) == ("timed-out", 75)
    assert said[2] == b"in", "what it wrote until then has been told"
    holders.gone(int(said[1]))
    assert vm.execute(["echo", "fine"], timeout_s=30).stdout == b"fine\n"
    assert vm.execute(["sh", "-c", "exit 7"], timeout_s=protocol.RUN_AT_MOST_S).status == 7
    for wrong in (0, -1, float("nan"), 1e7):
        with pytest.raises(ValueError, match="timeout_s="):
            vm.execute(["true"], timeout_s=wrong)
    with requests.reach(store, "web") as wire, pytest.raises(Refused, match="timeout_s"):
        wire.ask(protocol.EXEC, within_s=10, argv=["true"], timeout_s="soon")


def test_what_a_command_is_given_to_read_does_not_cost_it_its_time(
    store: Store, tmp_path: Path
) -> None:
    up(store, "web")
    gate = tmp_path / "gate"

    def slow() -> Iterator[bytes]:
        yield b"first "
        eventually(gate.exists)
        yield b"second"

    opening = threading.Timer(1.1, gate.touch)
    opening.start()
    ran = control.execute(store, "web", ["cat"], stdin=slow(), timeout_s=1)
    opening.join()
    assert ran.stdout == b"first second"


def test_a_command_ends_with_the_client_that_wanted_it(store: Store) -> None:
    up(store, "web")
    with holders.client(_RUN, store.directory) as client:
        pid = int(holders.line_of(client))
        assert not is_gone(pid)
        client.kill()
        holders.gone(pid)
    assert control.get_status(store, "web").running


def test_files_go_in_and_out_as_archives(store: Store) -> None:
    up(store, "web")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(CODE / "orchestrator/protocol.py", "protocol.py")
    control.put(store, "web", [buffer.getvalue()], "srv/b")
    pieces: list[bytes] = []
    control.get(store, "web", "srv/b", pieces.append)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        file = archive.extractfile("b")
        assert file is not None
        assert file.read() == (CODE / "orchestrator/protocol.py").read_bytes()
    with pytest.raises(Refused) as caught:
        control.get(store, "web", "srv/c", pieces.append)
    assert caught.value.reason == "no-such-path"


def test_forwards_are_made_listed_and_ended_and_go_with_their_member(store: Store) -> None:
    up(store, "web-1", "web-2")
    one, two = VM(store, "web-1"), VM(store, "web-2")
    assert one.forwards() == {}
    assert one.forward(80) == 20080
    assert one.forward(22, 1234) == 1234
    assert two.forward(443) == 20443
    assert one.forwards() == {20080: 80, 1234: 22}
    assert not two.unforward(1234)
    assert one.unforward(1234)
    assert not one.unforward(1234)
    assert one.forwards() == {20080: 80}
    for ask in (one.forward, one.unforward):
        with pytest.raises(Refused, match="70000"):
            ask(70000)
    one.stop()
    for late in (one.forwards, lambda: one.unforward(20080)):
        with pytest.raises(Unavailable) as stopped:
            late()
        assert stopped.value.reason == "not-running"
    control.bring_up(store, config("web-1"), timeout_s=30)
    assert one.forwards() == {}
    assert two.forwards() == {20443: 443}


def test_a_console_can_be_read_and_followed(store: Store) -> None:
    up(store, "web")
    console = Path(store.place("web").console)
    following = control.logs(store, "web", follow=True)
    assert next(following) == b"web boots\n"
    with console.open("ab") as file:
        file.write(b"more\n")
    assert next(following) == b"more\n"
    console.write_bytes(b"cut\n")  # as one that is too long
    assert next(following) == b"cut\n"
    control.stop(store, "web")
    assert list(following) == []
    assert list(control.logs(store, "web")) == [b"cut\n"]
    with pytest.raises(Refused, match="no VM db"):
        next(control.logs(store, "db"))


def test_of_a_guest_that_is_not_up_nothing_can_be_asked(store: Store, tmp_path: Path) -> None:
    go_wrong(store, "web", ready_gate=str(tmp_path / "never"))
    with (
        control.spawn(store, config("web", bound=True)),
        pytest.raises(Unavailable, match="VM web is starting"),
    ):
        control.execute(store, "web", ["true"])
    with pytest.raises(Unavailable, match="VM web is not running"):
        control.execute(store, "web", ["true"])
