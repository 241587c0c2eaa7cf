"""Asking a program something, without waiting for it for ever."""

from __future__ import annotations

import os
import select
import time

from foundation.errors import Unavailable
from foundation.record import Record
from hub.tool import Tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

WITHIN_S = 5.0
_CHUNK = 65536


class Said(Record):
    """What a program answered."""

    status: int
    stdout: str
    stderr: str


def run(argv: list[str], *, env: Mapping[str, str], cwd: str) -> Said:
    """Run *argv* to its end.

    Raises:
        OSError: it cannot be executed.
        Unavailable: it did not answer in time; it has been ended.
    """
    deadline_s = time.monotonic() + WITHIN_S
    with Tool(argv, env=env, cwd=cwd) as tool:
        output = b""
        poll = select.poll()
        poll.register(tool.stdout.fileno(), select.POLLIN)
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise Unavailable(f"{argv[0]} did not answer within {WITHIN_S:g} s")
            chunk = os.read(tool.stdout.fileno(), _CHUNK)
            if not chunk:
                break
            output += chunk
        return Said(
            status=tool.wait(), stdout=output.decode("utf-8", "replace"), stderr=tool.said()
        )
