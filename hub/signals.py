"""Signals as events of the loop: the supervisor's handlers do nothing but wake it."""

from __future__ import annotations

import _signal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hub.reactor import Reactor

_HUP, _INT, _PIPE, _TERM, _CHLD = 1, 2, 13, 15, 17


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP become a call of the loop, until :meth:`mute`."""

    def __init__(self, reactor: Reactor, stop: Callable[[int], None]) -> None:
        """Install the handlers; *stop* gets the number. For the main thread only."""
        self._reactor = reactor
        self._stop = stop
        self._read, self._write = os.pipe()
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)
        self._wakeup = _signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        handlers: dict[int, Any] = dict.fromkeys((_INT, _TERM), lambda *_: None)
        if _signal.getsignal(_HUP) != _signal.SIG_IGN:  # nohup means it
            handlers[_HUP] = lambda *_: None
        # A client that leaves must not end us, and who ignores SIGCHLD cannot wait for a child.
        handlers |= {_PIPE: _signal.SIG_IGN, _CHLD: _signal.SIG_DFL}
        self._handlers = {n: _signal.signal(n, handler) for n, handler in handlers.items()}
        reactor.watch(self._read, self._arrived)

    def _arrived(self, _events: int) -> None:
        numbers = set(os.read(self._read, 64)) & {_HUP, _INT, _TERM}
        if numbers:
            self._stop(max(numbers))

    def mute(self) -> None:
        """Call no more; the handlers stay, so that a second SIGINT does not cut a drain short."""
        _signal.set_wakeup_fd(self._wakeup)
        self._reactor.forget(self._read)
        for fd in (self._read, self._write):
            os.close(fd)

    def restore(self) -> None:
        """Give the signals back to whom they belonged before."""
        for number, handler in self._handlers.items():
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
