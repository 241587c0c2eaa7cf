"""The words of ``bones vm``, plain or not, and what a person is told; with fakes for VMs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation.errors import HubError
from foundation.workspace import Workspace
from orchestrator import cli, control, entry, protocol, vm_up, vm_verbs
from orchestrator.store import Options, Store
from orchestrator.vm_exec import Complaints
from owner import private
from tests.orchestrator.vm.holders import BLIND, end_holders, go_wrong, holder_pid, up
from tests.orchestrator.vm.test_vm_cli import PROGRAM, bones
from tests.support import CODE, is_gone, kill

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def vms(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Return the store of a workspace that has no VMs yet, and is the one that verbs mean."""
    Workspace(str(repo)).make_state()
    monkeypatch.setenv("HUB_ROOT", str(repo))
    store = Store(repo / ".orchestrator/vms")
    store.make()
    yield store
    end_holders(store)


def created(store: Store, *names: str) -> None:
    for name in names:
        lock = store.take(name)
        assert lock is not None
        store.create(name, Options())
        private.close(lock)


class Said:
    """What ``bones vm`` has said in this process, by way of the CLI library or not."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *words: str, plain: bool = True) -> None:
        capfd.readouterr()
        form = entry.vm_form(list(words)) if plain else None
        if form is not None:
            verb, options = form
            self.code = int(getattr(vm_verbs, verb)(**options))
        else:
            with pytest.raises(SystemExit) as ended:
                cli.main(["vm", *words])
            code = ended.value.code
            assert isinstance(code, int)
            self.code = code
        sys.stdout.flush()
        self.out, self.err = capfd.readouterr()

    @property
    def data(self) -> Any:
        return json.loads(self.out)["data"]

    @property
    def error(self) -> Any:
        return json.loads(self.out)["error"]


# --- other names ---------------------------------------------------------------------------


@pytest.mark.parametrize(("alias", "verb"), [("halt", "down"), ("shell", "ssh"), ("delete", "rm")])
def test_a_verb_has_the_names_that_it_has_elsewhere_and_no_help_shows_them(
    capfd: pytest.CaptureFixture[str], alias: str, verb: str
) -> None:
    assert Said(capfd, alias, "--help").out.replace(f"vm {alias} ", f"vm {verb} ") == (
        Said(capfd, verb, "--help").out
    )
    assert f"  {alias} " not in Said(capfd, "--help").out


def test_another_name_is_as_plain_as_the_first() -> None:
    assert entry.vm_form(["stop", "web", "--force"]) == ("down", {"names": ["web"], "force": True})
    assert entry.vm_form(["list", "-q"]) == ("ls", {"quiet": True})
    assert entry.vm_form(["start", "web", "-n", "2"]) == ("up", {"names": ["web"], "count": 2})
    assert entry.vm_form([]) is None


def test_rm_takes_f_for_yes(vms: Store, capfd: pytest.CaptureFixture[str]) -> None:
    created(vms, "web-1", "web-2", "db")
    assert Said(capfd, "delete", "-f", "web").out == "web-1 removed\nweb-2 removed\n"
    assert vms.members() == ["db"]


# --- a command -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (["exec", "web", "--", "true"], True),
        (["exec", "--cwd", "/", "web", "--", "sh", "-c", "--", "x"], True),
        (["exec", "web", "true"], False),
        (["exec", "web", "x", "--", "true"], False),
        (["exec", "web", "--"], False),
        (["exec", "web"], False),
        (["exec", "--", "web", "--", "true"], False),
    ],
)
def test_only_a_command_behind_two_dashes_is_plain(words: list[str], plain: bool) -> None:
    form = entry.vm_form(words)
    assert (form is not None) == plain
    if form is not None:
        assert form[1]["words"][0] == "--"


@pytest.mark.parametrize("verb", ["exec", "shell"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("web", "true"), "vm {verb} web -- true"),
        (("web", "ls", "-l"), "vm {verb} web -- ls -l"),
        (("web", "x", "--", "true"), "x: options go before NAME"),
        (("web", "--root", "/", "--", "true"), "--root /: options go before NAME"),
        (("web", "--"), "vm {verb} web -- COMMAND"),
        (("--nothing", "web", "--", "true"), "--nothing"),
        (("--", "web"), "NAME"),
    ],
)
def test_a_command_that_is_given_otherwise_is_a_usage_error_with_the_right_form(
    vms: Store, capfd: pytest.CaptureFixture[str], verb: str, words: tuple[str, ...], told: str
) -> None:
    created(vms, "web")
    done = Said(capfd, verb, *words)
    assert done.code == 2
    assert told.format(verb="ssh" if verb == "shell" else verb) in done.err


def test_a_command_is_needed_and_help_may_come_late(capfd: pytest.CaptureFixture[str]) -> None:
    done = Said(capfd, "exec", "web")
    assert (done.code, "which command?" in done.err) == (2, True)
    assert "Example:" in Said(capfd, "exec", "web", "--help").out


@pytest.mark.parametrize("plain", [True, False])
def test_a_command_runs_the_same_by_every_way(
    vms: Store, capfd: pytest.CaptureFixture[str], plain: bool
) -> None:
    up(vms, "web")
    words = ("sh", "-c", "echo out; echo err >&2; exit 9")
    done = Said(capfd, "exec", "web", "--", *words, plain=plain)
    assert (done.code, done.out, done.err) == (9, "out\n", "err\n")
    told = Said(capfd, "exec", "--json", "web", "--", *words, plain=plain).data
    assert told == {"name": "web", "status": 9, "stdout": "out\n", "stderr": "err\n"}


def test_a_command_that_waits_for_others_to_end_says_so(
    vms: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    go_wrong(vms, "web", busy=True)
    up(vms, "web")
    done = Said(capfd, "exec", "web", "--", "echo", "out")
    assert (done.code, done.out) == (0, "out\n")
    assert done.err == ("bones: web runs as many commands as it can: waiting for one to end\n")
    assert control.execute(vms, "web", ["echo", "out"]).stdout == b"out\n"


def test_what_is_not_in_the_guest_is_said_in_our_words() -> None:
    agent, program = b"/etc/agent: cd: line 62: can't cd to /no\n", b"setsid: can't execute 'no'\n"

    def told(*chunks: bytes, status: int) -> str:
        complaints = Complaints("web", "no", "/no")
        fed = b"".join(map(complaints.feed, chunks))
        return (fed + complaints.end(status)).decode()

    assert told(agent, status=126) == "bones: web has no directory /no\n"
    assert told(agent[:20], agent[20:], status=126) == "bones: web has no directory /no\n"
    may_not = b"setsid: can't execute 'no': Permission denied\n"
    assert told(may_not, status=126) == "bones: web cannot run no: Permission denied\n"
    assert told(program, status=127) == "bones: web has no program no\n"
    assert told(program, b"more", status=127) == f"{program.decode()}more"
    assert told(program, status=1) == program.decode(), "a command may say so itself"
    assert told(b"said\n", program, status=127) == f"said\n{program.decode()}"
    assert told(status=127) == ""


@pytest.mark.parametrize("words", [("exec", "web", "--", "yes"), ("logs", "web", "-f")])
def test_who_has_seen_enough_is_told_nothing(
    vms: Store, repo: Path, words: tuple[str, ...]
) -> None:
    up(vms, "web")
    with open(vms.place("web").console, "ab") as console:
        console.write(b"line\n" * 100_000)
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM, str(CODE), "vm", *words],
        cwd=repo,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(30), process.stderr.read()) == (141, b"")
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (("vm", "up", "web", "-n", "x"), "bones.vm.up"),
        (("vm", "exec", "--nothing"), "bones.vm.exec"),
        (("vm", "nothing"), "bones.vm.nothing"),
        (("hub", "logs", "-n", "x"), "hub.logs"),
        (("swarm", "join", "--nothing"), "swarm.join"),
        (("log", "-n", "x"), "bones.log"),
    ],
)
def test_a_mistake_in_the_words_is_told_as_json_of_its_verb(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], verb: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--json"])
    told = json.loads(capfd.readouterr().out)
    assert (ended.value.code, told["schema"]["verb"]) == (2, verb)
    assert told["error"]["reason"] == "usage"


# --- which VM ------------------------------------------------------------------------------

ONE_VM: list[tuple[str, ...]] = [
    ("exec", "NAME", "--", "true"),
    ("ssh", "NAME", "--", "true"),
    ("logs", "NAME"),
    ("forward", "NAME", "80"),
    ("cp", "NAME:/etc/hosts", "."),
]


@pytest.mark.parametrize("words", ONE_VM)
def test_where_one_vm_is_needed_a_cluster_is_named_as_such(
    vms: Store, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    created(vms, "web-1", "web-2")
    for name, code, told in (
        ("web", 1, "web is a cluster, of web-1, web-2: name one of them"),
        ("Web", 2, "'Web' cannot be a VM's name"),
        ("nobody", 1, "there is no VM nobody"),
    ):
        done = Said(capfd, *(word.replace("NAME", name) for word in words))
        assert (done.code, told in done.err) == (code, True), done.err


@pytest.mark.parametrize("words", ONE_VM)
def test_a_vm_that_is_not_up_is_served_by_nothing(
    vms: Store, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    created(vms, "web")
    done = Said(capfd, *(word.replace("NAME", "web") for word in words))
    if words[0] == "logs":
        assert (done.code, done.out, done.err) == (0, "", ""), "it has said nothing"
    else:
        assert (done.code, done.err) == (3, "bones: VM web is not running: `bones vm up web`\n")
    go_wrong(vms, "bad", fail="start")
    with pytest.raises(Exception, match="bad"):
        up(vms, "bad")
    if words[0] == "exec":
        said = Said(capfd, "exec", "--json", "bad", "--", "true").error
        assert (said["reason"], said["exit_code"]) == ("not-running", 3)
        assert "(" in said["message"], "it says why"


# --- up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("Web",), "'Web'"),
        (("web", "--cpus", "0"), "--cpus 0: a whole number"),
        (("web", "--mem", "16"), "--mem 16: a whole number"),
        (("web", "--mem", "1048576"), "--mem 1048576: this machine has"),
        (("web", "--disk", "-1"), "--disk -1: a whole number"),
        (("web", "-n", "245"), "at most 244"),
        (("web", "-n", "9" * 22), "at most 244"),
        (("web", "-n", "2", "--mem", "1048576"), "--mem"),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_what_cannot_be_is_refused_before_anything_is_made(
    repo: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], told: str, plain: bool
) -> None:
    done = Said(capfd, "up", "--root", str(repo), *words, plain=plain)
    assert (done.code, told in done.err) == (2, True), done.err
    assert not (repo / ".orchestrator").exists()


def test_more_memory_than_the_machine_has_is_refused(
    vms: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_up, "_machine_mb", lambda: 300)
    done = Said(capfd, "up", "web", "-n", "3")
    assert (done.code, "3 VMs may take 384 MB" in done.err) == (2, True)
    assert vms.members() == []


def test_a_machine_has_the_memory_that_its_kernel_tells() -> None:
    page_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert abs(vm_up._machine_mb() - page_mb) <= 1


def test_a_vm_that_runs_keeps_what_it_has_and_the_way_out_is_told(
    vms: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    found = up(vms, "web")
    done = Said(capfd, "up", "web", "--mem", "256")
    assert (done.code, done.out) == (0, f"web is up: {found['web'].ip}\n")
    assert "keeps what it was created with: 1 CPU, 128 MB, disk 1 MB" in done.err
    assert "`bones vm rm web`" in done.err
    assert "keeps" not in Said(capfd, "up", "web", "--mem", "128").err


def test_a_new_vm_that_does_not_come_up_is_named_with_the_way_to_another(
    vms: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BONES_QEMU", "/nowhere/qemu-system-x86_64")
    done = Said(capfd, "up", "web")
    assert vms.exists("web")
    assert done.code == 1
    assert "created, and did not come up: web;" in done.err
    assert "`bones vm rm web`" in done.err
    again = Said(capfd, "up", "web", "--mem", "256")
    assert again.code == 1
    assert "created" not in again.err.replace("was created with", "")
    assert "web exists, and keeps" in again.err


# --- ls, logs ------------------------------------------------------------------------------


def test_ls_tells_the_whole_status_as_up_does(
    vms: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    found = up(vms, "web")
    created(vms, "db")
    go_wrong(vms, "bad", fail="start")
    with pytest.raises(Exception, match="bad"):
        up(vms, "bad")
    rows = {row["name"]: row for row in Said(capfd, "ls", "--json").data["vms"]}
    for row in rows.values():
        assert set(row) >= set(protocol.Status.field_names())
    assert found["web"].as_dict().items() <= rows["web"].items()
    assert (rows["db"]["running"], rows["db"]["reason"]) == (False, "")
    assert (rows["bad"]["state"], rows["bad"]["reason"]) == ("error", "fake-start")


def test_a_console_is_followed_a_line_an_object(vms: Store, repo: Path) -> None:
    up(vms, "web")
    console = Path(vms.place("web").console)
    console.write_bytes(b"one\r\ntwo\n")
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM, str(CODE), "vm", "logs", "web", "-f", "--json"],
        cwd=repo,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None

    def line() -> Any:
        assert process.stdout is not None
        return json.loads(process.stdout.readline())["data"]

    assert [line(), line()] == [{"name": "web", "line": text} for text in ("one", "two")]
    with console.open("ab") as file:
        file.write(b"thr\xffee\nlast")
    assert line()["line"] == "thr\ufffdee"
    control.stop(vms, "web")
    assert line()["line"] == "last", "an unfinished line is told at the end"
    assert process.wait(30) == 0
    process.stdout.close()


def test_a_guest_s_console_does_not_steer_our_terminal(vms: Store, repo: Path) -> None:
    created(vms, "web")
    Path(vms.place("web").console).write_bytes(b"a\tb\r\n\x1b]0;title\x07end\n")
    ours, theirs = pty.openpty()
    try:
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        subprocess.run(
            [sys.executable, "-I", "-c", PROGRAM, str(CODE), "vm", "logs", "web"],
            cwd=repo,
            stdout=theirs,
            check=True,
        )
        assert os.read(ours, 1000) == b"a       b\n\\x1b]0;title\\x07end\n"
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"\x1b" in bones(repo, "vm", "logs", "web").stdout, "a program gets what there is"


def test_an_error_of_many_lines_is_one_in_the_list(
    vms: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    created(vms, "web")
    lock = vms.take("web")
    assert lock is not None
    vms.note_end("web", HubError("it panicked\nCall trace:", reason="vm-died"))
    private.close(lock)
    assert Said(capfd, "ls").out.endswith("  it panicked …\n")
    found = {one["name"]: one for one in Said(capfd, "doctor", "--json").data["findings"]}
    assert found["members"]["fix"] == "bones vm up web"


@pytest.mark.parametrize("plain", [True, False])
def test_forwards_are_made_listed_and_ended(
    vms: Store, capfd: pytest.CaptureFixture[str], plain: bool
) -> None:
    up(vms, "web")

    def forward(*words: str) -> Said:
        return Said(capfd, "forward", "web", *words, plain=plain)

    none = forward()
    assert (none.code, none.out, none.err) == (0, "", "bones: nothing leads to web\n")
    assert forward("18080:80").out == forward("18080:80").out == "127.0.0.1:18080\n"
    told = forward("22", "--json").data
    assert told == {"name": "web", "host_port": told["host_port"], "guest_port": 22}
    assert "127.0.0.1:18080 leads to 80\n" in forward().out
    listed = forward("--json").data["forwards"]
    assert {"host_port": 18080, "guest_port": 80} in listed
    assert len(listed) == 2
    assert forward("--end", "18080").out == "127.0.0.1:18080 leads to web no longer\n"
    assert len(forward("--json").data["forwards"]) == 1
    again = forward("--end", "18080")
    assert (again.code, "`bones vm forward web` lists" in again.err) == (1, True)
    for wrong in (("80", "--end", "18080"), ("--end", "70000"), ("70000",)):
        assert forward(*wrong).code == 2


# --- rm ------------------------------------------------------------------------------------


def test_what_rm_would_delete_can_be_seen_before(
    vms: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    created(vms, "db")
    up(vms, "web")
    Path(vms.place("db").disk).write_bytes(bytes(4096))
    os.truncate(vms.place("db").disk, 3 << 20)
    done = Said(capfd, "rm", "--all", "--dry-run")
    assert done.code == 0
    assert "db " in done.out
    assert f"of 3.0 MiB  {vms.place('db').directory}\n" in done.out
    assert "running: it is stopped first" in done.out.partition("web ")[2]
    told = Said(capfd, "rm", "db", "nobody", "--dry-run", "--json")
    assert told.code == 1
    assert told.data["failed"] == {"nobody": "there is no such VM"}
    (plan,) = told.data["plan"]
    assert (plan["name"], plan["disk_bytes"], plan["running"]) == ("db", 3 << 20, False)
    assert 0 < plan["used_bytes"] < plan["disk_bytes"]
    assert vms.members() == ["db", "web"]
    assert control.is_running(vms, "web")


class _Terminal:
    """A terminal at which somebody answers, or interrupts."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        if self._answer == "^C":
            raise KeyboardInterrupt
        return self._answer


def test_an_interrupted_question_removes_nothing_and_says_so(
    vms: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    created(vms, "web")
    for typed, code, told in (
        ("^C", 130, "bones: interrupted: nothing was removed\n"),
        ("n\n", 1, "bones: nothing was removed\n"),
        ("y\n", 0, ""),
    ):
        assert vms.exists("web")
        monkeypatch.setattr(sys, "stdin", _Terminal(typed))
        done = Said(capfd, "rm", "web")
        assert done.code == code
        assert told in done.err
        assert "again removes the rest" not in done.err
    assert not vms.exists("web")


def test_doctor_sees_a_vm_that_waits_for_room_on_the_disk(
    vms: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    go_wrong(vms, "web", trouble="no room for its disk")
    up(vms, "web")
    found = {one["name"]: one for one in Said(capfd, "doctor", "--json").data["findings"]}
    assert found["members"]["level"] == "warning"
    assert "no room for its disk" in found["members"]["evidence"]
    assert found["members"]["fix"] == f"df {vms.directory}"


def test_doctor_sees_what_is_half_removed(vms: Store, capfd: pytest.CaptureFixture[str]) -> None:
    os.makedirs(f"{vms.directory}/db/.gone-db-1.1.1")
    found = {one["name"]: one for one in Said(capfd, "doctor", "--json").data["findings"]}
    assert found["members"]["evidence"] == "half removed: db-1"
    assert found["members"]["fix"] == "bones vm prune"


# --- holders that do not answer ------------------------------------------------------------


@pytest.mark.faults
def test_a_holder_that_is_frozen_is_ended_by_force_with_all_its_vms_and_no_other(
    vms: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_WITHIN_S", 0.5)
    up(vms, "web-1", "web-2")
    up(vms, "db")
    pid = holder_pid(vms, "web-1")
    kill(pid, signal.SIGSTOP)
    (row, *_others) = [row for row in Said(capfd, "ls", "--json").data["vms"] if row["pid"] == 0]
    assert (row["state"], row["reason"]) == ("unknown", "no-answer")
    assert f"process {pid}" in row["error"]
    found = Said(capfd, "doctor", "--json").data["findings"]
    assert "bones vm down --force web-1" in [one["fix"] for one in found]
    stuck = Said(capfd, "exec", "web-1", "--", "true")
    assert (stuck.code, "`bones vm down --force web-1`" in stuck.err) == (75, True)
    done = Said(capfd, "down", "--force", "web-1", "db", "nobody")
    assert done.out == "web-1 stopped (forced)\nweb-2 stopped (forced)\ndb stopped\n"
    assert (done.code, "nobody: there is no such VM" in done.err) == (1, True)
    assert is_gone(pid)
    assert not control.running_members(vms)
    assert {row["error"] for row in Said(capfd, "ls", "--json").data["vms"]} == {""}
    again = Said(capfd, "down", "--force", "--all")
    assert (again.code, again.out, "nothing was running" in again.err) == (0, "", True)


@pytest.mark.faults
def test_holders_that_hang_take_their_time_together(
    vms: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_WITHIN_S", 1.0)
    names = [f"web-{number}" for number in range(1, 5)]
    up(vms, *names)
    pid = holder_pid(vms, "web-1")
    kill(pid, signal.SIGSTOP)
    for name in names[2:]:
        os.unlink(vms.place(name).socket)
    try:
        began_s = time.monotonic()
        rows = Said(capfd, "ls", "--json").data["vms"]
        took_s = time.monotonic() - began_s
    finally:
        kill(pid, signal.SIGCONT)
    assert [row["reason"] for row in rows] == ["no-answer"] * 4
    assert took_s < 3.0


@pytest.mark.faults
def test_what_runs_behind_a_socket_that_was_removed_is_never_said_not_to_run(
    vms: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_WITHIN_S", 0.5)
    up(vms, "web-1", "web-2", settings=BLIND)
    pid = holder_pid(vms, "web-1")
    os.unlink(vms.place("web-1").socket)
    done = Said(capfd, "down", "web-1")
    assert done.code == 1
    assert "nothing was running" not in done.err
    assert f"process {pid} has VM web-1" in done.err
    assert "`bones vm down --force web-1`" in done.err
    ended = subprocess.run(
        [CODE / "bin/bones", "vm", "down", "--force", "--json", "web-1"],
        stdout=subprocess.PIPE,
        check=True,
    )
    told = json.loads(ended.stdout)["data"]
    assert told == {"stopped": {"web-1": "forced", "web-2": "forced"}, "failed": {}}
    assert is_gone(pid)
    assert not os.path.exists(vms.place("web-2").pidfile), "what it has left is cleared up"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give state to another user")
def test_another_user_s_vms_are_refused_not_said_to_be_stopped(
    vms: Store, repo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    created(vms, "web")
    os.chown(repo / ".orchestrator", 65534, 65534)
    for words in (("ls",), ("down", "--all"), ("rm", "-f", "web"), ("up", "web"), ("prune",)):
        done = Said(capfd, *words)
        assert done.code == 1, words
        assert ".orchestrator" in done.err
        assert "another user" in done.err
    assert vms.exists("web")


@pytest.mark.faults
def test_who_answers_is_stopped_in_order_force_or_not(
    vms: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    up(vms, "web-1", "web-2")
    told = Said(capfd, "down", "--force", "--json", "web-1").data
    assert told == {"stopped": {"web-1": "agent"}, "failed": {}}
    assert control.is_running(vms, "web-2")


def test_every_help_has_an_example(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = Said(capfd, "--help").out
    assert len(page.splitlines()) <= 30, "one screen"
    verbs = [line.split()[0] for line in page.partition("Commands:\n")[2].splitlines()]
    assert {"up", "down", "exec", "rm"} <= set(verbs)
    for verb in verbs:
        assert f"Example:  bones vm {verb}" in Said(capfd, verb, "--help").out, verb
    assert bones(repo, "vm", "halt", "--help").returncode == 0
