"""What the swarm's verbs show, as text. Pure."""

from __future__ import annotations

from foundation import codec
from hub.output import VERSION, envelope, talk
from hub.render import Shown, printable
from hub.wording import several
from slotgc import treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from hub.commits import Conflict
    from swarm.slot import CheckIn, Closed, Update

PROGRAM = "bones"
SHORT = 10
"""Digits by which people are told of a hash."""


def said(*texts: str) -> str:
    """Return lines for stderr; what could steer a terminal is escaped."""
    return "".join(talk(printable(text), program=PROGRAM) for text in texts if text)


def files(count: int) -> str:
    """Return *count* files in words."""
    return "1 file" if count == 1 else f"{count} files"


def ago(seconds: float) -> str:
    """Return how long *seconds* are, as a person would say of something that happened then."""
    for size_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds // size_s:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


def _names(paths: Iterable[bytes]) -> str:
    return several([treepath.show(path) for path in paths])


def _json(value: Any) -> Any:
    """Return *value* for JSON: paths, which are bytes, as :mod:`slotgc.treepath` has them."""
    if isinstance(value, bytes):
        return treepath.to_json(value)
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if isinstance(value, dict):
        return {name: _json(one) for name, one in value.items()}
    return value


def data(verb: str, fields: Mapping[str, Any]) -> Shown:
    """Show *fields* as JSON."""
    return Shown(stdout=envelope(verb, _json(dict(fields))))


def joined(info: Mapping[str, Any], *, as_json: bool) -> Shown:
    """Show a slot that was joined: its worktree."""
    if as_json:
        return data("swarm.join", info)
    how = "joined already" if not info["joined"] else "revived" if info["revived"] else "joined"
    label = f" ({info['task']})" if info["task"] else ""
    base = f" at check-in {info['checkin'][:SHORT]}" if info["checkin"] else ""
    return Shown(
        stdout=f"{info['worktree']}\n", stderr=said(f"slot {info['slot']} {how}{base}{label}")
    )


def committed(done: CheckIn, *, as_json: bool) -> Shown:
    """Show a commit that has landed: its check-in."""
    if as_json:
        return data("swarm.commit", done.as_dict())
    words = f"merged with what others did: {_names(done.merged)}" if done.merged else ""
    if not done.new:
        words = f"trunk has all of it already: {done.checkin[:SHORT]} is its tip"
    left = several([f"{treepath.show(path)} {why}".strip() for path, why in done.left_out])
    left_out = said(f"left out: {left}") if left else ""
    return Shown(stdout=f"{done.checkin}\n", stderr=said(words) + left_out)


def updated(done: Update, *, as_json: bool) -> Shown:
    """Show what an update brought in: the check-in that the worktree is at."""
    if as_json:
        return data("swarm.update", done.as_dict())
    news = f"{files(done.files)} new" if done.files else ""
    if done.previous == done.checkin and not (done.files or done.merged or done.conflicted):
        news = "at the tip already"
    merged = f"merged with your changes: {_names(done.merged)}" if done.merged else ""
    marked = (
        f"conflict markers in {_names(done.conflicted)} (what is binary, or deleted on one side, "
        "is as it was here): choose, take them out, commit"
        if done.conflicted
        else ""
    )
    return Shown(stdout=f"{done.checkin}\n", stderr=said(news, merged, marked))


def closed(done: Closed, *, as_json: bool, elsewhere: str = "") -> Shown:
    """Show a slot that was closed, and what became of it.

    *elsewhere*: the directory to go to, if what keeps the slot's from going is who asks.
    """
    status = 1 if done.outcome == "failed" else 0
    if as_json:
        return data("swarm.close", done.as_dict()).replace(status=status)
    from shlex import quote  # noqa: PLC0415 - it loads re, and the other verbs are fast

    begun = f"slot {done.slot} closed ({done.result})"
    if done.before:
        begun = f"slot {done.slot} was closed already"
    words = {
        "removed": f"{begun} and removed{', with its git history' * done.history}",
        "rescued": f"{begun}; its {'git history' if done.history else 'unsaved work'} is kept: "
        f"`bones swarm rescue restore {quote(done.rescue)}`",
        "kept": f"{begun}; its directory stays{_why_kept(done, elsewhere)} removes it"
        f"{_unsaved(done)}",
        "failed": f"{begun}; its directory could not be removed: {done.reason}",
        "gone": f"there is no slot {done.slot} any more",
    }
    return Shown(stderr=said(words[done.outcome]), status=status)


def _why_kept(done: Closed, elsewhere: str) -> str:
    """Return why a directory stays, up to the command that sees to it."""
    from shlex import quote  # noqa: PLC0415 - as in closed

    again = f"bones swarm close --slot {quote(done.slot)}"
    if elsewhere:
        return f", since you are in it ({done.reason}): `cd {quote(elsewhere)} && {again}`"
    return f" for now: {done.reason}; once that is over, `{again}`"


def _unsaved(done: Closed) -> str:
    """Return what becomes of unsaved work whose directory stays for now."""
    if not done.changes:
        return ", and rescues what is unsaved"
    count = "1 change" if done.changes == 1 else f"{done.changes} changes"
    return f", and rescues what is unsaved ({count} that nobody committed)"


def status(now: Mapping[str, Any], *, as_json: bool) -> Shown:
    """Show STATUS of one slot, as :mod:`swarm.slot` describes it."""
    if as_json:
        return data("swarm.status", now)
    lines = [
        f"slot {now['slot']}  {now['phase']}  pid {now['pid']}"
        + (f"  {now['task']}" if now["task"] else ""),
        f"  worktree  {now['worktree']}",
        f"  check-in  {now['checkin'][:SHORT] or '-'}"
        + (f"  (last of ours {now['landed'][:SHORT]})" if now["landed"] else ""),
        f"  commits   {now['commits']}",
    ]
    if now["hub"] != "ready":
        lines.append(f"  hub       away: {now['hub']}")
    if now["pending"]:
        lines.append("  pending   a commit not known to have landed: the leaf asks until it is")
    lines += _changes(now)
    return Shown(stdout="".join(f"{printable(line)}\n" for line in lines))


def _changes(now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a slot has changed, a path a line: A added, M changed, D deleted."""
    rows = now.get("changes")
    if rows is None:
        yield f"  changes   not to be told: {now.get('trouble', '')}"
    elif not rows:
        yield "  changes   none"
    for path, kind, _hash, base_kind, _base_hash in rows or ():
        letter = "D" if not kind else "M" if base_kind else "A"
        yield f"  {letter} {treepath.show(treepath.from_json(path))}"
    if now.get("more"):
        yield f"  and {now['more']} more"


def conflicted(
    verb: str, message: str, conflicts: tuple[Conflict, ...], way_out: str, *, as_json: bool
) -> Shown:
    """Show *conflicts*: each path, whose versions there are, who holds the other; exit code 1."""
    if as_json:
        told = [
            {
                "path": treepath.to_json(one.path),
                **{name: value for name, value in one.as_dict().items() if name != "path"},
            }
            for one in conflicts
        ]
        error = {"reason": "conflict", "message": message, "exit_code": 1, "conflicts": told}
        schema = {"verb": verb, "version": VERSION}
        return Shown(stdout=codec.dumps({"schema": schema, "error": error}) + "\n", status=1)
    lines = []
    for one in conflicts:
        whose = f"slot {one.theirs_slot}" if one.theirs_slot else "trunk"
        checkin = f", check-in {one.theirs_checkin[:SHORT]}" if one.theirs_checkin else ""
        lines.append(f"{treepath.show(one.path)}: {one.reason}")
        versions = (("yours", one.mine_hash), ("theirs", one.theirs_hash), ("base", one.base_hash))
        shown = ", ".join(f"{name} {content[:SHORT] or 'deleted'}" for name, content in versions)
        lines.append(f"  {shown} ({whose}{checkin})")
    head = f"conflict: nothing was touched; others have changed the same in {files(len(conflicts))}"
    return Shown(stderr=said(head, *(f"  {line}" for line in lines), way_out), status=1)
