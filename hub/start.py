"""Start the hub of a workspace, or attach to the one that runs."""

from __future__ import annotations

import os
import sys
import time

from foundation import codec, control
from foundation.control import Connection
from foundation.errors import HubError, Refused, Unavailable
from foundation.lock import try_lock
from foundation.spawn import describe_exit, spawn_daemon
from foundation.workspace import Workspace
from hub.discovery import HubInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any

    Progress = Callable[[dict[str, Any]], None]

LISTENER_FD = 3
LOCK_FD = 4
TIMEOUT_S = 30.0
MARK = "BONES_WORKSPACE"
"""In the environment of every process of ours: the root of the workspace it serves."""

_RETRY_S = 0.002
_PROGRAM = ("import sys; sys.path[:0] = [sys.argv.pop(1)]; "
            "from hub.supervisor import daemon_main; daemon_main()")
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TAIL_LINES = 20


def start(
    root: str | None, *, detach: bool = False, fossil_port: int | None = None,
    nats_port: int | None = None, timeout_s: float = TIMEOUT_S, cancel: int | None = None,
    progress: Progress | None = None, on_ready: Callable[[HubInfo], None] | None = None,
) -> HubInfo | None:
    """Have a hub run in the workspace around *root* (None: the current directory).

    Where one runs, attach: return at once with ``already_running`` set. Otherwise, with
    *detach*, return once both servers answer; the hub outlives the caller. Without, this
    process is the hub until SIGTERM, SIGINT or SIGHUP, or until *cancel*, a file descriptor,
    becomes readable; then drain and return None. That form is for the main thread only, and
    *on_ready* is told when the hub is ready.

    A *fossil_port* or *nats_port* is used or refused; without one the recorded port is
    preferred, then 8765 and 4222, then any. *timeout_s* counts from the last sign of
    progress. *progress* gets dicts: ``{"phase", "done", "total"}`` or ``{"warning"}``.

    Raises:
        Refused: this place or these arguments will not do; the message says what would.
        Unavailable: it did not become ready in time.
        Corrupt: the repository is damaged.
        HubError: a server failed; the message has its last words.
    """
    workspace = Workspace.find(root)
    if not detach:
        _require_main_thread()
    deadline_s = time.monotonic() + timeout_s
    while True:
        info = _attach(workspace, timeout_s, progress)
        if info is not None:
            return info
        held = _become_starter(workspace)
        if held is not None:
            break
        if time.monotonic() > deadline_s:
            raise Unavailable(
                f"another process holds {workspace.lock} and does not answer: "
                "`hub stop` ends it if it is a hub", reason="lock-held")
        # Between taking the lock and listening, or between closing and letting go, the
        # other one needs some microseconds.
        time.sleep(_RETRY_S)
    lock, listener = held
    if not detach:
        from hub.supervisor import Options, Supervisor  # noqa: PLC0415

        options = Options(fossil_port=fossil_port, nats_port=nats_port)
        Supervisor(workspace, options, lock=lock, listener=listener, on_ready=on_ready,
                   cancel=cancel).run()
        return None
    request = {"root": os.fsencode(workspace.root).hex(), "fossil_port": fossil_port,
               "nats_port": nats_port}
    return _start_daemon(workspace, request, lock, listener, timeout_s, progress)


def _require_main_thread() -> None:
    """Signals and PDEATHSIG both go by the thread: only the main one lives long enough."""
    threading = sys.modules.get("threading")
    if threading is not None and threading.current_thread() is not threading.main_thread():
        raise Refused("a foreground hub must run in the main thread: use detach=True",
                      reason="not-main-thread")


def _attach(workspace: Workspace, timeout_s: float, progress: Progress | None) -> HubInfo | None:
    """Return the hub that runs here once it is ready, None if none does.

    Raises:
        HubError: one runs and cannot become ready, or does not answer.
    """
    try:
        connection = Connection.open(workspace.socket)
    except OSError as error:
        from hub.place import explain  # noqa: PLC0415

        raise explain(error, workspace.socket) from None
    if connection is None:
        return None
    with connection:
        try:
            answer = connection.ask("start", timeout_s=timeout_s, progress=progress)
        except Unavailable as error:
            if error.reason not in ("gone", "stopping"):
                raise
            connection.wait_end(timeout_s)
            return None
    return HubInfo(**{**answer, "already_running": True})


def _become_starter(workspace: Workspace) -> tuple[int, _socket.socket] | None:
    """Return the held lock and a listening socket, None if another process has the lock.

    Raises:
        HubError: a hub cannot live here.
    """
    from hub import place  # noqa: PLC0415 - a start that attaches does not need it

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


def _start_daemon(
    workspace: Workspace, request: dict[str, Any], lock: int, listener: _socket.socket,
    timeout_s: float, progress: Progress | None,
) -> HubInfo:
    log_path = f"{workspace.logs}/hub.log"
    # The socket listens already, so the connection is queued until the daemon gets to it.
    connection = Connection.open(workspace.socket)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    log_start = os.fstat(log).st_size
    try:
        pid = spawn_daemon(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, _HERE, codec.dumps(request)],
            env={**os.environ, MARK: workspace.root},
            files={0: null, 1: log, 2: log, LISTENER_FD: listener.fileno(), LOCK_FD: lock},
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
                    f"ended{_log_tail(log_path, log_start)}", reason="start-timeout") from None
            if error.reason != "gone":
                raise
            _pid, wait_status = os.waitpid(pid, 0)
            ended = describe_exit(os.waitstatus_to_exitcode(wait_status))
            raise HubError(f"the hub {ended} before it was ready{_log_tail(log_path, log_start)}",
                           reason="hub-died") from None
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
    os.kill(pid, 15)
    _reap(pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def _log_tail(path: str, start: int) -> str:
    from hub.logs import tail  # noqa: PLC0415

    lines = [line.decode(errors="replace") for line in tail(path, _TAIL_LINES, start=start)]
    return "".join(f"\n  {line}" for line in ["; its log:", *lines]) if lines else ""
