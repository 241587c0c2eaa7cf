"""The front door of ``bones``: ``bones hub …`` is ``hub …``, as fast."""

from __future__ import annotations

import sys

from hub import entry


def main(arguments: list[str] | None = None) -> None:
    """Run ``bones`` with *arguments* (the command line by default) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["hub"]:
        entry.main(arguments[1:], program="bones hub")
        return
    entry.activate_site()
    from orchestrator.cli import main as cli_main  # noqa: PLC0415

    cli_main(arguments)
