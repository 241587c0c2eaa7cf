"""The fastest door: ask the running hub what to print, print it, leave.

`hub status`, `hub url`, `hub stop` and `hub start` beside a running hub take about as long as an
interpreter needs to start. Nearly all of the rest would be imports (``os`` alone is a tenth),
so this module takes the modules that are built in, and the supervisor, which has everything
loaded, renders the answer. Whatever is not perfectly plain (no hub, another version, options,
a long path, a doubt) is left to :mod:`hub.verbs`, which comes to the same answer.
"""

from __future__ import annotations

import _socket
import posix

_PLAIN = frozenset(
    {
        ("stop",),
        ("stop", "--json"),
        ("status",),
        ("status", "--json"),
        ("url",),
        ("url", "--json"),
        ("start",),
        ("start", "--json"),
        ("start", "--detach"),
        ("start", "-d"),
        ("start", "--detach", "--json"),
        ("start", "-d", "--json"),
    }
)
VERSION = 1
"""That of :mod:`foundation.control`, which costs too much to ask; a test holds them equal."""

_KIND, _DIRECTORY, _SOCKET = (
    0o170000,
    0o040000,
    0o140000,
)  # inode(7); stat would have to be imported
_NOBODY_READS = (9, 32)  # EBADF, EPIPE
_ADDRESS_LIMIT = 107  # unix(7): sun_path
_ANSWER_LIMIT = 256 * 1024
_ANSWER_WITHIN_S = 2.0
_STOPPED_WITHIN_S = 10.0


def answered(arguments: list[str]) -> int | None:
    """Print what the running hub answers to *arguments* and return the exit code.

    None: not so plain; nothing has been printed.
    """
    if tuple(arguments) not in _PLAIN or b"HUB_ROOT" in posix.environ:
        return None
    address = _address()
    if address is None:
        return None
    words = ",".join(f'"{word}"' for word in arguments)  # of _PLAIN: nothing to escape
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(_ANSWER_WITHIN_S)
        sock.connect(address)
        peer = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], "little") != posix.geteuid():
            return None  # another user's: refused with words
        sock.sendall(f'{{"v":{VERSION},"verb":"show","arguments":[{words}]}}\n'.encode())
        answer = _receive(sock)
        if answer is None:
            return None
        from foundation.codec import loads_object  # noqa: PLC0415

        shown = loads_object(answer)["data"]
        status, out, err = shown["status"], shown["stdout"].encode(), shown["stderr"].encode()
        if arguments[0] == "stop" and not _ended(sock, shown["pid"]):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nobody there, nobody home, or no such answer: the full path knows
    finally:
        sock.close()
    for fd, text in ((1, out), (2, err)):
        try:
            while text:
                text = text[posix.write(fd, text) :]  # noqa: PLW2901
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
    return int(status)


def _ended(sock: _socket.socket, pid: int) -> bool:
    """Wait until the hub, which has answered that it stops, is gone; False: it takes long."""
    from select import POLLIN, poll  # noqa: PLC0415

    try:
        pidfd = posix.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # Of the right process: it was still there, for its end of the socket was, or it has
        # closed it, and then all that it held is given back already.
        sock.settimeout(_STOPPED_WITHIN_S)
        if sock.recv(1):
            return False
        waiting = poll()
        waiting.register(pidfd, POLLIN)
        return bool(waiting.poll(_STOPPED_WITHIN_S * 1000))
    finally:
        posix.close(pidfd)


def _address() -> str | None:
    """Return the socket of the workspace around the current directory."""
    try:
        directory = posix.getcwd()
        if "/." in directory:  # maybe inside our own state
            return None
        while True:
            try:
                posix.lstat(f"{directory}/.git")
                break
            except FileNotFoundError:
                directory = directory[: directory.rindex("/")]
        state, address = f"{directory}/.orchestrator", f"{directory}/.orchestrator/hub.sock"
        for path, kind in ((state, _DIRECTORY), (address, _SOCKET)):
            if posix.lstat(path).st_mode & _KIND != kind:
                return None  # a link to another workspace, or worse
        return address if len(address.encode()) <= _ADDRESS_LIMIT else None
    except (OSError, ValueError):  # deleted, no repository above, a name that is not UTF-8
        return None


def _receive(sock: _socket.socket) -> bytes | None:
    answer = b""
    while not answer.endswith(b"\n"):
        chunk = sock.recv(65536)
        answer += chunk
        if not chunk or len(answer) > _ANSWER_LIMIT:
            return None
    return answer
