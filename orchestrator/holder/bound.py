"""What a bound holder lives for: its client. The pidfd tells first, the connection second.

Neither is enough alone. A client's forked child keeps the connection open after the client's death;
a client that closes its session is alive.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from foundation.process import has_exited, open_pidfd

if TYPE_CHECKING:
    from collections.abc import Callable


class ParentWatch:
    """The process that launched us, for as long as it is our parent."""

    def __init__(self, parent: int) -> None:
        """Look at pid *parent*; :attr:`gone` if that is not our parent any more."""
        self._pidfd = open_pidfd(parent)
        # After the pidfd: had the number been given to another meanwhile, we were an orphan by now.
        self.gone = self._pidfd is None or os.getppid() != parent

    def begin(self, on_gone: Callable[[], None]) -> None:
        """Call *on_gone* once, when it ends."""
        if self.gone or self._pidfd is None:
            on_gone()
            return
        loop = asyncio.get_running_loop()
        pidfd = self._pidfd

        def ended() -> None:
            loop.remove_reader(pidfd)
            self.gone = True
            on_gone()

        loop.add_reader(pidfd, ended)

    def has_ended(self) -> bool:
        """Tell whether it is dead by now, even if the loop has not got to it yet."""
        return self.gone or (self._pidfd is not None and has_exited(self._pidfd))
