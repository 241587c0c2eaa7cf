"""Mounted file systems, and where a path of another mount namespace is in ours.

An agent in a container works in a directory that it knows by another path; proc(5) tells that one.
Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os

_DEVICE, _ROOT, _POINT = 2, 3, 4  # the fields of a line

Mount = tuple[bytes, bytes, bytes]
"""Device (``major:minor``), the directory of its file system that is mounted, and where."""


def mounts(pid: int | str = "self") -> list[Mount]:
    """Return the mounts that *pid* sees, the later ones last.

    Raises:
        OSError: they cannot be read.
    """
    found = []
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            found.append((fields[_DEVICE], _unescape(fields[_ROOT]), _unescape(fields[_POINT])))
    return found


def namespace(pid: int | str = "self") -> str:
    """Return the mount namespace of *pid*, "" if that is not known."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def translate(path: str, theirs: list[Mount], ours: list[Mount]) -> list[str]:
    """Return the paths by which *ours* reaches what *path* is among *theirs*; none, if none does.

    Both are absolute.
    """
    wanted = os.fsencode(path)
    best: Mount | None = None
    for mount in theirs:  # a later one on the same point hides it
        if _below(wanted, mount[2]) is not None and (best is None or len(mount[2]) >= len(best[2])):
            best = mount
    if best is None:
        return []
    device, root, point = best
    inside = _join(root, _below(wanted, point) or b"")
    found = []
    for mount in ours:
        rest = _below(inside, mount[1]) if mount[0] == device else None
        if rest is not None:
            found.append(os.fsdecode(_join(mount[2], rest)))
    return found


def _below(path: bytes, top: bytes) -> bytes | None:
    """Return what leads from the directory *top* to *path*, None if it does not lie there."""
    if top in (path, b"/"):
        return path[len(top) :]
    return path[len(top) + 1 :] if path.startswith(top + b"/") else None


def _join(top: bytes, rest: bytes) -> bytes:
    return top.rstrip(b"/") + b"/" + rest if rest else top


def _unescape(field: bytes) -> bytes:
    """Return a path of mountinfo: blanks, newlines and backslashes are octal escapes there."""
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
