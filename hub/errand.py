"""A child of the supervisor that does one thing, reports on it line by line, and ends.

Of its own, because it takes memory that a supervisor of a few megabytes would never give back,
and because it may take minutes in which the supervisor must answer.
"""

from __future__ import annotations

import os
import sys

from foundation import codec, control
from foundation.process import signal_group
from foundation.spawn import spawn_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from foundation.workspace import Workspace
    from hub.reactor import Reactor

REPORT_FD = 3
"""Where the child writes its report: a JSON object a line."""

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Errand:
    """One such child, seen from the supervisor. Its other output goes to hub.log."""

    def __init__(
        self,
        reactor: Reactor,
        workspace: Workspace,
        module: str,
        arguments: list[str],
        *,
        on_report: Callable[[dict[str, Any]], None],
        on_end: Callable[[int, str], None],
    ) -> None:
        """Run ``main()`` of *module* with *arguments* in its argv, its directory the root.

        *on_end* gets its exit status (negative: a signal) and why its report was not
        understood, "" if it was.

        Raises:
            OSError: it cannot be started.
        """
        self._reactor = reactor
        self._on_report = on_report
        self._on_end = on_end
        self._lines = control.LineBuffer()
        self._misunderstood = ""
        program = (
            f"import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import main; main()"
        )
        opened: list[int] = []
        try:
            read, write = os.pipe()
            opened += [read, write, os.open(os.devnull, os.O_RDONLY)]
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            opened.append(os.open(f"{workspace.logs}/hub.log", flags, 0o600))
            _read, _write, null, log = opened
            child = spawn_child(
                [sys.executable, "-I", "-c", program, _HERE, *arguments],
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
        reactor.watch(read, self._readable)
        reactor.watch(self._pidfd, lambda _events: self._exited())

    def _readable(self, _events: int) -> None:
        self._hear()

    def _hear(self) -> bool:
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
                self._on_report(codec.loads_object(line))
        except ValueError as error:
            self._misunderstood = str(error)
            self.cancel()
        return True

    def _exited(self) -> None:
        self.cancel()  # what it started: before the reaping, as long as the group is ours
        while self._hear():
            pass
        _pid, wait_status = os.waitpid(self._pid, 0)
        self._close()
        self._on_end(os.waitstatus_to_exitcode(wait_status), self._misunderstood)

    def _close(self) -> None:
        for fd in (self._read, self._pidfd):
            self._reactor.forget(fd)
            os.close(fd)

    def cancel(self) -> None:
        """Kill it and what it started; *on_end* is called as it goes."""
        signal_group(self._pid, 9)

    def abandon(self) -> None:
        """Kill and reap it with no word to anybody: the loop has ended."""
        self.cancel()
        os.waitpid(self._pid, 0)
        self._close()


def report(**message: Any) -> None:
    """In the child: tell the supervisor *message*.

    Raises:
        BrokenPipeError: the hub is gone, and nobody is left to tell.
    """
    os.write(REPORT_FD, codec.dumps(message).encode() + b"\n")
