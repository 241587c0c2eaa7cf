"""The front door of ``hub``: the verbs that must be fast, without the cost of a CLI library.

What is not one of the plain forms below, ``--help`` and every mistake included, goes to
:mod:`hub.cli`, which knows them all; a test holds the two to the same behaviour.
"""

from __future__ import annotations

import os
import sys

from hub import verbs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FLAG = object()
_ROOT: dict[str, tuple[str, object]] = {"--root": ("root", str), "--json": ("as_json", _FLAG)}
_FAST: dict[str, tuple[Callable[..., int], dict[str, tuple[str, object]]]] = {
    "start": (verbs.start, {
        **_ROOT, "--detach": ("detach", _FLAG), "-d": ("detach", _FLAG),
        "--fossil-port": ("fossil_port", int), "--nats-port": ("nats_port", int),
    }),
    "stop": (verbs.stop, {**_ROOT, "--force": ("force", _FLAG)}),
    "status": (verbs.status, _ROOT),
    "url": (verbs.url, _ROOT),
}


def parse(arguments: list[str]) -> tuple[Callable[..., int], dict[str, Any]] | None:
    """Return the fast verb and its options that *arguments* ask for, None if it is not so plain."""
    if not arguments or arguments[0] not in _FAST:
        return None
    run, known = _FAST[arguments[0]]
    options: dict[str, Any] = {}
    rest = iter(arguments[1:])
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in known:
            return None
        field, kind = known[name]
        if kind is _FLAG:
            if equals:
                return None
            options[field] = True
            continue
        text = value if equals else next(rest, None)
        if text is None or (kind is int and not (text.isascii() and text.isdigit())):
            return None
        options[field] = int(text) if kind is int else text
    return run, options


def main(arguments: list[str] | None = None) -> None:
    """Run ``hub`` with *arguments* (the command line by default) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    plain = parse(arguments)
    if plain is None:
        slow_main(arguments)
        return
    run, options = plain
    status = run(**options)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # skips 0.6 ms of interpreter teardown; nothing here needs it


def slow_main(arguments: list[str]) -> None:
    """Run ``hub`` by way of the CLI library."""
    activate_site()
    from hub.cli import main as cli_main  # noqa: PLC0415

    cli_main(arguments)


def activate_site() -> None:
    """Make installed packages importable: the launcher starts Python without them."""
    if "site" not in sys.modules or sys.flags.no_site:
        import site  # noqa: PLC0415

        site.main()
