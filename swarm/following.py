"""Following the history of a workspace: what the hub, trunk and the slots have announced."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from foundation.workspace import Workspace
from hub.events import read

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from hub.events import Event


def events(
    root: str | os.PathLike[str] | None = None, *, after: int = 0, follow: bool = False
) -> AsyncGenerator[Event]:
    """Yield the events of the workspace around *root*, oldest first; with *follow* go on.

    ``async for event in swarm.events(follow=True)``; more in :func:`hub.events.read`.

    Raises:
        Refused: there is no workspace, or the stream ends before *after*.
        NotRunning: no hub runs there.
    """
    return read(Workspace.find(root), after, follow=follow)
