"""The processes of a campaign: forked, stopped, thawed, killed and reaped by one conductor."""

from __future__ import annotations

import heapq
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from foundation.process import has_exited, send_signal, wait_exit
from foundation.spawn import die_with_parent

_ENDS_WITHIN_S = 10.0
_MORE_THAN_ANY_DESCRIPTOR = 65536


class Hand(NamedTuple):
    """One process of the campaign."""

    number: int
    """Its place, which a successor takes over."""
    turn: int
    """How many had the place before."""
    pid: int
    pidfd: int


class Freezer:
    """Stops processes and has each of them go on when its time is over."""

    def __init__(self) -> None:
        """Begin with nobody stopped."""
        self.stops = 0
        self._frozen: list[tuple[float, int]] = []

    def stop(self, pidfd: int, for_s: float) -> bool:
        """SIGSTOP; *pidfd* is duplicated. Return False if there is no such process any more."""
        if has_exited(pidfd) or not send_signal(pidfd, signal.SIGSTOP):
            return False
        self.stops += 1
        heapq.heappush(self._frozen, (time.monotonic() + for_s, os.dup(pidfd)))
        return True

    def next_s(self) -> float:
        """Return the moment (monotonic) at which somebody is to go on, infinity if nobody is."""
        return self._frozen[0][0] if self._frozen else float("inf")

    def thaw(self, *, everybody: bool = False) -> None:
        """SIGCONT to those whose time is over."""
        while self._frozen and (everybody or self._frozen[0][0] <= time.monotonic()):
            _until, pidfd = heapq.heappop(self._frozen)
            send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)


class Crew:
    """Forks of this process. As a context manager it ends all of them."""

    def __init__(self, errors: str) -> None:
        """Have the standard error of all go to the file *errors*."""
        self.hands: dict[int, Hand] = {}
        self.kills = 0
        self.freezer = Freezer()
        self._errors = errors

    def __enter__(self) -> Self:
        """End all at the end of the ``with``."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """End all, also those that are stopped."""
        self.freezer.thaw(everybody=True)
        for hand in self.hands.values():
            send_signal(hand.pidfd, signal.SIGKILL)
        for number in list(self.hands):
            self._reap(number)

    def fork(self, number: int, turn: int, work: Callable[[], None]) -> Hand:
        """Run *work* in a fork that the kernel kills when this process dies."""
        sys.stdout.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._become_hand(parent)
                work()
                status = 0
            except BaseException:  # noqa: BLE001 - the last stop: into the log, then out
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)
        hand = Hand(number, turn, pid, os.pidfd_open(pid))
        self.hands[number] = hand
        return hand

    def _become_hand(self, parent: int) -> None:
        os.setpgid(0, 0)  # Ctrl-C on the terminal is the conductor's
        die_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        errors = os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        os.closerange(3, _MORE_THAN_ANY_DESCRIPTOR)

    def kill(self, number: int) -> bool:
        """SIGKILL hand *number* and reap it; return False if it had ended by itself."""
        hand = self.hands[number]
        lived = not has_exited(hand.pidfd)
        send_signal(hand.pidfd, signal.SIGKILL)
        self._reap(number)
        self.kills += lived
        return lived

    def ended(self) -> Iterable[Hand]:
        """Reap and return those that ended by themselves."""
        over = [hand for hand in self.hands.values() if has_exited(hand.pidfd)]
        for hand in over:
            self._reap(hand.number)
        return over

    def _reap(self, number: int) -> None:
        hand = self.hands.pop(number)
        if not wait_exit(hand.pidfd, _ENDS_WITHIN_S):
            raise RuntimeError(f"hand {number} (pid {hand.pid}) outlives SIGKILL")
        os.waitpid(hand.pid, 0)
        os.close(hand.pidfd)
