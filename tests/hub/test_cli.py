"""The command line, as a person and as a program meet it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation import control
from foundation.errors import HubError
from hub import fast, output
from tests.support import CODE, HUB, data_of, is_gone, run_python

if TYPE_CHECKING:
    from tests.support import Hub

VERBS = (
    "start",
    "stop",
    "restart",
    "status",
    "url",
    "logs",
    "events",
    "gc",
    "reap",
    "doctor",
    "run",
)
BONES = CODE / "bin/bones"
SLOW_MODULES = {
    "re",
    "enum",
    "typing",
    "json",
    "dataclasses",
    "subprocess",
    "signal",
    "socket",
    "pathlib",
    "argparse",
    "logging",
    "typer",
    "psutil",
    "nats",
    "asyncio",
    "contextlib",
    "inspect",
}


def help_of(*words: str) -> str:
    done = subprocess.run(
        [HUB, *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    return done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_screen_of_help_with_an_example(verb: str) -> None:
    text = help_of(verb)
    assert "Example:" in text
    assert "--json" in text
    assert "--root" in text
    assert len(text.splitlines()) <= 40


def test_the_help_names_every_verb_and_every_exit_code() -> None:
    text = help_of()
    for verb in VERBS:
        assert f"  {verb} " in text
    for code in ("0 ok", "2 usage", "3 not running", "75 try again", "100 owned"):
        assert code in " ".join(text.split())


def test_a_wrong_option_is_a_usage_error_that_names_it() -> None:
    done = subprocess.run(
        [HUB, "start", "--prot", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--prot" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("start --bogus --json", "--bogus"),
        ("nope --json", "nope"),
        ("url --json x", "(x)"),
        ("stop --timeout soon --json", "soon"),
    ],
)
def test_in_json_a_wrong_command_line_is_an_error_like_any_other(words: str, named: str) -> None:
    done = subprocess.run(
        [BONES, "hub", *words.split()], capture_output=True, text=True, check=False
    )
    told = json.loads(done.stdout)
    assert told["schema"]["verb"] == f"hub.{words.split(maxsplit=1)[0]}"
    assert told["error"]["exit_code"] == done.returncode == 2
    assert named in told["error"]["message"]


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "8765.0", "\N{ARABIC-INDIC DIGIT FOUR}"])
def test_a_port_that_is_none_is_a_usage_error_that_names_it(hub: Hub, port: str) -> None:
    done = hub.run("start", "--detach", f"--fossil-port={port}")
    assert done.returncode == 2
    assert port in done.stderr


@pytest.mark.real
def test_every_verb_says_in_json_what_it_says_in_words(hub: Hub) -> None:
    info = hub.start()
    assert info["root"] == str(hub.root)
    assert hub.status()["state"] == "running"
    assert data_of(hub.run("url", "--json").stdout) == {
        "fossil": info["fossil_url"],
        "nats": info["nats_url"],
    }
    lines = data_of(hub.run("logs", "-n", "3", "--json").stdout)["lines"]
    assert {line["log"] for line in lines} >= {"hub", "nats", "fossil"}
    events = data_of(hub.run("events", "--json").stdout)["events"]
    assert events[0]["subject"] == "hub.event.ready"
    assert events[0]["data"]["pid"] == info["pid"]
    again = data_of(hub.run("restart", "--json").stdout)
    assert again["pid"] != info["pid"]
    assert (again["fossil_url"], again["nats_url"]) == (info["fossil_url"], info["nats_url"])
    assert again["epoch"] == info["epoch"] + 1
    stopped = hub.stop()
    assert stopped["was_running"]
    assert stopped["pids"][0] == again["pid"]


@pytest.mark.real
def test_words_go_to_stderr_and_data_to_stdout(hub: Hub) -> None:
    started = hub.run("start", "--detach")
    assert started.stdout == ""
    assert "fossil at http://127.0.0.1:" in started.stderr
    again = hub.run("start", "--detach")
    assert "already running" in again.stderr
    assert again.stdout == ""
    status = hub.run("status")
    assert status.stderr == ""
    assert status.stdout.startswith("running")


@pytest.mark.real
def test_without_a_hub_each_verb_has_its_exit_code(hub: Hub) -> None:
    assert hub.run("status").returncode == 3
    assert hub.run("url").returncode == 3
    assert hub.run("events").returncode == 3
    assert hub.run("stop").returncode == 0
    error = json.loads(hub.run("url", "--json").stdout)
    assert error["schema"] == {"verb": "hub.url", "version": "v1"}
    assert error["error"]["exit_code"] == 3


@pytest.mark.real
def test_bones_hub_is_hub(hub: Hub) -> None:
    info = hub.start()
    hub.wait_ready()  # or trunk comes up between the two
    for words in (["hub", "status"], ["hub", "url"], ["hub", "logs", "-n", "1"]):
        through = subprocess.run(
            [BONES, *words], cwd=hub.root, capture_output=True, text=True, check=True
        )
        assert through.stdout == hub.run(*words[1:]).stdout or words[1] == "logs"
    assert (
        str(info["pid"])
        not in subprocess.run(
            [BONES, "--version"], capture_output=True, text=True, check=True
        ).stdout
    )


@pytest.mark.real
def test_the_workspace_is_found_from_below_and_by_name(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    below = hub.root / "src"
    assert data_of(hub.run("status", "--json", cwd=below).stdout)["root"] == str(hub.root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for done in (
        hub.run("status", "--json", "--root", str(below), cwd=elsewhere),
        hub.run("status", "--json", cwd=elsewhere, HUB_ROOT=str(hub.root)),
    ):
        assert data_of(done.stdout)["state"] == "running"


@pytest.mark.real
def test_a_service_manager_is_told_of_readiness_and_of_the_end(hub: Hub, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        running = hub.begin("run", NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            assert manager.recv(4096).startswith(b"READY=1")
            second = hub.run("run")
            assert second.returncode == 100
            assert str(running.pid) in second.stderr
            assert hub.pids()["hub"] == running.pid
        finally:
            running.terminate()
            out, err = running.communicate(timeout=20)
        assert manager.recv(4096) == b"STOPPING=1"
    assert running.returncode == 0, out + err
    assert hub.pids() == {}


@pytest.mark.real
def test_a_followed_log_shows_the_new_lines_of_a_new_hub(hub: Hub) -> None:
    hub.start()
    hub.stop()
    with hub.begin("logs", "-f", "-n", "1", "nats") as following:
        try:
            assert following.stdout is not None
            assert following.stdout.readline()  # the old last line: it follows now
            hub.start()
            while "Server is ready" not in following.stdout.readline():
                assert following.poll() is None
        finally:
            following.terminate()


@pytest.mark.parametrize(
    "module",
    [
        "hub.supervisor",
        "hub.daemon",
        "hub.start",
        "hub.stop",
        "hub.status",
        "hub.verbs",
        "hub.showing",
        "slotgc.slots",
        "hub.outbox",
        "hub.place",
        "hub.systemd",
        "hub.orphans",
        "hub.census",
        "hub.registry",
        "hub.registration",
        "hub.whereabouts",
        "hub.everywhere",
        "hub.reap",
    ],
)
def test_what_must_start_fast_imports_nothing_slow(module: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); import {module}; "
        "print(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    assert not SLOW_MODULES & set(done.stdout.split())


def test_the_fastest_door_loads_nothing_but_itself() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); before = set(sys.modules); "
        "import hub.entry; print(' '.join(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"hub", "hub.entry", "hub.fast", "_socket", "__future__"}


@pytest.mark.real
def test_the_hub_of_a_closed_terminal_lives_on(hub: Hub) -> None:
    program = (
        "import os, pty, sys; pid, fd = pty.fork()\n"
        "if pid == 0: os.execv(sys.argv[1], [sys.argv[1], 'start', '--detach'])\n"
        "said = b''\n"
        "while b'pid ' not in said: said += os.read(fd, 1000)\n"
        "os.waitpid(pid, 0); os.close(fd)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(HUB)], cwd=hub.root, check=True, timeout=50)
    now = hub.status()
    assert now["state"] == "running"
    assert not is_gone(now["info"]["pid"])


def test_a_library_call_beside_other_threads_starts_a_hub_of_its_own_process(hub: Hub) -> None:
    done = run_python(
        "import sys, threading; from hub.start import start; from hub.stop import stop\n"
        "found = []\n"
        "work = threading.Thread(target=lambda: found.append(start(sys.argv[1], detach=True)))\n"
        "work.start(); work.join()\n"
        "words = open(f'/proc/{found[0].pid}/cmdline').read()\n"
        "print('daemon_main' in words, stop(sys.argv[1]).was_running)\n",
        str(hub.root),
    )
    assert done.stdout.split() == ["True", "True"]


def test_the_fastest_door_speaks_the_protocol_of_the_rest() -> None:
    assert fast.VERSION == control.VERSION


def test_words_of_others_in_an_error_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = HubError("a guest said \x1b]0;mine\x07\nand more\x00", reason="guest")
    assert output.print_error("bones.vm.cp", error, as_json=False) == error.exit_code
    assert capsys.readouterr().err == "bones: a guest said \\x1b]0;mine\\x07\nand more\\x00\n"
