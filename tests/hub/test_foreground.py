"""A hub in the foreground: by the command line and by the library."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from foundation.errors import HubError, Refused
from hub.info import HubInfo
from hub.start import start
from tests.support import CODE, Hub, accepts, eventually, is_gone, port_of, run_python

pytestmark = pytest.mark.real


def foreground(hub: Hub, *arguments: str) -> subprocess.Popen[str]:
    process = hub.begin("start", *arguments)
    eventually(lambda: hub.status()["state"] == "running")
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_it(hub: Hub, number: signal.Signals) -> None:
    process = foreground(hub)
    info = hub.status()["info"]
    assert info["pid"] == process.pid
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert not hub.pids()
    assert is_gone(info["nats_pid"])
    assert not accepts(port_of(info["fossil_url"]))
    assert len(hub.logged("stopped")) == 1


def test_it_says_when_it_is_ready_and_only_then(hub: Hub) -> None:
    process = hub.begin("start", "--json")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert '"fossil_url"' in line
    assert hub.status()["state"] == "running"
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_many_signals_are_one(hub: Hub) -> None:
    process = foreground(hub)
    for _turn in range(20):
        process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert len(hub.logged("stopping")) == 1


def test_a_stop_from_elsewhere_ends_it_too(hub: Hub) -> None:
    process = foreground(hub)
    hub.stop()
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err


def test_a_second_one_attaches_and_returns(hub: Hub) -> None:
    process = foreground(hub)
    done = hub.run("start")
    assert done.returncode == 0
    assert "already running" in done.stderr
    hub.stop()
    process.communicate(timeout=20)


@pytest.mark.parametrize("turn", range(3))
def test_a_signal_during_the_start_ends_it(hub: Hub, turn: int) -> None:
    process = hub.begin("start")
    eventually(lambda: len(hub.logged("starting")) > 0)
    if turn:
        eventually(lambda: len(hub.logged("child-ready")) >= turn)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    assert not hub.pids(), (out, err)
    assert hub.status()["state"] == "stopped"


# --- the library ---------------------------------------------------------------------------


def descriptors() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


def test_the_library_serves_until_it_is_cancelled_and_leaves_no_trace(hub: Hub) -> None:
    gc.collect()  # or files of former tests may be closed meanwhile
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    for turn in range(3):
        read, write = os.pipe()
        before = len(os.listdir("/proc/self/fd"))
        seen: list[HubInfo] = []

        def ready(info: HubInfo, seen: list[HubInfo] = seen, write: int = write) -> None:
            seen.append(info)
            os.write(write, b"x")

        assert start(str(hub.root), cancel=read, on_ready=ready) is None
        assert [info.pid for info in seen] == [os.getpid()]
        assert seen[0].epoch == turn + 1
        assert len(os.listdir("/proc/self/fd")) == before, descriptors()
        os.close(read)
        os.close(write)
    now = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert now == handlers
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert hub.status()["state"] == "stopped"


def test_a_start_that_fails_leaves_no_trace_either(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = tmp_path / "nats-server"
    sick.write_text("#!/bin/sh\nexit 3\n")
    sick.chmod(0o755)
    monkeypatch.setenv("HUB_NATS_SERVER", str(sick))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for detach in (False, True, False):
        with pytest.raises(HubError) as raised:
            start(str(hub.root), detach=detach)
        assert raised.value.reason == "nats-failed"
        assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_log_that_cannot_be_opened_is_a_hub_error_in_the_foreground_too(hub: Hub) -> None:
    (Path(hub.workspace.logs) / "hub.log").mkdir()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HubError):
        start(str(hub.root))
    assert len(os.listdir("/proc/self/fd")) == before
    (Path(hub.workspace.logs) / "hub.log").rmdir()
    hub.start()


def test_an_attached_start_returns_whom_it_found(hub: Hub) -> None:
    info = hub.start()
    found = start(str(hub.root))
    assert found is not None
    assert found.already_running
    assert found.pid == info["pid"]


def test_a_thread_may_attach_and_detach_but_not_be_the_hub(hub: Hub) -> None:
    results: list[object] = []

    def run(detach: bool) -> None:
        try:
            results.append(start(str(hub.root), detach=detach))
        except HubError as error:
            results.append(error)

    for detach in (False, True):
        thread = threading.Thread(target=run, args=(detach,))
        thread.start()
        thread.join()
    refusal, info = results
    assert isinstance(refusal, Refused)
    assert refusal.reason == "not-main-thread"
    assert isinstance(info, HubInfo)
    hub.stop()
    os.waitpid(info.pid, 0)  # a library that detached a hub is its parent


def test_twenty_threads_that_start_find_one_hub(hub: Hub) -> None:
    infos: list[HubInfo | BaseException | None] = []

    def run() -> None:
        try:
            infos.append(start(str(hub.root), detach=True))
        except BaseException as error:  # noqa: BLE001 - to be shown by the test
            infos.append(error)

    before = os.umask(0o022)
    threads = [threading.Thread(target=run) for _turn in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.umask(before) == 0o022, "threads that set it restored each other's"
    assert all(isinstance(info, HubInfo) for info in infos), infos
    assert len({info.pid for info in infos if isinstance(info, HubInfo)}) == 1
    hub.stop()
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def test_the_daemon_of_a_library_holds_nothing_of_it(hub: Hub) -> None:
    program = """
import os, sys
from foundation.procfs import open_files
from hub.start import start
stray = os.open("/dev/zero", os.O_RDONLY)
os.set_inheritable(stray, True)
big = bytearray(100_000_000)
info = start(sys.argv[1], detach=True)
rss = [line for line in open(f"/proc/{info.pid}/status") if line.startswith("VmRSS")][0].split()[1]
print(int(rss) < 60_000, "/dev/zero" in open_files(info.pid), os.getsid(info.pid) == info.pid)
"""
    assert run_python(program, str(hub.root)).stdout == "True False True\n"


def test_an_asyncio_program_may_start_one_in_a_thread(hub: Hub) -> None:
    program = """
import asyncio, sys
from hub.start import start
from hub.stop import stop
async def main():
    info = await asyncio.to_thread(start, sys.argv[1], detach=True)
    await asyncio.to_thread(stop, sys.argv[1])
    print("done")
asyncio.run(main())
"""
    assert run_python(program, str(hub.root)).stdout == "done\n"


def test_systemd_is_told(hub: Hub, tmp_path: Path) -> None:
    import socket  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from hub.start import start; start(sys.argv[1])",
                str(hub.root),
            ],
            env={**os.environ, "PYTHONPATH": str(CODE), "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        assert manager.recv(1000).startswith(b"READY=1\n")
        process.terminate()
        assert manager.recv(1000) == b"STOPPING=1"
        assert process.wait(20) == 0
