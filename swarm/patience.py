"""Saying why nothing happens, once a verb has waited for a second."""

from __future__ import annotations

import _thread

from foundation.errors import HubError
from foundation.workspace import Workspace
from hub import output
from hub.contact import connect
from hub.render import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from swarm.slot import Slot

_SILENT_S = 1.0


class Patience:
    """As a context manager around a question to a slot's leaf; says at most one line.

    A thread of the interpreter's own, for :mod:`threading` takes longer to load than a verb may.
    """

    def __init__(self, slot: Slot, what: str, within_s: float) -> None:
        """Say *what* has not happened yet (``not landed yet``), waited for *within_s*."""
        self._slot = slot
        self._what = what
        self._within_s = within_s
        self._over = _thread.allocate_lock()

    def __enter__(self) -> Self:
        """Begin to wait."""
        self._over.acquire()
        _thread.start_new_thread(self._wait, ())
        return self

    def __exit__(self, *_exc: object) -> None:
        """Say nothing more."""
        self._over.release()

    def _wait(self) -> None:
        if self._over.acquire(timeout=_SILENT_S):
            return
        away = (
            "" if self._has_hub() else f"no hub runs in {self._slot.root}, `bones up` starts it; "
        )
        words = f"{self._what}: {away}waiting up to {self._within_s:g} s"
        output.say(printable(words), program="bones")

    def _has_hub(self) -> bool:
        try:
            hub = connect(Workspace(self._slot.root))
        except (HubError, OSError):
            return True  # something is there
        if hub is None:
            return False
        with hub:
            return True
