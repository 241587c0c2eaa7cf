"""From a starter to a detached supervisor."""

from __future__ import annotations

import os
import sys

from foundation import codec, control
from foundation.control import Connection
from foundation.errors import HubError, Unavailable
from foundation.lock import try_lock
from foundation.process import signal_group
from foundation.spawn import describe_exit, fork_daemon, spawn_daemon
from hub import place
from hub.info import HubInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from foundation.workspace import Workspace
    from hub.start import Progress

LISTENER_FD = 3
LOCK_FD = 4
MARK = "BONES_WORKSPACE"
"""In the environment of every process of ours: the root of the workspace it serves."""

_PROGRAM = (
    "import sys; sys.path[:0] = [sys.argv.pop(1)]; "
    "from hub.supervisor import daemon_main; daemon_main()"
)
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TAIL_LINES = 20


def become_starter(workspace: Workspace) -> tuple[int, _socket.socket] | None:
    """Return the held lock and a listening socket, None if another process has the lock.

    Raises:
        HubError: a hub cannot live here.
    """
    place.check(workspace)
    try:
        workspace.make_state()
        lock = try_lock(workspace.lock)
    except OSError as error:
        raise place.explain(error, workspace.state) from None
    if lock is None:
        return None
    try:
        return lock, control.listen(workspace.socket)
    except OSError as error:
        os.close(lock)
        raise place.no_sockets(error, workspace) from None


def run_detached(
    workspace: Workspace,
    *,
    fossil_port: int | None,
    nats_port: int | None,
    lock: int,
    listener: _socket.socket,
    timeout_s: float,
    progress: Progress | None,
    lean: bool,
) -> HubInfo:
    """Detach a supervisor, hand it *lock* and *listener*, and wait until it is ready.

    *lean*: this process is a command line of ours that has imported nothing else, so that a
    fork of it will do as supervisor.

    Raises:
        HubError: it could not start, and has ended; see :func:`hub.start.start`.
    """
    log_path = f"{workspace.logs}/hub.log"
    try:
        # The socket listens already: the connection is queued until the daemon gets to it.
        connection = Connection.open(workspace.socket)
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        listener.close()
        os.close(lock)
        raise place.explain(error, log_path) from None
    null = os.open(os.devnull, os.O_RDONLY)
    log_start = os.fstat(log).st_size
    files = {0: null, 1: log, 2: log, LISTENER_FD: listener.fileno(), LOCK_FD: lock}

    def serve() -> int:
        from hub.supervisor import serve_detached  # noqa: PLC0415 - not in the starter

        return serve_detached(workspace, fossil_port, nats_port)

    try:
        if lean:
            pid = fork_daemon(serve, files=files)
        else:
            root = os.fsencode(workspace.root).hex()
            request = {"root": root, "fossil_port": fossil_port, "nats_port": nats_port}
            pid = spawn_daemon(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _HERE, codec.dumps(request)],
                env={**os.environ, MARK: workspace.root},
                files=files,
            )
    finally:
        listener.close()
        for fd in (lock, log, null):
            os.close(fd)
    assert connection is not None, "nobody else has our lock"
    with connection:
        try:
            answer = connection.ask("start", timeout_s=timeout_s, progress=progress)
        except Unavailable as error:
            if error.reason == "no-answer":
                _end(pid)
                raise Unavailable(
                    f"the hub was not ready {timeout_s:g} s after its last sign of life, and was "
                    f"ended{_log_tail(log_path, log_start)}",
                    reason="start-timeout",
                ) from None
            if error.reason != "gone":
                raise
            _pid, wait_status = os.waitpid(pid, 0)
            ended = describe_exit(os.waitstatus_to_exitcode(wait_status))
            raise HubError(
                f"the hub {ended} before it was ready{_log_tail(log_path, log_start)}",
                reason="hub-died",
            ) from None
        except HubError:
            connection.wait_end(timeout_s)  # it drains: then the ports are free again
            _reap(pid)
            raise
        except BaseException:  # Ctrl-C during a long seeding means: do not
            _end(pid)
            raise
    return HubInfo(**answer)


def _end(pid: int) -> None:
    """Ask our own child to drain; it cannot be a stranger, for we have not reaped it."""
    signal_group(pid, 15)
    _reap(pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def _log_tail(path: str, start: int) -> str:
    from hub.logs import tail  # noqa: PLC0415 - only for a failure

    lines = [line.decode(errors="replace") for line in tail(path, _TAIL_LINES, start=start)]
    return "".join(f"\n  {line}" for line in ["; its log:", *lines]) if lines else ""
