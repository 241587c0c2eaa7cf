"""Points at which a test can have this process killed.

``HUB_FAILPOINT=seed.renamed`` makes the process send itself SIGKILL when it gets there; with
``HUB_FAILPOINT=seed.row@3`` at the third time. A process without the variable pays one dict
look-up. SIGKILL, not an exception: nothing gets to clean up, as when the power goes.
"""

from __future__ import annotations

import os

VARIABLE = "HUB_FAILPOINT"

_hits: dict[str, int] = {}


def hit(name: str) -> None:
    """Die here if the environment asks for it."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, _at, turn = wanted.partition("@")
    if point != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] == int(turn or 1):
        os.kill(os.getpid(), 9)  # noqa: TID251 - nobody but ourselves
