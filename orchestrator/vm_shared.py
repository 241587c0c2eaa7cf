"""What the verbs ``bones vm …`` share: whom they mean, doing it to all, telling how it went."""

from __future__ import annotations

from foundation.errors import HubError, Usage
from foundation.workspace import Workspace
from hub import output
from hub.render import printable
from hub.verbs import root_or_default
from orchestrator import targets
from orchestrator.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAM = "bones"


def store_of(root: str | None, *, make: bool = False) -> Store:
    """Return the store of the workspace around *root*, the current directory by default."""
    workspace = Workspace.find(root_or_default(root))
    if make:
        workspace.make_state()
        workspace.hide_from_git()
    return Store.of_workspace(workspace)


def say(words: str) -> None:
    """Tell the person *words*."""
    output.say(printable(words), program=PROGRAM)


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


def for_each(
    names: Sequence[str], act: Callable[[str], str], failed: dict[str, str]
) -> dict[str, str]:
    """Do *act* for all *names* side by side; whose fails is put into *failed*."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    def attempt(name: str) -> tuple[str, str]:
        try:
            return act(name), ""
        except (HubError, OSError) as error:
            return "", str(error)

    if not names:
        return {}
    with ThreadPoolExecutor(min(len(names), 32)) as pool:
        outcomes = dict(zip(names, pool.map(attempt, names), strict=True))
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
