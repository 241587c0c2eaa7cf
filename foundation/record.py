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


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """A value with named fields: compare by content, print as ``Name(field=…)``, never change.

    Fields are the annotations of the class and its bases; a default is a class attribute.
    """

    def __init__(self, **fields: Any) -> None:
        """Take every field by name.

        Raises:
            TypeError: a field is missing or unknown.
        """
        known = self.field_names()
        for name in fields:
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no field {name!r}")
        for name in known:
            if name not in fields and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs the field {name!r}")
        self.__dict__.update(fields)

    @classmethod
    def field_names(cls) -> list[str]:
        """Return the names of the fields, those of the bases first."""
        names: list[str] = []
        for base in reversed(cls.__mro__):
            own = base.__dict__.get("__annotations__", ())  # noqa: RUF063 - inspect costs 10 ms
            names += [name for name in own if name not in names]
        return names

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dict, records inside them as dicts too."""
        return {name: _plain(getattr(self, name)) for name in self.field_names()}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with *changes* applied."""
        return type(self)(**{n: getattr(self, n) for n in self.field_names()} | changes)

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
        return all(getattr(self, n) == getattr(other, n) for n in self.field_names())

    def __hash__(self) -> int:
        """Hash by content; a record that holds a list has no hash."""
        return hash(tuple(getattr(self, n) for n in self.field_names()))

    def __repr__(self) -> str:
        """Print as the call that makes it."""
        fields = ", ".join(f"{n}={getattr(self, n)!r}" for n in self.field_names())
        return f"{type(self).__name__}({fields})"


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
