"""Where a command's output begins and ends in what a port says. Pure.

A line of the token and ``b``, the output as it is, a line of the token, ``e`` and the status. What
comes before the beginning was left behind by an earlier command and counts for nothing. The token
is random, so that no output holds it.
"""

from __future__ import annotations

_LONGEST_STATUS = 16


class Marks:
    """Finds the output of one command in a port's bytes, however they are cut."""

    def __init__(self, token: str) -> None:
        """*token* is what the agent was told."""
        self._begin = f"{token}b\n".encode()
        self._end = f"{token}e ".encode()
        self._begun = False
        self._rest = b""
        self.status: int | None = None
        """What it ended with, None as long as it has not."""

    def feed(self, data: bytes) -> bytes:
        """Return what of *data*, and of what was held back before, is output for sure.

        Raises:
            ValueError: the end is no end: the agent is not ours.
        """
        self._rest += data
        if self.status is not None:
            return b""
        if not self._begun:
            at = self._rest.find(self._begin)
            if at < 0:
                self._rest = self._rest[-len(self._begin) + 1 :]
                return b""
            self._begun = True
            self._rest = self._rest[at + len(self._begin) :]
        at = self._rest.find(self._end)
        if at < 0:
            keep = _overlap(self._rest, self._end)
            output, self._rest = self._rest[: len(self._rest) - keep], self._rest[-keep or None :]
            if not keep:
                self._rest = b""
            return output
        output, self._rest = self._rest[:at], self._rest[at:]
        line, newline, _left = self._rest[len(self._end) :].partition(b"\n")
        if len(line) > _LONGEST_STATUS or (newline and not line.isdigit()):
            raise ValueError(f"{line!r} is no status")
        if newline:
            self.status = int(line)
        return output


def _overlap(data: bytes, mark: bytes) -> int:
    """Return how many bytes at the end of *data* may be the beginning of *mark*."""
    for length in range(min(len(data), len(mark) - 1), 0, -1):
        if mark.startswith(data[-length:]):
            return length
    return 0
