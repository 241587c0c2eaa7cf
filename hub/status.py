"""Whether a hub runs in a workspace, and where it answers."""

from __future__ import annotations

import os
import time

from foundation.errors import HubError, NotRunning, Unavailable
from foundation.record import Record
from foundation.workspace import Workspace
from hub.contact import connect
from hub.info import HubInfo
from hub.wording import starting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    State = Literal["running", "starting", "degraded", "failed", "stopping", "stopped", "unknown"]

ANSWER_WITHIN_S = 5.0
_LOOK_EVERY_S = 0.02

EXIT_CODES: dict[State, int] = {
    "running": 0,
    "stopped": 3,
    "unknown": 4,
    "starting": 5,
    "degraded": 5,
    "failed": 5,
    "stopping": 5,
}


class ChildStatus(Record):
    """One supervised process."""

    name: str
    phase: str
    """See :data:`hub.lifecycle.CHILD`."""
    pid: int
    """0: none runs."""
    restarts: int
    uptime_s: float
    last_exit: int | None
    """Exit status of the process before this one; negative: a signal."""


class HubStatus(Record):
    """The state of a workspace's hub."""

    state: State
    """``degraded``: a child is down and being restarted; ``failed``: one was given up;
    ``unknown``: something holds the socket and does not answer."""
    root: str
    info: HubInfo | None = None
    children: tuple[ChildStatus, ...] = ()
    versions: dict[str, str] = {}  # noqa: RUF012 - never changed
    reason: str = ""
    """Why the state is not ``running``, if there is more to say."""

    @property
    def exit_code(self) -> int:
        """The exit code of `hub status`: 0 healthy, 3 not running, 4 unknown, 5 degraded."""
        return EXIT_CODES[self.state]


def status(root: str | os.PathLike[str] | None = None) -> HubStatus:
    """Return the state of the hub of the workspace around *root* (the current directory).

    Asks the process that listens in this very directory, so neither a stale file nor a copied
    workspace can answer for it. Changes nothing.

    Raises:
        Refused: *root* is not in a git repository.
    """
    return status_of(Workspace.find(root))


def status_of(workspace: Workspace, *, within_s: float | None = None) -> HubStatus:
    """Return the state of the hub of *workspace*; see :func:`status`.

    One that does not answer *within_s* seconds (:data:`ANSWER_WITHIN_S`) is ``unknown``.
    """
    root = workspace.root
    try:
        connection = connect(workspace)
    except OSError as error:
        return HubStatus(state="unknown", root=root, reason=f"{workspace.socket}: {error.strerror}")
    if connection is None:
        return HubStatus(state="stopped", root=root)
    with connection:
        try:
            answer = connection.ask(
                "status", timeout_s=ANSWER_WITHIN_S if within_s is None else within_s
            )
        except Unavailable as error:
            if error.reason == "stopping":
                return HubStatus(state="stopping", root=root, reason=str(error))
            if error.reason == "gone":
                return HubStatus(state="stopped", root=root)
            way_out = "; `hub stop` ends it" if error.reason == "no-answer" else ""
            return HubStatus(state="unknown", root=root, reason=f"{error}{way_out}")
        except HubError as error:
            return HubStatus(state="unknown", root=root, reason=str(error))
    return decode(root, answer)


def decode(root: str, answer: dict[str, Any]) -> HubStatus:
    """Read the supervisor's answer; it is of our protocol version, so of our shape."""
    children = tuple(ChildStatus(**child) for child in answer["children"])
    info = None if answer["info"] is None else HubInfo(**answer["info"])
    state, reason = _judge(str(answer["phase"]), children)
    return HubStatus(
        state=state,
        root=root,
        info=info,
        children=children,
        versions=answer["versions"],
        reason=reason,
    )


def _judge(phase: str, children: tuple[ChildStatus, ...]) -> tuple[State, str]:
    if phase == "starting":
        return "starting", "the servers are not ready yet"
    failed = [child.name for child in children if child.phase == "failed"]
    if failed:
        return (
            "failed",
            f"{', '.join(failed)} kept failing and was given up; `hub start` tries again",
        )
    down = [
        child.name
        for child in children
        if child.phase != "ready"
        # Trunk's first start comes after readiness, and takes a moment.
        and not (child.name == "trunk" and child.phase == "starting" and child.restarts == 0)
    ]
    if down:
        return "degraded", f"{', '.join(down)} is being restarted"
    return "running", ""


def wait_for_trunk(workspace: Workspace, within_s: float) -> None:
    """Wait until trunk, which starts after readiness, has published what there was to say.

    Not for ever, and not for one that keeps failing.
    """
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        phases = [child.phase for child in status_of(workspace).children if child.name == "trunk"]
        if phases != ["starting"]:
            return
        time.sleep(_LOOK_EVERY_S)


def is_running(root: str | os.PathLike[str] | None = None) -> bool:
    """Tell whether a hub answers in the workspace around *root*, ready or about to be."""
    return status(root).state in ("running", "starting", "degraded", "failed")


def fossil_url(root: str | os.PathLike[str] | None = None) -> str:
    """Return the URL of the running hub's Fossil server.

    Raises:
        NotRunning: no hub is ready there.
    """
    return running_info(root).fossil_url


def nats_url(root: str | os.PathLike[str] | None = None) -> str:
    """Return the URL of the running hub's NATS server.

    Raises:
        NotRunning: no hub is ready there.
    """
    return running_info(root).nats_url


def running_info(root: str | os.PathLike[str] | None = None) -> HubInfo:
    """Return the running hub of the workspace around *root*.

    Raises:
        NotRunning: no hub is ready there.
        Unavailable: one runs and does not answer.
    """
    now = status(root)
    if now.state == "unknown":
        raise Unavailable(f"the hub of {now.root} cannot be asked: {now.reason}", reason="unknown")
    if now.info is None:
        raise NotRunning(
            f"no hub runs in {now.root} ({now.reason or now.state}): `{starting()}`",
            reason="not-running",
        )
    return now.info
