"""The front door of ``bones swarm``: the plain forms of a slot's verbs, and the CLI library.

A plain form costs an interpreter's start, some small modules and one question to the leaf. What is
not plain, ``--help`` and every mistake included, goes to :mod:`swarm.cli`; a test holds the two to
the same behaviour.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_FLAG = object()
_SLOT: dict[str, tuple[str, object]] = {
    "--root": ("root", str),
    "--json": ("as_json", _FLAG),
    "--slot": ("slot", str),
}
_PLAIN: dict[str, dict[str, tuple[str, object]]] = {
    "join": {**_SLOT, "--task": ("task", str)},
    "commit": {**_SLOT, "-m": ("message", str), "--message": ("message", str)},
    "update": {**_SLOT, "--markers": ("markers", _FLAG)},
    "status": _SLOT,
    "cwd": _SLOT,
    "close": {
        **_SLOT,
        "--result": ("result", ("success", "fail")),
        "--no-artifact": ("no_artifact", _FLAG),
        "--summary": ("summary", str),
    },
}
_NEEDED = {"join": "slot", "commit": "message"}
_FILES = {"commit": "files"}
"""Which verbs take files, and by what name."""


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Return the verb and the options that *arguments* ask for, None if they are not so plain."""
    if not arguments or arguments[0] not in _PLAIN:
        return None
    verb = arguments[0]
    known = _PLAIN[verb]
    options: dict[str, Any] = {}
    files: list[str] = []
    rest = iter(arguments[1:])
    for argument in rest:
        if not argument.startswith("-"):
            files.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in known or (equals and not name.startswith("--")):
            return None
        field, kind = known[name]
        if field in options:
            return None  # which of the two counts is the library's business
        if kind is _FLAG:
            if equals:
                return None
            options[field] = True
            continue
        text = value if equals else next(rest, None)
        if text is None or (isinstance(kind, tuple) and text not in kind):
            return None
        options[field] = text
    if files:
        if verb not in _FILES:
            return None
        options[_FILES[verb]] = files
    return None if verb in _NEEDED and _NEEDED[verb] not in options else (verb, options)


def main(arguments: list[str]) -> None:
    """Run ``bones swarm`` with *arguments* and exit."""
    plain = parse(arguments)
    if plain is None:
        from hub.entry import activate_site  # noqa: PLC0415

        activate_site()
        from swarm.cli import main as cli_main  # noqa: PLC0415

        cli_main(arguments)
    verb, options = plain
    leave(lambda: run(verb, options))


def run(verb: str, options: dict[str, Any]) -> int:
    """Call *verb* and return its exit code."""
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
