"""What was taken away comes to its end: judged, then removed or kept as a rescue."""

from __future__ import annotations

import os

from foundation.errors import HubError
from foundation.failpoint import hit
from slotgc import passage, rescue, work
from slotgc.removal import remove_tree
from slotgc.use import in_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from foundation.workspace import Workspace
    from slotgc.history import Trunk
    from slotgc.pruning import Pruned


def settle(workspace: Workspace, name: str, pruned: Pruned, trunk: Trunk, *, looked: bool) -> None:
    """Bring the directory *name* to its end, from whatever step it stands at; we have claimed it.

    *looked*: we have just seen that nobody works in it. What became of it is noted in *pruned*.
    """
    slot, _made_at = passage.parse_name(name)
    try:
        if name.startswith(passage.JUDGING):
            name = _judge(workspace, name, pruned, trunk, looked=looked)
        if name.startswith(passage.REMOVING):
            pruned.removed.append(slot)
            remove_tree(f"{workspace.rescue}/{name}")
            hit("gc.removed")
        else:
            pruned.rescued[slot] = name
            hit("gc.rescued")
            rescue.finish(workspace, name)
    except (OSError, HubError) as error:
        key = name if slot in pruned.failed else slot
        pruned.failed[key] = f"{workspace.rescue}/{name} is not finished: {error}"


def _judge(workspace: Workspace, name: str, pruned: Pruned, trunk: Trunk, *, looked: bool) -> str:
    """Judge what was taken away, where nobody who knew it by its path can write; step on.

    Returns its next name. That it is git's history is noted in *pruned*.
    """
    place = f"{workspace.rescue}/{name}"
    plain = name.removeprefix(passage.JUDGING)
    used = "" if looked else in_use(place)
    found = None if used else work.judge(workspace, place, by_content=True, trunk=trunk)
    if found is not None and found.is_history():
        pruned.histories.append(passage.parse_name(name)[0])
    has_work = found is None or found.exists()
    new = plain if has_work else passage.REMOVING + plain
    passage.step(workspace, name, new)
    hit("gc.judged-again")
    return new


def go_on(workspace: Workspace, pruned: Pruned, trunk: Trunk) -> None:
    """Finish what killed passes have left; what a living one has in hand is left to it."""
    try:
        names = left(workspace)
    except OSError as error:
        pruned.failed[workspace.rescue] = str(error)
        return
    for name in names:
        try:
            claimed = passage.claim(f"{workspace.rescue}/{name}")
        except OSError as error:
            pruned.failed[name] = str(error)
            continue
        if claimed is None:
            continue
        try:
            settle(workspace, name, pruned, trunk, looked=False)
        finally:
            os.close(claimed)


def left(workspace: Workspace) -> list[str]:
    """Return the names of what killed passes have left, and of what living ones have in hand.

    Raises:
        OSError: they cannot be listed.
    """
    if not passage.is_place(workspace):
        return []
    steps = (passage.JUDGING, passage.REMOVING)
    names = [name for name in os.listdir(workspace.rescue) if name.startswith(steps)]
    return sorted([*names, *rescue.unfinished(workspace)])
