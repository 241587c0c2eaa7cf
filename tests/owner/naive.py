"""A lease as it is usually written, after contenox's liblease: what ours must be better than.

One JSON file with a random token and an expiry by the wall clock; every operation inside a lock
directory which whoever finds it older than five seconds (or the ttl) takes for a dead one's and
removes. It works in every test that does not stop it at the wrong moment.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Held(Exception):
    """Somebody else has it."""


class NotOwned(Exception):
    """We do not have it any more."""


class NaiveLease:
    """One instance's view of the lease at *path*."""

    def __init__(
        self,
        path: Path,
        ttl_s: float,
        *,
        at: Callable[[str], None] = lambda _point: None,
        wall_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """*at* is told each point that the instance gets to, and may hold it there."""
        self.path = path
        self.lock = path.with_suffix(".lockdir")
        self.ttl_s = ttl_s
        self.token = uuid.uuid4().hex
        self.lost_at_s: float | None = None
        self._at = at
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._until_s = 0.0

    def believes(self) -> bool:
        """Tell whether it takes itself for the owner: its own process's clock decides."""
        return self.lost_at_s is None and self._monotonic_s() < self._until_s

    def acquire(self) -> None:
        """Take the lease if nobody has it.

        Raises:
            Held: somebody has.
        """
        self._enter()
        try:
            found = self._read()
            self._at("acquire.read")
            if found and found["token"] != self.token and found["expires"] > self._wall_s():
                raise Held
            self._write()
        finally:
            self._leave()

    def renew(self) -> None:
        """Extend it.

        Raises:
            NotOwned: the file names another.
        """
        self._enter()
        try:
            found = self._read()
            if not found or found["token"] != self.token:
                self._until_s = 0.0
                raise NotOwned
            self._at("renew.checked")
            self._write()
        finally:
            self._leave()

    def renew_loop_once(self) -> None:
        """What its background loop does: it judges after the renewal has returned."""
        try:
            self.renew()
        finally:
            if self._monotonic_s() >= self._until_s and self.lost_at_s is None:
                self.lost_at_s = self._monotonic_s()

    def release(self) -> None:
        """Remove the file, if it names us."""
        self._enter()
        try:
            found = self._read()
            if found and found["token"] == self.token:
                self._at("release.compared")
                self.path.unlink(missing_ok=True)
        finally:
            self._until_s = 0.0
            self._leave()

    def _enter(self) -> None:
        while True:
            try:
                self.lock.mkdir()
            except FileExistsError:
                pass
            else:
                self._at("locked")
                return
            try:
                age_s = time.time() - self.lock.stat().st_mtime
            except FileNotFoundError:
                continue
            if age_s > min(5.0, self.ttl_s):
                self._at("lock.found-stale")
                self._leave()
            else:
                time.sleep(0.001)

    def _leave(self) -> None:
        try:
            self.lock.rmdir()
        except FileNotFoundError:
            pass

    def _read(self) -> dict[str, Any] | None:
        try:
            content = self._content()
            found: dict[str, Any] = json.loads(content)
        except (OSError, ValueError):
            return None  # nobody's, or left by a crash
        return found

    def _content(self) -> str:
        return self.path.read_text()

    def _write(self) -> None:
        now_s = self._monotonic_s()
        self._at("writing")
        temporary = self.path.with_suffix(f".{self.token}")
        temporary.write_text(
            json.dumps({"token": self.token, "expires": self._wall_s() + self.ttl_s})
        )
        os.replace(temporary, self.path)
        self._until_s = now_s + self.ttl_s
