"""Ending a process, if it is provably ours.

A number is not a process: it is opened as a pidfd first, what it is is asked after that, and
every signal goes through that descriptor. So whoever has the number later is safe.
"""

from __future__ import annotations

import os

from foundation import procfs
from foundation.errors import Refused
from foundation.process import PID_MAX, Identity, has_exited, open_pidfd, send_signal, wait_exit
from foundation.record import Record
from foundation.workspace import Workspace
from slotgc.leaf import is_own_directory, read_record
from slotgc.mark import is_marked

GRACE_S = 2.0
"""How long a process may take to obey SIGTERM."""

_KILL_WAIT_S = 2.0
_TERM, _KILL, _CONT = 15, 9, 18

ABSENT = "absent"
ENDED = "ended"
KILLED = "killed"
SURVIVED = "survived"
REFUSED = "refused"


class Ending(Record):
    """What became of a process that was to be ended."""

    pid: int
    outcome: str
    """``absent`` (nobody had that pid, or a zombie), ``ended`` (by SIGTERM), ``killed`` (by
    SIGKILL), ``survived`` (even that), or ``refused``: nothing was signalled."""
    reason: str
    """Why, in words for a person."""

    @property
    def gone(self) -> bool:
        """Whether no such process is left."""
        return self.outcome in (ABSENT, ENDED, KILLED)


def kill(
    pid: int, *, workspace_dir: str | os.PathLike[str] | None = None, grace_s: float = GRACE_S
) -> bool:
    """End process *pid* if it is provably ours; return whether it is gone.

    SIGTERM, *grace_s* seconds to obey, SIGKILL. True also if no process has that pid; False, with
    nothing signalled, if nothing proves that it is ours. Ours carries our mark in its environment
    or is named by a slot's leaf.json; *workspace_dir* narrows both to one workspace. :func:`end`
    does the same, tells what happened, and says more.
    """
    return end(pid, workspace_dir=workspace_dir, grace_s=grace_s).gone


def end(
    pid: int, *, workspace_dir: str | os.PathLike[str] | None = None, grace_s: float = GRACE_S
) -> Ending:
    """End process *pid* if it is provably ours: SIGTERM, *grace_s* to obey, SIGKILL.

    Ours is a process of this user whose environment carries our mark, of *workspace_dir* if that
    is given and of any workspace if not; and one that the leaf.json of a slot names by its
    identity, in *workspace_dir* or in the workspace around the current directory. A stopped
    process is woken to obey. Refused, with nothing signalled: anybody else, another user's, this
    very process and those above it, and numbers that are no pid of a process (0, 1, negatives).

    A child of the caller is left for the caller to reap.

    Raises:
        TypeError: *pid* is not an int, or a bool.
        ValueError: *grace_s* is negative, or no number of seconds.
        OSError: out of descriptors.
    """
    if type(pid) is not int:
        raise TypeError(f"a pid is an int, not {pid!r}")
    if not 0 <= grace_s < 1e6:  # noqa: PLR2004 - a poll has no more; a NaN is refused too
        raise ValueError(f"{grace_s!r} is no number of seconds to wait")
    if not 1 < pid <= PID_MAX:
        return Ending(pid=pid, outcome=REFUSED, reason=f"{pid} is no pid of a process of ours")
    if pid == os.getpid():
        return Ending(pid=pid, outcome=REFUSED, reason=f"pid {pid} is this very process")
    if pid in procfs.ancestors_of(os.getpid()):
        return Ending(
            pid=pid,
            outcome=REFUSED,
            reason=f"pid {pid} is above this process, and would take it along: end it from outside",
        )
    pidfd = open_pidfd(pid)
    if pidfd is None:
        return Ending(pid=pid, outcome=ABSENT, reason=f"no process has pid {pid}")
    try:
        if not _is_ours(pid, pidfd, workspace_dir):
            if has_exited(pidfd):  # before it was looked at, or meanwhile: it is nobody's then
                return Ending(pid=pid, outcome=ABSENT, reason=f"pid {pid} had ended")
            return Ending(pid=pid, outcome=REFUSED, reason=f"nothing proves that pid {pid} is ours")
        return _end(pid, pidfd, grace_s)
    finally:
        os.close(pidfd)


def _end(pid: int, pidfd: int, grace_s: float) -> Ending:
    outcome, words = SURVIVED, "outlived SIGKILL (is its disk hanging?)"
    try:
        if not send_signal(pidfd, _TERM):
            outcome, words = ABSENT, "had ended"
        elif not send_signal(pidfd, _CONT) or wait_exit(pidfd, grace_s):
            outcome, words = ENDED, "ended after SIGTERM"
        elif not send_signal(pidfd, _KILL) or wait_exit(pidfd, _KILL_WAIT_S):
            outcome, words = KILLED, f"did not end within {grace_s:g} s of SIGTERM and was killed"
    except PermissionError:
        outcome, words = REFUSED, "belongs to another user"
    return Ending(pid=pid, outcome=outcome, reason=f"pid {pid} {words}")


def _is_ours(pid: int, pidfd: int, workspace_dir: str | os.PathLike[str] | None) -> bool:
    """Tell whether the process behind *pidfd* carries our mark, or a leaf record names it."""
    if workspace_dir is not None:
        workspace = Workspace(os.path.realpath(workspace_dir))
        return is_marked(pid, workspace.root) or _is_recorded(workspace, pid, pidfd)
    if is_marked(pid, None):
        return True
    try:
        return _is_recorded(Workspace.find(), pid, pidfd)
    except Refused:
        return False


def _is_recorded(workspace: Workspace, pid: int, pidfd: int) -> bool:
    """Tell whether some slot's leaf.json names the process behind *pidfd*."""
    identity = Identity.of_pidfd(pid, pidfd)
    if identity is None or identity.uid != os.geteuid():
        return False
    try:
        if not (is_own_directory(workspace.bones) and is_own_directory(workspace.swarm)):
            return False
        names = os.listdir(workspace.swarm)
    except PermissionError:
        return False
    for name in names:
        directory = f"{workspace.swarm}/{name}"
        try:
            if is_own_directory(directory) and read_record(directory) == identity:
                return True
        except OSError:
            continue  # one that cannot be read proves nothing, and hides no other
    return False
