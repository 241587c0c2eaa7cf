"""Which processes of this user serve a workspace, and as what.

A role is given only for what nobody has by accident: a lock that the kernel says is held, or a
command line of ours. A process that merely carries our mark in its environment, as a shell or an
editor started inside a slot does, is ``other``: to be named, never to be signalled.
"""

from __future__ import annotations

import errno
import os

from foundation import procfs
from foundation.errors import Unavailable
from foundation.process import Identity, has_exited, open_pidfd
from foundation.record import Record
from foundation.workspace import MARK, SLOTS, STATE, Workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, Self

    Role = Literal["hub", "fossil", "nats", "trunk", "preparation", "leaf", "other"]

SERVERS = ("fossil", "nats", "trunk", "preparation")
"""The roles that live below a hub: one without a hub above it is an orphan."""

DELETED = " (deleted)"
_PROGRAM = (b"import sys; sys.path.insert(0, sys.argv.pop(1)); from ", b" import main; main()")
_ROOT_WORD = 5
"""Where the root stands on the command line of trunk and of what the hub runs beside it."""


class Member(Record):
    """A process that serves a workspace, held by a pidfd that was opened before the first look."""

    pid: int
    pidfd: int
    """The census closes it."""
    identity: Identity
    parent: int
    root: str
    """The workspace that it was started for."""
    role: Role
    evidence: str
    """What proves the role, in words."""
    anchor: str
    """A link of proc(5) to a directory or file of the workspace, which it follows wherever that
    goes: ``/proc/PID/fd/N`` or ``/proc/PID/cwd``; "" if it holds none."""
    expected: str
    """Where that stood at its start, "" if nothing proves it."""
    lock: str
    """Of a hub, such a link to its hub.lock."""
    near: bool
    """It sees the same processes and files as we do; of another one little can be judged."""
    name: str
    """The name of its program, for people."""


class Census:
    """The processes found. As a context manager it closes their descriptors."""

    def __init__(self, members: list[Member]) -> None:
        """Own the descriptors of *members*."""
        self.members = tuple(members)
        self._by_pid = {member.pid: member for member in members}

    def __enter__(self) -> Self:
        """Close at the end of the ``with``."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        for member in self.members:
            os.close(member.pidfd)

    def of(self, root: str) -> list[Member]:
        """Return the processes of the workspace *root*."""
        return [member for member in self.members if member.root == root]

    def hubs(self) -> list[Member]:
        """Return the hubs."""
        return [member for member in self.members if member.role == "hub"]

    def hub_above(self, member: Member) -> Member | None:
        """Return the hub that *member* descends from, None for an orphan (and for a leaf)."""
        for pid in procfs.ancestors_of(member.pid):
            found = self._by_pid.get(pid)
            if found is not None and found.role == "hub":
                return found
        return None


def census(root: str | None = None, *, hubs: bool = True) -> Census:
    """Look at every process of this user; with *root* only those of that workspace.

    Without *hubs* open files are not looked at, which is most of the work; hubs and leaves are
    then taken for what else they are. This process is left out, and of ``other`` those above
    it, such as the shell in which the question was asked. What another user owns, and what
    cannot be seen from this pid namespace, is not there.

    Raises:
        Unavailable: more processes than this one may hold descriptors.
    """
    try:
        try:
            found = _look_around(hubs=hubs)
        except OSError as error:
            if error.errno != errno.EMFILE or not _may_hold_more():
                raise
            found = _look_around(hubs=hubs)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise Unavailable(
            "more processes serve workspaces than this one may hold descriptors of: "
            "`ulimit -Hn` tells how many it may",
            reason="too-many-processes",
        ) from None
    if root is None:
        return Census(found)
    for member in found:
        if member.root != root:
            os.close(member.pidfd)
    return Census([member for member in found if member.root == root])


def _look_around(*, hubs: bool) -> list[Member]:
    """Return every member; what is held so far is closed if it fails."""
    found: list[Member] = []
    try:
        asking = {os.getpid(), *procfs.ancestors_of(os.getpid())}
        for pid in procfs.pids():
            if procfs.owner_of(pid) != os.geteuid() or pid == os.getpid():
                continue
            member = _look(pid, hubs=hubs)
            if member is None:
                continue
            if member.role == "other" and pid in asking:
                os.close(member.pidfd)
            else:
                found.append(member)
        return _settled(found)
    except BaseException:
        Census(found).__exit__()
        raise


def _may_hold_more() -> bool:
    """Raise this process's limit of descriptors as far as it may; return whether that helps.

    The usual one is 1024, and a hundred agents with what they run are more processes than that.
    """
    import resource  # noqa: PLC0415 - only for that many

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True


def _look(pid: int, *, hubs: bool) -> Member | None:
    """Return *pid* if it serves a workspace.

    The pidfd is opened first, and its process is still there after the last look: so every look
    was at that very process, whoever may have its number later.
    """
    pidfd = open_pidfd(pid)
    if pidfd is None:
        return None
    member = None
    try:
        role = _role(pid, hubs=hubs)
        identity = None if role is None else Identity.of_pidfd(pid, pidfd)
        parent = procfs.parent_of(pid)
        if role is None or identity is None or parent is None or identity.uid != os.geteuid():
            return None
        words = procfs.command_line(pid) or []
        member = Member(
            pid=pid,
            pidfd=pidfd,
            identity=identity,
            parent=parent,
            near=_is_near(pid),
            name=os.path.basename(os.fsdecode(words[0])) if words else "?",
            **role,
        )
        if has_exited(pidfd):
            member = None
        return member
    finally:
        if member is None:
            os.close(pidfd)


def _role(pid: int, *, hubs: bool) -> dict[str, Any] | None:
    """Return the fields of a member that tell its role, None if it serves no workspace."""
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
        return _fields(root, role, evidence, anchor=f"/proc/{pid}/cwd", expected=expected)
    if marked:
        return _fields(marked, "other", f"carries {MARK}")
    return None


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


def _settled(found: list[Member]) -> list[Member]:
    """Return *found* with the roots of the hubs; who is none is left out and closed."""
    settled = [_rooted(member, found) if member.role == "hub" else member for member in found]
    for before, after in zip(found, settled, strict=True):
        if after is None:
            os.close(before.pidfd)
    return [member for member in settled if member is not None]


def _rooted(hub: Member, members: list[Member]) -> Member | None:
    """Return *hub* with the root that its servers were started for; None if it is no hub.

    The kernel tells where its directory is now, which of a moved one is not where it belongs;
    the command lines of the servers still tell that. A server is the hub's if it works in the
    very directory that the hub has locked: one without a parent may have been given to anybody.
    A directory of another name, with no such server, is a stranger's who has locks like ours.
    """
    for member in members:
        if (
            member.parent == hub.pid
            and member.role in SERVERS
            and any(_is_same_file(member.anchor, at) for at in (hub.anchor, f"{hub.anchor}/.."))
        ):
            return hub.replace(root=member.root, expected=Workspace(member.root).state)
    try:
        directory = os.readlink(hub.anchor).removesuffix(DELETED)
    except OSError:
        return None
    return hub if os.path.basename(directory) == STATE else None


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


def _is_near(pid: int) -> bool:
    """Tell whether paths and pids mean the same to *pid*: a chroot has namespaces like ours."""
    return all(
        _is_same_file(f"/proc/{pid}/{link}", f"/proc/self/{link}")
        for link in ("ns/pid", "ns/mnt", "root")
    )


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
