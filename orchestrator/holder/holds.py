"""What a holder has: the locks of its members and of their clusters, and whether they still count.

The lock is what is held, by its descriptor; its path is only where it was at first: a workspace may
be moved, copied or deleted under a holder.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hub.hold import inode_of
from orchestrator.store import Store, cluster_of
from owner import private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hub.hold import Inode


class Holds:
    """The locks of one holder."""

    def __init__(self, store: Store, clusters: Mapping[str, int], locks: Mapping[str, int]) -> None:
        """Own the descriptors that hold *clusters* and members (*locks*) of *store*."""
        self._store = store
        self._clusters = dict(clusters)
        self._locks = dict(locks)

    def take(self, name: str) -> bool:
        """Take *name*, and its cluster; return False if another has one of them just now.

        Raises:
            OSError: they cannot be made.
        """
        cluster = cluster_of(name)
        if cluster not in self._clusters:
            network = self._store.take_cluster(cluster, patience_s=0)
            if network is None:
                return False
            self._clusters[cluster] = network
        lock = self._store.take(name, patience_s=0)
        if lock is None:
            return False
        self._locks[name] = lock
        return True

    def has_cluster_of(self, name: str) -> bool:
        """Tell whether the cluster of *name* is ours."""
        return cluster_of(name) in self._clusters

    def release(self, name: str) -> None:
        """Let go of *name*, if it is ours, and of its cluster if no other member is of that."""
        lock = self._locks.pop(name, -1)
        if lock >= 0:
            private.close(lock)
        for cluster in self._clusters.keys() - {cluster_of(held) for held in self._locks}:
            private.close(self._clusters.pop(cluster))

    def count(self, name: str) -> bool:
        """Tell whether our lock of *name* is still the one at its path, as far as can be known."""
        at_path = inode_of(self._store.place(name).lock)
        return at_path in (_inode_of_open(self._locks[name]), None)

    def home_of(self, name: str) -> Store | None:
        """Return the store in which the files of *name* are now; None if they were deleted."""
        if self.count(name):
            return self._store
        lock = self._locks[name]
        # Source: proc(5), /proc/pid/fd: the path of now, with " (deleted)" behind it if it has none
        path = os.readlink(f"/proc/self/fd/{lock}")
        moved = Store(os.path.dirname(os.path.dirname(os.path.dirname(path))))
        is_there = moved.place(name).lock == path and inode_of(path) == _inode_of_open(lock)
        return moved if is_there else None


def _inode_of_open(fd: int) -> Inode:
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino)
