"""What tests of every package share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait until *holds* returns true; fail after *within_s* seconds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not so after {within_s:g} s"
        time.sleep(0.01)
