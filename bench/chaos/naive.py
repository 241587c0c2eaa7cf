"""A lease as one writes it at first, to show that the witnesses can see what is wrong with it.

A record with the moment of its expiry by the wall clock, read and then renamed over: no guard, no
proof of death, no margin, and a fence that only looks before it leaps. Same face as ``owner``.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from foundation.errors import LeaseLost

OWNER, FOLLOWER = "owner", "follower"


class Owner:
    """One who asked: the owner, or a follower."""

    def __init__(self, path: str, ttl_s: float, epoch: int, role: str) -> None:
        """Renew in the background if this is the owner."""
        self.role = role
        self.epoch = epoch
        self.lost = threading.Event()
        self._path = path
        self._ttl_s = ttl_s
        self._renews = role == OWNER
        if self._renews:
            threading.Thread(target=self._renew, daemon=True).start()

    @property
    def is_owner(self) -> bool:
        """Whether nobody has said otherwise yet."""
        return self.role == OWNER and not self.lost.is_set()

    @contextmanager
    def fenced(self) -> Iterator[int]:
        """Look, then leap."""
        if not self.is_owner:
            raise LeaseLost("it was lost", reason="not-owner")
        yield self.epoch

    def cancel(self) -> None:
        """Renew no more."""
        self._renews = False

    def release(self) -> None:
        """Hand over, if the record is still ours; look, then leap."""
        self._renews = False
        if self.role == OWNER and _read(self._path)[0] == self.epoch:
            _write(self._path, self.epoch, 0)
        self.role = FOLLOWER

    def _renew(self) -> None:
        while self._renews:
            time.sleep(self._ttl_s / 3)
            if _read(self._path)[0] != self.epoch:
                self.lost.set()
                return
            if self._renews:
                _write(self._path, self.epoch, time.time() + self._ttl_s)


def join(path: str, *, ttl_s: float, meta: Mapping[str, str] | None = None) -> Owner:
    """Become the owner of *path* if the record says that nobody is, else a follower."""
    del meta
    epoch, expires_s = _read(path)
    if expires_s > time.time():
        return Owner(path, ttl_s, epoch, FOLLOWER)
    _write(path, epoch + 1, time.time() + ttl_s)
    return Owner(path, ttl_s, epoch + 1, OWNER)


def _read(path: str) -> tuple[int, float]:
    try:
        with open(path, encoding="ascii") as file:
            record = json.load(file)
        return record["epoch"], record["expires_s"]
    except FileNotFoundError:
        return 0, 0.0


def _write(path: str, epoch: int, expires_s: float) -> None:
    temporary = f"{path}.{os.getpid()}.{threading.get_native_id()}"
    with open(temporary, "w", encoding="ascii") as file:
        json.dump({"epoch": epoch, "expires_s": expires_s}, file)
    os.rename(temporary, path)
