"""What a first start makes: credentials and the seeded repository, in a process of its own."""

from __future__ import annotations

import os
import sys
import time

from foundation.errors import HubError, from_wire, to_wire
from foundation.spawn import describe_exit
from hub.errand import REPORT_FD, Errand, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from foundation.workspace import Workspace
    from hub.reactor import Reactor


class Preparation:
    """One run of the preparing child, seen from the supervisor."""

    def __init__(
        self,
        reactor: Reactor,
        workspace: Workspace,
        fossil: str,
        *,
        on_progress: Callable[[dict[str, Any]], None],
        on_end: Callable[[HubError | None], None],
    ) -> None:
        """Start it. *on_end* gets the reason if it failed.

        Raises:
            OSError: it cannot be started.
        """
        self._on_progress = on_progress
        self._on_end = on_end
        self._outcome: HubError | None = None
        self._done = False
        self._errand = Errand(
            reactor,
            workspace,
            "hub.preparation",
            [workspace.root, fossil],
            on_report=self._take,
            on_end=self._ended,
        )
        self.cancel = self._errand.cancel
        """End it; the next start begins anew. *on_end* is called as it goes."""
        self.abandon = self._errand.abandon
        """Kill and reap it with no word to anybody: the loop has ended."""

    def _take(self, message: dict[str, Any]) -> None:
        if "progress" in message:
            self._on_progress(message["progress"])
        elif "warning" in message or "note" in message:
            self._on_progress(message)
        elif "fail" in message:
            self._outcome = from_wire(message["fail"])
        elif "done" in message:
            self._done = True

    def _ended(self, status: int, misunderstood: str) -> None:
        if misunderstood:
            self._outcome = HubError(
                f"seeding was not understood: {misunderstood}", reason="seed-failed"
            )
        elif self._outcome is None and not self._done:
            self._outcome = HubError(
                f"seeding {describe_exit(status)}; `hub logs hub` may say more",
                reason="seed-failed",
            )
        self._on_end(self._outcome)


def set_aside_sidecars(workspace: Workspace) -> None:
    """Move away the journal of a repository that is gone: SQLite would replay it into the new one.

    Only moved: with the repository that it belongs to, it may hold that one's last commits.
    """
    for suffix in ("-wal", "-shm", "-journal"):
        path = workspace.repository + suffix
        if os.path.lexists(path):
            os.rename(path, f"{path}.of-a-removed-repository.{time.time_ns()}")


def main() -> None:
    """Be the preparing child: argv holds the root and the fossil binary."""
    from foundation.workspace import Workspace  # noqa: PLC0415
    from hub.creds import ensure_creds  # noqa: PLC0415
    from hub.seed import remove_scratch, seed  # noqa: PLC0415

    root, fossil = sys.argv[1:3]
    workspace = Workspace(root)

    def progress(phase: str, done: int, total: int) -> None:
        report(progress={"phase": phase, "done": done, "total": total})

    os.set_inheritable(REPORT_FD, False)
    try:
        ensure_creds(workspace)
        if not os.path.lexists(workspace.repository):
            set_aside_sidecars(workspace)
            seeded = seed(workspace, fossil, progress)
            report(note=seeded.summary())
            for warning in seeded.warnings():
                report(warning=warning)
        else:
            remove_scratch(workspace)
        report(done=True)
    except HubError as error:
        report(fail=to_wire(error))
        os._exit(1)
    except BrokenPipeError:  # the hub is gone, and nobody is left to tell
        os._exit(1)
    except OSError as error:
        from hub.place import explain  # noqa: PLC0415

        report(fail=to_wire(explain(error, workspace.state)))
        os._exit(1)
