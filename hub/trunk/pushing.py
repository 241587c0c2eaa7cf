"""A push to the Fossil server until its outcome is known: stored, overtaken, or not to be stored.

What the server answers is a claim, and at times it answers nothing; the repository is the truth.
"""

from __future__ import annotations

from foundation.errors import Unavailable
from foundation.failpoint import hit
from hub.trunk import xfer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from foundation.workspace import Workspace
    from hub.trunk.queue import Queue
    from hub.trunk.writer import Log

_REFUSALS = 3
_SILENCES = 5
"""How often the server may take a push and end without a word (60 s without one, too): some push
may be what it ends of, and that one must not keep all others waiting for ever."""
_WAIT_S, _WAIT_AT_MOST_S = 0.05, 1.0


class NotStoredError(Exception):
    """Fossil answered, but what was pushed is not in the repository, and nobody was faster."""


class Server:
    """The workspace's Fossil server, as the writer knows it."""

    def __init__(self, workspace: Workspace, queue: Queue, log: Log, project_code: str) -> None:
        """Log in to the project of *project_code*; give up when *queue* has ended.

        Raises:
            Refused: there is no password for it (``creds-missing``).
        """
        self._workspace = workspace
        self._queue = queue
        self._log = log
        self._login = xfer.read_login(workspace, project_code)
        self._away = ""

    def message(self, artifacts: Iterable[tuple[str, bytes]]) -> bytes:
        """Return the body of a push of *artifacts*, (hash, content), what names others last."""
        return xfer.message(self._login, artifacts)

    def push(self, body: bytes, *, stored: Callable[[], bool], moved: Callable[[], bool]) -> bool:
        """Push *body* until it is *stored*; return False if the tip has *moved* instead.

        While the server is away it is sent again and again, always the same bytes: whatever
        becomes of an earlier one, it lands once.

        Raises:
            NotStoredError: the server answers and does not store it, or ends of it.
            Unavailable: the queue has ended meanwhile.
        """
        refusals, silences, wait_s = 0, 0, _WAIT_S
        while True:
            reply: xfer.Reply | None = None
            try:
                reply = xfer.post(xfer.read_url(self._workspace), body)
                words = f"HTTP status {reply.status}: {'; '.join(reply.errors) or 'no reason'}"
            except OSError as error:
                words = str(error)
                silences += isinstance(error, xfer.SilentError)
            hit("trunk.posted")
            if stored():
                if reply is not None and reply.missing:
                    self._log("error", "content-missing", artifacts=reply.missing)
                self._note_away("")
                return True
            if moved():
                return False
            if reply is None:
                self._note_away(words)
            else:
                refusals += 1
            if refusals >= _REFUSALS or silences >= _SILENCES:
                raise NotStoredError(words)
            if self._queue.ended:
                raise Unavailable("trunk is stopping", reason="stopping")
            self._queue.pause(wait_s)
            wait_s = min(2 * wait_s, _WAIT_AT_MOST_S)

    def _note_away(self, words: str) -> None:
        """Say that the server is away, and why, or ("") that it is back; once each."""
        if words and not self._away:
            self._log("warning", "fossil-away", error=words)
        elif self._away and not words:
            self._log("info", "fossil-back")
        self._away = words
