"""A pass shared with a second process: judging is work for a processor, and most have two.

Threads would take turns. Each process takes slots of its own, by the same rules and locks as two
passes that meet by chance; what becomes of the other's is read from a pipe. If that ends without
an answer, its slots are still there, or stand at a step that the next pass goes on from.
"""

from __future__ import annotations

import os
import select
import sys

from foundation import codec
from foundation.atomic import write_all
from foundation.spawn import spawn_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

WORTH = 4
"""With fewer dead slots the second process costs more than it saves."""

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from slotgc.pruning import main; main()"
)
_BLOCK = 65536
_ONE = b"\n"
"""What the helper writes for each slot; its answer has none."""


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
        self._said = bytearray()
        self._readable = select.poll()
        self._readable.register(read, select.POLLIN)

    @property
    def seen_to(self) -> int:
        """How many slots it has seen to by now."""
        while self._readable.poll(0) and self._hear():
            pass
        return self._said.count(_ONE)

    def _hear(self) -> bool:
        chunk = os.read(self._read, _BLOCK)
        self._said += chunk
        return bool(chunk)

    def end(self, on_progress: Callable[[], None]) -> dict[str, Any] | None:
        """Wait for its end; return its answer, None if it gave none.

        *on_progress* is called whenever :attr:`seen_to` may have grown.
        """
        try:
            while self._hear():
                on_progress()
        finally:
            os.close(self._read)
            os.waitpid(self._child.pid, 0)
            os.close(self._child.pidfd)
        try:
            return codec.loads_object(bytes(self._said).replace(_ONE, b""))
        except ValueError:
            return None


def tell_of_one() -> None:
    """Be the helper: tell that one slot is seen to."""
    write_all(1, _ONE)


def answer(value: dict[str, Any]) -> None:
    """Be the helper: tell what became of all."""
    write_all(1, codec.dumps(value).encode())


def begin(root: str, names: Sequence[str], *, clean_only: bool) -> Helper | None:
    """Return a helper that cleans up after *names*; None where there cannot be one, or need not."""
    if not names or len(os.sched_getaffinity(0)) < 2:  # noqa: PLR2004
        return None
    try:
        return Helper(root, names, clean_only=clean_only)
    except OSError:
        return None
