"""The errand of a hub that has just started: clean dead slots go, unsaved work stays."""

from __future__ import annotations

import os

from foundation.errors import from_wire
from foundation.spawn import describe_exit
from hub.errand import Errand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from foundation.workspace import Workspace
    from hub.reactor import Reactor


class Collection:
    """One run of it, seen from the supervisor. :func:`hub.gc.main` is the child."""

    def __init__(
        self,
        reactor: Reactor,
        workspace: Workspace,
        *,
        on_end: Callable[[dict[str, Any], str], None],
    ) -> None:
        """Start it. *on_end* gets its report (``removed``, ``failed``), and what went wrong, if so.

        Raises:
            OSError: it cannot be started.
        """
        self._report: dict[str, Any] = {}
        self._on_end = on_end
        self._errand = Errand(
            reactor,
            workspace,
            "hub.gc",
            [workspace.root],
            on_report=self._report.update,
            on_end=self._ended,
        )
        self.cancel = self._errand.cancel
        """End it; the next pass goes on where it was. *on_end* is called as it goes."""
        self.abandon = self._errand.abandon
        """Kill and reap it with no word to anybody: the loop has ended."""

    def _ended(self, status: int, misunderstood: str) -> None:
        wrong = misunderstood
        if not wrong and status:
            fail = self._report.get("fail")
            wrong = describe_exit(status) if fail is None else str(from_wire(fail))
        self._on_end(self._report, wrong)


def is_needed(workspace: Workspace) -> bool:
    """Tell whether there are slots at all, or what a killed pass has left."""
    for directory in (workspace.swarm, workspace.rescue):
        try:
            with os.scandir(directory) as entries:
                if next(entries, None) is not None:
                    return True
        except OSError:
            continue
    return False
