"""The verbs on what dead slots left: rescue ls, rescue restore. Call, print, exit code."""

from __future__ import annotations

import shlex

from foundation.errors import HubError
from hub import output
from hub.render import printable
from hub.wording import several
from slotgc import treepath
from slotgc.account import DONE
from slotgc.rescue import list_rescues
from slotgc.restore import restore as restore_rescue
from swarm import render
from swarm.which import workspace_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slotgc.rescue import Rescue


@output.verb("swarm.rescue.ls")
def ls(*, root: str | None = None, as_json: bool = False) -> int:
    """List what was rescued, the oldest first."""
    workspace = workspace_of(root)
    try:
        rescues = list_rescues(workspace.root)
    except OSError as error:
        raise HubError(f"the rescues cannot be listed: {error}", reason="rescue") from None
    if as_json:
        told = [one.as_dict() for one in rescues]
        output.print_data("swarm.rescue.ls", {"root": workspace.root, "rescues": told})
    else:
        none = f"no rescues in {printable(workspace.root)}"
        output.lines((printable(_told(one)) for one in rescues), none, program=render.PROGRAM)
        if rescues:
            place = shlex.quote(workspace.rescue)
            words = f"`bones swarm rescue restore NAME` brings one back, `rm -rf {place}/NAME` "
            output.say(printable(f"{words}deletes it"), program=render.PROGRAM)
    return 0


def _told(one: Rescue) -> str:
    if one.state != DONE:
        return f"{one.name}  {one.state}: {one.reason}"
    numbers = {"changed": one.changed, "added": one.added, "deleted": one.deleted}
    counts = ", ".join(f"{number} {what}" for what, number in numbers.items())
    base = f"base {one.checkin[:10]}" if one.checkin else "no base"
    counted = ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
    reason = f"  {one.reason}" if one.reason != counted else ""
    return f"{one.name}  {one.made_at or '-'}  {counts}  {base}{reason}"


@output.verb("swarm.rescue.restore")
def restore(
    name: str, *, root: str | None = None, to: str | None = None, as_json: bool = False
) -> int:
    """Bring the rescue *name* back, to *to* (./NAME by default)."""
    done = restore_rescue(workspace_of(root).root, name, to)
    if as_json:
        data: dict[str, Any] = done.as_dict()
        for field in ("written", "deleted"):
            data[field] = [treepath.to_json(path) for path in data[field]]
        output.print_data("swarm.rescue.restore", data)
        return 0
    count = len(done.written)
    same = f", {done.unchanged} as rescued already" if done.unchanged else ""
    words = f"{count} {'file' if count == 1 else 'files'} restored to {printable(done.to)}{same}"
    output.say(words, program=render.PROGRAM)
    if done.deleted:
        named = several([treepath.show(path) for path in done.deleted])
        output.say(f"deleted: {named}", program=render.PROGRAM)
    for words in done.apart:
        output.say(printable(f"{words}: in {shlex.quote(done.path)}"), program=render.PROGRAM)
    words = f"the rescue stays until it is deleted: `rm -rf {shlex.quote(done.path)}`"
    output.say(printable(words), program=render.PROGRAM)
    return 0
