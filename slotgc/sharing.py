"""A pass shared with a second process: judging is work for a processor, and most have two.

Threads would take turns. Each process takes slots of its own, by the same rules and locks as two
passes that meet by chance; what becomes of the other's is read from a pipe. If that ends without
an answer, its slots are still there, or stand at a step that the next pass goes on from.
"""

from __future__ import annotations

import os
import sys

from foundation import codec
from foundation.spawn import spawn_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

WORTH = 4
"""With fewer dead slots the second process costs more than it saves."""

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from slotgc.pruning import main; main()"
)
_BLOCK = 65536


class Helper:
    """The second process; it ends with the thread that began it."""

    def __init__(self, root: str, names: Sequence[str], *, clean_only: bool) -> None:
        """Have it clean up after the slots *names* of the workspace *root*.

        Raises:
            OSError: it cannot be started.
        """
        read, write = os.pipe()
        null = -1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            self._child = spawn_child(
                [sys.executable, "-I", "-c", _PROGRAM, _HERE, root, str(int(clean_only)), *names],
                env=dict(os.environ),
                cwd="/",
                files={0: null, 1: write, 2: null},
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
            if null >= 0:
                os.close(null)
        self._read = read

    def end(self) -> dict[str, Any] | None:
        """Wait for its end; return its answer, None if it gave none."""
        said = bytearray()
        try:
            while chunk := os.read(self._read, _BLOCK):
                said += chunk
        finally:
            os.close(self._read)
            os.waitpid(self._child.pid, 0)
            os.close(self._child.pidfd)
        try:
            return codec.loads_object(bytes(said))
        except ValueError:
            return None


def begin(root: str, names: Sequence[str], *, clean_only: bool) -> Helper | None:
    """Return a helper that cleans up after *names*; None where there cannot be one, or need not."""
    if not names or len(os.sched_getaffinity(0)) < 2:  # noqa: PLR2004
        return None
    try:
        return Helper(root, names, clean_only=clean_only)
    except OSError:
        return None
