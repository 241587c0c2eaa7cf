"""The front door of ``bones``: ``bones hub …`` is ``hub …``, as fast; a slot's verbs are too."""

from __future__ import annotations

import sys

from swarm.plain import COUNT, FLAG, NAMES, NEEDED, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from swarm.plain import Form

_ROOT: Form = {"--root": ("root", str), "--json": ("as_json", FLAG)}
PLAIN: dict[str, Form] = {
    "up": _ROOT,
    "status": _ROOT,
    "log": {**_ROOT, "-n": ("count", COUNT), "--lines": ("count", COUNT), "--slot": ("slot", str)},
    "diff": {**_ROOT, NAMES: ("old", "new")},
    "revert": {
        **_ROOT,
        "-m": ("message", str),
        "--message": ("message", str),
        NAMES: ("name",),
        NEEDED: ("name",),
    },
    "apply": {**_ROOT, "--branch": ("branch", str), "--dry-run": ("dry_run", FLAG)},
}
_OF_TRUNK = frozenset(("log", "diff", "revert", "apply"))
_FROM_PACKAGES = frozenset(("revert",))
"""What takes more than ours and the standard library."""


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
        plain = parse(arguments, PLAIN)
        if plain is not None:
            from swarm.entry import leave  # noqa: PLC0415

            leave(lambda: _run(*plain))
        _activate_site()
        from orchestrator.cli import main as cli_main  # noqa: PLC0415

        cli_main(arguments)


def _run(verb: str, options: dict[str, Any]) -> int:
    if verb in _FROM_PACKAGES:
        _activate_site()
    if verb in _OF_TRUNK:
        from orchestrator import trunk_verbs  # noqa: PLC0415

        return int(getattr(trunk_verbs, verb)(**options))
    from orchestrator import verbs  # noqa: PLC0415

    return int(getattr(verbs, verb)(**options))


def _activate_site() -> None:
    from hub.entry import activate_site  # noqa: PLC0415

    activate_site()
