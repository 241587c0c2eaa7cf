"""`bin/bench start`: what it costs to start, find, ask and stop a hub.

The floors are taken in the same rounds: a bare interpreter, both servers started in parallel
and probed by this process, both servers' own exit.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from bench.measure import INTERPRETER, Quiet, Row, paired, report, run_ms
from foundation.workspace import Workspace
from hub import fossil, nats, ports
from hub.start import start
from hub.status import wait_for_trunk
from hub.stop import stop

ROOT = Path(__file__).resolve().parent.parent
HUB = str(ROOT / "bin" / "hub")
USS_LIMIT_MB = 8.0
DEATH_LIMIT_MS = 50.0
TELL_LIMIT_MS = 100.0


def main(arguments: list[str]) -> int:
    """Measure; print a table."""
    parser = argparse.ArgumentParser(prog="bin/bench start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="one round, no verdict")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rounds = 1 if options.smoke else options.rounds
    with tempfile.TemporaryDirectory(prefix="bench-start-") as directory:
        os.environ.pop("HUB_ROOT", None)
        rows = measure(Path(directory), rounds)
    status = report(rows, as_json=options.json)
    return 0 if options.smoke else status


def measure(directory: Path, rounds: int) -> list[Row]:
    """Return the rows, measured in a workspace under *directory*."""
    root = make_repository(directory / "work")
    entry = make_wheel_entry(directory / "wheel")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    quiet = Quiet()
    rows: list[Row] = []

    def interpreter() -> float:
        return run_ms(INTERPRETER)

    def verb(*words: str) -> float:
        return run_ms([HUB, *words], cwd=str(root), env=env)

    start(str(root), detach=True)
    try:
        for name in ("status", "start"):
            rows.append(
                paired(
                    f"hub {name}, running",
                    rounds,
                    interpreter,
                    partial(verb, name),
                    quiet=quiet,
                    limit=1.6,
                )
            )
            rows.append(
                paired(
                    f"hub {name}, running, from the wheel",
                    rounds,
                    interpreter,
                    partial(run_ms, [*entry, name], cwd=str(root), env=env),
                    quiet=quiet,
                    limit=2.0,
                )
            )
        rows.append(memory(root))
        rows.append(death(root, min(10, rounds)))
    finally:
        stop(str(root), force=True)
    workspace = Workspace(str(root))
    servers = Servers(workspace)

    def floor_start() -> float:
        up, _down = servers.round()
        return interpreter() + up

    def ours_start() -> float:
        took = verb("start", "--detach")
        verb("stop")
        return took

    rows.append(
        paired(
            "hub start --detach, seeded", rounds, floor_start, ours_start, quiet=quiet, limit=2.0
        )
    )

    def floor_stop() -> float:
        _up, down = servers.round()
        return interpreter() + down

    def ours_stop() -> float:
        verb("start", "--detach")
        wait_for_trunk(workspace, 10)  # it loads for a while, on a processor that stop wants
        return verb("stop")

    rows.append(failure(root, env, rounds))
    rows.append(paired("hub stop", rounds, floor_stop, ours_stop, quiet=quiet, limit=2.0))
    return rows


def make_repository(root: Path) -> Path:
    """Return a git repository with a few files."""
    root.mkdir()
    for number in range(20):
        (root / f"file{number}.txt").write_text(f"{number}\n" * 50)
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-C", str(root)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "files"], check=True)
    return root


def make_wheel_entry(directory: Path) -> list[str]:
    """Install the wheel's content in a fresh environment; return its `hub` command.

    The script is the one that today's installers write for an entry point.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    site = next(directory.glob("lib/python3*/site-packages"))
    built = directory / "dist"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shutil.unpack_archive(str(next(built.glob("*.whl"))), str(site), "zip")
    python = directory / "bin" / "python"
    subprocess.run([str(python), "-I", "-m", "compileall", "-q", str(site)], check=True)
    script = directory / "bin" / "hub"
    script.write_text(
        f"#!{python}\nimport sys\nfrom hub.entry import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    script.chmod(0o755)
    return [str(script)]


def memory(root: Path) -> Row:
    """Return the supervisor's unique set size beside its limit."""
    info = start(str(root), detach=True)
    assert info is not None
    uss = psutil.Process(info.pid).memory_full_info().uss / 1e6
    return Row(name="supervisor USS", ours=uss, floor=USS_LIMIT_MB, unit="MB", limit=1.0, rounds=1)


def death(root: Path, rounds: int) -> Row:
    """Return how long the servers outlive a kill -9 of the supervisor."""
    worst = 0.0
    for _turn in range(rounds):
        info = start(str(root), detach=True)
        assert info is not None
        fds = [os.pidfd_open(pid) for pid in (info.fossil_pid, info.nats_pid)]
        supervisor = os.pidfd_open(info.pid)
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        began = time.perf_counter()
        signal.pidfd_send_signal(supervisor, signal.SIGKILL)
        waiting = set(fds)
        while waiting and time.perf_counter() - began < 5:
            for fd, _events in poll.poll(1000):
                poll.unregister(fd)
                waiting.discard(fd)
        worst = max(worst, (time.perf_counter() - began) * 1000)
        for fd in (*fds, supervisor):
            os.close(fd)
        stop(str(root), force=True)  # reaps it: it was started by this process
    start(str(root), detach=True)
    return Row(
        name="servers outlive kill -9 of the hub, worst",
        ours=worst,
        floor=DEATH_LIMIT_MS,
        unit="ms",
        limit=1.0,
        rounds=rounds,
    )


def failure(root: Path, env: dict[str, str], rounds: int) -> Row:
    """Return how long a start takes from finding that a pinned port is taken to its own end."""
    log = Path(Workspace(str(root)).logs) / "hub.log"
    told: list[float] = []
    with socket.create_server((ports.LOOPBACK, 0)) as holder:
        port = str(holder.getsockname()[1])
        for _turn in range(rounds):
            run_ms(
                [HUB, "start", "--detach", "--fossil-port", port], cwd=str(root), env=env, expect=1
            )
            ended = datetime.now(UTC)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            found = [line["time"] for line in lines if line["event"] == "start-failed"]
            took = ended - datetime.fromisoformat(found[-1])
            told.append(took.total_seconds() * 1000)
    return Row(
        name="a failed start, from finding the reason to its end",
        ours=statistics.median(told),
        floor=TELL_LIMIT_MS,
        unit="ms",
        limit=1.0,
        rounds=rounds,
    )


class Servers:
    """Both servers, started by this process alone: what no hub can undercut."""

    def __init__(self, workspace: Workspace) -> None:
        """Use the repository and the configuration of *workspace*, whose hub is stopped."""
        self._workspace = workspace
        self._fossil = fossil.find()
        self._nats = nats.find_server()

    def round(self) -> tuple[float, float]:
        """Start both, probe both, stop both; return milliseconds up and down."""
        fossil_port, nats_port = ports.any_free(), ports.any_free()
        nats.write_config(self._workspace, port=nats_port, server_name="floor")
        commands = (
            (
                fossil.server_argv(self._fossil, self._workspace, fossil_port),
                fossil.environment(self._workspace.state),
                b"Listening",
            ),
            (nats.argv(self._nats, self._workspace), {"PATH": os.defpath}, b"Server is ready"),
        )
        began = time.perf_counter()
        running = [_Server(argv, env, self._workspace.state) for argv, env, _line in commands]
        for server, (_argv, _env, line) in zip(running, commands, strict=True):
            server.wait_line(line)
        _ask(fossil_port, b"GET / HTTP/1.0\r\n\r\n")
        _ask(nats_port, b"")
        up = (time.perf_counter() - began) * 1000
        began = time.perf_counter()
        for server in running:
            os.kill(server.pid, signal.SIGTERM)
        for server in running:
            os.waitpid(server.pid, 0)
        down = (time.perf_counter() - began) * 1000
        for server in running:
            os.close(server.output)
        return up, down


class _Server:
    def __init__(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        self.output, write = os.pipe()
        here = os.getcwd()
        os.chdir(cwd)
        try:
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2)],
            )
        finally:
            os.chdir(here)
            os.close(write)

    def wait_line(self, line: bytes) -> None:
        said = b""
        while line not in said:
            chunk = os.read(self.output, 65536)
            if not chunk:
                raise RuntimeError(f"a server of the floor ended: {said.decode()}")
            said += chunk


def _ask(port: int, request: bytes) -> None:
    with socket.create_connection((ports.LOOPBACK, port), timeout=5) as sock:
        if request:
            sock.sendall(request)
        if not sock.recv(4096):
            raise RuntimeError("a server of the floor does not answer")
