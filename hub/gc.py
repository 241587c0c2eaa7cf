"""The verb `hub gc`, and the same as an errand of a hub that has just started."""

from __future__ import annotations

import os
import sys

from foundation.errors import HubError, to_wire
from foundation.workspace import Workspace
from slotgc.hold import refuse_foreign
from slotgc.pruning import plan, prune

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from slotgc.pruning import Pruned, Verdict

RESTORE = "bones swarm rescue restore"


def gc(*, root: str | None = None, dry_run: bool = False, as_json: bool = False) -> int:
    """Clean up after dead slots; return 0, or 1 if one could not be cleaned up."""
    from hub import output  # noqa: PLC0415 - an errand prints nothing
    from hub.bar import Bar  # noqa: PLC0415
    from hub.verbs import root_or_default  # noqa: PLC0415

    bar = Bar(sys.stderr)
    try:
        workspace = Workspace.find(root_or_default(root))
        refuse_foreign(workspace)
        if dry_run:
            verdicts = plan(workspace.root)
            if as_json:
                output.print_data(
                    "hub.gc",
                    {"root": workspace.root, "plan": [verdict.as_dict() for verdict in verdicts]},
                )
            else:
                _show_lines(_planned(verdicts), f"no slots in {workspace.root}")
            return 0
        pruned = prune(
            workspace.root, on_progress=lambda done, total: bar.show("slots", done, total)
        )
        bar.end()
    except HubError as error:
        bar.end()
        return output.print_error("hub.gc", error, as_json=as_json)
    if as_json:
        output.print_data("hub.gc", {"root": workspace.root, **pruned.as_dict()})
    else:
        stay = len(pruned.kept)
        why = f"; {stay} stay{'s' * (stay == 1)}: `hub gc --dry-run` says why" if stay else ""
        _show_lines(lines(pruned), f"nothing to clean up{why}")
    return 1 if pruned.failed else 0


def _show_lines(shown: Iterator[str], otherwise: str) -> None:
    from hub import output  # noqa: PLC0415
    from hub.render import printable  # noqa: PLC0415

    told = [printable(line) for line in shown]
    if told:
        output.line("\n".join(told))
    else:
        output.say(otherwise)


def _planned(verdicts: list[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        yield f"{verdict.action:6}  {verdict.name}: {verdict.reason}"


def lines(pruned: Pruned) -> Iterator[str]:
    """Yield what was done, a line each; of what stays only that which should not have."""
    import shlex  # noqa: PLC0415 - an errand prints nothing

    for name in pruned.removed:
        yield f"removed  {name}"
    for name, rescue in pruned.rescued.items():
        yield f"rescued  {name}: `{RESTORE} {shlex.quote(rescue)}` brings it back"
    for name, reason in pruned.failed.items():
        yield f"failed   {name}: {reason}"


def main() -> None:
    """Be the errand: argv holds the root. Only clean slots go; work stays where it is."""
    from hub.errand import report  # noqa: PLC0415

    try:
        pruned = prune(sys.argv[1], clean_only=True)
        report(removed=pruned.removed, failed=pruned.failed)
    except HubError as error:
        report(fail=to_wire(error))
        os._exit(1)
    except BrokenPipeError:  # the hub is gone, and nobody is left to tell
        os._exit(1)
