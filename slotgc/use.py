"""Whether something still works in a directory: a process, or a mounted file system."""

from __future__ import annotations

import os

from foundation import procfs

_MOUNT_POINT = 4  # the field of a line. Source: proc_pid_mountinfo(5)


def in_use(directory: str) -> str:
    """Return what works in *directory* or below, in words; "" if nothing is seen to.

    A process that has its working directory there, or a file open; what belongs to another user
    is seen by root alone. Our own open files are the caller's business.
    """
    place = os.path.realpath(directory)
    below = f"{place}/"
    for pid in procfs.pids():
        where = procfs.directory_of(pid)
        if where is not None and (where == place or where.startswith(below)):
            return f"process {pid} has its working directory in it"
        if pid == os.getpid():
            continue
        if any(path.startswith(below) for path in procfs.open_files(pid)):
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
