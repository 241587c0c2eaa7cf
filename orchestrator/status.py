"""`bones status`: hub, trunk, slots, VMs, and what needs a person, on one screen."""

from __future__ import annotations

import os
import shlex
from datetime import UTC, datetime

from foundation.errors import HubError, Refused
from foundation.record import Record
from foundation.workspace import Workspace
from hub.project import ProjectFile
from hub.render import Shown, printable
from hub.render import status as hub_status
from hub.status import HubStatus, status_of
from slotgc.leaf import DEAD, UNBORN
from slotgc.rescue import list_rescues
from swarm import overview
from swarm.applied import never_applied
from swarm.history import SHORT, open_repository, title
from swarm.overview import SlotView
from swarm.render import ago, data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from hub.repository import CheckinRow
    from orchestrator.clusters import ClusterView

VERB = "bones.status"
SLOTS_SHOWN = 20
VMS_SHOWN = 20


class Status(Record):
    """A workspace at a glance."""

    hub: HubStatus
    tip: CheckinRow | None
    """None: there is no trunk yet, or it cannot be read (``trouble``)."""
    age_s: float
    """Seconds since the tip landed."""
    forks: int
    slots: tuple[SlotView, ...]
    rescues: tuple[str, ...]
    """By name."""
    unapplied: int
    """Check-ins that were never applied to git; -1: not known."""
    trouble: str = ""
    """Why some of this could not be seen."""
    project: str = ""
    """Why bones.toml keeps every commit from landing."""
    clusters: tuple[ClusterView, ...] = ()
    """Of VMs."""
    half_removed: tuple[str, ...] = ()
    """VMs whose removal was killed, or goes on."""

    def needs(self) -> Iterator[str]:
        """Yield what needs a person, a line each, with the command that sees to it."""
        if self.hub.state in ("failed", "unknown"):
            yield f"hub: {self.hub.reason}"
        elif self.hub.state == "stopped" and any(one.is_served for one in self.slots):
            yield "slots wait for a hub: `bones up` starts it, `bones down` ends them"
        if self.trouble:
            yield self.trouble
        if self.project:
            yield self.project
        if self.forks:
            yield f"trunk has {self.forks} forks: `fossil update trunk`, `fossil merge`, commit"
        for slot in self.slots:
            if slot.has_work:
                name = shlex.quote(slot.name)
                yield (
                    f"slot {slot.name}: {slot.reason}; `bones swarm join --slot {name}` goes on "
                    "with it, `bones swarm reap` rescues it"
                )
            elif slot.state in ("live", "unknown", "junk", "lost"):
                yield f"slot {slot.name}: {slot.reason}"
        for cluster in self.clusters:
            yield from filter(None, (member.need() for member in cluster.members))
        for name in self.half_removed:
            yield f"VM {name} is half removed: `bones vm rm {name}` finishes that"
        if self.rescues:
            words = (
                "a rescue waits" if len(self.rescues) == 1 else f"{len(self.rescues)} rescues wait"
            )
            yield f"{words} to be restored or deleted: `bones swarm rescue ls` says how"


def look(root: str | None = None) -> Status:
    """Return what there is to say of the workspace around *root*. Changes nothing.

    Raises:
        Refused: there is no workspace.
        HubError: its slots cannot be listed.
    """
    workspace = Workspace.find(root)
    tip, forks, unapplied, trouble = None, 0, overview.UNKNOWN, ""
    slots: list[SlotView] = []
    try:
        if os.path.exists(workspace.repository):
            with open_repository(workspace.repository) as repository:
                tip, forks = repository.tip(), repository.forks()
                unapplied = len(never_applied(workspace, repository))
                slots = overview.look(workspace, repository)
        else:
            slots = overview.look(workspace, None)
    except HubError as error:
        trouble = str(error)
    vms, half_removed = _vms(workspace)
    return Status(
        hub=status_of(workspace),
        tip=tip,
        age_s=0.0 if tip is None else _age_s(tip.time),
        forks=forks,
        slots=tuple(slots),
        rescues=tuple(one.name for one in list_rescues(workspace.root)),
        unapplied=unapplied,
        trouble=trouble,
        project=_refusal(workspace),
        clusters=vms,
        half_removed=half_removed,
    )


def _vms(workspace: Workspace) -> tuple[tuple[ClusterView, ...], tuple[str, ...]]:
    if not os.path.isdir(f"{workspace.state}/vms"):
        return (), ()
    from orchestrator import clusters  # noqa: PLC0415 - most have no VMs

    return clusters.look(workspace)


def _refusal(workspace: Workspace) -> str:
    try:
        ProjectFile(workspace.root).read()
    except Refused as error:
        return str(error)
    return ""


def _age_s(time: str) -> float:
    try:
        moment = datetime.fromisoformat(time.removesuffix("Z")).replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return (datetime.now(UTC) - moment).total_seconds()


def render(now: Status, *, as_json: bool) -> Shown:
    """Show *now*; the exit code is that of `hub status`."""
    needs = list(now.needs())
    if as_json:
        shown = data(VERB, {**now.as_dict(), "needs": needs})
        return shown.replace(status=now.hub.exit_code)
    return Shown(
        stdout="".join(f"{printable(line)}\n" for line in _lines(now, needs)),
        status=now.hub.exit_code,
    )


def _lines(now: Status, needs: list[str]) -> Iterator[str]:
    yield from hub_status(now.hub, as_json=False).stdout.splitlines()[:1]
    if now.hub.state == "stopped":
        yield "          `bones up` starts it"
    if now.hub.info is not None:
        yield f"          fossil {now.hub.info.fossil_url}  nats {now.hub.info.nats_url}"
    if now.tip is not None:
        tip = now.tip
        yield f"tip       {tip.hash[:SHORT]}  {ago(now.age_s)}  {tip.user}: {title(tip)}"
    if now.unapplied > 0:
        words = "1 check-in" if now.unapplied == 1 else f"{now.unapplied} check-ins"
        yield f"git       {words} not applied yet: `bones apply`"
    over = sum(slot.state in (DEAD, UNBORN) for slot in now.slots)
    yield f"slots     {len(now.slots) - over} live, {over} dead" if now.slots else "slots     none"
    for line in list(overview.lines(now.slots))[:SLOTS_SHOWN]:
        yield f"  {line}"
    if len(now.slots) > SLOTS_SHOWN:
        yield f"  and {len(now.slots) - SLOTS_SHOWN} more: `bones swarm status`"
    if now.clusters:
        yield from _of_vms(now.clusters)
    if needs:
        yield "needs you"
    for line in needs:
        yield f"  {line}"


def _of_vms(views: tuple[ClusterView, ...]) -> Iterator[str]:
    from orchestrator import clusters  # noqa: PLC0415 - most have no VMs

    yield f"vms       {clusters.summary(views)}"
    lines = list(clusters.lines(views))
    for line in lines[:VMS_SHOWN]:
        yield f"  {line}"
    if len(lines) > VMS_SHOWN:
        yield f"  and {len(lines) - VMS_SHOWN} more: `bones vm ls`"
