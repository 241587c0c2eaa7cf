"""What an owner believes of its own lease, and the moments at which that ends."""

from __future__ import annotations

import _thread

from owner.lost import Lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from owner.boottime import Boottime
    from owner.lease import Lease

BELIEVING, RELEASED, LOST = "believing", "released", "lost"

RENEWED, GIVEN_UP, ENDED = "renewed", "given up", "ended"

NEXT = {
    (BELIEVING, RENEWED): BELIEVING,
    (BELIEVING, GIVEN_UP): RELEASED,
    (BELIEVING, ENDED): LOST,
    (RELEASED, RENEWED): RELEASED,
    (RELEASED, GIVEN_UP): RELEASED,
    (RELEASED, ENDED): RELEASED,  # the watchdog was late: nobody is to be alarmed any more
    (LOST, RENEWED): LOST,  # a renewal that came through too late revives nothing
    (LOST, GIVEN_UP): LOST,
    (LOST, ENDED): LOST,
}
"""What became of it, and what happens now."""


class Belief:
    """Holds until the clock says that it ends; once it has ended it never holds again."""

    def __init__(self, lease: Lease, clock: Boottime) -> None:
        """Believe in *lease*, which was acquired just now."""
        self.lost = Lost()
        self.lease = lease
        self.reason = ""
        """Why it was lost."""
        self.trouble = ""
        """What the last renewal failed of."""
        self._clock = clock
        self._phase = BELIEVING
        self._mutex = _thread.RLock()  # a signal handler may ask in the middle

    def holds(self) -> bool:
        """Tell whether it holds now, by the clock alone."""
        with self._mutex:
            if self._phase == BELIEVING and self._clock.now_ns() >= self.lease.belief_ends_ns:
                trouble = f": {self.trouble}" if self.trouble else ""
                self.end(f"it was not renewed in time{trouble}")
            return self._phase == BELIEVING

    def extend(self, lease: Lease) -> None:
        """Believe in the renewed *lease*, if it still holds."""
        with self._mutex:
            if self.holds() and self._happens(RENEWED) == BELIEVING:
                self.lease = lease
                self.trouble = ""

    def end(self, reason: str) -> None:
        """Have lost it, for *reason*; tell everybody who waits for that."""
        with self._mutex:
            if self._phase == BELIEVING:
                self.reason = reason
                self._happens(ENDED)
            self.tell()

    def tell(self) -> None:
        """Tell once more that it was lost, if it was.

        Who ended it may have been interrupted before anybody heard of it: by Ctrl-C, in the one
        thread that gets it. The watchdog, which gets none, has the last word.
        """
        with self._mutex:
            if self._phase == LOST:
                self.lost.fire()  # inside: after a release has returned it can fire no more

    def give_up(self) -> None:
        """Cease to believe of our own will."""
        with self._mutex:
            self.holds()
            self._happens(GIVEN_UP)

    def _happens(self, event: str) -> str:
        self._phase = NEXT[self._phase, event]
        return self._phase
