"""What verbs print: data on stdout, talk on stderr, one JSON envelope on request."""

from __future__ import annotations

import errno
import os
import sys

from foundation import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from foundation.errors import HubError
    from hub.render import Shown

VERSION = "v1"


def envelope(verb: str, data: Any) -> str:
    """Return the line that every verb's ``--json`` prints for *data*."""
    return codec.dumps({"schema": {"verb": verb, "version": VERSION}, "data": data}) + "\n"


def error_envelope(verb: str, error: HubError) -> str:
    """Return the line that every verb's ``--json`` prints for *error*."""
    told = {"reason": error.reason, "message": str(error), "exit_code": error.exit_code}
    return codec.dumps({"schema": {"verb": verb, "version": VERSION}, "error": told}) + "\n"


def talk(text: str, *, program: str = "hub") -> str:
    """Return the lines for stderr with which *program* says *text* to the person."""
    return f"{program}: {text}\n"


def show(shown: Shown) -> int:
    """Print *shown*; return its exit code."""
    _write(sys.stdout, shown.stdout)
    _write(sys.stderr, shown.stderr)
    return shown.status


def print_data(verb: str, data: Any) -> None:
    """Print *data* as JSON."""
    _write(sys.stdout, envelope(verb, data))


def print_error(verb: str, error: HubError, *, as_json: bool) -> int:
    """Print *error* in words, or as JSON on stdout; return its exit code."""
    if as_json:
        _write(sys.stdout, error_envelope(verb, error))
    else:
        say(str(error), program="hub" if verb.startswith("hub.") else "bones")
    return error.exit_code


def line(text: str) -> None:
    """Print a line of data."""
    _write(sys.stdout, f"{text}\n")


def say(text: str, *, program: str = "hub") -> None:
    """Tell the person something that is not data."""
    _write(sys.stderr, talk(text, program=program))


def _write(stream: Any, text: str) -> None:
    """Write *text*; names that are not UTF-8 are shown escaped, never an error.

    A stream that is closed, or that nobody reads, takes nothing: what the verb did counts.
    """
    if not text or stream is None:
        return
    try:
        stream.flush()
        stream.buffer.write(text.encode("utf-8", "backslashreplace"))
        stream.buffer.flush()
    except (BrokenPipeError, ValueError):
        _discard(stream)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        _discard(stream)


def _discard(stream: Any) -> None:
    """Send what comes after to nowhere; the interpreter flushes once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except (OSError, ValueError):
        pass
    finally:
        os.close(null)
