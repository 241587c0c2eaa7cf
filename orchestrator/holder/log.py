"""A holder's log: its output, a JSON object a line, and tracebacks in between."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from foundation import codec
from foundation.clock import utc_now


def note(event: str, **fields: Any) -> None:
    """Write a line."""
    print(codec.dumps({"at": utc_now(), "event": event, **fields}), flush=True)  # noqa: T201


def complain(what: str, error: BaseException) -> None:
    """Write what went wrong, with its traceback."""
    note("wrong", what=what, error=repr(error))
    traceback.print_exception(error)
    sys.stderr.flush()
