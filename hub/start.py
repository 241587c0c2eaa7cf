"""Start the hub of a workspace, or attach to the one that runs."""

from __future__ import annotations

import os
import sys
import time

from foundation.errors import Refused, Unavailable
from foundation.workspace import Workspace
from hub.contact import connect
from hub.info import HubInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Progress = Callable[[dict[str, Any]], None]

TIMEOUT_S = 30.0
_RETRY_S = 0.002


def start(
    root: str | os.PathLike[str] | None,
    *,
    detach: bool = False,
    fossil_port: int | None = None,
    nats_port: int | None = None,
    timeout_s: float = TIMEOUT_S,
    cancel: int | None = None,
    progress: Progress | None = None,
    on_ready: Callable[[HubInfo], None] | None = None,
    _lean: bool = False,
) -> HubInfo | None:
    """Have a hub run in the workspace around *root* (None: the current directory).

    Where one runs, attach: return at once with ``already_running`` set. Otherwise, with
    *detach*, return once both servers answer; the hub outlives the caller. Without, this
    process is the hub until SIGTERM, SIGINT or SIGHUP, or until *cancel*, a file descriptor,
    becomes readable; then drain and return None. That form is for the main thread only, and
    *on_ready* is told when the hub is ready.

    A *fossil_port* or *nats_port* is used or refused; without one the recorded port is
    preferred, then 8765 and 4222, then any. *timeout_s* counts from the last sign of
    progress. *progress* gets dicts: ``{"phase", "done", "total"}``, ``{"note"}``, ``{"warning"}``.

    Raises:
        Refused: this place or these arguments will not do; the message says what would.
        Unavailable: it did not become ready in time.
        Corrupt: the repository is damaged.
        HubError: a server failed; the message has its last words.
    """
    workspace = Workspace.find(root)
    if not detach:
        _require_main_thread()
    if fossil_port is not None and fossil_port == nats_port:
        from hub.ports import check_pins  # noqa: PLC0415 - only to refuse

        check_pins(fossil_port, nats_port)
    deadline_s = time.monotonic() + timeout_s
    while True:
        info = _attach(workspace, timeout_s, progress)
        if info is not None:
            return info
        from hub import daemon  # noqa: PLC0415 - a start that attaches does not need it

        held = daemon.become_starter(workspace)
        if held is not None:
            break
        if time.monotonic() > deadline_s:
            raise Unavailable(
                f"another process holds {workspace.lock} and does not answer: "
                "`hub stop` ends it if it is a hub",
                reason="lock-held",
            )
        # Between taking the lock and listening, or between closing and letting go, the
        # other one needs some microseconds.
        time.sleep(_RETRY_S)
    lock, listener = held
    if not detach:
        from hub import place  # noqa: PLC0415
        from hub.supervisor import Options, Supervisor  # noqa: PLC0415

        options = Options(fossil_port=fossil_port, nats_port=nats_port)
        try:
            supervisor = Supervisor(
                workspace,
                options,
                lock=lock,
                listener=listener,
                on_ready=on_ready,
                on_progress=progress,
                cancel=cancel,
            )
        except OSError as error:
            os.close(lock)
            listener.close()
            raise place.explain(error, workspace.logs) from None
        supervisor.run()
        return None
    return daemon.run_detached(
        workspace,
        fossil_port=fossil_port,
        nats_port=nats_port,
        lock=lock,
        listener=listener,
        timeout_s=timeout_s,
        progress=progress,
        lean=_lean,
    )


def _require_main_thread() -> None:
    """Signals and PDEATHSIG both go by the thread: only the main one lives long enough."""
    threading = sys.modules.get("threading")
    if threading is not None and threading.current_thread() is not threading.main_thread():
        raise Refused(
            "a foreground hub must run in the main thread: use detach=True",
            reason="not-main-thread",
        )


def _attach(workspace: Workspace, timeout_s: float, progress: Progress | None) -> HubInfo | None:
    """Return the hub that runs here once it is ready, None if none does.

    Raises:
        HubError: one runs and cannot become ready, or does not answer.
    """
    try:
        connection = connect(workspace)
    except OSError as error:
        from hub.place import explain  # noqa: PLC0415

        raise explain(error, workspace.socket) from None
    if connection is None:
        return None
    with connection:
        try:
            answer = connection.ask("start", timeout_s=timeout_s, progress=progress)
        except Unavailable as error:
            if error.reason == "no-answer":
                raise Unavailable(f"{error}; `hub stop` ends it", reason="no-answer") from None
            if error.reason not in ("gone", "stopping"):
                raise
            connection.wait_end(timeout_s)
            return None
    return HubInfo(**{**answer, "already_running": True})
