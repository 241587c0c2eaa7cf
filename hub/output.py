"""What verbs print: data on stdout, talk on stderr, one JSON envelope on request."""

from __future__ import annotations

import sys

from foundation import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from foundation.errors import HubError

VERSION = "v1"


def envelope(verb: str, data: Any) -> str:
    """Return *data* in the envelope that every verb's ``--json`` prints, on one line."""
    return codec.dumps({"schema": {"verb": verb, "version": VERSION}, "data": data})


def print_data(verb: str, data: Any) -> None:
    """Print *data* as JSON."""
    _write(sys.stdout, envelope(verb, data))


def print_error(verb: str, error: HubError, *, as_json: bool) -> int:
    """Print *error* in words, or as JSON on stdout; return its exit code."""
    if as_json:
        told = {"reason": error.reason, "message": str(error), "exit_code": error.exit_code}
        _write(sys.stdout, codec.dumps(
            {"schema": {"verb": verb, "version": VERSION}, "error": told}))
    else:
        say(str(error))
    return error.exit_code


def line(text: str) -> None:
    """Print a line of data."""
    _write(sys.stdout, text)


def say(text: str) -> None:
    """Tell the person something that is not data."""
    _write(sys.stderr, f"hub: {text}")


def _write(stream: Any, text: str) -> None:
    """Write one line; names that are not UTF-8 are shown escaped, never an error."""
    data = f"{text}\n".encode("utf-8", "backslashreplace")
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()
