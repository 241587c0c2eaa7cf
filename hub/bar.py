"""A progress bar on a terminal; nothing anywhere else."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

_QUIET_FOR_S = 0.3
_WIDTH = 24


class Bar:
    """One line that is drawn over itself, and gone at the end."""

    def __init__(self, stream: TextIO | None) -> None:
        """Draw on *stream* if it is a terminal that can."""
        self._stream = stream
        terminal = stream is not None and stream.isatty()  # None: it was closed
        self._wanted = terminal and os.environ.get("TERM", "dumb") != "dumb"
        self._began_s = time.monotonic()
        self._drawn = False

    def show(self, phase: str, done: int, total: int) -> None:
        """Draw *done* of *total*; what is over in a moment is not drawn at all."""
        if (
            self._stream is None
            or not self._wanted
            or time.monotonic() - self._began_s < _QUIET_FOR_S
        ):
            return
        share = min(1.0, done / total) if total else 0.0
        filled = round(_WIDTH * share)
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._stream.write(f"\r{phase:<10.10} [{bar}] {done:>7} of {total}\x1b[K")
        self._stream.flush()
        self._drawn = True

    def end(self) -> None:
        """Wipe the line."""
        if self._stream is not None and self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
