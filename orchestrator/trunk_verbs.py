"""The verbs on trunk: log, diff, revert, apply, events. Call, print, exit code."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from shlex import quote

from foundation.workspace import Workspace
from hub import output
from hub import verbs as hub_verbs
from hub.render import printable
from hub.verbs import root_or_default
from hub.wording import several
from slotgc import treepath
from swarm import history, render
from swarm.history import SHORT, open_repository, title
from swarm.showing import print_diff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hub.repository import CheckinRow
    from swarm.apply import Applied

_UNCOMMITTED = "uncommitted changes of tracked files"
"""How :mod:`hub.seed` calls them."""


@output.verb("bones.log")
def log(
    *,
    root: str | None = None,
    count: int | None = 20,
    slot: str = "",
    as_json: bool = False,
) -> int:
    """Print the last *count* check-ins of trunk, the newest first; None: all."""
    workspace = Workspace.find(root_or_default(root))
    with open_repository(workspace.repository) as repository:
        rows = itertools.islice(history.log(repository, slot=slot), count)
        if as_json:
            told = [_row(row) for row in rows]
            output.print_data("bones.log", {"root": workspace.root, "checkins": told})
            return 0
        row = None
        for row in rows:
            output.line(printable(_line(row)))
        if row is None:
            output.say(printable(f"no check-ins of slot {slot}"), program=render.PROGRAM)
    return 0


def _row(row: CheckinRow) -> dict[str, str]:
    return {
        "hash": row.hash,
        "parent": row.parent,
        "time": row.time,
        "slot": row.user,
        "message": row.comment,
    }


def _line(row: CheckinRow) -> str:
    return f"{row.hash[:SHORT]}  {_local(row.time)}  {row.user:12}  {title(row)}"


def _local(time: str) -> str:
    moment = datetime.fromisoformat(time.removesuffix("Z")).replace(tzinfo=UTC)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


@output.verb("bones.diff")
def diff(
    old: str | None = None,
    new: str | None = None,
    *,
    root: str | None = None,
    as_json: bool = False,
) -> int:
    """Print what check-in *old* (the tip by default) changed, or what is between it and *new*."""
    workspace = Workspace.find(root_or_default(root))
    with open_repository(workspace.repository) as repository:
        last = history.find(repository, new or old or "tip")
        if new is None or old is None:
            first, found = last.parent, repository.changes(last.hash)
        else:
            first = history.find(repository, old).hash
            found = repository.difference(first, last.hash)
        shown = history.diff(repository, found)
        head = {"root": workspace.root, "from": first, "to": last.hash}
        count = print_diff("bones.diff", head, shown, as_json=as_json)
    if not count and not as_json:
        output.say("no differences", program=render.PROGRAM)
    return 0


@output.verb("bones.revert", interrupted="it may land all the same: `bones log`")
def revert(name: str, *, message: str = "", root: str | None = None, as_json: bool = False) -> int:
    """Undo check-in *name* by a new one, and print that."""
    from swarm.reverting import RevertRefused  # noqa: PLC0415 - it loads the bus
    from swarm.reverting import revert as undo  # noqa: PLC0415

    try:
        done = undo(Workspace.find(root_or_default(root)), name, message)
    except RevertRefused as error:
        if not as_json:
            raise
        shown = render.conflicted("bones.revert", str(error), error.conflicts, "", as_json=True)
        return output.show(shown)
    if as_json:
        return output.show(render.data("bones.revert", done.as_dict()))
    output.line(done.checkin)
    if not done.new:
        output.say("trunk has nothing of it any more: nothing was landed", program=render.PROGRAM)
    return 0


@output.verb("bones.apply", interrupted="`bones apply` again goes on")
def apply(
    branch: str = "", *, root: str | None = None, dry_run: bool = False, as_json: bool = False
) -> int:
    """Put the check-ins of trunk that *branch* of git has not yet on it."""
    from swarm.apply import apply as bring_back  # noqa: PLC0415

    with output.Progress(render.PROGRAM) as progress:
        done = bring_back(
            root_or_default(root),
            branch,
            dry_run=dry_run,
            on_progress=lambda phase, at, total: progress(
                {"phase": phase, "done": at, "total": total}
            ),
        )
    if as_json:
        output.print_data("bones.apply", done.as_dict())
        return 0
    if dry_run:
        for one in done.added:
            text = one.comment.strip().partition("\n")[0]
            output.line(printable(f"{one.checkin[:SHORT]}  {one.user:12}  {text}"))
    elif done.tip:
        output.line(printable(f"{done.branch} {done.tip}"))
    _tell_applied(done)
    return 0


def _tell_applied(done: Applied) -> None:
    count = "1 check-in" if len(done.added) == 1 else f"{len(done.added)} check-ins"
    told = [f"left out {treepath.show(one.path)}: {one.reason}" for one in done.left_out]
    name = quote(done.branch)
    if not done.added:
        told.append(f"nothing to apply: {done.branch} has all of trunk")
    elif done.dry_run:
        told.append(f"{count} would be applied to {done.branch}")
    elif done.in_the_way:
        shown = several([treepath.show(path) for path in done.in_the_way])
        told.append(
            f"{count} applied to {done.branch}, which changes what is uncommitted in your work "
            f"tree ({shown}): commit that or `git stash` it (untracked: `git stash -u`), then "
            f"`git merge {name}` brings the branch in"
        )
        told += [
            f"what was uncommitted when trunk began is on it, as check-in {one.checkin[:SHORT]}"
            for one in done.added[:1]
            if not done.former and one.comment == _UNCOMMITTED
        ]
    else:
        told.append(f"{count} applied to {done.branch}: `git merge {name}` brings it in")
    for words in told:
        output.say(printable(words), program=render.PROGRAM)


@output.verb("bones.events")
def events(
    *, root: str | None = None, after: int = 0, follow: bool = False, as_json: bool = False
) -> int:
    """Print what happened, as `hub events` does."""
    act = hub_verbs.events if as_json else hub_verbs.print_events
    return act(root=root, after=after, follow=follow, as_json=as_json)
