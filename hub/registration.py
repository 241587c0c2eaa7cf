"""A hub's own entry in the registry: written, kept, withdrawn. It fails in words, never the hub."""

from __future__ import annotations

import os

from foundation.errors import HubError
from foundation.process import GONE
from hub import __version__, registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.process import Identity
    from hub.hold import Inode
    from hub.info import HubInfo


class Registration:
    """What the registry says of one run of a hub."""

    def __init__(self, info: HubInfo, *, directory: Inode, identity: Identity) -> None:
        """Write nothing yet."""
        self._entry = registry.Entry(
            schema=registry.SCHEMA,
            root=info.root,
            directory=list(directory),
            hub_id=info.hub_id,
            epoch=info.epoch,
            identity=identity,
            fossil_url=info.fossil_url,
            nats_url=info.nats_url,
            started_at=info.started_at,
            version=__version__,
        )
        self._stamp: tuple[int, ...] | None = None
        self._told = False

    def keep(self) -> str:
        """Write the entry where it is missing or damaged; return what is wrong, but only once.

        That of another living hub for a workspace of the same path, as in two containers with
        one home, is left alone.
        """
        try:
            path = registry.path_of(self._entry.root)
            new = self._stamp is None
            if new or (_stamp_of(path) != self._stamp and not self._is_of_another(path)):
                registry.write(self._entry)
                self._stamp = _stamp_of(path)
        except (OSError, HubError) as error:
            told, self._told = self._told, True
            return "" if told else str(error)
        self._told = False
        return ""

    def withdraw(self) -> str:
        """Remove the entry if it is still this hub's; return what is wrong."""
        try:
            registry.withdraw(self._entry)
        except (OSError, HubError) as error:
            return str(error)
        return ""

    def _is_of_another(self, path: str) -> bool:
        try:
            found = registry.read(path).identity
        except (OSError, ValueError):
            return False
        return found != self._entry.identity and found.state() != GONE


def _stamp_of(path: str) -> tuple[int, ...] | None:
    """Return what changes with the file at *path*: an inode alone is soon given out again."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
