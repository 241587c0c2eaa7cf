"""Records are frozen values."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.record import Record


class Point(Record):
    x: int
    y: int = 0


class Named(Point):
    name: str = "?"
    tags: tuple[str, ...] = ()


class Holder(Record):
    points: list[Point]
    by_name: dict[str, Any]


def test_fields_come_by_name_and_must_all_be_there() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    with pytest.raises(TypeError, match="needs the field 'x'"):
        Point(y=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no field 'z'"):
        Point(x=1, z=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]


def test_a_record_never_changes() -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot change"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        point.other = 2
    with pytest.raises(AttributeError):
        del point.x
    assert point.x == 1


@given(st.integers(), st.integers(), st.text())
def test_records_compare_and_hash_by_content(x: int, y: int, name: str) -> None:
    one, two = Named(x=x, y=y, name=name), Named(name=name, y=y, x=x)
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two}) == 1
    assert one != one.replace(x=x + 1)
    assert one != Point(x=x, y=y)
    assert Point(x=x, y=y) != (x, y)


def test_fields_of_the_base_come_first() -> None:
    assert Named.field_names() == ["x", "y", "name", "tags"]
    assert repr(Named(x=1)) == "Named(x=1, y=0, name='?', tags=())"


class Marked(Named):
    mark: str = ""
    x: int = 7


def test_what_is_known_of_a_class_is_its_own() -> None:
    assert Point.field_names() == ["x", "y"]
    Point.field_names().append("z")
    assert Point.field_names() == ["x", "y"]
    assert Marked.field_names() == ["x", "y", "name", "tags", "mark"]
    assert Record.field_names() == []
    assert Marked() == Marked(x=7)
    assert Point(x=1).replace(y=2) == Point(y=2, x=1)
    with pytest.raises(TypeError, match="Named needs the field 'x'"):
        Named(name="a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Point has no field 'name'"):
        Point(x=1, name="a")  # type: ignore[call-arg]


def test_records_inside_become_dicts() -> None:
    holder = Holder(points=[Point(x=1)], by_name={"a": Point(x=2), "b": (Point(x=3),)})
    assert holder.as_dict() == {
        "points": [{"x": 1, "y": 0}],
        "by_name": {"a": {"x": 2, "y": 0}, "b": [{"x": 3, "y": 0}]},
    }


def test_a_replacement_is_checked_too() -> None:
    with pytest.raises(TypeError, match="no field"):
        Point(x=1).replace(z=1)


def test_records_can_be_copied_and_pickled() -> None:
    named = Named(x=1, tags=("a",))
    assert copy.copy(named) == copy.deepcopy(named) == pickle.loads(pickle.dumps(named)) == named
