"""Command lines so plain that no library is needed to read them. Pure.

A form is a dict: an option's spelling → (field, kind), where the kind is :data:`FLAG`, ``str``,
:data:`COUNT` or a tuple of the texts that are allowed. :data:`FILES` in place of a spelling names
the field that takes all arguments that are no options; :data:`NAMES` those that take one each;
:data:`REST` the one that takes a command line: the first such argument and all that follows.
:data:`NEEDED` names the fields without which the form is not plain.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Form = dict[object, Any]

FLAG, COUNT = object(), object()
FILES, NAMES, REST, NEEDED = object(), object(), object(), object()

_MOST_DIGITS = 9


def parse(arguments: list[str], forms: dict[str, Form]) -> tuple[str, dict[str, Any]] | None:
    """Return the verb and the options that *arguments* ask for, None if they are not so plain."""
    if not arguments or arguments[0] not in forms:
        return None
    form = forms[arguments[0]]
    options: dict[str, Any] = {}
    others: list[str] = []
    rest = iter(arguments[1:])
    for argument in rest:
        if REST in form and (argument == "--" or not argument.startswith("-")):
            command = [] if argument == "--" else [argument]
            options[form[REST]] = [*command, *rest]
            break
        if not argument.startswith("-"):
            others.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in form or (equals and not name.startswith("--")):
            return None
        field, kind = form[name]
        if field in options:
            return None  # which of the two counts is the library's business
        read = _value(kind, value if equals else None, rest)
        if read is None:
            return None
        options[field] = read
    if others:
        names = form.get(NAMES, ())
        if FILES in form:
            options[form[FILES]] = others
        elif len(others) <= len(names):
            options.update(zip(names, others, strict=False))
        else:
            return None
    return (arguments[0], options) if all(map(options.get, form.get(NEEDED, ()))) else None


def _value(kind: Any, value: str | None, rest: Iterator[str]) -> Any:
    """Return what an option of *kind* is set to, None if that is not plain."""
    if kind is FLAG:
        return True if value is None else None
    text = next(rest, None) if value is None else value
    if text is None or (isinstance(kind, tuple) and text not in kind):
        return None
    if kind is COUNT:
        plain = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
        return int(text) or None if plain else None
    return text
