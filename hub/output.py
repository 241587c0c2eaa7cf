"""What verbs print: data on stdout, talk on stderr, one JSON envelope on request."""

from __future__ import annotations

import errno
import os
import sys

from foundation import codec
from foundation.errors import HubError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, ParamSpec, Self

    from hub.render import Shown

    Options = ParamSpec("Options")

VERSION = "v1"
INTERRUPTED = 130


def verb(
    name: str, *, interrupted: str = ""
) -> Callable[[Callable[Options, int]], Callable[Options, int]]:
    """Make a function the verb *name*: its HubErrors are printed, and its exit code is theirs.

    As JSON where its option ``as_json`` is set. Interrupted it says so, with the words
    *interrupted* if there are any, and returns 130.
    """

    def made(act: Callable[Options, int]) -> Callable[Options, int]:
        def acted(*args: Options.args, **options: Options.kwargs) -> int:
            try:
                return act(*args, **options)
            except HubError as error:
                return print_error(name, error, as_json=bool(options.get("as_json")))
            except KeyboardInterrupt:
                return end_interrupted(interrupted, program=_program(name))

        # As functools.wraps does, which takes longer to import than a fast verb has.
        acted.__name__, acted.__doc__ = act.__name__, act.__doc__
        acted.__wrapped__ = act  # type: ignore[attr-defined]
        return acted

    return made


def envelope(verb: str, data: Any) -> str:
    """Return the line that every verb's ``--json`` prints for *data*."""
    return codec.dumps({"schema": {"verb": verb, "version": VERSION}, "data": data}) + "\n"


def error_envelope(verb: str, error: HubError) -> str:
    """Return the line that every verb's ``--json`` prints for *error*."""
    told = {"reason": error.reason, "message": str(error), "exit_code": error.exit_code}
    return codec.dumps({"schema": {"verb": verb, "version": VERSION}, "error": told}) + "\n"


def talk(text: str, *, program: str = "hub") -> str:
    """Return the lines for stderr with which *program* says *text* to the person."""
    return f"{program}: {text}\n"


def show(shown: Shown) -> int:
    """Print *shown*; return its exit code."""
    _write(sys.stdout, shown.stdout)
    _write(sys.stderr, shown.stderr)
    return shown.status


def print_data(verb: str, data: Any) -> None:
    """Print *data* as JSON."""
    _write(sys.stdout, envelope(verb, data))


def print_error(verb: str, error: HubError, *, as_json: bool) -> int:
    """Print *error* in words, or as JSON on stdout; return its exit code."""
    if as_json:
        _write(sys.stdout, error_envelope(verb, error))
    else:
        from hub.render import printable  # noqa: PLC0415 - of a failure alone

        # Some words come from others: a guest, a file's name, a program that failed.
        said = "\n".join(map(printable, str(error).split("\n")))
        say(said, program=_program(verb))
    return error.exit_code


def end_interrupted(words: str, *, program: str) -> int:
    """Say that the verb was interrupted and, in *words*, what now; return its exit code."""
    if words:
        say(f"interrupted: {words}", program=program)
    return INTERRUPTED


def _program(verb: str) -> str:
    return "hub" if verb.startswith("hub.") else "bones"


def line(text: str) -> None:
    """Print a line of data."""
    _write(sys.stdout, f"{text}\n")


def lines(told: Iterable[str], otherwise: str, *, program: str) -> None:
    """Print *told*, a line of data each; if there are none, say *otherwise*."""
    text = "\n".join(told)
    if text:
        line(text)
    else:
        say(otherwise, program=program)


def say(text: str, *, program: str = "hub") -> None:
    """Tell the person something that is not data."""
    _write(sys.stderr, talk(text, program=program))


class Progress:
    """Shows progress until the block is left; the bar is imported only if there is any."""

    def __init__(self, program: str) -> None:
        """Show nothing yet; *program* says what is not a bar."""
        self._program = program
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.end()

    def __call__(self, progress: dict[str, Any]) -> None:
        """Show one: a warning, a note, or how far a phase is."""
        for kind, before in (("warning", "warning: "), ("note", "")):
            if kind in progress:
                self.end()
                say(f"{before}{progress[kind]}", program=self._program)
                return
        if self._bar is None:
            from hub.bar import Bar  # noqa: PLC0415

            self._bar = Bar(sys.stderr)
        done, total = progress.get("done", 0), progress.get("total", 0)
        self._bar.show(str(progress.get("phase", "")), int(done), int(total))

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.end()
            self._bar = None


def _write(stream: Any, text: str) -> None:
    """Write *text*; names that are not UTF-8 are shown escaped, never an error.

    A stream that is closed, or that nobody reads, takes nothing: what the verb did counts.
    """
    if not text or stream is None:
        return
    try:
        stream.flush()
        stream.buffer.write(text.encode("utf-8", "backslashreplace"))
        stream.buffer.flush()
    except (BrokenPipeError, ValueError):
        _discard(stream)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        _discard(stream)


def _discard(stream: Any) -> None:
    """Send what comes after to nowhere; the interpreter flushes once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except (OSError, ValueError):
        pass
    finally:
        os.close(null)
