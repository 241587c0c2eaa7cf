"""What a first start makes: credentials and the seeded repository, in a process of its own.

Of its own, because it takes memory that a supervisor of a few megabytes would never give
back, and because it may take minutes in which the supervisor must answer.
"""

from __future__ import annotations

import os
import sys
import time

from foundation import codec, control
from foundation.errors import HubError, from_wire, to_wire
from foundation.process import signal_group
from foundation.spawn import describe_exit, spawn_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from foundation.workspace import Workspace
    from hub.reactor import Reactor

REPORT_FD = 3
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from hub.preparation import main; main()"
)


class Preparation:
    """One run of the preparing child, seen from the supervisor."""

    def __init__(
        self,
        reactor: Reactor,
        workspace: Workspace,
        fossil: str,
        *,
        on_progress: Callable[[dict[str, Any]], None],
        on_end: Callable[[HubError | None], None],
    ) -> None:
        """Start it. *on_end* gets the reason if it failed.

        Raises:
            OSError: it cannot be started.
        """
        self._reactor = reactor
        self._on_progress = on_progress
        self._on_end = on_end
        self._lines = control.LineBuffer()
        self._outcome: HubError | None = None
        self._done = False
        opened: list[int] = []
        try:
            read, write = os.pipe()
            opened += [read, write, os.open(os.devnull, os.O_RDONLY)]
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            opened.append(os.open(f"{workspace.logs}/hub.log", flags, 0o600))
            _read, _write, null, log = opened
            child = spawn_child(
                [sys.executable, "-I", "-c", _PROGRAM, _HERE, workspace.root, fossil],
                env=dict(os.environ),
                cwd=workspace.root,
                files={0: null, 1: log, 2: log, REPORT_FD: write},
            )
            opened.remove(read)
        finally:
            for fd in opened:
                os.close(fd)
        self._pid, self._pidfd, self._read = child.pid, child.pidfd, read
        os.set_blocking(read, False)
        reactor.watch(read, self._reported)
        reactor.watch(self._pidfd, lambda _events: self._exited())

    def _reported(self, _events: int) -> None:
        self._report()

    def _report(self) -> bool:
        """Take one chunk of the report; return whether there may be more."""
        try:
            chunk = os.read(self._read, 65536)
        except BlockingIOError:
            return False
        if not chunk:
            self._reactor.forget(self._read)
            return False
        try:
            for line in self._lines.feed(chunk):
                self._take(codec.loads_object(line))
        except ValueError as error:
            self._outcome = HubError(f"seeding was not understood: {error}", reason="seed-failed")
            self._kill()
        return True

    def _take(self, message: dict[str, Any]) -> None:
        if "progress" in message:
            self._on_progress(message["progress"])
        elif "warning" in message or "note" in message:
            self._on_progress(message)
        elif "fail" in message:
            self._outcome = from_wire(message["fail"])
        elif "done" in message:
            self._done = True

    def _exited(self) -> None:
        self._kill()  # git, fossil: before the reaping, as long as the group is ours
        while self._report():
            pass
        _pid, wait_status = os.waitpid(self._pid, 0)
        self._close()
        status = os.waitstatus_to_exitcode(wait_status)
        if self._outcome is None and not self._done:
            self._outcome = HubError(
                f"seeding {describe_exit(status)}; `hub logs hub` may say more",
                reason="seed-failed",
            )
        self._on_end(self._outcome)

    def _close(self) -> None:
        for fd in (self._read, self._pidfd):
            self._reactor.forget(fd)
            os.close(fd)

    def _kill(self) -> None:
        signal_group(self._pid, 9)

    def cancel(self) -> None:
        """End it; the next start begins anew. *on_end* is called as it goes."""
        self._kill()

    def abandon(self) -> None:
        """Kill and reap it with no word to anybody: the loop has ended."""
        self._kill()
        os.waitpid(self._pid, 0)
        self._close()


def set_aside_sidecars(workspace: Workspace) -> None:
    """Move away the journal of a repository that is gone: SQLite would replay it into the new one.

    Only moved: with the repository that it belongs to, it may hold that one's last commits.
    """
    for suffix in ("-wal", "-shm", "-journal"):
        path = workspace.repository + suffix
        if os.path.lexists(path):
            os.rename(path, f"{path}.of-a-removed-repository.{time.time_ns()}")


def main() -> None:
    """Be the preparing child: argv holds the root and the fossil binary."""
    from foundation.workspace import Workspace  # noqa: PLC0415
    from hub.creds import ensure_creds  # noqa: PLC0415
    from hub.seed import remove_scratch, seed  # noqa: PLC0415

    root, fossil = sys.argv[1:3]
    workspace = Workspace(root)

    def report(**message: Any) -> None:
        os.write(REPORT_FD, codec.dumps(message).encode() + b"\n")

    def progress(phase: str, done: int, total: int) -> None:
        report(progress={"phase": phase, "done": done, "total": total})

    os.set_inheritable(REPORT_FD, False)
    try:
        ensure_creds(workspace)
        if not os.path.lexists(workspace.repository):
            set_aside_sidecars(workspace)
            seeded = seed(workspace, fossil, progress)
            report(note=seeded.summary())
            for warning in seeded.warnings():
                report(warning=warning)
        else:
            remove_scratch(workspace)
        report(done=True)
    except HubError as error:
        report(fail=to_wire(error))
        os._exit(1)
    except BrokenPipeError:  # the hub is gone, and nobody is left to tell
        os._exit(1)
    except OSError as error:
        from hub.place import explain  # noqa: PLC0415

        report(fail=to_wire(explain(error, workspace.state)))
        os._exit(1)
