"""A holder that was launched, as whoever launched it has it."""

from __future__ import annotations

import os

from foundation.failpoint import hit
from foundation.process import terminate, wait_exit
from orchestrator import protocol
from owner import private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from orchestrator.wire import Wire

_KILLED_WITHIN_S = 2.0


class Session:
    """A holder that was spawned; a bound one lives for it. Close it, or use it in a ``with``."""

    def __init__(self, names: tuple[str, ...], pid: int, pidfd: int, *, bound: bool) -> None:
        """Own the child *pid* and *pidfd*."""
        self.names = names
        self.created: tuple[str, ...] = ()
        """Those of them that did not exist before."""
        self.pid = pid
        self.bound = bound
        self._process = private.process()
        self._pidfd = pidfd
        self._wire: Wire | None = None

    def __enter__(self) -> Self:
        """Close at the end of the ``with``."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def greet(self, wire: Wire) -> None:
        """Compare versions; make the end of *wire* the end of the cluster if it is bound.

        Raises:
            Unavailable: the holder's version is another (``protocol-version``), or it ended.
        """
        answer = wire.ask(protocol.BIND, within_s=protocol.BIND_WITHIN_S)
        if answer.get("version") != protocol.PROTOCOL_VERSION:
            raise protocol.mismatch("the holder", answer.get("version"))
        if not self.bound:
            wire.close()
            return
        hit("spawn.bind")
        wire.ask(protocol.BIND_ACK, within_s=protocol.ANSWER_WITHIN_S)
        self._wire = wire

    def close(self, timeout_s: float = protocol.STOP_WITHIN_S) -> None:
        """Let go of a detached holder; stop a bound one with its members and reap it.

        Again is no error; in a forked child it does nothing.
        """
        if self._process != private.process():
            return
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._pidfd < 0:
            return
        try:
            if self.bound and not wait_exit(self._pidfd, timeout_s):
                terminate(self._pidfd, grace_s=0.0, kill_wait_s=_KILLED_WITHIN_S)
            _LIVING.add(self.pid)
            reap()
        finally:
            private.close(self._pidfd)
            self._pidfd = -1

    def kill(self) -> None:
        """End a holder that is not to be used; the kernel ends its VMs."""
        self.bound = True
        self.close(timeout_s=0.0)


_LIVING: set[int] = set()
"""Our children that lived on when their session was closed: detached holders."""


def reap() -> None:
    """Collect the detached holders that have ended meanwhile, so that none stays a zombie."""
    for pid in list(_LIVING):
        try:
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                _LIVING.discard(pid)
        except ChildProcessError:  # we are a fork, or ignore SIGCHLD, or another was faster
            _LIVING.discard(pid)
