"""The fastest door: ask the running hub what to print, print it, leave.

`hub status`, `hub url` and `hub start` beside a running hub take about as long as an
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
_ADDRESS_LIMIT = 107  # unix(7): sun_path
_ANSWER_LIMIT = 256 * 1024
_ANSWER_WITHIN_S = 2.0


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
    answer = _ask(address, f'{{"v":1,"verb":"show","arguments":[{words}]}}\n'.encode())
    if answer is None:
        return None
    from foundation.codec import loads_object  # noqa: PLC0415

    try:
        shown = loads_object(answer)["data"]
        status, out, err = shown["status"], shown["stdout"].encode(), shown["stderr"].encode()
    except (ValueError, KeyError, TypeError):
        return None
    for fd, text in ((1, out), (2, err)):
        while text:
            text = text[posix.write(fd, text) :]  # noqa: PLW2901
    return int(status)


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
        address = f"{directory}/.orchestrator/hub.sock"
        return address if len(address.encode()) <= _ADDRESS_LIMIT else None
    except (OSError, ValueError):  # deleted, no repository above, a name that is not UTF-8
        return None


def _ask(address: str, request: bytes) -> bytes | None:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(_ANSWER_WITHIN_S)
        sock.connect(address)
        sock.sendall(request)
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = sock.recv(65536)
            answer += chunk
            if not chunk or len(answer) > _ANSWER_LIMIT:
                return None
    except OSError:  # nobody there, or nobody home: the full path knows what that means
        return None
    finally:
        sock.close()
    return answer
