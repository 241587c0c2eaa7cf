"""Which processes of this user serve a workspace, and as what (:mod:`hub.roles`)."""

from __future__ import annotations

import errno
import os

from foundation import procfs
from foundation.errors import Unavailable
from foundation.process import Identity, has_exited, open_pidfd
from foundation.record import Record
from foundation.workspace import STATE, Workspace
from hub.roles import DELETED, SERVERS, role_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from hub.roles import Role


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
        role = role_of(pid, hubs=hubs)
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
