"""`bones up`: have a hub run here, ready to take commits."""

from __future__ import annotations

from foundation.errors import HubError, Unavailable
from foundation.record import Record
from foundation.workspace import Workspace
from hub import start as starting
from hub.status import status_of, wait_for_trunk
from hub.trunk import wanted
from swarm.history import open_repository

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.info import HubInfo
    from hub.repository import CheckinRow
    from hub.start import Progress

TRUNK_WITHIN_S = 15.0


class Up(Record):
    """A hub that is ready, and the tip of its trunk."""

    hub: HubInfo
    tip: CheckinRow


def up(
    root: str | None = None,
    *,
    timeout_s: float = starting.TIMEOUT_S,
    progress: Progress | None = None,
) -> Up:
    """Have a hub run in the workspace around *root*, detached; return once it takes commits.

    Who wants that will want slots: what the first takes longest for is begun in the background.

    Raises:
        Unavailable: its trunk does not come up (``trunk-away``).
        And as :func:`hub.start.start`.
    """
    info = starting.start(root, detach=True, timeout_s=timeout_s, progress=progress)
    if info is None:
        raise HubError("stopped before it was ready", reason="interrupted")
    workspace = Workspace(info.root)
    wait_for_trunk(workspace, TRUNK_WITHIN_S)
    now = status_of(workspace)
    phases = {child.name: child.phase for child in now.children}
    if phases.get("trunk") != "ready":
        raise Unavailable(
            f"the hub of {info.root} runs but takes no commits yet, trunk is "
            f"{phases.get('trunk', 'missing')}: `hub logs trunk`",
            reason="trunk-away",
        )
    wanted.ask(workspace)
    with open_repository(workspace.repository) as repository:
        return Up(hub=info, tip=repository.tip())
