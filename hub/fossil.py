"""The Fossil server: which binary, whether it will do, and how to run it."""

from __future__ import annotations

import os

from foundation.errors import Refused
from foundation.spawn import capture, describe_exit, find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

VARIABLE = "HUB_FOSSIL"
OLDEST = (2, 21)
"""The oldest version that the trunk's protocol was measured with; newer 2.x are accepted."""

READY_LINE = b"Listening for HTTP requests on TCP port"
PORT_TAKEN = b"unable to open listening socket"
PROBE = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"
_TOOLS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".tools/bin")


def find() -> str:
    """Return the path of the fossil binary: HUB_FOSSIL, else this project's own, else PATH's.

    Raises:
        Refused: there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = find_program(named)
        if path is None:
            raise Refused(f"{VARIABLE}={named}: no such program", reason="binary-missing")
        return path
    path = find_program(f"{_TOOLS}/fossil") or find_program("fossil")
    if path is None:
        raise Refused(
            "fossil is not installed: `sudo apt-get install fossil` (Debian, Ubuntu), or name "
            f"its binary in {VARIABLE}",
            reason="binary-missing",
        )
    return path


def version_of(path: str) -> str:
    """Return the version of the binary at *path*, such as ``2.21``.

    Raises:
        Refused: it does not run, is no fossil, or is not supported.
    """
    try:
        status, output = capture([path, "version"], env=environment(os.path.dirname(path)))
    except TimeoutError as error:
        raise Refused(str(error), reason="binary-unsupported") from None
    except OSError as error:
        raise Refused(
            f"{path} cannot be executed: {error.strerror}", reason="binary-unsupported"
        ) from None
    words = output.split()
    if status != 0 or words[:4] != ["This", "is", "fossil", "version"] or not words[4:]:
        said = output.strip()[:200] or "nothing"
        raise Refused(
            f"{path} is not a fossil that runs: asked for its version, it {describe_exit(status)} "
            f"and said: {said}",
            reason="binary-unsupported",
        )
    check_version(path, words[4])
    return words[4]


def check_version(path: str, version: str) -> None:
    """Refuse a version that is not supported.

    Raises:
        Refused: it is too old, or of another major version.
    """
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if numbers[:1] != OLDEST[:1] or numbers < OLDEST:
        raise Refused(
            f"{path} is fossil {version}: {OLDEST[0]}.{OLDEST[1]} or newer 2.x is needed; name "
            f"another binary in {VARIABLE}",
            reason="binary-unsupported",
        )


def environment(home: str) -> dict[str, str]:
    """Return the whole environment of a fossil process.

    USER: without it fossil refuses to run ("cannot determine user"). FOSSIL_HOME: or it
    would write ``~/.fossil``.
    """
    return {
        "USER": "hub",
        "HOME": home,
        "FOSSIL_HOME": home,
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
    }


def settle(home: str) -> None:
    """Have what a fossil was killed in the middle of making in *home* count as not made.

    Fossil takes its configuration, ``.fossil``, for made by its size, before SQLite undoes what
    was half written; then it finds no table in it and ends. Whoever just writes it is left alone.
    """
    if not os.path.lexists(f"{home}/.fossil-journal"):
        return
    import sqlite3  # noqa: PLC0415 - after a kill alone

    connection = sqlite3.connect(f"{home}/.fossil", timeout=0)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        pass  # in use, or damaged: fossil says so itself
    finally:
        connection.close()


def server_argv(fossil: str, workspace: Workspace, port: int) -> list[str]:
    """Return the command line of the server.

    ``--localhost``: the default listens everywhere. ``--nojail``: as root it would chroot,
    without /dev/urandom.
    """
    return [fossil, "server", "--localhost", "--nojail", "--port", str(port), workspace.repository]
