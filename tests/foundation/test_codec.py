"""JSON without json must be JSON."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import codec
from tests.support import run_python

TEXTS = st.text(st.characters(exclude_categories=()))  # surrogates included
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**400), 10**400)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20
)


@given(VALUES)
def test_what_is_written_is_what_json_writes(value: Any) -> None:
    written = codec.dumps(value)
    assert written == json.dumps(value, separators=(",", ":"))
    assert written.isascii()
    assert "\n" not in written


@given(VALUES)
def test_what_was_written_is_read_back(value: Any) -> None:
    assert codec.loads(codec.dumps(value)) == value
    assert codec.loads(codec.dumps(value).encode()) == value


@given(st.text() | VALUES.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1)))
def test_any_text_is_read_as_json_reads_it(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(codec.DecodeError):
            codec.loads(text)
    else:
        assert codec.loads(text) == expected or "NaN" in text


@given(st.binary())
def test_any_bytes_are_a_value_or_refused(content: bytes) -> None:
    try:
        codec.loads(content)
    except codec.DecodeError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\ufeff{}",
        "{",
        "[1,]",
        '{"a":1,}',
        "{} {}",
        "nul",
        "01",
        "+1",
        "'a'",
        '"\n"',
        '"\\u12"',
        "\x00",
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(codec.DecodeError):
        codec.loads(text)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"a"', "NaN"])
def test_an_object_is_an_object(text: str) -> None:
    with pytest.raises(codec.DecodeError):
        codec.loads_object(text)
    assert codec.loads_object(b' {"a": 1}\r\n') == {"a": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_no_word_for_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        codec.dumps([value])
    with pytest.raises(ValueError, match="not JSON compliant"):
        codec.dumps(value)


@pytest.mark.parametrize("value", [object(), {"a": object()}, [{1, 2}], b"bytes", {"a": [b""]}])
def test_what_json_has_no_form_for_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        codec.dumps(value)


def test_a_value_that_failed_can_be_written_once_it_is_mended() -> None:
    inner: dict[str, Any] = {"b": object()}
    value = {"a": [inner]}
    for _turn in range(2):
        with pytest.raises(TypeError):
            codec.dumps(value)
    inner["b"] = 1
    assert codec.dumps(value) == '{"a":[{"b":1}]}'


def test_a_value_that_failed_is_not_kept() -> None:
    value = {"a": object()}
    before = sys.getrefcount(value)
    with pytest.raises(TypeError):
        codec.dumps(value)
    assert sys.getrefcount(value) == before


def test_a_value_that_contains_itself_is_refused_every_time() -> None:
    value: list[Any] = []
    value.append(value)
    for _turn in range(2):
        with pytest.raises((ValueError, RecursionError)):
            codec.dumps(value)
    assert codec.dumps([[], []]) == "[[],[]]"


def test_json_does_the_same_where_the_accelerator_is_missing() -> None:
    program = """
import sys
sys.modules["_json"] = None
from foundation import codec
assert codec.dumps({"a": [1, "\\ud800", None, 1.5]}) == '{"a":[1,"\\\\ud800",null,1.5]}'
assert codec.loads(' {"a": [1]} ') == {"a": [1]}
for wrong in ("", "{} {}", "[" * 100_000, "9" * 5000):
    try:
        codec.loads(wrong)
    except codec.DecodeError:
        continue
    raise SystemExit(f"{wrong[:10]} was read")
try:
    codec.dumps({"a": float("nan")})
except ValueError:
    print("same")
"""
    assert run_python(program).stdout == "same\n"


def test_neither_json_nor_re_is_imported() -> None:
    program = """
import sys
before = set(sys.modules)
from foundation import codec
codec.loads(codec.dumps({"a": 1}))
print({"json", "re", "enum", "typing", "dataclasses"} & (set(sys.modules) - before))
"""
    assert run_python(program).stdout == "set()\n"
