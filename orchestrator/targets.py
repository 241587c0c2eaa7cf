"""What the words of ``bones vm`` mean: which VMs, which side of a copy, which ports. Pure."""

from __future__ import annotations

from foundation.errors import Usage
from foundation.record import Record
from orchestrator.store import check_name, cluster_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFAULT_NAME = "default"
_HIGHEST_PORT = 65535


class Copy(Record):
    """A copy between this machine and a guest."""

    name: str
    """Of the VM."""
    remote: str
    local: str
    to_guest: bool


def to_start(names: Sequence[str], count: int) -> list[str]:
    """Return the members that ``up NAMES… -n COUNT`` means.

    Raises:
        Usage: *count* is below 1, or more than 1 with anything but one name, or a name is none.
    """
    if count < 1:
        raise Usage(f"-n {count}: at least one VM", reason="usage")
    if count > 1 and len(names) != 1:
        raise Usage(
            f"-n {count} numbers the members of one name, as web-1 to web-{count}; "
            f"{len(names)} names were given",
            reason="usage",
        )
    if count > 1:
        names = [f"{names[0]}-{number}" for number in range(1, count + 1)]
    wanted = list(dict.fromkeys(names or [DEFAULT_NAME]))
    for name in wanted:
        check_name(name)
    return wanted


def clusters(names: Iterable[str]) -> dict[str, list[str]]:
    """Return *names* by their cluster, in the order in which they came."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(cluster_of(name), []).append(name)
    return found


def resolve(targets: Sequence[str], members: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of *members* are meant by *targets*, and which targets mean none.

    A member's own name means that member alone; else the name of a cluster means all its members.
    """
    found: dict[str, None] = {}
    unknown = []
    for target in targets:
        meant = (
            [target]
            if target in members
            else [name for name in members if cluster_of(name) == target]
        )
        if not meant:
            unknown.append(target)
        found.update(dict.fromkeys(meant))
    return list(found), unknown


def copy(source: str, target: str) -> Copy:
    """Return what ``cp SOURCE TARGET`` copies; one of the two is ``NAME:PATH``.

    A path with a colon of its own is meant as local with a slash before the colon: ``./a:b``.

    Raises:
        Usage: none of them is in a VM, or both are, or no path or name is given.
    """
    sides = [_side(source), _side(target)]
    remote = [side for side in sides if side is not None]
    if len(remote) != 1:
        what = "both are in a VM: copy to this machine first" if remote else "neither is in a VM"
        raise Usage(f"{source} {target}: {what}; one side is NAME:PATH", reason="usage")
    name, path = remote[0]
    to_guest = sides[0] is None
    local = source if to_guest else target
    if not name or not path or not local:
        raise Usage(f"{source} {target}: one side is NAME:PATH, both not empty", reason="usage")
    return Copy(name=name, remote=path, local=local, to_guest=to_guest)


def _side(text: str) -> tuple[str, str] | None:
    name, colon, path = text.partition(":")
    return (name, path) if colon and "/" not in name else None


def ports(text: str) -> tuple[int, int]:
    """Return host port (0: any that is free) and guest port of ``[HOST:]GUEST``.

    Raises:
        Usage: it is something else.
    """
    host, colon, guest = text.rpartition(":")
    return _port(host, text, lowest=0) if colon else 0, _port(guest, text, lowest=1)


def _port(digits: str, text: str, *, lowest: int) -> int:
    if digits.isascii() and digits.isdecimal() and lowest <= int(digits[:6]) <= _HIGHEST_PORT:
        return int(digits)
    raise Usage(f"{text}: a forward is [HOST_PORT:]GUEST_PORT", reason="usage")


def of_test(name: str) -> str:
    """Return the name of the VM of the test *name*: lower case, digits and single dashes."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    words = [word for word in kept.lower().split("-") if word]
    return "-".join(words)[:50].strip("-") or "test"
