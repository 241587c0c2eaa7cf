"""Points at which a test can have this process killed.

``HUB_FAILPOINT=seed.renamed`` makes the process send itself SIGKILL when it gets there; with
``HUB_FAILPOINT=seed.row@3`` at the third time; with ``HUB_FAILPOINT=freeze:seed.renamed`` SIGSTOP.
A process without the variable pays one dict look-up. SIGKILL, not an exception: nothing gets to
clean up, as when the power goes.
"""

from __future__ import annotations

import _signal
import _thread
import os

VARIABLE = "HUB_FAILPOINT"
FREEZE = "freeze:"
"""Before a point's name: the process is to stop there, not to die."""

_hits: dict[str, int] = {}


def hit(name: str) -> None:
    """Die or freeze here if the environment asks for it."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, _at, turn = wanted.removeprefix(FREEZE).partition("@")
    if point != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] == int(turn or 1):
        if wanted.startswith(FREEZE):
            # To this thread: while another takes a signal to the process, it would run on.
            _signal.pthread_kill(_thread.get_ident(), 19)
        else:
            os.kill(os.getpid(), 9)  # noqa: TID251 - nobody but ourselves
