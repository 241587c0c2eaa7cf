"""What tests of every package share."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from foundation.process import has_exited, open_pidfd
from foundation.workspace import Workspace
from hub import render
from hub.ports import any_free
from hub.status import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

CODE = Path(__file__).resolve().parents[1]
HUB = CODE / "bin/hub"

MARK = "HUB_TEST"
"""In the environment of every process that a test starts: which test."""


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait until *holds* returns true; fail after *within_s* seconds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not so after {within_s:g} s"
        time.sleep(0.01)


# --- processes -----------------------------------------------------------------------------


class Survivor(NamedTuple):
    """A process that a test left, with a pidfd that was opened before it was looked at."""

    pid: int
    pidfd: int
    words: str


def processes_of(mark: str, place: str) -> list[Survivor]:
    """Return the living processes, ourselves excluded, that belong to a test.

    They carry *mark*, or a workspace below *place*, in their environment (the servers get an
    environment of their own), or work below *place*. The caller closes the descriptors.
    """
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        pidfd = open_pidfd(int(entry))
        if pidfd is None:
            continue
        words = _words_if_ours(entry, mark.encode(), os.fsencode(place))
        if words is None or has_exited(pidfd):
            os.close(pidfd)
        else:
            found.append(Survivor(int(entry), pidfd, words))
    return found


def _words_if_ours(pid: str, mark: bytes, place: bytes) -> str | None:
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.getuid():
            return None
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        where = os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    ours = (
        MARK.encode() + b"=" + mark in environment
        or any(line.startswith(b"BONES_WORKSPACE=" + place + b"/") for line in environment)
        or where == place
        or where.startswith(place + b"/")
    )
    return words.replace(b"\0", b" ").decode(errors="replace").strip() if ours else None


def listening_ports(pid: int) -> list[int]:
    """Return the TCP ports on which process *pid* listens."""
    try:
        links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    except OSError:
        return []
    ports = []
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
            ports.append(int(fields[1].rpartition(":")[2], 16))
    return ports


def end(survivor: Survivor) -> None:
    """Kill it through its verified descriptor, and close that."""
    try:
        signal.pidfd_send_signal(survivor.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    eventually(lambda: has_exited(survivor.pidfd))
    os.close(survivor.pidfd)


def is_gone(pid: int) -> bool:
    """Tell whether the process is dead; a zombie is, although it answers ``kill(pid, 0)``."""
    pidfd = open_pidfd(pid)
    if pidfd is None:
        return True
    try:
        return has_exited(pidfd)
    finally:
        os.close(pidfd)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process that the test knows to be its own."""
    os.kill(pid, number)


@contextmanager
def stranger(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that nothing of ours may touch; it must live to the end of the ``with``."""
    process = subprocess.Popen(argv or ("sleep", "1000"), start_new_session=True)
    try:
        yield process
        assert process.poll() is None, f"the stranger was killed: {process.returncode}"
    finally:
        process.kill()
        process.wait()


def run_python(
    program: str, *arguments: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run *program* in a Python of its own that finds the project's packages."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=CODE,
        check=check,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(CODE), **environment},
    )


# --- ports ---------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port that was free just now, and that no outgoing connection will be given."""
    return any_free()


def accepts(port: int) -> bool:
    """Tell whether somebody listens on *port*."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def port_of(url: str) -> int:
    """Return the port that *url* names."""
    return int(url.rpartition(":")[2])


@contextmanager
def taken_port() -> Generator[int]:
    """Yield a port on which this process listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port: int = sock.getsockname()[1]
        yield port


# --- git and the hub -----------------------------------------------------------------------


def git(root: Path, *arguments: str) -> str:
    """Run git in *root*; the caller's configuration does not reach it."""
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        check=True,
        capture_output=True,
        text=True,
        errors="surrogateescape",
    ).stdout


def make_repository(root: Path) -> Path:
    """Make a small git repository in *root*, an absent or empty directory."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in {**_git_directory(), **_SMALL}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
            if "/objects/" in name:
                (root / name).chmod(0o444)
    git(root, "update-index", "-q", "--refresh")  # the files are others than those that it knows
    return root


_SMALL = {"README": b"hello\n", "src/a.py": b"print(1)\n", "src/b.py": b"print(2)\n"}


@functools.cache
def _git_directory() -> dict[str, bytes | None]:
    """Return what git makes of :data:`_SMALL`, files and empty directories, but no sample hooks.

    Hundreds of tests begin with it.
    """
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        (root / "src").mkdir()
        for name, content in _SMALL.items():
            (root / name).write_bytes(content)
        git(root, "init", "-q", "-b", "main")
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", "first")
        return {
            str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
            for path in (root / ".git").rglob("*")
            if path.suffix != ".sample"
            and (path.is_file() or path.name == "hooks" or not any(path.iterdir()))
        }


def record_free_ports(workspace: Workspace) -> None:
    """Have its hub prefer ports of its own, as if it had had them: no test needs the default ones.

    It takes others if these are taken by then; of ports that are demanded one in thousands is.
    """
    Path(workspace.fossil_url).write_text(f"http://127.0.0.1:{free_port()}\n")
    Path(workspace.nats_url).write_text(f"nats://127.0.0.1:{free_port()}\n")


def delete(path: Path | str) -> None:
    """Remove a directory in which a hub may run and write meanwhile."""

    def gone() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not os.path.lexists(path)

    eventually(gone)


class Hub:
    """The hub of one workspace as a person has it: by way of ``bin/hub``."""

    def __init__(self, root: Path) -> None:
        """Name the workspace; nothing is started."""
        self.root = root
        self.workspace = Workspace(str(root))

    def run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        timeout_s: float = 50,
        environment: dict[str, str] | None = None,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``hub`` with *arguments* in the workspace."""
        return subprocess.run(
            [HUB, *arguments],
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            timeout=timeout_s,
            env={**os.environ, **(environment or {}), **variables},
        )

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Run ``hub`` with *arguments* without waiting for it."""
        return subprocess.Popen(
            [HUB, *arguments],
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env={**os.environ, **environment},
        )

    def start(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """Start it detached and return what ``hub start`` says."""
        done = self.run("start", "--detach", "--json", *arguments, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr + self.log("hub")
        return data_of(done.stdout)

    def refused(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """Start it, which must fail; return the error, its exit code among it."""
        done = self.run("start", "--detach", "--json", *arguments, environment=environment)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr, done.stderr
        error: dict[str, Any] = json.loads(done.stdout)["error"]
        assert error["exit_code"] == done.returncode
        return error

    def stop(self, *arguments: str) -> dict[str, Any]:
        """Stop it and return what ``hub stop`` says."""
        done = self.run("stop", "--json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return data_of(done.stdout)

    def status(self) -> dict[str, Any]:
        """Return what ``hub status --json`` says; asked from here, without a process for it."""
        return data_of(render.status(status_of(self.workspace), as_json=True).stdout)

    def child(self, name: str) -> dict[str, Any]:
        """Return what ``hub status`` says of child *name*; an empty dict if there is none."""
        children = self.status()["children"]
        return next((child for child in children if child["name"] == name), {})

    def wait_ready(self, *names: str, within_s: float = 20.0) -> None:
        """Wait until all *names* (the servers and trunk by default) are ready."""
        wanted = set(names or ("fossil", "nats", "trunk"))

        def ready() -> bool:
            children = self.status()["children"]
            return wanted <= {c["name"] for c in children if c["phase"] == "ready"}

        eventually(ready, within_s)

    def pids(self) -> dict[str, int]:
        """Return the pids that the pid files name."""
        return {
            path.stem: int(path.read_text()) for path in Path(self.workspace.pids).glob("*.pid")
        }

    def log(self, name: str) -> str:
        """Return the log *name*, empty if there is none."""
        path = Path(self.workspace.logs) / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the entries of hub.log that tell of *event*."""
        lines = [json.loads(line) for line in self.log("hub").splitlines() if line[:1] == "{"]
        return [line for line in lines if line["event"] == event]


def data_of(stdout: str) -> dict[str, Any]:
    """Return the data in the envelope that a verb printed."""
    data: dict[str, Any] = json.loads(stdout)["data"]
    return data


def copy_workspace(root: Path, copy: Path) -> None:
    """Copy a workspace in use, but for its sockets and what trunk writes and removes meanwhile."""
    shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock", "journal"))
