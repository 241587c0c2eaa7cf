"""What a member may be called, and what it is created with. Pure."""

from __future__ import annotations

import re

from foundation.errors import Refused
from foundation.record import Record

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
"""A member's name is its guest's host name, a directory and part of a subject. Source: RFC 1123."""
_NUMBERED = re.compile(r"(.+)-[0-9]+\Z", re.DOTALL)
_CPUS = (1, 64)
_MEMORY_MB = (80, 1 << 20)  # with 64 the guest's kernel panics at its start
_DISK_MB = (0, 1 << 24)


def cluster_of(name: str) -> str:
    """Return the cluster of member *name*: the name less one trailing ``-`` and digits."""
    numbered = _NUMBERED.match(name)
    return numbered[1] if numbered else name


def has_form(name: str) -> bool:
    """Tell whether a member may be called *name*."""
    return bool(_NAME.match(name))


def check_name(name: str) -> str:
    """Return *name* if a member may have it.

    Raises:
        Refused: it may not (``bad-name``).
    """
    if not has_form(name):
        raise Refused(
            f"{name!r} cannot be a VM's name, which is a host name too: 1 to 63 of a-z, 0-9 and -, "
            "with no - at its ends",
            reason="bad-name",
        )
    return name


def in_order(names: set[str]) -> list[str]:
    """Return *names* as people count: ``web-2`` before ``web-10``."""
    return sorted(
        names, key=lambda name: [(len(p), p) if p.isdigit() else (0, p) for p in name.split("-")]
    )


class Options(Record):
    """What a member is created with, and keeps."""

    cpus: int = 1
    memory_mb: int = 128
    disk_mb: int = 1024
    """Of its disk, which is sparse; 0: it has none."""
    egress: bool = True
    """Whether it reaches the internet and resolves names; all members of a cluster alike."""

    def check(self) -> Options:
        """Return these options if a VM can have them.

        Raises:
            Refused: it cannot (``bad-option``).
        """
        for name, (least, most) in (
            ("cpus", _CPUS),
            ("memory_mb", _MEMORY_MB),
            ("disk_mb", _DISK_MB),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise Refused(
                    f"{name}={value!r}: a whole number from {least} to {most} is needed",
                    reason="bad-option",
                )
        if type(self.egress) is not bool:
            raise Refused(f"egress={self.egress!r}: yes or no is needed", reason="bad-option")
        return self

    @classmethod
    def from_json(cls, value: object) -> Options:
        """Return the options that *value* (decoded JSON) holds.

        Raises:
            Refused: it holds none (``bad-option``).
        """
        if not isinstance(value, dict) or not set(value) <= set(cls.field_names()):
            raise Refused(f"{value!r} are no options of a VM", reason="bad-option")
        return cls(**value).check()


class Config(Record):
    """A member's config.json."""

    name: str
    options: Options
    created_at: str
