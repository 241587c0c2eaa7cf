"""What the tests do to a lease's files."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from owner import lease as rules
from owner import workers
from owner.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def guard_of(path: Path) -> Path:
    return Path(f"{path}.lock")


@contextmanager
def guard_held(path: Path) -> Iterator[None]:
    """Hold the guard of *path*, as one who is stuck inside does."""
    with guard_of(path).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stored(path: Path) -> Lease:
    return rules.decode(path.read_bytes())


def store(path: Path, lease: Lease, *, copy: bool = True, record: bool = True) -> None:
    """Put *lease* on record as if somebody had acquired it."""
    if record:
        path.write_bytes(rules.encode(lease))
    if copy:
        guard_of(path).write_bytes(rules.encode_copy(lease))


def change(path: Path, **changes: Any) -> Lease:
    """Change the lease on record in both places."""
    lease = stored(path).replace(**changes)
    store(path, lease)
    return lease


def descriptors() -> set[str]:
    """Return those that are open, but for the timers of threads that sleep until the next join."""
    idle = {str(worker._timer._fd) for worker in workers._idle}
    listed = set(os.listdir("/proc/self/fd")) - idle
    return {fd for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}")}  # not that of the list


@contextmanager
def syncs_told(told: Callable[[str], None]) -> Iterator[None]:
    """Have *told* called with the path of each file that is synced, before it is."""

    def telling(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            told(os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        return sync

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, telling(getattr(os, name)))
        yield


def dismiss_idle() -> None:
    """End the threads that sleep until the next join."""
    while workers._idle:
        workers._idle.pop().dismiss()
