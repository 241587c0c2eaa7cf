"""The time for records; durations are ``time.monotonic``'s business."""

from __future__ import annotations

import time


def utc_now() -> str:
    """Return the time as RFC 3339 with milliseconds, UTC: ``2026-11-21T02:34:53.211Z``."""
    return utc(time.time_ns())


def utc(nanoseconds: int) -> str:
    """Return a moment, given in nanoseconds since the epoch, as :func:`utc_now` spells it."""
    milliseconds = nanoseconds // 1_000_000
    moment = time.gmtime(milliseconds // 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{milliseconds % 1000:03d}Z"
