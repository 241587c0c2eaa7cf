"""Every hub of this user on this machine: those in the registry, and those that just run."""

from __future__ import annotations

import _queue
import _thread
import time

from foundation import procfs
from foundation.errors import HubError
from foundation.process import ALIVE, GONE
from foundation.record import Record
from foundation.workspace import Workspace
from hub import registry, whereabouts
from hub.census import census
from hub.status import HubStatus, status_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.census import Member
    from hub.registry import Entry

ANSWER_WITHIN_S = 1.0
DEGRADED = 5
_ANSWERS = ("running", "starting", "degraded", "failed", "stopping")


class Listed(HubStatus):
    """One hub among all."""

    pid: int
    """The supervisor's."""
    registered: bool
    """It stands in this registry; one that runs with another home or XDG_STATE_HOME does not."""


class Listing(Record):
    """What runs on this machine."""

    hubs: tuple[Listed, ...]
    """By root."""
    notes: tuple[str, ...] = ()
    """What in the registry could not be read, each with the way out."""

    @property
    def exit_code(self) -> int:
        """0: all are healthy, or none runs; 5: one is not."""
        return 0 if all(hub.state == "running" for hub in self.hubs) else DEGRADED


def everywhere(below: str | None = None) -> Listing:
    """List all hubs; with *below* only those of workspaces at that directory or below.

    Every hub is asked at its own socket, all at once, so that one that hangs delays nobody. An
    entry whose hub is provably gone is removed; one that cannot be judged is kept and shown.

    Raises:
        Unavailable: more processes than this one may hold descriptors.
    """
    entries, notes = _registered()
    with census() as found:
        entries = [e for e in entries if is_below(e.root, below) and not _is_pruned(e)]
        named = {entry.identity: entry for entry in entries}
        hubs = {
            hub.identity: hub
            for hub in found.hubs()
            if is_below(hub.root, below) or hub.identity in named
        }
        places = {identity: whereabouts.find(hub) for identity, hub in hubs.items()}
        asked = {entry.root for entry in named.values()}
        asked |= {hub.root for hub in hubs.values() if places[hub.identity].kind != "gone"}
        answers = _ask(asked)
        listed = [
            _running(
                hub,
                places[identity],
                answers.get(hub.root),
                registered=identity in named or _is_registered(hub),
            )
            for identity, hub in hubs.items()
        ]
        for identity, entry in named.items():
            told = None if identity in hubs else _only_named(entry, answers[entry.root])
            # One in a container has another identity there, and another pid.
            if told is not None and all(told.root != other.root for other in listed):
                listed.append(told)
    return Listing(hubs=tuple(sorted(listed, key=lambda hub: hub.root)), notes=tuple(notes))


def _registered() -> tuple[list[Entry], list[str]]:
    """Return the registry's entries, and what to say of what is none."""
    try:
        entries, unreadable = registry.entries()
    except HubError as error:
        return [], [str(error)]
    return entries, [f"{bad.path}: {bad.reason}: `{bad.way_out}`" for bad in unreadable]


def is_below(root: str, directory: str | None) -> bool:
    """Tell whether *root* is at *directory* or below it; None: anywhere."""
    return directory is None or f"{root}/".startswith(f"{directory.rstrip('/')}/")


def _ask(roots: set[str]) -> dict[str, HubStatus]:
    """Return what answers in each of *roots*, ``unknown`` where nothing does in time."""
    answers: dict[str, HubStatus] = {}
    said = _queue.SimpleQueue[HubStatus]()
    for root in roots:
        _thread.start_new_thread(lambda root: said.put(_status_of(root)), (root,))
    deadline_s = time.monotonic() + 2 * ANSWER_WITHIN_S
    while len(answers) < len(roots):
        try:
            answer = said.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except _queue.Empty:  # one does not even accept; its thread ends with us
            break
        answers[answer.root] = answer
    return {root: answers.get(root) or _unknown(root, "it does not answer") for root in roots}


def _status_of(root: str) -> HubStatus:
    try:
        return status_of(Workspace(root), within_s=ANSWER_WITHIN_S)
    except HubError as error:
        return _unknown(root, str(error))
    except Exception as error:  # noqa: BLE001 - of a hub of another version; no listing ends by it
        return _unknown(root, f"its answer is not understood: {error!r}")


def _unknown(root: str, reason: str) -> HubStatus:
    return HubStatus(state="unknown", root=root, reason=reason)


def _running(
    hub: Member, place: whereabouts.Whereabouts, answer: HubStatus | None, *, registered: bool
) -> Listed:
    """Return what to show of a process that is a hub."""
    if place.kind in whereabouts.LEFT:
        answer = _unknown(hub.root, f"{place.reason}; `hub reap` ends it")
    elif answer is None or answer.state == "stopped":
        answer = _unknown(hub.root, place.reason or "it holds its lock and does not listen")
    elif answer.info is not None and hub.near and answer.info.pid != hub.pid:
        answer = _unknown(hub.root, f"another hub, pid {answer.info.pid}, answers in its place")
    return _listed(answer, hub.pid, registered=registered)


def _only_named(entry: Entry, answer: HubStatus) -> Listed | None:
    """Return what to show of an entry whose hub is not among the processes seen, None if dead."""
    if answer.state in _ANSWERS:
        pid = entry.identity.pid if answer.info is None else answer.info.pid
        return _listed(answer, pid, registered=True)
    if _is_strangers(entry):
        _prune(entry)
        return None
    if answer.state == "stopped":
        answer = _unknown(entry.root, _why_not_judged(entry))
    return _listed(answer, entry.identity.pid, registered=True)


def _is_pruned(entry: Entry) -> bool:
    """Remove *entry* if its process is gone; return whether it is."""
    if entry.identity.state() != GONE:
        return False
    _prune(entry)
    return True


def _prune(entry: Entry) -> None:
    try:
        registry.withdraw(entry)
    except OSError:
        pass  # a home that cannot be written: another time


def _is_strangers(entry: Entry) -> bool:
    """Tell whether the process of *entry*, which is none of the hubs found, is no hub for sure.

    It lives, can be looked at, and holds no lock of a hub.
    """
    alive = entry.identity.state() == ALIVE
    return alive and procfs.environment(entry.identity.pid) is not None


def _is_registered(hub: Member) -> bool:
    """Tell whether *hub* stands in the registry by now: it may have just become ready.

    One in a container knows itself by another pid.
    """
    try:
        entry = registry.read(registry.path_of(hub.root))
    except (OSError, ValueError, HubError):
        return False
    return entry.identity == hub.identity or not hub.near


def _why_not_judged(entry: Entry) -> str:
    if entry.identity.state() == ALIVE:
        return f"pid {entry.identity.pid} may not be looked at"
    remove = registry.removal_of(registry.path_of(entry.root))
    return f"it runs in another pid namespace (a container?); if that is gone: `{remove}`"


def _listed(status: HubStatus, pid: int, *, registered: bool) -> Listed:
    fields = {name: getattr(status, name) for name in HubStatus.field_names()}
    return Listed(**fields, pid=pid, registered=registered)
