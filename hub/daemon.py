"""From a starter to a detached supervisor."""

from __future__ import annotations

import _socket
import os
import sys

from foundation import codec, control
from foundation.control import Connection
from foundation.errors import HubError, Unavailable
from foundation.failpoint import hit
from foundation.lock import try_lock
from foundation.process import open_pidfd, terminate
from foundation.spawn import describe_exit, fork_daemon, spawn_daemon
from foundation.workspace import MARK, Workspace
from hub import place
from hub.contact import connect
from hub.info import HubInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.start import Progress

LISTENER_FD = 3
LOCK_FD = 4

_PROGRAM = (
    "import sys; sys.path[:0] = [sys.argv.pop(1)]; "
    "from hub.daemon import daemon_main; daemon_main()"
)
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TAIL_LINES = 20
_DRAIN_WITHIN_S = 10.0


def become_starter(workspace: Workspace) -> tuple[int, _socket.socket] | None:
    """Return the held lock and a listening socket, None if another process has the lock.

    Raises:
        HubError: a hub cannot live here.
    """
    try:
        place.check(workspace)
        workspace.make_state()
        lock = try_lock(workspace.lock)
    except OSError as error:
        raise place.explain(error, workspace.state) from None
    if lock is None:
        return None
    hit("start.locked")
    try:
        listener = control.listen(workspace.socket)
        hit("start.listening")
    except OSError as error:
        os.close(lock)
        raise place.no_sockets(error, workspace) from None
    return lock, listener


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
    log = f"{workspace.logs}/hub.log"
    try:
        # The socket listens already: the connection is queued until the daemon gets to it.
        connection = connect(workspace)
        assert connection is not None, "nobody else has our lock"
        log_start = os.stat(log).st_size if os.path.exists(log) else 0
        pid = _launch(workspace, log, (fossil_port, nats_port), lock, listener, lean=lean)
    except OSError as error:
        raise place.explain(error, log) from None
    finally:
        listener.close()
        os.close(lock)
    with connection:
        try:
            answer = connection.ask("start", timeout_s=timeout_s, progress=progress)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C too: the daemon must not stay
            raise _why(error, connection, pid, timeout_s, log, log_start) from None
    return HubInfo(**answer)


def _launch(
    workspace: Workspace,
    log: str,
    asked: tuple[int | None, int | None],
    lock: int,
    listener: _socket.socket,
    *,
    lean: bool,
) -> int:
    """Make the daemon; return its pid. *asked* are the ports of fossil and nats, if any."""
    opened: list[int] = []
    try:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        opened.append(os.open(log, flags, 0o600))
        null, output = opened
        files = {0: null, 1: output, 2: output, LISTENER_FD: listener.fileno(), LOCK_FD: lock}
        if lean:

            def serve() -> int:
                return serve_detached(workspace, *asked)

            return fork_daemon(serve, files=files)
        root = os.fsencode(workspace.root).hex()
        request = {"root": root, "fossil_port": asked[0], "nats_port": asked[1]}
        return spawn_daemon(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, _HERE, codec.dumps(request)],
            env={**os.environ, MARK: workspace.root},
            files=files,
        )
    finally:
        for fd in opened:
            os.close(fd)


def _why(
    error: BaseException, connection: Connection, pid: int, timeout_s: float, log: str, start: int
) -> BaseException:
    """See to it that the daemon that met *error* is gone; return what to raise."""
    reason = error.reason if isinstance(error, HubError) else ""
    if reason == "gone":
        ended = _reap(pid)
        how = "ended" if ended is None else describe_exit(ended)
        return HubError(
            f"the hub {how} before it was ready{_log_tail(log, start)}", reason="hub-died"
        )
    if reason == "no-answer" or not isinstance(error, HubError):
        # Not so much as progress, or Ctrl-C during a long seeding, which means: do not.
        _end(pid)
        if reason == "no-answer":
            return Unavailable(
                f"the hub was not ready {timeout_s:g} s after its last sign of life, and was "
                f"ended{_log_tail(log, start)}",
                reason="start-timeout",
            )
        return error
    if connection.wait_end(timeout_s):  # it drains: then the ports are free again
        _reap(pid)
    else:
        _end(pid)
    return error


def _end(pid: int) -> None:
    """Have our own child drain, or kill it; it is no stranger, for we have not reaped it."""
    pidfd = open_pidfd(pid)
    if pidfd is not None:
        try:
            terminate(pidfd, grace_s=_DRAIN_WITHIN_S)
        finally:
            os.close(pidfd)
    _reap(pid)


def _reap(pid: int) -> int | None:
    """Return how our child ended; None where the caller has SIGCHLD ignored."""
    try:
        _pid, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status)


def _log_tail(path: str, start: int) -> str:
    from hub.logs import tail  # noqa: PLC0415 - only for a failure

    lines = [line.decode(errors="replace") for line in tail(path, _TAIL_LINES, start=start)]
    return "".join(f"\n  {line}" for line in ["; its log:", *lines]) if lines else ""


def daemon_main() -> None:
    """Be the detached supervisor, executed as one: the last argument says of what."""
    request = codec.loads_object(sys.argv[1])
    workspace = Workspace(os.fsdecode(bytes.fromhex(request["root"])))
    status = serve_detached(workspace, request["fossil_port"], request["nats_port"])
    os._exit(status)  # skips 0.6 ms of interpreter teardown


def serve_detached(workspace: Workspace, fossil_port: int | None, nats_port: int | None) -> int:
    """Be the detached supervisor until it ends; return the exit status.

    Descriptor 3 listens, 4 holds the lock, 0 to 2 are the null device and the log.
    """
    for fd in (LISTENER_FD, LOCK_FD):
        os.set_inheritable(fd, False)
    os.closerange(max(LISTENER_FD, LOCK_FD) + 1, 65536)
    os.umask(0o077)
    os.chdir(workspace.state)
    from hub.supervisor import Options, Supervisor  # noqa: PLC0415 - not in the starter

    options = Options(fossil_port=fossil_port, nats_port=nats_port, detached=True)
    try:
        Supervisor(
            workspace, options, lock=LOCK_FD, listener=_socket.socket(fileno=LISTENER_FD)
        ).run()
    except HubError:
        return 1  # logged, and told to everybody who waits
    return 0
