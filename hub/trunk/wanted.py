"""Asking, ahead of the first join, for the template that worktrees are copied from.

Making it takes seconds where a tree is large, and twice its room on the disk; so it is made only
where slots are wanted, in the background. A connection to this socket is the request, and nobody
answers it: who needs the template later waits for it then.
"""

from __future__ import annotations

from foundation.control import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace


def socket_of(workspace: Workspace) -> str:
    """Return where the nursery of *workspace* listens for it."""
    return f"{workspace.templates}/wanted.sock"


def ask(workspace: Workspace) -> bool:
    """Have a template made, unless there is one that will do; return whether anybody heard."""
    try:
        connection = Connection.open(socket_of(workspace))
    except OSError:
        return False
    if connection is None:
        return False
    with connection:
        return True
