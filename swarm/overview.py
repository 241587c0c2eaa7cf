"""All slots of a workspace at a glance: who works, on what, how far behind; what needs a person.

A live slot's leaf is asked, all of them at once; a dead one is judged as `hub gc` would.
"""

from __future__ import annotations

import os
import time

from foundation import codec
from foundation.control import Connection, LineBuffer, encode
from foundation.errors import Corrupt, HubError, Refused
from foundation.record import Record
from hub import output
from hub.render import Shown, printable
from slotgc import base, pruning
from slotgc.leaf import DEAD, LIVE, UNBORN, look_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from foundation.workspace import Workspace
    from hub.repository import Repository
    from slotgc.leaf import Leaf

ANSWER_WITHIN_S = 2.0
"""How long all leaves together may take; who takes longer is shown as not answering."""
UNKNOWN = -1

_SHORT = 10


class SlotView(Record):
    """One slot. What is not known is "" or -1."""

    name: str
    state: str
    """The leaf's phase (``ready``, ``hub-away``, …) if it answers, else how it was judged:
    ``live``, ``dead``, ``unknown``, ``junk``, ``unborn``."""
    reason: str
    """Why it was judged so, and of a dead slot what becomes of it."""
    pid: int = 0
    task: str = ""
    checkin: str = ""
    behind: int = UNKNOWN
    """How many check-ins trunk's tip is ahead of its worktree."""
    commits: int = UNKNOWN
    """How many it has landed since it was joined."""
    has_work: bool = False
    """It is dead, and holds what is saved nowhere else."""

    @property
    def is_served(self) -> bool:
        """Whether a leaf lives there, whatever it says."""
        return self.commits != UNKNOWN or self.state == LIVE


def look(workspace: Workspace, repository: Repository | None) -> list[SlotView]:
    """Return every slot of *workspace*, by name; how far behind, if there is a *repository*.

    Raises:
        HubError: the slots cannot be listed.
    """
    try:
        leaves = look_all(workspace)
    except OSError as error:
        raise HubError(f"{workspace.swarm} cannot be read: {error}", reason="swarm") from None
    live = [leaf.name for leaf in leaves if leaf.state == LIVE]
    answers = ask_all(
        {name: f"{workspace.swarm}/{name}/leaf.sock" for name in live},
        {"verb": "status", "changes": False},
    )
    dead = any(leaf.state in (DEAD, UNBORN) for leaf in leaves)
    verdicts = {one.name: one for one in pruning.plan(workspace.root)} if dead else {}
    views = []
    for leaf in leaves:
        answer = answers.get(leaf.name)
        if answer is None:
            views.append(_judged(workspace, leaf, verdicts.get(leaf.name)))
        else:
            views.append(_told(leaf, answer))
    return views if repository is None else _placed(repository, views)


def _told(leaf: Leaf, answer: Mapping[str, Any]) -> SlotView:
    return SlotView(
        name=leaf.name,
        state=str(answer.get("phase", LIVE)),
        reason=leaf.reason,
        pid=leaf.pid,
        task=str(answer.get("task", "")),
        checkin=str(answer.get("checkin", "")),
        commits=int(answer.get("commits", UNKNOWN)),
    )


def _judged(workspace: Workspace, leaf: Leaf, verdict: pruning.Verdict | None) -> SlotView:
    reason = f"{leaf.reason}; it does not answer" if leaf.state == LIVE else leaf.reason
    view = SlotView(name=leaf.name, state=leaf.state, reason=reason, pid=leaf.pid)
    if verdict is None or leaf.state == LIVE:
        return view
    try:
        known = base.read(f"{workspace.swarm}/{leaf.name}/{base.NAME}")
    except Corrupt:
        known = None
    return view.replace(
        reason=verdict.reason,
        checkin="" if known is None else known.checkin,
        has_work=verdict.action == pruning.RESCUE,
    )


def _placed(repository: Repository, views: list[SlotView]) -> list[SlotView]:
    """Say of each slot how far behind the tip it is; -1 where its check-in is not on the line."""
    behind: dict[str, int] = {}
    for view in views:
        if not view.checkin or view.checkin in behind:
            continue
        try:
            newer = repository.line(after=view.checkin)
        except Refused:
            behind[view.checkin] = UNKNOWN
            continue
        behind[view.checkin] = len(newer)
        behind.update((row.hash, number) for number, row in enumerate(reversed(newer)))
    return [view.replace(behind=behind.get(view.checkin, UNKNOWN)) for view in views]


def ask_all(
    sockets: Mapping[str, str], request: dict[str, Any], within_s: float = ANSWER_WITHIN_S
) -> dict[str, dict[str, Any]]:
    """Return what each of *sockets*, by name, answers to *request*; none of who is too slow."""
    from select import POLLIN, poll  # noqa: PLC0415

    waiting = poll()
    asked: dict[int, tuple[str, Connection, LineBuffer]] = {}
    answers: dict[str, dict[str, Any]] = {}
    try:
        for name, path in sockets.items():
            connection = _asked(path, request)
            if connection is not None:
                asked[connection.fileno()] = (name, connection, LineBuffer())
                waiting.register(connection.fileno(), POLLIN)
        deadline_s = time.monotonic() + within_s
        pending = len(asked)
        while pending and (left_s := deadline_s - time.monotonic()) > 0:
            for fd, _event in waiting.poll(left_s * 1000):
                name, _connection, lines = asked[fd]
                answer = _answer(fd, lines)
                if answer is not None:
                    waiting.unregister(fd)
                    pending -= 1
                    if answer:
                        answers[name] = answer
    finally:
        for _name, connection, _lines in asked.values():
            connection.__exit__()
    return answers


def _asked(path: str, request: dict[str, Any]) -> Connection | None:
    """Connect and ask; None if nobody of ours is there."""
    try:
        connection = Connection.open(path)
        if connection is None:
            return None
        if connection.peer_uid() == os.geteuid():
            os.write(connection.fileno(), encode(request))
            return connection
        connection.__exit__()
    except OSError:
        pass
    return None


def _answer(fd: int, lines: LineBuffer) -> dict[str, Any] | None:
    """Return the data of an answer, {} if there will be none, None if it is not whole yet."""
    try:
        chunk = os.read(fd, 65536)
        for line in lines.feed(chunk):
            message = codec.loads_object(line)
            if "data" in message or "error" in message:
                data = message.get("data")
                return data if isinstance(data, dict) else {}
    except (OSError, ValueError):
        return {}
    return None if chunk else {}


def show_all(workspace: Workspace, *, as_json: bool) -> int:
    """Print all slots of *workspace*; return the exit code.

    Raises:
        HubError: they cannot be listed.
    """
    from swarm.history import open_repository  # noqa: PLC0415 - loads sqlite3

    if os.path.exists(workspace.repository):
        with open_repository(workspace.repository) as repository:
            views = look(workspace, repository)
    else:
        views = look(workspace, None)
    if as_json:
        slots = [view.as_dict() for view in views]
        output.print_data("swarm.status", {"root": workspace.root, "slots": slots})
        return 0
    if not views:
        output.say(f"no slots in {printable(workspace.root)}", program="bones")
    return output.show(Shown(stdout="".join(f"{line}\n" for line in lines(views))))


def lines(views: Iterable[SlotView]) -> Iterator[str]:
    """Yield a line for each slot, for people."""
    for view in views:
        at = f"at {view.checkin[:_SHORT]}" if view.checkin else ""
        distance = {UNKNOWN: "", 0: "the tip"}.get(view.behind, f"{view.behind} behind")
        landed = f"{view.commits} landed" if view.commits > 0 else ""
        why = "" if view.commits != UNKNOWN else view.reason
        place = " ".join(word for word in (at, f"({distance})" if distance else "") if word)
        fields = (f"{view.name:16}", f"{view.state:8}", place, landed, view.task, why)
        yield printable("  ".join(field for field in fields if field.strip()).rstrip())
