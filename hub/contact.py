"""The one way to reach a workspace's hub: through its own state directory, and only our own."""

from __future__ import annotations

import os
import stat

from foundation.control import Connection
from foundation.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace


def connect(workspace: Workspace) -> Connection | None:
    """Connect to whoever listens in *workspace*; None if nobody does.

    A state directory that is a link leads to another workspace's hub, and one that another
    user made can hold a listener that tells us whom to end: neither is asked anything.

    Raises:
        Refused: the state or the listener is not this user's (``state-foreign``).
        OSError: the socket cannot be reached.
    """
    try:
        status = os.lstat(workspace.state)
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise Refused(
            f"{workspace.state} is not a directory of our own: move it away",
            reason="state-foreign",
        )
    if status.st_uid != os.geteuid():
        raise foreign(workspace, status.st_uid)
    try:
        if stat.S_ISLNK(os.lstat(workspace.socket).st_mode):
            raise Refused(
                f"{workspace.socket} is a link to another hub's: remove it", reason="state-foreign"
            )
    except FileNotFoundError:
        return None
    connection = Connection.open(workspace.socket)
    if connection is not None:
        uid = connection.peer_uid()
        if uid != os.geteuid():
            with connection:
                raise foreign(workspace, uid)
    return connection


def foreign(workspace: Workspace, owner: int) -> Refused:
    """Return the error for a hub, or a state, of another user."""
    name, me = login(owner), login(os.geteuid())
    how = f" (`sudo -u {name} hub …`, or without sudo)" if os.geteuid() == 0 else ""
    return Refused(
        f"{workspace.root} is {name}'s to run a hub in, and you are {me}: run it as {name}{how}",
        reason="state-foreign",
    )


def login(uid: int) -> str:
    """Return the login of *uid* for a message; its number where it has none."""
    import pwd  # noqa: PLC0415 - only for a message

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
