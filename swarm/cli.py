"""The ``bones swarm`` command line."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any, NoReturn

import typer

from foundation.errors import HubError
from foundation.workspace import Workspace
from hub import output, verbs
from hub.cli import Json, Root
from hub.render import printable
from hub.wording import several
from slotgc import treepath
from slotgc.account import DONE
from slotgc.rescue import Rescue, list_rescues
from slotgc.restore import restore as restore_rescue

app = typer.Typer(
    name="swarm",
    help="Slots: who works on what.\n\nExample:  bones swarm rescue ls",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
rescue = typer.Typer(
    name="rescue",
    help="Unsaved work of dead slots, kept by `hub gc` in .bones/rescue."
    "\n\nExample:  bones swarm rescue ls",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(rescue)


def _workspace(root: str | None) -> Workspace:
    return Workspace.find(verbs.root_or_default(root))


@rescue.command("ls")
def ls(*, root: Root = None, as_json: Json = False) -> NoReturn:
    """List what was rescued, the oldest first.

    Example:  bones swarm rescue ls --json
    """
    verb = "swarm.rescue.ls"
    try:
        workspace = _workspace(root)
        rescues = list_rescues(workspace.root)
    except OSError as error:
        wrapped = HubError(f"the rescues cannot be listed: {error}", reason="rescue")
        sys.exit(output.print_error(verb, wrapped, as_json=as_json))
    except HubError as error:
        sys.exit(output.print_error(verb, error, as_json=as_json))
    if as_json:
        output.print_data(
            verb, {"root": workspace.root, "rescues": [one.as_dict() for one in rescues]}
        )
    elif rescues:
        output.line("\n".join(printable(_told(one)) for one in rescues))
    else:
        output.say(f"no rescues in {printable(workspace.root)}", program="bones")
    sys.exit(0)


def _told(one: Rescue) -> str:
    if one.state != DONE:
        return f"{one.name}  {one.state}: {one.reason}"
    counts = f"{one.changed} changed, {one.added} added, {one.deleted} deleted"
    base = f"base {one.checkin[:10]}" if one.checkin else "no base"
    return f"{one.name}  {one.made_at or '-'}  {counts}  {base}"


@rescue.command("restore")
def restore(
    name: Annotated[str, typer.Argument(help="The rescue, as `ls` names it.")],
    *,
    root: Root = None,
    as_json: Json = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Where. [default: ./NAME]")
    ] = None,
) -> NoReturn:
    """Bring rescued work back, byte for byte.

    A new directory gets the files that were changed or added. Onto a directory that is there, they
    are applied as a patch, deletions too: if a path holds something else than the rescue or its
    base, all such paths are named and nothing is touched. The rescue stays.

    Example:  bones swarm rescue restore auth-20261121T053000Z --to .
    """
    verb = "swarm.rescue.restore"
    try:
        done = restore_rescue(_workspace(root).root, name, to)
    except HubError as error:
        sys.exit(output.print_error(verb, error, as_json=as_json))
    if as_json:
        data: dict[str, Any] = done.as_dict()
        for field in ("written", "deleted"):
            data[field] = [treepath.to_json(path) for path in data[field]]
        output.print_data(verb, data)
        sys.exit(0)
    count = len(done.written)
    same = f", {done.unchanged} as rescued already" if done.unchanged else ""
    words = f"{count} {'file' if count == 1 else 'files'} restored to {printable(done.to)}{same}"
    output.say(words, program="bones")
    if done.deleted:
        named = several([treepath.show(path) for path in done.deleted])
        output.say(f"deleted: {named}", program="bones")
    for words in done.apart:
        output.say(printable(f"{words}: in {shlex.quote(done.path)}"), program="bones")
    sys.exit(0)
