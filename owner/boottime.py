"""The clock of leases: CLOCK_BOOTTIME, which nobody sets and which runs on in suspend."""

from __future__ import annotations

import os
import time

from foundation.errors import Unavailable

NS_PER_S = 1_000_000_000


class Boottime:
    """Nanoseconds since the machine booted, the same number in every container on it.

    A time namespace shifts what its processes read. Source: time_namespaces(7).
    """

    def __init__(self, offset_ns: int) -> None:
        """Read a clock that this process's time namespace shifts by *offset_ns*."""
        self._offset_ns = offset_ns

    @classmethod
    def here(cls) -> Boottime:
        """Return the clock as this process has to read it.

        Raises:
            Unavailable: the shift cannot be learned (``clock``).
        """
        try:
            return cls(_offset_ns())
        except (OSError, ValueError, LookupError) as error:
            raise Unavailable(
                f"what a time namespace does to this process's clock cannot be read: {error}",
                reason="clock",
            ) from None

    def now_ns(self) -> int:
        """Return the machine's time."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._offset_ns

    def local_ns(self, moment_ns: int) -> int:
        """Return the machine's *moment_ns* as the kernel counts for this process."""
        return moment_ns + self._offset_ns


_found: dict[str, int] = {}
"""The shift by namespace. It is fixed before the first process enters one."""
os.register_at_fork(after_in_child=_found.clear)  # it may be in another, the number in use again


def _offset_ns() -> int:
    try:
        own = os.readlink("/proc/self/ns/time")
    except FileNotFoundError:  # a kernel without time namespaces
        return 0
    if own not in _found:
        _found.clear()  # only that which we are in is sure to exist, and its number to be its own
        _found[own] = _read_offset_ns(own)
    return _found[own]


def _read_offset_ns(own: str) -> int:
    # The offsets are those that a child of this process would have.
    if own != os.readlink("/proc/self/ns/time_for_children"):
        raise ValueError("it has unshared its time namespace: fork first, then join")
    with open("/proc/self/timens_offsets", "rb") as file:
        offsets = {fields[0]: fields[1:] for fields in map(bytes.split, file)}
    seconds, nanoseconds = map(int, offsets[b"boottime"])
    return seconds * NS_PER_S + nanoseconds
