"""The front door of ``bones swarm``: the plain forms of a slot's verbs, and the CLI library.

A plain form costs an interpreter's start, some small modules and one question to the leaf. What is
not plain, ``--help`` and every mistake included, goes to :mod:`swarm.cli`; a test holds the two to
the same behaviour.
"""

from __future__ import annotations

import sys

from swarm.plain import FILES, FLAG, NEEDED, REST, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from swarm.plain import Form

_SLOT: Form = {"--root": ("root", str), "--json": ("as_json", FLAG), "--slot": ("slot", str)}
PLAIN: dict[str, Form] = {
    "join": {**_SLOT, "--task": ("task", str), NEEDED: ("slot",)},
    "commit": {
        **_SLOT,
        "-m": ("message", str),
        "--message": ("message", str),
        FILES: "files",
        NEEDED: ("message",),
    },
    "update": {**_SLOT, "--markers": ("markers", FLAG)},
    "status": _SLOT,
    "cwd": _SLOT,
    "diff": {**_SLOT, FILES: "files"},
    "close": {
        **_SLOT,
        "--result": ("result", ("success", "fail")),
        "--no-artifact": ("no_artifact", FLAG),
        "--summary": ("summary", str),
    },
    "run": {
        **_SLOT,
        "--task": ("task", str),
        "--commit-on-exit": ("commit_on_exit", FLAG),
        "-m": ("message", str),
        "--message": ("message", str),
        "--no-artifact": ("no_artifact", FLAG),
        "--keep": ("keep", FLAG),
        REST: "command",
        NEEDED: ("slot", "command"),
    },
}


def main(arguments: list[str]) -> None:
    """Run ``bones swarm`` with *arguments* and exit."""
    plain = parse(arguments, PLAIN)
    if plain is None:
        from hub.entry import activate_site  # noqa: PLC0415

        activate_site()
        from swarm.cli import main as cli_main  # noqa: PLC0415

        cli_main(arguments)
    verb, options = plain
    leave(lambda: run(verb, options))


def run(verb: str, options: dict[str, Any]) -> int:
    """Call *verb* and return its exit code."""
    if verb == "run":
        from swarm import running  # noqa: PLC0415

        return running.run(**options)
    if verb == "diff":
        from swarm import work_verbs  # noqa: PLC0415

        return work_verbs.diff(**options)
    from swarm import verbs  # noqa: PLC0415

    return int(getattr(verbs, verb)(**options))


def leave(call: Callable[[], int]) -> NoReturn:
    """Exit with what *call* returns, without the teardown of an interpreter."""
    import posix  # noqa: PLC0415

    try:
        status = call()
    except KeyboardInterrupt:
        status = 130
    except OSError as error:  # a full disk behind stdout; what a slot meets has other names
        sys.stderr.write(f"bones: {error.strerror}\n")
        status = 1
    posix._exit(status)  # noqa: SLF001 - os._exit
