"""Who owns a path, now and whenever that changes. Nothing here takes a lock."""

from __future__ import annotations

import os
import select

from foundation.errors import Corrupt
from owner import lease as rules
from owner import liveness, store
from owner.boottime import Boottime
from owner.holder import Holder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from owner.lease import Lease

_LOOK_NS = 20_000_000
"""A release and a new owner are noticed within this time; a death and a deadline at once."""


def inspect(path: str | os.PathLike[str]) -> Holder | None:
    """Return who holds the lease at *path*, None if it is free. Takes no lock.

    Raises:
        Corrupt: what is there is no lease.
        HubError: it cannot be read.
    """
    lease = _read(store.checked_path(path))
    held = store.standing(lease, Boottime.here().now_ns()) == rules.HELD
    return Holder.of(lease) if held and lease is not None else None


def watch(path: str | os.PathLike[str]) -> Watch:
    """Return an iterator over who holds the lease at *path*: see :class:`Watch`."""
    return Watch(store.checked_path(path))


def _read(path: str) -> Lease | None:
    try:
        return store.read_record(path) or store.read_copy(path)
    except Corrupt:
        return store.read_record_beside(store.read_copy(path), path)


class Watch:
    """Yields the :class:`Holder`, or None while it is free, and then each other one.

    For ``for`` and ``async for``, by one thread or task at a time; it ends when it is closed,
    from wherever. What came and went between two looks is not told. After None, join again.

    It raises what :func:`inspect` does and can be asked again afterwards.
    """

    def __init__(self, path: str) -> None:
        """Watch the lease at the absolute *path*."""
        self._path = path
        self._clock = Boottime.here()
        self._closed = False
        self._told: Holder | None = None
        self._has_told = False
        self._lease: Lease | None = None
        self._file: _Stamp = (0, 0, 0)
        self._file_since_ns = self._read_ns = 0

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End it: whoever waits in it gets no more."""
        self._closed = True

    def __next__(self) -> Holder | None:
        while not self._closed:
            lease, pidfd = self._look()
            try:
                if self._is_news(lease):
                    return self._told
                poll = select.poll()
                if pidfd is not None:
                    poll.register(pidfd, select.POLLIN)
                poll.poll(self._patience_s(lease) * 1000)
            finally:
                if pidfd is not None:
                    os.close(pidfd)
        raise StopIteration

    async def __anext__(self) -> Holder | None:
        while not self._closed:
            lease, pidfd = self._look()
            try:
                if self._is_news(lease):
                    return self._told
                await _readable(pidfd, self._patience_s(lease))
            finally:
                if pidfd is not None:
                    os.close(pidfd)
        raise StopAsyncIteration

    def _look(self) -> tuple[Lease | None, int | None]:
        """Return the lease if it is held, and an open pidfd if its holder's end can be awaited."""
        lease = self._latest()
        if lease is None:
            return None, None
        state, pidfd = liveness.look(lease.identity)
        try:
            held = store.verdict(lease, state, self._clock.now_ns()) == rules.HELD
        except BaseException:
            held = False
            raise
        finally:
            if not held and pidfd is not None:
                os.close(pidfd)
                pidfd = None
        return (lease, pidfd) if held else (None, None)

    def _latest(self) -> Lease | None:
        """Return what is on record; it is read only if the file has changed."""
        now_ns = self._clock.now_ns()
        try:
            status = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return _read(self._path)  # which says it in words
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if stamp != self._file:
            self._file, self._file_since_ns = stamp, now_ns
        # Within a tick of the clock that stamps files, another file may get the same stamp.
        if self._read_ns < self._file_since_ns + _LOOK_NS:
            self._lease, self._read_ns = _read(self._path), now_ns
        return self._lease

    def _is_news(self, lease: Lease | None) -> bool:
        """Remember whom *lease* names; return whether that is another than before."""
        holder = None if lease is None else Holder.of(lease)
        if self._has_told and holder == self._told:
            return False
        self._told, self._has_told = holder, True
        return True

    def _patience_s(self, lease: Lease | None) -> float:
        if lease is None:
            return _LOOK_NS / 1e9
        return min(_LOOK_NS, max(0, lease.deadline_ns - self._clock.now_ns())) / 1e9


_Stamp = tuple[int, int, int]
"""What tells one state of a file from the next: inode, modification time, size."""


async def _readable(fd: int | None, timeout_s: float) -> None:
    """Wait until *fd* is readable, for *timeout_s* at most."""
    import asyncio  # noqa: PLC0415 - whoever calls this has it

    loop = asyncio.get_running_loop()
    awoken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not awoken.done():
            awoken.set_result(None)

    if fd is not None:
        loop.add_reader(fd, wake)
    timer = loop.call_later(timeout_s, wake)
    try:
        await awoken
    finally:
        timer.cancel()
        if fd is not None:
            loop.remove_reader(fd)
