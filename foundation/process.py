"""Who a process is, whether it lives, and how to end it without hitting a stranger.

A pid alone names whoever has it now. An :class:`Identity` names one process for ever, and
every signal goes through a pidfd that was opened first and compared with it afterwards, so
what is signalled is what was verified.
"""

from __future__ import annotations

import errno
import os
import select
import time

from foundation import procfs
from foundation.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

PID_MAX = 4194304
"""The largest pid Linux gives out. Source: proc_sys_kernel(5), pid_max."""

GONE = "gone"
ALIVE = "alive"
UNKNOWN = "unknown"


class Identity(Record):
    """One process, for ever.

    ``inode`` is that of its pidfd, unique per process since Linux 6.9, 0 where it is not;
    ``start`` its start time in clock ticks since boot (10 ms, so not unique by itself).
    A record of another boot is of a dead process; one of another pid namespace cannot be
    judged from here.
    """

    pid: int
    inode: int
    start: int
    boot: str
    namespace: int
    uid: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of the process that has *pid* now, None if there is none."""
        fd = open_pidfd(pid)
        if fd is None:
            return None
        try:
            return cls.of_pidfd(pid, fd)
        finally:
            os.close(fd)

    @classmethod
    def own(cls) -> Self | None:
        """Return the identity of this process, None if /proc does not show it.

        Found once: it changes with the user alone, and a forked child is another.
        """
        key = ("identity", cls, os.getpid(), os.geteuid())
        if key not in _own:
            identity = cls.of(os.getpid())
            if identity is None:
                return None
            _own[key] = identity
        found: Self = _own[key]
        return found

    @classmethod
    def of_pidfd(cls, pid: int, pidfd: int) -> Self | None:
        """Return the identity of the process behind *pidfd*, None once it has exited."""
        start = procfs.start_ticks(pid)
        uid = procfs.owner_of(pid)
        if start is None or uid is None or has_exited(pidfd):
            return None
        return cls(
            pid=pid,
            inode=_unique_inode(pidfd),
            start=start,
            boot=boot_id(),
            namespace=pid_namespace(),
            uid=uid,
        )

    @classmethod
    def from_json(cls, value: object, *, init: bool = False) -> Self | None:
        """Return the identity that *value* (decoded JSON) holds, None if it is not one.

        Pid 1 is refused unless *init*: no record may name it to be signalled, but in a container
        it is who serves.
        """
        if not isinstance(value, dict) or value.keys() != set(cls.field_names()):
            return None
        for name in ("pid", "inode", "start", "namespace", "uid"):
            if type(value[name]) is not int or value[name] < 0:
                return None
        if not isinstance(value["boot"], str) or not ((0 if init else 1) < value["pid"] <= PID_MAX):
            return None
        return cls(**value)

    def open(self) -> int | None:
        """Return a pidfd of this very process, None if it is gone or cannot be judged."""
        return self.look()[1]

    def state(self) -> str:
        """Return ``gone``, ``alive`` or ``unknown`` (and unknown counts as alive)."""
        state, pidfd = self.look()
        if pidfd is not None:
            os.close(pidfd)
        return state

    def look(self) -> tuple[str, int | None]:
        """Return its state and, of one that is alive, a pidfd that the caller closes.

        Gone is only what is proved: of another boot, an unused pid, an exited process (a zombie
        is one), or another's. What keeps us from looking is no proof.

        Raises:
            OSError: out of descriptors.
        """
        if self.boot != boot_id():
            return GONE, None
        if self.namespace != pid_namespace():
            return UNKNOWN, None
        pidfd = open_pidfd(self.pid)
        if pidfd is None:
            return GONE, None
        state = UNKNOWN
        try:
            state = self.state_behind(pidfd)
        finally:
            if state != ALIVE:
                os.close(pidfd)
        return state, pidfd if state == ALIVE else None

    def state_behind(self, pidfd: int) -> str:
        """Return its state, given *pidfd*, which was opened here and now for its pid.

        By the inode where that is unique: the start time reads otherwise in another time
        namespace.
        """
        if has_exited(pidfd):
            return GONE
        if self.inode:
            return ALIVE if os.fstat(pidfd).st_ino == self.inode else GONE
        start = procfs.start_ticks(self.pid)
        if start is None:
            return GONE if has_exited(pidfd) else UNKNOWN
        return ALIVE if start == self.start else GONE


_own: dict[object, Any] = {}
os.register_at_fork(after_in_child=_own.clear)  # it may be in another pid namespace


def boot_id() -> str:
    """Return the id of this boot. Source: random(4), /proc/sys/kernel/random/boot_id."""
    if "boot" not in _own:
        # As bytes: a codec is a module, which cannot be loaded without a descriptor to spare.
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            _own["boot"] = "".join(map(chr, file.read().strip()))
    return str(_own["boot"])


def pid_namespace() -> int:
    """Return the inode of the pid namespace that our pids are of."""
    if "namespace" not in _own:
        _own["namespace"] = os.stat("/proc/self/ns/pid").st_ino
    return int(_own["namespace"])


def _unique_inode(pidfd: int) -> int:
    """Return the pidfd's inode, or 0 on kernels where all pidfds share one (before 6.9)."""
    inode = os.fstat(pidfd).st_ino
    if "unique" not in _own:
        other = open_pidfd(1 if os.getpid() != 1 else 2)
        if other is None:  # alone in the namespace: nobody to compare with, and nobody to mix up
            return inode
        mine = os.pidfd_open(os.getpid())
        _own["unique"] = os.fstat(other).st_ino != os.fstat(mine).st_ino
        os.close(other)
        os.close(mine)
    return inode if _own["unique"] else 0


def open_pidfd(pid: int) -> int | None:
    """Return a pidfd of whoever has *pid* now, None if nobody has (or it is no pid at all)."""
    if not 0 < pid <= PID_MAX:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        # EINVAL, since Linux 6.16 ENOENT: the number is of a thread, not of a process.
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise


def has_exited(pidfd: int) -> bool:
    """Tell whether the process has exited; a zombie has, although ``kill(pid, 0)`` succeeds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def wait_exit(pidfd: int, timeout_s: float) -> bool:
    """Wait until the process has exited; return False if it has not after *timeout_s*."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(0.0, left) * 1000):
            return True
        if left <= 0:
            return False


def send_signal(pidfd: int, number: int) -> bool:
    """Send signal *number* through *pidfd*; return False if the process is gone.

    Raises:
        PermissionError: it belongs to another user.
    """
    import _signal  # noqa: PLC0415 - the C module: `signal` would import enum

    try:
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def signal_group(leader: int, number: int) -> None:
    """Signal the process group of *leader*, a child of ours that has not been reaped.

    Until it is reaped nobody else can have its number, so this cannot hit a stranger.
    """
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        pass


def children_of(parent: int) -> dict[int, int]:
    """Return the pid and an open pidfd of every living child of *parent*."""
    children = {}
    for pid in procfs.pids():
        pidfd = open_pidfd(pid) if procfs.parent_of(pid) == parent else None
        if pidfd is None:
            continue
        # Looked at again, now that the descriptor holds on to this very process.
        if has_exited(pidfd) or procfs.parent_of(pid) != parent:
            os.close(pidfd)
        else:
            children[pid] = pidfd
    return children


def holds_open(pid: int, path: str) -> bool:
    """Tell whether *pid* has the file *path* open, also if its name was removed meanwhile."""
    return not procfs.open_files(pid).isdisjoint((path, f"{path} (deleted)"))


def terminate(pidfd: int, *, grace_s: float, kill_wait_s: float = 2.0) -> bool:
    """End the process: SIGTERM, up to *grace_s* to comply, SIGKILL; return whether it is gone."""
    for number, patience_s in ((15, grace_s), (9, kill_wait_s)):
        if not send_signal(pidfd, number) or wait_exit(pidfd, patience_s):
            return True
    return False


def terminate_all(pidfds: list[int], *, grace_s: float, kill_wait_s: float = 2.0) -> None:
    """End the processes side by side: SIGTERM, *grace_s* for all together, SIGKILL.

    A stopped one is woken to obey. Who belongs to another user by now is left alone; whether
    all are gone is for the caller to ask.
    """
    for numbers, patience_s in (((15, 18), grace_s), ((9,), kill_wait_s)):
        for number in numbers:
            for pidfd in pidfds:
                try:
                    if not has_exited(pidfd):
                        send_signal(pidfd, number)
                except PermissionError:
                    continue  # it changed its user since it was looked at
        deadline_s = time.monotonic() + patience_s
        for pidfd in pidfds:
            wait_exit(pidfd, max(0.0, deadline_s - time.monotonic()))
