"""What proves that a process serves a workspace, and as what.

A role is given only for what nobody has by accident: a lock that the kernel says is held, or a
command line of ours. A process that merely carries our mark in its environment, as a shell or an
editor started inside a slot does, is ``other``: `hub reap` names it and never signals it;
`bones down` ends it if it sees the very workspace that is to end (:func:`slotgc.mark.sees`).
"""

from __future__ import annotations

import os

from foundation import procfs
from foundation.workspace import MARK, SLOTS, Workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    Role = Literal["hub", "fossil", "nats", "trunk", "nursery", "preparation", "leaf", "other"]

SERVERS = ("fossil", "nats", "trunk", "nursery", "preparation")
"""The roles that live below a hub: one without a hub above it is an orphan."""

DELETED = " (deleted)"
_PROGRAM = (b"import sys; sys.path.insert(0, sys.argv.pop(1)); from ", b" import main; main()")
_ROOT_WORD = 5
"""Where the root stands on the command line of trunk and of what the hub runs beside it."""


def role_of(pid: int, *, hubs: bool) -> dict[str, Any] | None:
    """Return the fields of a :class:`hub.census.Member` that tell its role, None if it has none."""
    environment = procfs.environment(pid) or []
    marked = _directory_in(environment, MARK)
    links = procfs.links_of(pid) if hubs else {}
    held = _hub(pid, links) or (_leaf(pid, links, marked) if marked else None)
    if held is not None:
        return held
    home = _directory_in(environment, "HOME")
    served = _server(procfs.command_line(pid) or [], marked, home)
    if served is not None:
        role, root, evidence, expected = served
        if role == "trunk" and _is_forked(pid):
            role = "nursery"
        return _fields(root, role, evidence, anchor=f"/proc/{pid}/cwd", expected=expected)
    if marked:
        return _fields(marked, "other", f"carries {MARK}")
    return None


def _is_forked(pid: int) -> bool:
    """Tell whether *pid* shows the command line of its parent: it has executed none of its own."""
    above = procfs.ancestors_of(pid)[:1]
    return bool(above) and procfs.command_line(above[0]) == procfs.command_line(pid)


def _fields(
    root: str, role: Role, evidence: str, *, anchor: str = "", expected: str = "", lock: str = ""
) -> dict[str, Any]:
    return {
        "root": root,
        "role": role,
        "evidence": evidence,
        "anchor": anchor,
        "expected": expected,
        "lock": lock,
    }


def _directory_in(environment: list[bytes], name: str) -> str:
    """Return the absolute path that variable *name* holds, "" if it holds none."""
    start = f"{name}=".encode()
    paths = (line[len(start) :] for line in environment if line.startswith(start + b"/"))
    return os.fsdecode(next(paths, b""))


def _server(words: list[bytes], marked: str, home: str) -> tuple[Role, str, str, str] | None:
    """Return role, root, evidence and working directory of what *words* run below a hub.

    The servers that a hub runs have their home in its state; one that a person runs in a slot,
    to look at the trunk, has the person's.
    """
    if marked and len(words) > 2:  # noqa: PLR2004
        own = Workspace(marked)
        if words[1] == b"server" and words[-1] == os.fsencode(own.repository) and home == own.state:
            return "fossil", marked, f"serves {own.repository}", own.state
        if (
            words[1] == b"-c"
            and words[-1] == os.fsencode(f"{own.nats}/nats.conf")
            and home == own.nats
        ):
            return "nats", marked, f"runs on {own.nats}/nats.conf", own.nats
    if len(words) <= _ROOT_WORD or words[2] != b"-c" or not words[_ROOT_WORD].startswith(b"/"):
        return None
    head, tail = _PROGRAM
    if not (words[3].startswith(head + b"hub.") and words[3].endswith(tail)):
        return None
    module = words[3][len(head) : -len(tail)].decode(errors="replace")
    root = os.fsdecode(words[_ROOT_WORD])
    if module == "hub.trunk":
        return "trunk", root, f"runs {module} for {root}", Workspace(root).state
    return "preparation", root, f"runs {module} for {root}", root


def _hub(pid: int, links: dict[str, str]) -> dict[str, Any] | None:
    """Return the hub that *pid* is: who has locked a directory and a file in it, whatever its name.

    Not by its environment: a hub that a shell in a slot of another workspace started carries
    that one's mark.
    """
    named: dict[str, list[str]] = {}
    for fd, link in links.items():
        for name in {link, link.removesuffix(DELETED)}:
            named.setdefault(name, []).append(fd)
    for fd, link in links.items():
        for directory in named.get(os.path.dirname(link), ()):
            if _is_flocked(pid, fd) and _is_flocked(pid, directory):
                return _fields(
                    os.path.dirname(links[directory].removesuffix(DELETED)),
                    "hub",
                    f"holds the lock {link}",
                    anchor=f"/proc/{pid}/fd/{directory}",
                    lock=f"/proc/{pid}/fd/{fd}",
                )
    return None


def _leaf(pid: int, links: dict[str, str], marked: str) -> dict[str, Any] | None:
    """Return the leaf that *pid* is: who holds the leaf.lock of a slot, and carries our mark."""
    for fd, link in links.items():
        path = link.removesuffix(DELETED)
        slot = os.path.dirname(path)
        if not f"{os.path.dirname(slot)}/".endswith(f"/{SLOTS}/swarm/"):
            continue
        if os.path.basename(path) == "leaf.lock" and _is_flocked(pid, fd):
            return _fields(
                marked,
                "leaf",
                f"holds the lock {link}",
                anchor=f"/proc/{pid}/fd/{fd}",
                expected=f"{Workspace(marked).swarm}/{os.path.basename(slot)}/leaf.lock",
            )
    return None


def _is_flocked(pid: int, fd: str) -> bool:
    """Tell whether that descriptor's open file holds a flock alone. Source: proc_pid_fdinfo(5)."""
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            return any(
                line.startswith("lock:") and " FLOCK " in line and " WRITE " in line
                for line in file
            )
    except OSError:
        return False
