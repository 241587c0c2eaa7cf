"""What a process suffers without being signalled: a slow disk, no room, no descriptors.

For a process of the campaign's own, to itself.
"""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Callable
from typing import Any

_SLOW_CALLS = ("open", "write", "pwrite", "fsync", "rename")
_USUALLY_S = 0.004
_NO_MORE = (3, 8)
"""Bounds of the descriptor limit of one who may open nothing: below what it has open."""


def slow_disk(draw: random.Random, hang_s: float) -> None:
    """Have every call that touches a disk take some milliseconds, and one in fifty *hang_s*."""
    for name in _SLOW_CALLS:
        setattr(os, name, _delayed(getattr(os, name), draw, hang_s))


def _delayed(call: Callable[..., Any], draw: random.Random, hang_s: float) -> Callable[..., Any]:
    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(hang_s if draw.random() < 0.02 else draw.uniform(0, 2 * _USUALLY_S))
        return call(*arguments, **named)

    return slow


class Want:
    """A want of descriptors (EMFILE), or of room on the disk, that comes and goes.

    There the file size limit stands in for a full disk: every write fails, with EFBIG.
    """

    def __init__(self, draw: random.Random) -> None:
        """Begin with plenty."""
        self._draw = draw
        self._plenty = {
            kind: resource.getrlimit(kind)
            for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
        }
        self.suffers = False

    def begin(self) -> None:
        """Lack one or the other."""
        self.suffers = True
        kind = self._draw.choice(list(self._plenty))
        limit = self._draw.randrange(*_NO_MORE) if kind == resource.RLIMIT_NOFILE else 0
        resource.setrlimit(kind, (limit, self._plenty[kind][1]))

    def end(self) -> None:
        """Have plenty again."""
        self.suffers = False
        for kind, limits in self._plenty.items():
            resource.setrlimit(kind, limits)
