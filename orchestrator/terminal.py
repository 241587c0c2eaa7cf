"""This process's terminal, for as long as it is a guest's."""

from __future__ import annotations

import os
import select
import signal
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

from foundation.errors import Unavailable
from orchestrator import protocol
from orchestrator.requests import reach

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.store import Store
    from orchestrator.wire import Wire

_BLOCK = 1 << 16
_KEYBOARD, _SCREEN = 0, 1


class Escape:
    """Finds ``~.`` at the beginning of a line, as ssh does: the way out if a guest hangs."""

    def __init__(self) -> None:
        """Begin with a line."""
        self._held = b""
        self._fresh = True

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """Return what of *typed* is the guest's, and whether it is to end; nothing counts then."""
        out = b""
        for at in range(len(typed)):
            key = typed[at : at + 1]
            if self._held:
                self._held = b""
                if key == b".":
                    return out, True
                out += b"~"
            elif self._fresh and key == b"~":
                self._held, self._fresh = key, False
                continue
            out += key
            self._fresh = key in b"\r\n"
        return out, False


def attach(store: Store, name: str, argv: list[str]) -> int:
    """Run *argv* on a terminal of the guest that is this process's own; return its exit status.

    Raises:
        Unavailable: it was left by ``~.`` (``left``), and what ran was ended.
        HubError: the guest ended, or its holder; it has no terminal free (``no-terminal``).
    """
    with reach(store, name) as wire, _window_changes() as changed:
        rows, columns = _size()
        env = {"TERM": os.environ.get("TERM") or "dumb"}
        wire.send(protocol.TERMINAL, argv=argv, env=env, rows=rows, columns=columns)
        with _raw():
            return _carry(wire, changed)


def _carry(wire: Wire, changed: int) -> int:
    poll, escape = select.poll(), Escape()
    for fd in (_KEYBOARD, changed, wire.fileno()):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _event in poll.poll()}
        if wire.fileno() in ready:
            wire.fill(0)
            while (message := wire.next()) is not None:
                if "data" in message:
                    return int(message["data"]["status"])
                _show(protocol.unpack(message["progress"]["bytes"]))
        if changed in ready:
            os.read(changed, _BLOCK)
            rows, columns = _size()
            wire.follow({"rows": rows, "columns": columns})
        if _KEYBOARD in ready:
            typed = os.read(_KEYBOARD, _BLOCK)
            if not typed:
                poll.unregister(_KEYBOARD)  # what runs goes on, to its end
                continue
            theirs, out = escape.feed(typed)
            if theirs:
                wire.follow({"bytes": protocol.pack(theirs)})
            if out:
                raise Unavailable("left; what ran in the terminal was ended", reason="left")


def _show(said: bytes) -> None:
    view = memoryview(said)
    while view:
        view = view[os.write(_SCREEN, view) :]


def _size() -> tuple[int, int]:
    columns, rows = os.get_terminal_size(_KEYBOARD)
    return rows, columns


@contextmanager
def _raw() -> Iterator[None]:
    """Have each key as it is typed, and none of them mean anything to this machine."""
    before = termios.tcgetattr(_KEYBOARD)
    tty.setraw(_KEYBOARD, termios.TCSADRAIN)  # what was typed already is kept
    try:
        yield
    finally:
        termios.tcsetattr(_KEYBOARD, termios.TCSADRAIN, before)


@contextmanager
def _window_changes() -> Iterator[int]:
    """Yield a descriptor that is readable when the window has another size."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
    waking = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(waking)
        signal.signal(signal.SIGWINCH, before)
        os.close(heard)
        os.close(told)
