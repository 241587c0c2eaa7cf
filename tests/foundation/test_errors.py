"""Errors cross a socket and arrive as what they were."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import codec, errors
from foundation.errors import HubError, ToolFailed, from_wire, to_wire

KINDS = [
    HubError,
    errors.Refused,
    errors.Usage,
    errors.Unavailable,
    errors.NotRunning,
    errors.OwnedByAnother,
    errors.LeaseLost,
    errors.Corrupt,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(KINDS), st.text(st.characters(exclude_categories=())), st.text())
def test_an_error_arrives_as_what_it_was(kind: type[HubError], message: str, reason: str) -> None:
    arrived = from_wire(codec.loads(codec.dumps(to_wire(kind(message, reason=reason)))))
    assert type(arrived) is kind
    assert (str(arrived), arrived.reason) == (message, reason)
    assert arrived.exit_code == kind.exit_code


def test_every_class_of_error_arrives_as_itself_or_as_its_nearest_base() -> None:
    wire = to_wire(ToolFailed(["git", "status"], -9, "words\n", reason="git"))
    assert wire == {
        "kind": "HubError",
        "reason": "git",
        "message": "git was killed by signal 9: words",
    }
    subclasses = {cls for cls in vars(errors).values() if isinstance(cls, type)}
    assert subclasses == {*KINDS, ToolFailed}, "a class was added: does it cross the wire?"


@given(JSON)
def test_whatever_arrives_becomes_an_error(wire: Any) -> None:
    assert isinstance(from_wire(wire), HubError)


@pytest.mark.parametrize(
    "wire", [None, [], {}, {"kind": "SystemExit"}, {"kind": ["x"], "message": 3, "reason": None}]
)
def test_an_unknown_kind_becomes_the_root(wire: object) -> None:
    assert type(from_wire(wire)) is HubError


def test_exit_codes_are_as_documented() -> None:
    assert [kind.exit_code for kind in KINDS] == [1, 1, 2, 75, 3, 100, 100, 1]
