"""Where a campaign plays: a directory and an environment of its own, cleared whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from foundation import procfs
from foundation.process import has_exited, open_pidfd, send_signal, wait_exit

MARK = "BENCH_CHAOS"
"""In the environment of every program that a campaign executes: which campaign."""

_GOES_WITHIN_S = 5.0
_AGAIN_S = 0.01


class Stage:
    """A directory, an isolated environment, and a guard that clears both if we are killed.

    Ctrl-C and SIGTERM unwind the ``with`` as any exception does. After a kill -9 the kernel ends
    our forks (PDEATHSIG); what detaches itself on purpose, as a hub does, the guard ends: a
    process that waits for the end of ours on a pipe.
    """

    def __init__(self, name: str, clear: Callable[[Path], None] | None = None) -> None:
        """Make the place; *clear* ends what a program under test leaves in it on purpose."""
        self.mark = uuid.uuid4().hex
        self.place = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))
        self._clear = clear
        self._environment = dict(os.environ)
        self._isolate()
        self._alarm, self._guard = self._post_guard()

    def __enter__(self) -> Self:
        """Clear at the end of the ``with``."""
        self._former = signal.signal(signal.SIGTERM, _as_exception)
        return self

    def __exit__(self, *_exc: object) -> None:
        """Clear, and dismiss the guard, which does the same in case that we do not get to it."""
        os.close(self._alarm)
        os.waitpid(self._guard, 0)
        os.environ.clear()
        os.environ.update(self._environment)
        signal.signal(signal.SIGTERM, self._former)

    def keep(self) -> None:
        """Leave the place as it is, for somebody to look at."""
        os.write(self._alarm, b"k")

    def residents(self) -> list[tuple[int, int]]:
        """Return pid and open pidfd of every living process that this campaign executed.

        By the mark in the environment or the working directory. The caller closes.
        """
        return residents(self.mark, str(self.place))

    def _isolate(self) -> None:
        for name in list(os.environ):
            if name.startswith(("GIT_", "HUB_", "BONES_", "FOSSIL")) and name != "HUB_TEST":
                del os.environ[name]
        home = self.place / "home"
        home.mkdir()
        (home / ".gitconfig").touch()
        os.environ.update(
            {
                MARK: self.mark,
                "HOME": str(home),
                "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
                "GIT_CONFIG_NOSYSTEM": "1",
                "XDG_STATE_HOME": str(home / "state"),
                "XDG_CONFIG_HOME": str(home / "config"),
                "XDG_CACHE_HOME": str(home / "cache"),
                "XDG_DATA_HOME": str(home / "data"),
                "TMPDIR": str(home),
            }
        )

    def _post_guard(self) -> tuple[int, int]:
        """Fork the guard; return our end of the pipe and its pid."""
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(read)
            return write, pid
        keep = b""
        try:
            os.close(write)
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.chdir("/")
            keep = os.read(read, 1)  # ends when nobody has the other end
            if self._clear is not None:
                self._clear(self.place)
        finally:
            _sweep(self.mark, str(self.place))
            if not keep:
                _remove(self.place)
            os._exit(0)


def _remove(place: Path) -> None:
    """Remove *place*, also where the last of our forks is still writing into it as it dies."""
    deadline_s = time.monotonic() + _GOES_WITHIN_S
    while place.exists() and time.monotonic() < deadline_s:
        shutil.rmtree(place, ignore_errors=True)
        time.sleep(_AGAIN_S)


def _as_exception(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def residents(mark: str, place: str) -> list[tuple[int, int]]:
    """Return what :meth:`Stage.residents` does; the process that asks is left out."""
    found = []
    for pid in procfs.pids():
        if pid == os.getpid() or procfs.owner_of(pid) != os.geteuid():
            continue
        pidfd = open_pidfd(pid)
        if pidfd is None:
            continue
        if _is_of(pid, mark, place) and not has_exited(pidfd):
            found.append((pid, pidfd))
        else:
            os.close(pidfd)
    return found


def _is_of(pid: int, mark: str, place: str) -> bool:
    """Tell whether *pid* carries the mark, or a workspace in *place*, or works in there."""
    root = os.fsencode(place)
    for line in procfs.environment(pid) or ():
        if line == f"{MARK}={mark}".encode() or line.startswith(b"BONES_WORKSPACE=" + root + b"/"):
            return True
    where = procfs.directory_of(pid)
    return where is not None and f"{where}/".startswith(f"{place}/")


def _sweep(mark: str, place: str) -> None:
    for _pid, pidfd in residents(mark, place):
        send_signal(pidfd, signal.SIGKILL)
        wait_exit(pidfd, _GOES_WITHIN_S)
        os.close(pidfd)


def make_repository(root: Path, files: dict[str, bytes]) -> Path:
    """Return a git repository with one commit of *files*."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    git = ["git", "-c", "user.name=chaos", "-c", "user.email=chaos@localhost", "-C", str(root)]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "files"], check=True)
    return root
