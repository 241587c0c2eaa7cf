"""The front door of ``hub``: three ways in, from the fastest to the one that knows everything.

1. :mod:`hub.fast`: a running hub shows itself.
2. The plain forms of start, stop, status and url, without the cost of a CLI library.
3. :mod:`hub.cli`.

What is not one of the plain forms, ``--help`` and every mistake included, goes to
:mod:`hub.cli`, which knows them all; a test holds the two to the same behaviour.
"""

from __future__ import annotations

import posix
import sys

from hub.fast import answered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLAG = object()
_HIGHEST_PORT = 65535
_ROOT: dict[str, tuple[str, object]] = {"--root": ("root", str), "--json": ("as_json", _FLAG)}
_PLAIN: dict[str, dict[str, tuple[str, object]]] = {
    "start": {
        **_ROOT,
        "--detach": ("detach", _FLAG),
        "-d": ("detach", _FLAG),
        "--fossil-port": ("fossil_port", int),
        "--nats-port": ("nats_port", int),
    },
    "stop": {**_ROOT, "--force": ("force", _FLAG)},
    "status": {**_ROOT, "--all": ("everywhere", _FLAG)},
    "url": _ROOT,
}


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Return the verb and the options that *arguments* ask for, None if they are not so plain."""
    if not arguments or arguments[0] not in _PLAIN:
        return None
    known = _PLAIN[arguments[0]]
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
        if text is None:
            return None
        if kind is int:
            if not (text.isascii() and text.isdigit() and 0 < int(text) <= _HIGHEST_PORT):
                return None
            options[field] = int(text)
        else:
            options[field] = text
    return arguments[0], options


def main(arguments: list[str] | None = None, *, program: str = "hub") -> None:
    """Run ``hub``, called *program*, with *arguments* (the command line by default) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = answered(arguments)
        if status is None:
            status = _run(arguments, program)
    except KeyboardInterrupt:
        status = 130
    except OSError as error:  # a full disk behind stdout; what the hub meets has other names
        sys.stderr.write(f"hub: {error.strerror}\n")
        status = 1
    posix._exit(status)  # noqa: SLF001 - os._exit; skips 0.6 ms of teardown that nothing needs


def _run(arguments: list[str], program: str) -> int:
    plain = parse(arguments)
    if plain is None:
        slow_main(arguments, program)
        return 0
    from hub import verbs  # noqa: PLC0415

    verb, options = plain
    if verb == "start":  # nothing but ours is loaded, and nobody else's threads run
        options["lean"] = "site" not in sys.modules
    return int(getattr(verbs, verb)(**options))


def slow_main(arguments: list[str], program: str) -> None:
    """Run ``hub`` by way of the CLI library."""
    activate_site()
    from hub.cli import main as cli_main  # noqa: PLC0415

    cli_main(arguments, program=program)


def activate_site() -> None:
    """Make installed packages importable: the launcher starts Python without them."""
    if "site" not in sys.modules or sys.flags.no_site:
        import site  # noqa: PLC0415

        site.main()
