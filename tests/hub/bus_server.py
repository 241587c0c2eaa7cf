"""A real nats-server and a real trunk, for the tests of the bus."""

from __future__ import annotations

import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from foundation import codec
from foundation.workspace import Workspace
from hub import nats
from hub.creds import ensure_creds
from hub.outbox import Outbox
from tests.support import eventually

if TYPE_CHECKING:
    from typing import IO

CODE = Path(__file__).parents[2]
TRUNK = f"import sys; sys.path.insert(0, {str(CODE)!r}); from hub.trunk import main; main()"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def make_workspace(root: Path) -> Workspace:
    """Return a workspace in *root* that has all but its servers."""
    (root / ".git").mkdir(parents=True, exist_ok=True)
    workspace = Workspace(str(root))
    workspace.make_state()
    ensure_creds(workspace)
    return workspace


class Server:
    """The nats-server of a workspace, on a port of its own that outlives a kill."""

    def __init__(self, root: Path, name: str = "ours") -> None:
        self.name = name
        self.workspace = make_workspace(root)
        self.use_port(free_port())

    def use_port(self, port: int) -> None:
        self.port = port
        nats.write_config(self.workspace, port=port, server_name=self.name)
        Path(self.workspace.nats_url).write_text(f"nats://127.0.0.1:{port}\n")

    def start(self) -> Self:
        with open(f"{self.workspace.logs}/nats.log", "ab") as log:
            self.process = subprocess.Popen(
                nats.argv(nats.find_server(), self.workspace), stderr=log
            )
        eventually(lambda: answers(self.port))
        return self

    def restart(self) -> Self:
        """Start it as the supervisor does: with its configuration written anew."""
        nats.write_config(self.workspace, port=self.port, server_name=self.name)
        return self.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop all its threads; on return none of them does anything."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = list(Path(f"/proc/{self.process.pid}/task").glob("*/stat"))
        eventually(lambda: all(" T " in one.read_text() for one in tasks))

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_raised: object) -> None:
        self.process.kill()
        self.process.wait()


def copied_server(directory: Path) -> tuple[Server, Server]:
    """Return the server of a workspace in *directory*, and that of its copy, with its keys."""
    server = Server(directory / "original", "original")
    shutil.copytree(server.workspace.root, directory / "copy")
    return server, Server(directory / "copy", "copy")


class Trunk:
    """A trunk process, with its pipes as the supervisor holds them."""

    def __init__(self, workspace: Workspace, *options: str) -> None:
        self.workspace = workspace
        self.options = options
        self.log = Path(workspace.logs) / "trunk.log"

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", *self.options, "-c", TRUNK, self.workspace.root],
                bufsize=0,  # what readline would read ahead, select does not see
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin: IO[bytes] = self.process.stdin
        self.stdout: IO[bytes] = self.process.stdout
        return self

    def said(self, within_s: float = 20.0) -> bytes:
        """Return the next line of stdout, b"" if trunk ended, within *within_s* seconds."""
        readable, _, _ = select.select([self.stdout], [], [], within_s)
        assert readable, f"trunk said nothing for {within_s:g} s:\n{self.log.read_text()}"
        return self.stdout.readline()

    def until_ready(self) -> Self:
        assert self.said() == b"trunk ready\n", self.log.read_text()
        return self

    def wake(self) -> None:
        self.stdin.write(b"\n")
        self.stdin.flush()

    def ended_within(self, within_s: float) -> int:
        """Return the exit status; fail if it takes longer than *within_s* seconds."""
        return self.process.wait(within_s)

    def logged(self) -> list[dict[str, Any]]:
        return [codec.loads_object(line) for line in self.log.read_bytes().splitlines()]

    def complaints(self) -> list[dict[str, Any]]:
        """Return what it said of the bus; where there is no repository, it says that too."""
        return [line for line in self.logged() if line["event"].endswith("-failed")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_raised: object) -> None:
        self.kill()


def fill(workspace: Workspace, count: int, *, kind: str = "ready") -> None:
    """Append *count* events to the outbox."""
    box = Outbox(workspace.outbox, epoch=1)
    for number in range(count):
        assert box.append(kind, {"number": number})
    box.close()
