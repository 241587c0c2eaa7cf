"""Whether something still works in a directory: a process, or a mounted file system."""

from __future__ import annotations

import os

from foundation import procfs

_MOUNT_POINT = 4  # the field of a line. Source: proc_pid_mountinfo(5)


Sighting = tuple[int, str, frozenset[str]]
"""A process: its pid, its working directory ("" if that is not known), what it has open."""


def sightings() -> list[Sighting]:
    """Return every process as far as it can be seen: another user's by root alone.

    Our own open files are not among them: they are the caller's business.
    """
    seen = []
    for pid in procfs.pids():
        files = set() if pid == os.getpid() else procfs.open_files(pid)
        paths = frozenset(path for path in files if path.startswith("/"))
        seen.append((pid, procfs.directory_of(pid) or "", paths))
    return seen


def in_use(directory: str, seen: list[Sighting] | None = None) -> str:
    """Return what works in *directory* or below, in words; "" if nothing is seen to.

    A process that has its working directory there, or a file open. *seen*: what was seen a
    moment ago, for who asks of many directories and will ask again.
    """
    place = os.path.realpath(directory)
    below = f"{place}/"
    for pid, where, files in sightings() if seen is None else seen:
        if where == place or where.startswith(below):
            return f"process {pid} has its working directory in it"
        if any(path.startswith(below) for path in files):
            return f"process {pid} has a file in it open"
    return mounted_in(place)


def mounted_in(directory: str) -> str:
    """Return which file system is mounted at *directory* or below, in words; "" if none is."""
    wanted = os.fsencode(os.path.realpath(directory))
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            point = _unescape(line.split()[_MOUNT_POINT])
            if point == wanted or point.startswith(wanted + b"/"):
                return f"a file system is mounted at {os.fsdecode(point)}"
    return ""


def _unescape(field: bytes) -> bytes:
    """Return a path of mountinfo: blanks, newlines and backslashes are octal escapes there."""
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
