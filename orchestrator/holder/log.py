"""A holder's log: its output, a JSON object a line, and tracebacks in between.

What cannot be written, as on a full disk, is lost: a log is no reason to fail.
"""

from __future__ import annotations

import traceback
from typing import Any

from foundation import codec
from foundation.atomic import write_all
from foundation.clock import utc_now


def note(event: str, **fields: Any) -> None:
    """Write a line."""
    _write(codec.dumps({"at": utc_now(), "event": event, **fields}) + "\n")


def complain(what: str, error: BaseException) -> None:
    """Write what went wrong, with its traceback."""
    note("wrong", what=what, error=repr(error))
    _write("".join(traceback.format_exception(error)))


def _write(text: str) -> None:
    try:
        write_all(1, text.encode(errors="backslashreplace"))
    except OSError:
        pass
