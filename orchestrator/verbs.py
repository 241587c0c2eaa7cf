"""The verbs up, status and purge: look, ask, call, print, exit code."""

from __future__ import annotations

from hub import output
from hub.render import printable
from hub.verbs import root_or_default
from swarm.render import PROGRAM, SHORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarm.purging import Loss

_SHOWN = 20


@output.verb("bones.status")
def status(*, root: str | None = None, as_json: bool = False) -> int:
    """Show hub, trunk, slots and what needs a person."""
    from orchestrator import status as asking  # noqa: PLC0415

    now = asking.look(root_or_default(root))
    return output.show(asking.render(now, as_json=as_json))


@output.verb("bones.up", interrupted="`bones up` again goes on")
def up(*, root: str | None = None, timeout_s: float | None = None, as_json: bool = False) -> int:
    """Have a hub run here, ready to take commits."""
    from hub.start import TIMEOUT_S  # noqa: PLC0415
    from orchestrator.up import up as bring_up  # noqa: PLC0415
    from swarm.history import title  # noqa: PLC0415

    with output.Progress(PROGRAM) as progress:
        done = bring_up(
            root_or_default(root),
            timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
            progress=progress,
        )
    if as_json:
        output.print_data("bones.up", done.as_dict())
        return 0
    hub, tip = done.hub, done.tip
    how = "runs already" if hub.already_running else "is up"
    output.line(printable(f"hub {how} in {hub.root}: fossil {hub.fossil_url}, nats {hub.nats_url}"))
    output.line(printable(f"trunk is at {tip.hash[:SHORT]}, by {tip.user}: {title(tip)}"))
    return 0


@output.verb("bones.purge", interrupted="`bones purge` again removes the rest")
def purge(
    *,
    root: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
    as_json: bool = False,
) -> int:
    """Remove trunk, events, slots, rescues and VMs for good; without *yes* only after asking."""
    from foundation.workspace import Workspace  # noqa: PLC0415
    from orchestrator.purge import disks, refuse_alive, without_vms  # noqa: PLC0415
    from swarm import purging  # noqa: PLC0415
    from swarm.asking import agreed  # noqa: PLC0415

    workspace = Workspace.find(root_or_default(root))
    refuse_alive(workspace)
    loss, vms = purging.look(workspace), disks(workspace)
    if not (dry_run or yes or loss.is_empty) and not agreed(_lost(loss, vms), as_json=as_json):
        output.say("nothing was removed", program=PROGRAM)
        return 1
    done = False
    if not dry_run:
        with without_vms(workspace):
            done = purging.purge(workspace)
    if as_json:
        told = {"dry_run": dry_run, "purged": done, **loss.as_dict(), "vms": vms}
        output.print_data("bones.purge", told)
    elif loss.is_empty:
        output.say(printable(f"nothing of ours is in {loss.root}"), program=PROGRAM)
    elif dry_run:
        output.line("\n".join(map(printable, _lost(loss, vms))))
    else:
        output.say(printable(f"nothing of ours is left in {loss.root}"), program=PROGRAM)
    return 0


def _lost(loss: Loss, vms: Sequence[str]) -> Iterator[str]:
    yield f"from {loss.root} would go for good:"
    if loss.trunk:
        yield "  the trunk with its history, the events and the logs"
    yield from (f"  {words}" for words in loss.unapplied[:_SHOWN])
    if len(loss.unapplied) > _SHOWN:
        yield f"  and {len(loss.unapplied) - _SHOWN} check-ins more: `bones apply --dry-run`"
    yield from (f"  slot {words}" for words in loss.slots)
    yield from (f"  rescue {name}" for name in loss.rescues)
    yield from (f"  the disk of VM {name}" for name in vms)
    if loss.unfinished and not loss.trunk:
        yield "  what a purge that was killed has left"
