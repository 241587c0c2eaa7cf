"""Whether something still works in a directory: a process, or a mounted file system."""

from __future__ import annotations

import os

from foundation import procfs
from slotgc.mounts import mounts, namespace, translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from slotgc.mounts import Mount

Sighting = tuple[int, str, frozenset[str]]
"""A process: its pid, its working directory ("" if that is not known), what it has open."""


def sightings() -> list[Sighting]:
    """Return every process as far as it can be seen: another user's by root alone.

    Our own open files are not among them: they are the caller's business. Of one in another mount
    namespace, as in a container, the paths are those that lead there from here too.

    Raises:
        OSError: out of descriptors or memory.
    """
    seen = []
    known: dict[str, list[Mount]] = {"": [], namespace(): []}  # ours, and where we may not look
    ours: list[Mount] = []
    for pid in procfs.pids():
        task, where = _task_of(pid)
        files = set() if pid == os.getpid() else procfs.open_files(task)
        paths = {path for path in files if path.startswith("/")}
        place = namespace(task) if where or paths else ""
        if place not in known:
            ours = ours or mounts()
            known[place] = _mounts_of(task)
        theirs = known[place]
        if theirs:
            here = translate(where, theirs, ours)
            paths.update(here, *(translate(path, theirs, ours) for path in paths))
            where = here[0] if here else where
        seen.append((pid, where, frozenset(paths)))
    return seen


def _task_of(pid: int) -> tuple[int, str]:
    """Return a task of *pid* that can be looked at, and its working directory ("": not known).

    The first one may have ended before the others, which have the directory and the files still.
    """
    where = procfs.directory_of(pid)
    if where is None and procfs.owner_of(pid) == os.geteuid():
        try:
            tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        except OSError:
            tasks = []
        for task in tasks:
            where = procfs.directory_of(task)
            if where is not None:
                return task, where
    return pid, where or ""


def _mounts_of(pid: int) -> list[Mount]:
    try:
        return mounts(pid)
    except OSError:  # it has ended
        return []


def in_use(directory: str, seen: list[Sighting] | None = None) -> str:
    """Return what works in *directory* or below, in words; "" if nothing is seen to.

    A process that has its working directory there, or a file or directory open. *seen*: what was
    seen a moment ago, for who asks of many directories and will ask again.
    """
    place = os.path.realpath(directory)
    below = f"{place}/"
    for pid, where, files in sightings() if seen is None else seen:
        if where == place or where.startswith(below):
            return f"process {pid} has its working directory in it"
        if any(path == place or path.startswith(below) for path in files):
            return f"process {pid} has a file in it open"
    return mounted_in(place)


def mounted_in(directory: str) -> str:
    """Return which file system is mounted at *directory* or below, in words; "" if none is."""
    wanted = os.fsencode(os.path.realpath(directory))
    for _device, _root, point in mounts():
        if point == wanted or point.startswith(wanted + b"/"):
            return f"a file system is mounted at {os.fsdecode(point)}"
    return ""
