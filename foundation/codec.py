"""JSON without the cost of importing :mod:`json` (6 ms, most of it ``re``).

``_json`` is the C accelerator that :mod:`json` itself runs on; where an interpreter lacks
it or has changed it, :mod:`json` is used, with the same results.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class DecodeError(ValueError):
    """The text is not one JSON value."""


class _Context:
    """What ``_json.make_scanner`` asks of a decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner clears it itself


def _refuse(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is not JSON")


def _with_accelerator() -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    import _json  # noqa: PLC0415

    scan = _json.make_scanner(_Context)  # type: ignore[arg-type] # the stub means the class itself
    quote = _json.encode_basestring_ascii

    def dumps(value: Any) -> str:
        if isinstance(value, str):
            return quote(value)  # the encoder takes containers and bare scalars but for this
        # A new one each time: what it fails on would stay in its memory of what it is inside of.
        encode = _json.make_encoder(None, _refuse, quote, None, ":", ",", False, False, False)
        return "".join(encode(value, 0))

    def loads(text: str) -> Any:
        start = len(text) - len(text.lstrip(" \t\r\n"))
        try:
            value, end = scan(text, start)
        except StopIteration as stop:
            raise DecodeError(f"no JSON value at offset {stop.value}") from None
        except SystemError:  # it looks for an exception class of json.decoder, not imported here
            raise DecodeError("no JSON value") from None
        if text[end:].strip(" \t\r\n"):
            raise DecodeError(f"text after the JSON value at offset {end}")
        return value

    if loads(dumps({"a": [1, None, "\n"]})) != {"a": [1, None, "\n"]}:
        raise ImportError("the accelerator does not behave as expected")
    return dumps, loads


def _with_json() -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    import json  # noqa: PLC0415

    def dumps(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    return dumps, json.loads


try:
    _dumps, _loads = _with_accelerator()
except (ImportError, AttributeError, TypeError):
    _dumps, _loads = _with_json()


def dumps(value: Any) -> str:
    """Return *value* as JSON on one line, ASCII only, without spaces.

    Raises:
        TypeError: a part of it is not JSON.
        ValueError: it contains itself, or is nested beyond reason.
    """
    try:
        return _dumps(value)
    except RecursionError:
        raise ValueError("it contains itself, or is nested too deeply") from None


def loads(text: str | bytes) -> Any:
    """Return the one JSON value that *text* (UTF-8 if bytes) holds.

    Raises:
        DecodeError: it is not JSON, or is nested beyond reason.
    """
    try:
        return _loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise DecodeError("nested too deeply") from None
    except DecodeError:
        raise
    except ValueError as error:  # UnicodeDecodeError, json.JSONDecodeError
        raise DecodeError(str(error)) from None


def loads_object(text: str | bytes) -> dict[str, Any]:
    """Return the one JSON object that *text* holds.

    Raises:
        DecodeError: it is anything else.
    """
    value = loads(text)
    if not isinstance(value, dict):
        raise DecodeError(f"an object was expected, not {type(value).__name__}")
    return value
