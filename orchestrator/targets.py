"""What the words of ``bones vm`` mean: which VMs, which side of a copy, which ports. Pure."""

from __future__ import annotations

from foundation.errors import Refused, Usage
from foundation.record import Record
from orchestrator.store import Options, check_name, cluster_of, in_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULT_NAME = "default"
MOST_MEMBERS = 244
"""Of one cluster: so many addresses its network has."""
_HIGHEST_PORT = 65535
_FLAGS = {"cpus": "--cpus", "memory_mb": "--mem", "disk_mb": "--disk"}


class Copy(Record):
    """A copy between this machine and a guest."""

    name: str
    """Of the VM."""
    remote: str
    local: str
    to_guest: bool


def to_start(names: Sequence[str], count: int, members: Sequence[str] = ()) -> list[str]:
    """Return the members that ``up NAMES… -n COUNT`` means, where there are *members*.

    The name of a cluster that has members, and of none of them, means those.

    Raises:
        Usage: *count* is below 1, more than a cluster can have, or more than 1 with anything but
            one name; a name is none (``bad-name``).
        Refused: a name would be a VM's and a cluster's at once (``ambiguous``), or a cluster would
            have more members than addresses (``network-full``).
    """
    if count < 1:
        raise Usage(f"-n {count}: at least one VM", reason="usage")
    if count > MOST_MEMBERS:
        raise Usage(f"-n {count}: a cluster has at most {MOST_MEMBERS} VMs", reason="usage")
    if count > 1 and len(names) != 1:
        raise Usage(
            f"-n {count} numbers the members of one name, as web-1 to web-{count}; "
            f"{len(names)} names were given",
            reason="usage",
        )
    for name in names:
        named(name)
    if count > 1:
        wanted = [named(f"{names[0]}-{number}") for number in range(1, count + 1)]
    else:
        wanted = []
        for name in names or [DEFAULT_NAME]:
            wanted += _of(name, members) or [name]
    wanted = list(dict.fromkeys(wanted))
    _check_together(wanted, members)
    return wanted


def named(name: str) -> str:
    """Return *name* if a VM may have it.

    Raises:
        Usage: it may not (``bad-name``).
    """
    try:
        return check_name(name)
    except Refused as error:
        raise Usage(str(error), reason=error.reason) from None


def _of(target: str, members: Sequence[str]) -> list[str]:
    """Return the members that *target* means: that of the name, else those of the cluster."""
    if target in members:
        return [target]
    return [name for name in members if cluster_of(name) == target]


def _check_together(wanted: Sequence[str], members: Sequence[str]) -> None:
    """Refuse new names that cannot be beside others: a retry of `rm web` might mean other VMs."""
    new = set(wanted).difference(members)
    there = {*members, *wanted}
    sizes = {cluster: len(names) for cluster, names in clusters(there).items()}
    for name in in_order(new):
        cluster = cluster_of(name)
        if sizes[cluster] > MOST_MEMBERS:
            raise Refused(
                f"cluster {cluster} would have {sizes[cluster]} VMs, and its network has "
                f"{MOST_MEMBERS} addresses: begin another cluster",
                reason="network-full",
            )
        both = ""
        if cluster != name and cluster in there:
            both = cluster
        elif sizes.get(name, 0) > (cluster == name):
            both = name
        if both:
            raise Refused(
                f"{name} cannot be: {both} would be a VM and a cluster at once; take another name",
                reason="ambiguous",
            )


def options(
    cpus: int | None, memory_mb: int | None, disk_mb: int | None, *, egress: bool, machine_mb: int
) -> Options:
    """Return what a new VM is created with; None: as usual. *machine_mb*: what this machine has.

    Raises:
        Usage: a VM cannot have that; the message names the option (``bad-option``).
    """
    asked = {"cpus": cpus, "memory_mb": memory_mb, "disk_mb": disk_mb}
    given = {field: value for field, value in asked.items() if value is not None}
    for field, value in given.items():
        try:
            Options.from_json({field: value})
        except Refused as error:
            told = str(error).removeprefix(f"{field}={value!r}")
            raise Usage(f"{_FLAGS[field]} {value}{told}", reason=error.reason) from None
    if memory_mb is not None and memory_mb > machine_mb:
        raise Usage(
            f"--mem {memory_mb}: this machine has {machine_mb} MB", reason="too-much-memory"
        )
    return Options.from_json({**given, "egress": egress})


def check_memory(members: Mapping[str, int], machine_mb: int) -> None:
    """Refuse to start *members*, their memory in MB by name, if all this machine has is less.

    Raises:
        Usage: it is (``too-much-memory``).
    """
    total_mb = sum(members.values())
    if total_mb > machine_mb:
        whose = f"{len(members)} VMs" if len(members) > 1 else next(iter(members))
        raise Usage(
            f"{whose} may take {total_mb} MB, and this machine has {machine_mb} MB: fewer VMs, or "
            "new ones with less (--mem)",
            reason="too-much-memory",
        )


def command(verb: str, name: str, words: Sequence[str]) -> list[str]:
    """Return the command in *words*, what follows NAME: ``--`` and the command, or nothing.

    Raises:
        Usage: it is something else; the message has the right form.
    """
    if not words:
        return []
    before, after = list(words), list(words)
    if "--" in words:
        at = before.index("--")
        before, after = before[:at], before[at + 1 :]
        if not before and after:
            return after
    from shlex import join  # noqa: PLC0415 - of mistakes alone

    form = f"`bones vm {verb} {name} -- {join(after) or 'COMMAND'}`"
    if before and after and "--" in words:
        raise Usage(
            f"{' '.join(before)}: options go before NAME, the command behind --: {form}",
            reason="usage",
        )
    raise Usage(f"a command follows --: {form}", reason="usage")


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
        meant = _of(target, members)
        if not meant:
            unknown.append(target)
        found.update(dict.fromkeys(meant))
    return list(found), unknown


def one(name: str, members: Sequence[str]) -> str:
    """Return *name*, that of a VM, which need not be one of *members*.

    Raises:
        Usage: no VM can be called so (``bad-name``).
        Refused: it is a cluster's (``not-one``).
    """
    meant = _of(named(name), members)
    if meant and name not in meant:
        raise Refused(
            f"{name} is a cluster, of {', '.join(meant)}: name one of them", reason="not-one"
        )
    return name


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


def within(directory: str, source: str) -> str:
    """Return where a copy of *source* goes that goes into *directory*: under its own name.

    A *source* that ends in ``.`` or ``..`` has none: what is in it goes into *directory*.
    """
    name = source.rstrip("/").rpartition("/")[2]
    return directory if name in ("", ".", "..") else f"{directory.rstrip('/')}/{name}"


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
    raise Usage(
        f"{text}: a forward is [HOST_PORT:]GUEST_PORT, ports are numbers from 1 to {_HIGHEST_PORT}",
        reason="usage",
    )


def of_test(name: str) -> str:
    """Return the name of the VM of the test *name*: lower case, digits and single dashes."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    words = [word for word in kept.lower().split("-") if word]
    return "-".join(words)[:50].strip("-") or "test"
