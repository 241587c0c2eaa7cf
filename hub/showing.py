"""What the hub answers when a client asks it to show itself; see :mod:`hub.fast`."""

from __future__ import annotations

from foundation.errors import Refused, Unavailable
from hub import render
from hub.status import decode
from hub.stop import Stopped, refuse_live_slots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from foundation.workspace import Workspace
    from hub.render import Shown


def show(words: list[Any], workspace: Workspace, answer: dict[str, Any]) -> Shown:
    """Return what the command line *words* prints beside a hub whose status is *answer*.

    For ``stop`` that is what it prints once the hub has ended.

    Raises:
        HubError: it takes more than showing; the client does it the long way.
    """
    as_json = "--json" in words
    verb = words[0] if words else None
    now = decode(workspace.root, answer)
    if verb == "status":
        return render.status(now, as_json=as_json)
    if now.info is None or now.state != "running":
        raise Unavailable("not ready", reason="not-ready")
    if verb == "url":
        return render.url(now.info, as_json=as_json)
    if verb == "start":
        return render.started(now.info.replace(already_running=True), as_json=as_json)
    if verb == "stop":
        refuse_live_slots(workspace)
        servers = [child.pid for child in now.children if child.pid]
        stopped = Stopped(root=workspace.root, was_running=True, pids=(now.info.pid, *servers))
        return render.stopped(stopped, as_json=as_json)
    raise Refused(f"nothing shows {words!r}", reason="unknown-verb")
