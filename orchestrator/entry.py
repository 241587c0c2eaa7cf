"""The front door of ``bones``: ``bones hub …`` is ``hub …``, as fast; a slot's verbs are too."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLAGS = {"--json": "as_json"}
_PLAIN = ("status",)


def main(arguments: list[str] | None = None) -> None:
    """Run ``bones`` with *arguments* (the command line by default) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["hub"]:
        from hub.entry import main as hub_main  # noqa: PLC0415

        hub_main(arguments[1:], program="bones hub")
    elif arguments[:1] == ["swarm"]:
        from swarm.entry import main as swarm_main  # noqa: PLC0415

        swarm_main(arguments[1:])
    else:
        plain = parse(arguments)
        if plain is not None:
            from swarm.entry import leave  # noqa: PLC0415

            leave(lambda: _run(*plain))
        from hub.entry import activate_site  # noqa: PLC0415

        activate_site()
        from orchestrator.cli import main as cli_main  # noqa: PLC0415

        cli_main(arguments)


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Return verb and options of a plain form of `bones status`, None for anything else."""
    if not arguments or arguments[0] not in _PLAIN or len(set(arguments)) < len(arguments):
        return None
    if not all(word in _FLAGS for word in arguments[1:]):
        return None
    return arguments[0], {_FLAGS[word]: True for word in arguments[1:]}


def _run(verb: str, options: dict[str, Any]) -> int:
    from orchestrator import verbs  # noqa: PLC0415

    return int(getattr(verbs, verb)(**options))
