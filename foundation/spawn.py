"""Starting processes: children that die with us, and daemons that outlive us."""

from __future__ import annotations

import _signal
import fcntl
import os
import select
import sys
import time

from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1  # prctl(2)
_ABOVE_TARGETS = 20  # descriptors are first moved here, so that no dup2 overwrites a source

_NO_MORE_DESCRIPTORS = 65536
_DEFAULTED = (1, 2, 3, 13, 15, 17)
"""HUP INT QUIT PIPE TERM CHLD: Python ignores SIGPIPE, our starter may ignore the others, and
exec keeps what is ignored; who ignores SIGCHLD cannot wait for a child."""


class SpawnedChild(Record):
    """A child of this process; whoever spawned it closes ``pidfd`` and reaps ``pid``."""

    pid: int
    pidfd: int


def spawn_child(
    argv: list[str], *, env: Mapping[str, str], cwd: str, files: Mapping[int, int]
) -> SpawnedChild:
    """Run *argv* in a process group of its own; the kernel kills it when this process dies.

    *files* maps the child's descriptor numbers to ours; everything else is closed in it.
    The calling thread must live as long as the child: PDEATHSIG fires when the *thread* that
    forked ends.

    Raises:
        OSError: the program could not be executed (the child's own errno).
    """
    _load_prctl()
    parent = os.getpid()
    report_read, report_write = os.pipe()
    # A signal that arrives between fork and exec would run our handler in the child, and its
    # wake-up byte would reach our own loop: no signal until the child has default handlers.
    blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, range(1, 32))
    try:
        pid = os.fork()
        if pid == 0:
            _never_return(argv, env, cwd, files, parent, blocked, report_write)
    except BaseException:
        os.close(report_read)
        raise
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked)
        os.close(report_write)
    with os.fdopen(report_read, "rb") as report:
        failure = report.read()  # ends at exec, which closes the child's end
    if failure:
        os.waitpid(pid, 0)
        raise OSError(int(failure), f"{argv[0]}: {os.strerror(int(failure))}")
    return _owned(pid)


def spawn_filter(
    argv: list[str], *, env: Mapping[str, str], files: Mapping[int, int]
) -> SpawnedChild:
    """Run *argv*, a program that ends when its input does, in a process group of its own.

    posix_spawn: this process is not copied for it page by page, which in one of 40 MB takes longer
    than the program. Nothing but that end of its input tells it that this process has died.
    *files* as in :func:`spawn_child`; our other descriptors are close-on-exec.

    Raises:
        OSError: the program could not be executed.
    """
    return _owned(_posix_spawn(argv, env, files, setpgroup=0))


def _owned(pid: int) -> SpawnedChild:
    try:
        return SpawnedChild(pid=pid, pidfd=os.pidfd_open(pid))
    except OSError:  # out of descriptors: nobody would own it
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise


def _never_return(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str,
    files: Mapping[int, int],
    parent: int,
    mask: set[int],
    report: int,
) -> NoReturn:
    """In the child: turn into *argv*, or say the errno on *report* and end.

    Whatever happens here must not get back into the caller's code: it would run twice.
    """
    try:
        try:
            # Away from the numbers that the child's files will have.
            report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, _ABOVE_TARGETS)
            _become(argv, env, cwd, files, parent, mask, report)
        except OSError as error:
            os.write(report, str(error.errno).encode())
    finally:
        os._exit(127)


def _become(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str,
    files: Mapping[int, int],
    parent: int,
    mask: set[int],
    report: int,
) -> None:
    """In the child: turn into *argv*, or raise OSError."""
    os.setpgid(0, 0)
    die_with_parent(parent)
    _signal.set_wakeup_fd(-1)
    for number in _DEFAULTED:
        _signal.signal(number, _signal.SIG_DFL)
    moved = {
        target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE_TARGETS)
        for target, source in files.items()
    }
    for target, source in moved.items():
        os.dup2(source, target)
    _close_all_but({*files, report})
    os.chdir(cwd)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    os.execve(argv[0], argv, dict(env))


def _close_all_but(kept: set[int]) -> None:
    """Close every descriptor but *kept*: whoever started us may have left us some of his."""
    below = 0
    for fd in sorted(kept):
        if below < fd:  # CPython takes closerange(0, 0) for all there are
            os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, _NO_MORE_DESCRIPTORS)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, which had pid *parent*, dies.

    Without the second look a parent that died before the call would never be noticed
    (measured: 1 child of 20 outlived a kill -9).
    """
    _prctl(_PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(127)


def _prctl(option: int, value: int) -> None:
    if _load_prctl()(option, value) != 0:
        raise OSError(22, "prctl")


def _load_prctl() -> Callable[[int, int], int]:
    """Return prctl(2); found once, by the parent, so that a fork need not look for it."""
    if not _loaded:
        try:
            import _ctypes  # noqa: PLC0415 - 0.9 ms; ctypes itself takes 3.5

            address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type] # None: dlopen(3)
            call = _ctypes.call_function
            _loaded.append(lambda option, value: call(address, (option, value, 0, 0, 0)))
        except (ImportError, AttributeError):
            import ctypes  # noqa: PLC0415

            library = ctypes.CDLL(None)
            _loaded.append(lambda option, value: int(library.prctl(option, value, 0, 0, 0)))
    return _loaded[0]


_loaded: list[Callable[[int, int], int]] = []


def spawn_daemon(argv: list[str], *, env: Mapping[str, str], files: Mapping[int, int]) -> int:
    """Run *argv* detached from this session and terminal; return its pid.

    posix_spawn: no Python code runs between fork and exec. *files* as in
    :func:`spawn_child`; our other descriptors are close-on-exec.
    """
    return _posix_spawn(argv, env, files, setsid=True)


def _posix_spawn(
    argv: list[str], env: Mapping[str, str], files: Mapping[int, int], **group: Any
) -> int:
    moved: dict[int, int] = {}
    try:
        for target, source in files.items():
            moved[target] = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE_TARGETS)
        return os.posix_spawn(
            argv[0],
            argv,
            dict(env),
            **group,
            setsigmask=(),
            setsigdef=_DEFAULTED,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in moved.items()],
        )
    finally:
        for fd in moved.values():
            os.close(fd)


def fork_daemon(serve: Callable[[], int], *, files: Mapping[int, int]) -> int:
    """Detach a fork of this process that ends with what *serve* returns; return its pid.

    Only for a process that is ours alone, has one thread and has imported little: it saves
    the daemon an interpreter's start and the imports that both need, a quarter of a start.
    Anybody else: :func:`spawn_daemon`. *files* as in :func:`spawn_child`; the other
    descriptors stay open, for *serve* to close.
    """
    blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, range(1, 32))
    try:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setsid()
                moved = {
                    target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE_TARGETS)
                    for target, source in files.items()
                }
                for target, source in moved.items():
                    os.dup2(source, target)
                for number in _DEFAULTED:
                    _signal.signal(number, _signal.SIG_DFL)
                _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
                status = serve()
            except BaseException:  # noqa: BLE001 - the last stop: into its log, then out
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked)
    return pid


def describe_exit(status: int) -> str:
    """Return how a process ended, in words; *status* is negative for a signal."""
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


def capture(argv: list[str], *, env: Mapping[str, str], within_s: float = 5.0) -> tuple[int, str]:
    """Run *argv* to its end; return its exit status (negative: a signal) and its output.

    For a program that answers at once, such as ``fossil version``.

    Raises:
        OSError: it could not be executed.
        TimeoutError: it had not closed its output after *within_s* seconds; it has been killed.
    """
    read, write = os.pipe()
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            dict(env),
            file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2)],
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    output = b""
    try:
        readable = select.poll()
        readable.register(read, select.POLLIN)
        deadline_s = time.monotonic() + within_s
        while readable.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            chunk = os.read(read, 65536)
            if not chunk:
                break
            output += chunk
        else:
            os.kill(pid, 9)  # not reaped yet, so it can be nobody else
            raise TimeoutError(f"{argv[0]} did not answer within {within_s:g} s")
    finally:
        os.close(read)
        _pid, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), output.decode(errors="replace")


def find_program(name: str) -> str | None:
    """Return the absolute path of the program *name* (a path, or looked up in PATH)."""
    if "/" in name:
        candidates = [os.path.abspath(name)]
    else:
        path = os.environ.get("PATH", os.defpath)
        # A relative entry would run what a repository brings along.
        candidates = [f"{entry}/{name}" for entry in path.split(":") if entry.startswith("/")]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    return None
