"""`bones down`: end what runs in a workspace, lose nothing, prove that nothing is left.

Leaves and what they started first, and holders with their VMs; then the dead slots are cleaned up
(unsaved work is rescued), then the hub ends. Whoever survives is named. The trunk, the events, the
rescues and the disks of VMs stay.
"""

from __future__ import annotations

import os
import stat

from foundation import procfs
from foundation.errors import HubError, Refused
from foundation.failpoint import hit
from foundation.process import has_exited, terminate_all
from foundation.record import Record
from foundation.workspace import Workspace
from hub.census import Census, Member, census
from hub.status import status_of
from hub.stop import stop
from hub.wording import several
from orchestrator import holders
from slotgc import ending, pruning
from slotgc.hold import is_busy, refuse_foreign
from slotgc.leaf import JUNK, LIVE, UNBORN, UNKNOWN, look_all
from slotgc.mark import sees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from slotgc.leaf import Leaf

HUB_WITHIN_S = 10.0
"""How long the hub may take to drain before it is ended by force."""
GRACE_S = 5.0
"""How long leaves and what they started may take to end, all together."""
_BY_LEAF = "started by the leaf of slot"
_ANSWER_WITHIN_S = 1.0
_PASSES = 3
"""What a process forked while it was being ended is found by looking again."""


class Process(Record):
    """A process of the workspace."""

    pid: int
    what: str
    """In words: ``leaf of slot alpha``, ``fossil``, ``sleep, started for this workspace``."""

    @property
    def is_aide(self) -> bool:
        """Whether it is the git that a leaf asks: the leaf's own, for people."""
        return self.what.startswith(f"git, {_BY_LEAF}")


class SlotFate(Record):
    """What becomes of a slot."""

    name: str
    action: str
    """``remove``, ``rescue``, ``keep``, or ``end``: remove or rescue it once its leaf has ended."""
    reason: str


class Plan(Record):
    """What a down would do."""

    root: str
    processes: tuple[Process, ...]
    """To be ended one by one; a hub ends its own."""
    slots: tuple[SlotFate, ...]
    hub: int
    """The pid of the hub that would be stopped, 0 if none runs or it is to be kept."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.processes or self.hub or any(slot.action != "keep" for slot in self.slots))


class Down(Record):
    """What a down did."""

    root: str
    ended: tuple[Process, ...]
    removed: tuple[str, ...]
    rescued: dict[str, str]
    """By slot, the name of its rescue."""
    kept: dict[str, str]
    """By slot, why it is still there."""
    failed: dict[str, str]
    """By slot, why it could not be cleaned up."""
    hub: int
    """The pid of the hub that was stopped, 0 if none was."""
    survivors: tuple[Process, ...]
    doubtful: tuple[str, ...]
    """The slots that are there and whose leaf may live although nothing proves it, or is being
    made."""
    trouble: str = ""
    """Why the hub could not be stopped."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing of this workspace is left running and every slot was seen to."""
        return not (self.survivors or self.failed or self.doubtful or self.trouble)


def plan(workspace: Workspace, *, keep_hub: bool = False) -> Plan:
    """Return what :func:`down` would do now. Changes nothing.

    Raises:
        Refused: the state is not this user's, or this process is below a leaf (``inside-slot``).
        HubError: the slots cannot be listed.
    """
    refuse_foreign(workspace)
    live = {leaf.name for leaf in look_all(workspace) if leaf.state == LIVE}
    slots = tuple(
        SlotFate(name=verdict.name, action="end", reason="once its leaf has ended")
        if verdict.name in live
        else SlotFate(name=verdict.name, action=verdict.action, reason=verdict.reason)
        for verdict in pruning.plan(workspace.root)
    )
    return Plan(
        root=workspace.root,
        processes=tuple(_processes(workspace)),
        slots=slots,
        hub=0 if keep_hub else _hub_pid(workspace),
    )


def down(
    root: str | None = None,
    *,
    keep_hub: bool = False,
    timeout_s: float = HUB_WITHIN_S,
    on_phase: Callable[[str], None] = lambda _words: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Down:
    """End what runs in the workspace around *root*, clean up its slots, prove that it is done.

    Nothing to do is no error. With *keep_hub* the hub goes on. *on_phase* is told what begins,
    *on_progress* how many slots of how many are cleaned up.

    Raises:
        Refused: there is no workspace, its state is not this user's, or this process is below
            a leaf that would take it along (``inside-slot``).
        Unavailable: more processes than this one may hold descriptors of.
        HubError: the slots cannot be listed.
    """
    workspace = Workspace.find(root)
    refuse_foreign(workspace)
    processes = _processes(workspace)
    hub = 0 if keep_hub else _hub_pid(workspace)
    ended = []
    if holders.find(workspace):
        on_phase("stopping VMs")
        # First, and gently: what a guest has in memory is to be on its disk.
        ended += [_holder(one) for one in holders.end(workspace)]
        hit("down.holders-ended")
    on_phase(f"ending {len(processes)} processes beside the hub, within {GRACE_S:g} s")
    ended += _end_processes(workspace)
    hit("down.processes-ended")
    on_phase("cleaning up the slots")
    pruned = pruning.prune(workspace.root, on_progress=on_progress)
    hit("down.slots-pruned")
    stopped, trouble = 0, ""
    if not keep_hub:
        on_phase(f"stopping the hub; one that hangs is ended after {timeout_s:g} s")
        try:
            done = stop(workspace.root, force=True, timeout_s=timeout_s)
            stopped = hub if done.was_running else 0
        except HubError as error:
            trouble = str(error)
        ended += _end_processes(workspace)  # what the end of the hub left without one
    hit("down.hub-stopped")
    with census(workspace.root) as found:
        left = [m for m in found.members if _is_ours(m, found) is not False]
        left = [member for member in left if not has_exited(member.pidfd)]
        if keep_hub:
            left = [m for m in left if m.role != "hub" and found.hub_above(m) is None]
        survivors = [_process(member, {}) for member in left]
    leaves = look_all(workspace)
    known = {process.pid for process in survivors}
    survivors += [_leaf(leaf) for leaf in leaves if leaf.state == LIVE and leaf.pid not in known]
    return Down(
        root=workspace.root,
        ended=tuple(ended),
        removed=tuple(pruned.removed),
        rescued=dict(pruned.rescued),
        kept=dict(pruned.kept),
        failed=dict(pruned.failed),
        hub=stopped,
        survivors=tuple(survivors),
        doubtful=tuple(leaf.name for leaf in leaves if _is_doubtful(workspace, leaf)),
        trouble=trouble,
    )


def _processes(workspace: Workspace) -> list[Process]:
    """Return what is to be ended one by one.

    Raises:
        Refused: this very process is below one of them (``inside-slot``).
    """
    leaves = {leaf.name: leaf for leaf in look_all(workspace) if leaf.state == LIVE}
    held = holders.find(workspace)
    pids = {holder.pid for holder in held}
    with census(workspace.root) as found:
        beside = [m for m in _beside_the_hub(found) if _is_ours(m, found)]
        # A holder's VMs and gateway end with it.
        processes = [
            _process(member, leaves)
            for member in beside
            if pids.isdisjoint((member.pid, *procfs.ancestors_of(member.pid)))
        ]
    processes += [_holder(holder) for holder in held]
    known = {process.pid for process in processes}
    processes += [_leaf(leaf) for leaf in leaves.values() if leaf.pid not in known]
    _refuse_inside(processes)
    return processes


def _refuse_inside(processes: list[Process]) -> None:
    above = set(procfs.ancestors_of(os.getpid()))
    for process in processes:
        if process.pid in above:
            raise Refused(
                f"this command runs below the {process.what} (pid {process.pid}), which it would "
                "end and so itself: run it from a shell outside of the slots",
                reason="inside-slot",
            )


def _end_processes(workspace: Workspace) -> list[Process]:
    """End the leaves and whatever else serves *workspace* with no hub above it."""
    ended: dict[int, Process] = {}
    for _pass in range(_PASSES):
        leaves = {leaf.name: leaf for leaf in look_all(workspace) if leaf.state == LIVE}
        with census(workspace.root) as found:
            members = [m for m in _beside_the_hub(found) if _is_ours(m, found)]
            terminate_all([member.pidfd for member in members], grace_s=GRACE_S)
            for member in members:
                if has_exited(member.pidfd):
                    ended[member.pid] = _process(member, leaves)
        known = {member.pid for member in members}
        unmarked = [leaf for leaf in leaves.values() if leaf.pid not in known]
        for leaf in unmarked:  # proved by its record alone
            if ending.end(leaf.pid, workspace_dir=workspace.root, grace_s=GRACE_S).gone:
                ended[leaf.pid] = _leaf(leaf)
        if not members and not unmarked:
            break
    return list(ended.values())


def _beside_the_hub(found: Census) -> list[Member]:
    """Return what a hub does not end itself."""
    return [m for m in found.members if m.role != "hub" and found.hub_above(m) is None]


def _is_ours(member: Member, found: Census) -> bool | None:
    """Tell whether *member* is to end with this workspace; None: nothing proves it.

    To a process in a container the same path may be another workspace. And who reads what this
    process says, as in `bones down | tee log`, belongs to who asked.
    """
    if member.role == "other" and _hears_us(member.pid):
        return False
    near = {one.pid for one in found.members if one.near}
    if member.pid in near or not near.isdisjoint(procfs.ancestors_of(member.pid)):
        return True
    return sees(member.pid, member.root)


def _hears_us(pid: int) -> bool:
    """Tell whether *pid* reads a pipe that is our output. Source: proc_pid_fd(5)."""
    said = {_link(f"/proc/self/fd/{number}") for number in (1, 2)}
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False  # it has ended
    for descriptor in descriptors:
        link = _link(f"/proc/{pid}/fd/{descriptor}")
        if link.startswith("pipe:") and link in said and _is_readable(pid, descriptor):
            return True
    return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _is_readable(pid: int, descriptor: str) -> bool:
    """Tell whether it was opened for reading, which the mode of the link says."""
    try:
        return bool(os.lstat(f"/proc/{pid}/fd/{descriptor}").st_mode & stat.S_IRUSR)
    except OSError:
        return False


def _is_doubtful(workspace: Workspace, leaf: Leaf) -> bool:
    """Tell whether somebody may be at the slot of *leaf*: its leaf, or who is making it."""
    if leaf.state in (JUNK, UNBORN):
        return is_busy(workspace, leaf.name)
    return leaf.state == UNKNOWN


def _hub_pid(workspace: Workspace) -> int:
    if not os.path.isdir(workspace.state):
        return 0
    now = status_of(workspace, within_s=_ANSWER_WITHIN_S)
    if now.info is not None:
        return now.info.pid
    with census(workspace.root) as found:
        return next((member.pid for member in found.hubs()), 0)


def _process(member: Member, leaves: dict[str, Leaf]) -> Process:
    slot = next((leaf.name for leaf in leaves.values() if leaf.pid == member.pid), "")
    if slot:
        what = f"leaf of slot {slot}"
    elif member.role == "other":
        where = "" if member.near else " in a container"
        above = next((leaf.name for leaf in leaves.values() if leaf.pid == member.parent), "")
        what = f"{member.name}, " + (
            f"{_BY_LEAF} {above}" if above else f"started{where} for this workspace"
        )
    else:
        what = member.role
    return Process(pid=member.pid, what=what)


def _holder(holder: holders.Holder) -> Process:
    return Process(pid=holder.pid, what=f"holder of VMs {several(holder.members)}")


def _leaf(leaf: Leaf) -> Process:
    return Process(pid=leaf.pid, what=f"leaf of slot {leaf.name}")
