"""Frozen keyword-only values, checked like dataclasses and free to import.

``dataclasses`` imports ``inspect`` and ``re`` (about 10 ms); a fast verb takes 8 in all.
Type checkers treat a subclass as a frozen, keyword-only dataclass.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, dataclass_transform
else:

    def dataclass_transform(**_options):  # noqa: ANN003, ANN201, D103
        return lambda cls: cls


_NONE: tuple[str, ...] = ()
_SCALARS = frozenset((str, int, bool, float, type(None)))


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """A value with named fields: compare by content, print as ``Name(field=…)``, never change.

    Fields are the annotations of the class and its bases; a default is a class attribute.
    """

    __fields = _NONE
    __known = __defaulted = frozenset(_NONE)
    """What a class says of its fields, found once: a record is made, copied and compared often."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Learn the fields of a class that was just made."""
        super().__init_subclass__(**options)
        names: list[str] = []
        for base in reversed(cls.__mro__):
            own = base.__dict__.get("__annotations__", ())  # noqa: RUF063 - inspect costs 10 ms
            names += [name for name in own if name not in names]
        cls.__fields = tuple(names)
        cls.__known = frozenset(names)
        cls.__defaulted = frozenset(name for name in names if hasattr(cls, name))

    def __init__(self, **fields: Any) -> None:
        """Take every field by name.

        Raises:
            TypeError: a field is missing or unknown.
        """
        if fields.keys() != self.__known:
            self.__check(fields)
        self.__dict__.update(fields)

    @classmethod
    def __check(cls, fields: dict[str, Any]) -> None:
        for name in fields:
            if name not in cls.__known:
                raise TypeError(f"{cls.__name__} has no field {name!r}")
        for name in cls.__fields:
            if name not in fields and name not in cls.__defaulted:
                raise TypeError(f"{cls.__name__} needs the field {name!r}")

    @classmethod
    def field_names(cls) -> list[str]:
        """Return the names of the fields, those of the bases first."""
        return list(cls.__fields)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dict, records inside them as dicts too."""
        return {
            name: value if type(value := getattr(self, name)) in _SCALARS else _plain(value)
            for name in self.__fields
        }

    def replace(self, **changes: Any) -> Self:
        """Return a copy with *changes* applied."""
        return type(self)(**{n: getattr(self, n) for n in self.__fields} | changes)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a record never changes; see :meth:`replace`."""
        raise AttributeError(f"{type(self).__name__}.{name} cannot change")

    def __delattr__(self, name: str) -> None:
        """Refuse, as any change."""
        raise AttributeError(f"{type(self).__name__}.{name} cannot change")

    def __eq__(self, other: object) -> bool:
        """Compare by type and content."""
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, n) == getattr(other, n) for n in self.__fields)

    def __hash__(self) -> int:
        """Hash by content; a record that holds a list has no hash."""
        return hash(tuple(getattr(self, n) for n in self.__fields))

    def __repr__(self) -> str:
        """Print as the call that makes it."""
        fields = ", ".join(f"{n}={getattr(self, n)!r}" for n in self.__fields)
        return f"{type(self).__name__}({fields})"


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
