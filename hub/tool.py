"""A program run beside us: its output is a pipe, what it says on stderr is kept."""

from __future__ import annotations

import io
import os
import signal

from foundation.spawn import spawn_child, spawn_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

_PIPE_BYTES = 1 << 20
_SAID_BYTES = 16_384
_F_SETPIPE_SZ = 1031


class Tool:
    """One run of a program. Leave the ``with`` and it is gone: ended and reaped.

    The kernel kills it when we die (see :func:`foundation.spawn.spawn_child`, which also
    says why it must be made in a thread that stays). Standard error goes to memory, not to
    a pipe, so a talkative program never waits for us.
    """

    def __init__(
        self, argv: list[str], *, env: Mapping[str, str], cwd: str = "", stdin: bytes | int = b""
    ) -> None:
        """Start *argv*; *stdin* is what it reads: bytes, or a descriptor that stays ours.

        Without a *cwd* it starts where we are, by :func:`foundation.spawn.spawn_filter`: then it
        is the end of a pipe that it reads that must end it when we die.

        Raises:
            OSError: it could not be executed.
        """
        self.argv = argv
        self._status: int | None = None
        self._said = os.memfd_create("stderr")
        read, write = os.pipe()
        given = stdin if isinstance(stdin, int) else _in_memory(stdin)
        try:
            files = {0: given, 1: write, 2: self._said}
            self._child = (
                spawn_child(argv, env=env, cwd=cwd, files=files)
                if cwd
                else spawn_filter(argv, env=env, files=files)
            )
        except BaseException:
            os.close(read)
            os.close(self._said)
            raise
        finally:
            os.close(write)
            if given is not stdin:
                os.close(given)
        _enlarge(read)
        self.stdout = io.BufferedReader(io.FileIO(read), _PIPE_BYTES // 4)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is None:
            signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)
            self.wait()
        self.stdout.close()
        os.close(self._child.pidfd)
        os.close(self._said)

    def wait(self) -> int:
        """Wait for its end; return its exit status, negative for a signal.

        Read its output first: a program that nobody reads never ends.
        """
        if self._status is None:
            _pid, status = os.waitpid(self._child.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def said(self) -> str:
        """Return the beginning of what it wrote on standard error so far."""
        return os.pread(self._said, _SAID_BYTES, 0).decode("utf-8", "replace").strip()


def _in_memory(content: bytes) -> int:
    fd = os.memfd_create("stdin")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _enlarge(pipe: int) -> None:
    """Let the program run ahead of us by more than the usual 64 KiB."""
    import fcntl  # noqa: PLC0415

    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return  # above this user's limit: the usual size is only slower
