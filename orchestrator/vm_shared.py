"""What the verbs ``bones vm …`` share: whom they mean, doing it to all, telling how it went."""

from __future__ import annotations

import os
import time

from foundation.errors import HubError, NotRunning, Unavailable, Usage
from foundation.workspace import Workspace
from hub import output
from hub.render import printable
from hub.verbs import root_or_default
from orchestrator import control, holding, protocol, targets
from orchestrator.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeVar

    from orchestrator.protocol import Status
    from orchestrator.wire import Wire

    Outcome = TypeVar("Outcome")

PROGRAM = "bones"
UNREAD = 141
"""The exit code where nobody reads our output any more: 128 and SIGPIPE, as a shell has it."""
_AT_ONCE = 32


def store_of(root: str | None, *, make: bool = False) -> Store:
    """Return the store of the workspace around *root*, the current directory by default.

    Raises:
        Refused: there is no workspace, or its state is another user's (``state-foreign``).
    """
    workspace = Workspace.find(root_or_default(root))
    _refuse_foreign(workspace)
    if make:
        workspace.make_state()
        workspace.hide_from_git()
    return Store.of_workspace(workspace)


def _refuse_foreign(workspace: Workspace) -> None:
    """Refuse another user's state: his holders answer nobody else, and nothing could be ended.

    Raises:
        Refused: it is another's (``state-foreign``).
    """
    try:
        is_own = os.stat(workspace.state).st_uid == os.geteuid()
    except OSError:
        return  # there is none, or whoever wants it will say
    if not is_own:
        from slotgc.hold import refuse_foreign  # noqa: PLC0415 - most have their own

        refuse_foreign(workspace)


def say(words: str) -> None:
    """Tell the person *words*."""
    output.say(printable(words), program=PROGRAM)


def status_of(store: Store, name: str) -> Status:
    """Return the state of VM *name*.

    Raises:
        Refused: there is none (``no-such-vm``).
        Unavailable: its holder does not answer (``no-answer``); the message names the way out.
    """
    try:
        return control.get_status(store, name)
    except Unavailable as error:
        holder = holding.holder(store, name) if error.reason == "no-answer" else None
        if holder is None:
            raise
        raise holding.silent(name, holder) from None


def statuses_of(store: Store, names: Sequence[str]) -> dict[str, Status | HubError]:
    """Return the states of *names*, or why one's is not known, as :func:`status_of` would.

    All are asked before any is waited for, so that holders which hang take their time together.
    """
    asked: dict[str, Wire] = {}
    found: dict[str, Status | HubError] = {}
    try:
        for name in names:
            wire = control.connect(store, name)
            if wire is not None:
                asked[name] = wire
                wire.send(protocol.STATUS)
        deadline_s = time.monotonic() + protocol.ANSWER_WITHIN_S
        for name in names:
            try:
                found[name] = _answered(store, name, asked.get(name), deadline_s)
            except HubError as error:
                found[name] = error
    finally:
        for wire in asked.values():
            wire.close()
    return found


def _answered(store: Store, name: str, wire: Wire | None, deadline_s: float) -> Status:
    left_s = max(0.0, deadline_s - time.monotonic())
    try:
        if wire is not None:
            return protocol.status_from_json(wire.answer(within_s=left_s))
    except Unavailable as error:
        if error.reason not in ("gone", "no-answer"):
            raise
        if error.reason == "no-answer":
            left_s = 0.0
    if not left_s and (holder := holding.holder(store, name)) is not None:
        raise holding.silent(name, holder)
    return status_of(store, name)


def one(store: Store, name: str) -> str:
    """Return *name* if that is a VM whose holder, if it has one, answers.

    Raises:
        Usage: no VM can be called so (``bad-name``).
        Refused: it is a cluster's name (``not-one``), or there is no such VM (``no-such-vm``).
        Unavailable: as :func:`status_of`.
    """
    status_of(store, targets.one(name, store.members()))
    return name


def running(store: Store, name: str) -> str:
    """Return *name* if that is a VM that is up, or is about to be; as :func:`one`.

    Raises:
        NotRunning: it is stopped, or did not come up (``not-running``).
    """
    status = status_of(store, targets.one(name, store.members()))
    if status.state in protocol.OVER:
        why = f" ({status.error.splitlines()[0]})" if status.error else ""
        raise NotRunning(
            f"VM {name} is not running{why}: `bones vm up {name}`", reason="not-running"
        )
    return name


def meant(
    members: list[str], names: Sequence[str], *, everything: bool, verb: str
) -> tuple[list[str], dict[str, str]]:
    """Return which of *members* are meant by *names*, and by name why one is none.

    Raises:
        Usage: nobody is named, or names and everybody.
    """
    if everything and names:
        raise Usage(f"--all and {names[0]}: one or the other", reason="usage")
    if not everything and not names:
        raise Usage(f"which? `bones vm {verb} NAME…`, or --all", reason="usage")
    found, unknown = (members, []) if everything else targets.resolve(names, members)
    return list(found), dict.fromkeys(unknown, "there is no such VM")


def side_by_side(names: Sequence[str], act: Callable[[str], Outcome]) -> Iterable[Outcome]:
    """Return what *act* returns for each of *names*, in their order; it is done all at once."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    if len(names) < 2:  # noqa: PLR2004 - of one, a thread would take longer than the act
        return [act(name) for name in names]
    with ThreadPoolExecutor(min(len(names), _AT_ONCE)) as pool:
        return list(pool.map(act, names))


def for_each(
    names: Sequence[str], act: Callable[[str], str], failed: dict[str, str]
) -> dict[str, str]:
    """Do *act* for all *names* side by side; whose fails is put into *failed*."""

    def attempt(name: str) -> tuple[str, str]:
        try:
            return act(name), ""
        except (HubError, OSError) as error:
            return "", str(error)

    outcomes = dict(zip(names, side_by_side(names, attempt), strict=True))
    failed.update({name: why for name, (_done, why) in outcomes.items() if why})
    return {name: done for name, (done, why) in outcomes.items() if not why}


def tell(
    verb: str,
    done: dict[str, str],
    failed: dict[str, str],
    word: str,
    *,
    as_json: bool,
    nothing: str,
) -> int:
    """Tell what *verb* has *done* and how, or that it was *nothing*; return the exit code."""
    if as_json:
        output.print_data(verb, {word: done, "failed": failed})
    else:
        for name, how in done.items():
            output.line(f"{name} {word}" + ("" if how in (word, "agent") else f" ({how})"))
        for name, why in failed.items():
            say(f"{name}: {why}")
        if not done and not failed:
            say(nothing)
    return 1 if failed else 0
