"""What makes a process the hub of a workspace: its locks, and whether they still count."""

from __future__ import annotations

import fcntl
import os

from foundation.errors import Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace

NOTICED_WITHIN_S = 5.0
"""A hub looks this often whether it still holds what counts."""

Inode = tuple[int, int]
ABSENT: Inode = (0, 0)
"""What :func:`inode_of` says of a path that is not there."""


class Hold:
    """The lock file and the state directory, held for the supervisor's life."""

    def __init__(self, workspace: Workspace, lock: int) -> None:
        """Own *lock*, a descriptor that holds hub.lock of *workspace*."""
        self._workspace = workspace
        self._lock = lock
        self._directory = -1
        self.directory: Inode = inode_of(workspace.state) or ABSENT
        """Device and inode of the state directory."""

    def take_directory(self) -> None:
        """Hold the directory itself, too: hub.lock may have been removed under a living hub.

        Raises:
            Unavailable: that hub has not noticed yet.
        """
        directory = os.open(self._workspace.state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(directory)
            raise Unavailable(
                f"a hub still runs here whose {self._workspace.lock} was removed: it ends within "
                f"{NOTICED_WITHIN_S:g} s; then start again",
                reason="lock-replaced",
            ) from None
        self._directory = directory

    def lost(self) -> str:
        """Return why this is not the workspace's hub any more, "" while it is."""
        if inode_of(self._workspace.state) not in (self.directory, None):
            return f"{self._workspace.root} was moved or deleted"
        if inode_of(self._workspace.lock) not in (_inode_of_open(self._lock), None):
            return f"{self._workspace.lock} was replaced"
        return ""

    def owns_files(self) -> bool:
        """Tell whether the files in the directory are still ours to remove, not another hub's."""
        here = self._directory >= 0 and inode_of(self._workspace.state) == self.directory
        return here and inode_of(self._workspace.lock) in (_inode_of_open(self._lock), ABSENT)

    def release(self) -> None:
        """Let go of both."""
        if self._directory >= 0:
            os.close(self._directory)
        os.close(self._lock)


def inode_of(path: str) -> Inode | None:
    """Return device and inode of *path*; (0, 0) if it is not there, None if that is not known."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _inode_of_open(fd: int) -> Inode:
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino)
