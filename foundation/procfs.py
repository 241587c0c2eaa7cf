"""What /proc tells of a process. Source: proc(5).

A pid may be somebody else's by the time that an answer is read: whoever acts on one opens a
pidfd first and asks afterwards, or asks again. An answer is None (or nothing) for a process that
has ended, and for one that this user may not look at; want of descriptors or memory is no answer
and raises OSError.
"""

from __future__ import annotations

import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_EXEC_WITHIN_S = 0.05
"""An exec takes microseconds from its point of no return on, when the machine is quiet."""


def pids() -> Iterator[int]:
    """Yield the pid of every process that can be seen from here."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            yield int(entry)


def owner_of(pid: int) -> int | None:
    """Return the effective uid of *pid*."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def parent_of(pid: int) -> int | None:
    """Return the pid of its parent. Source: proc_pid_stat(5), field 4."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def ancestors_of(pid: int) -> list[int]:
    """Return its parent, that one's parent and so on, up to pid 1.

    Ends early at one that cannot be looked at.
    """
    above: list[int] = []
    parent = parent_of(pid)
    while parent and parent not in above:
        above.append(parent)
        parent = parent_of(parent)
    return above


def start_ticks(pid: int) -> int | None:
    """Return when it started, in clock ticks since boot. Source: proc_pid_stat(5), field 22."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields from the third on: the second, the name in brackets, may hold anything."""
    content = _read(f"/proc/{pid}/stat")
    return content.rpartition(b")")[2].split() if content else None


def environment(pid: int) -> list[bytes] | None:
    """Return the environment that it was executed with, as ``NAME=value``."""
    content = _read_executed(pid, "environ")
    return None if content is None else content.split(b"\0")


def command_line(pid: int) -> list[bytes] | None:
    """Return the words that it was executed with; none for a zombie or a kernel thread."""
    content = _read_executed(pid, "cmdline")
    return None if content is None else content.split(b"\0")[:-1]


def _read_executed(pid: int, name: str) -> bytes | None:
    """Return what *pid* was executed with; one that is in the midst of it is waited for.

    Whoever started a process hears that exec succeeded before the kernel has set up either file:
    of 400 children that were asked about at once, 294 had an empty environment.
    """
    content = _read(f"/proc/{pid}/{name}")
    deadline_s = time.monotonic() + _EXEC_WITHIN_S
    # A zombie and a kernel thread have no program.
    while content == b"" and _link(f"/proc/{pid}/exe") is not None:
        executed = _read(f"/proc/{pid}/cmdline") != b""
        content = _read(f"/proc/{pid}/{name}")
        if executed or time.monotonic() > deadline_s:
            break
        time.sleep(0.0002)
    return content


def directory_of(pid: int) -> str | None:
    """Return its working directory, `` (deleted)`` appended if that was removed."""
    return _link(f"/proc/{pid}/cwd")


def open_files(pid: int) -> set[str]:
    """Return what it has open: paths (`` (deleted)`` appended), ``socket:[N]``, ``pipe:[N]``."""
    return set(links_of(pid).values())


def links_of(pid: int) -> dict[str, str]:
    """Return what each of its descriptors leads to, in the words of :func:`open_files`."""
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError as error:
        _raise_if_ours(error)
        return {}
    links = {fd: _link(f"/proc/{pid}/fd/{fd}") for fd in fds}
    return {fd: link for fd, link in links.items() if link is not None}


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        _raise_if_ours(error)
        return None


def _raise_if_ours(error: OSError) -> None:
    """Raise *error* if it tells of us and not of the process: it must not pass for its end."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error
