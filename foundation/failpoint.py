"""Points at which a test can have this process killed.

``HUB_FAILPOINT=seed.renamed`` makes the process send itself SIGKILL when it gets there; with
``HUB_FAILPOINT=seed.row@3`` at the third time; with ``HUB_FAILPOINT=freeze:seed.renamed`` SIGSTOP.
A process without the variable pays one dict look-up. SIGKILL, not an exception: nothing gets to
clean up, as when the power goes.
"""

from __future__ import annotations

import os

VARIABLE = "HUB_FAILPOINT"

FREEZE = "freeze:"

_hits: dict[str, int] = {}


def hit(name: str) -> None:
    """Die or freeze here if the environment asks for it."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    signum = 19 if wanted.startswith(FREEZE) else 9  # importing signal costs enums
    wanted = wanted.removeprefix(FREEZE)
    point, _at, turn = wanted.partition("@")
    if point != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] == int(turn or 1):
        os.kill(os.getpid(), signum)  # noqa: TID251 - nobody but ourselves
