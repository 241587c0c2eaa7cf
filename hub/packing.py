"""Compressing and hashing contents in threads beside the one that reads and stores them."""

from __future__ import annotations

from collections import deque
from queue import SimpleQueue
from threading import Thread

from hub import manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from hub.git import Contents
    from hub.manifest import Row

_THREADS = 2
_BATCH_BYTES = 512 * 1024
_BATCH_FILES = 256

Batch = list[tuple[bytes, bytes]]
Packed = list[tuple[bytes, "Row | None"]]


def batches(
    contents: Contents, take_big: Callable[[bytes, int, Contents], None]
) -> Iterator[Batch]:
    """Yield *contents* in portions for :class:`Packers`; a big one goes to *take_big*."""
    batch: Batch = []
    batch_bytes = 0
    for oid, size, content in contents:
        if content is None:
            take_big(oid, size, contents)
            continue
        batch.append((oid, content))
        batch_bytes += size
        if batch_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def _pack_all(batch: Batch) -> Packed:
    return [
        (oid, None if manifest.is_artifact(content) else manifest.pack(content))
        for oid, content in batch
    ]


class Packers:
    """Threads that compress and hash; results come in the order of submission.

    Each has a queue in and a queue out, and they take turns: so order needs no bookkeeping.
    """

    _WINDOW = 2 * _THREADS

    def __init__(self) -> None:
        self._ins: list[SimpleQueue[Batch | None]] = [SimpleQueue() for _ in range(_THREADS)]
        self._outs: list[SimpleQueue[Packed | BaseException]] = [
            SimpleQueue() for _ in range(_THREADS)
        ]
        self._turns: deque[int] = deque()
        self._next = 0
        self._threads = [
            Thread(target=self._work, args=pair, daemon=True)
            for pair in zip(self._ins, self._outs, strict=True)
        ]

    @staticmethod
    def _work(
        batches: SimpleQueue[Batch | None], results: SimpleQueue[Packed | BaseException]
    ) -> None:
        while (batch := batches.get()) is not None:
            try:
                results.put(_pack_all(batch))
            except BaseException as error:  # noqa: BLE001 - raised again by collect()
                results.put(error)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for batches in self._ins:
            batches.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, batch: Batch) -> None:
        """Hand over *batch*."""
        self._ins[self._next].put(batch)
        self._turns.append(self._next)
        self._next = (self._next + 1) % _THREADS

    def collect(self, *, wait: bool) -> Packed | None:
        """Return the oldest batch, packed; None if there is none.

        Without *wait*, also None while it is not ready and fewer are under way than may be.
        """
        if not self._turns:
            return None
        results = self._outs[self._turns[0]]
        if not wait and len(self._turns) < self._WINDOW and results.empty():
            return None
        packed = results.get()
        self._turns.popleft()
        if isinstance(packed, BaseException):
            raise packed
        return packed
