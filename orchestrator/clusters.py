"""The VM clusters of a workspace at a glance: who is there, in which state, at which address.

Living holders are asked, all of them at once and for a moment only; of the others the disk tells.
"""

from __future__ import annotations

from foundation.errors import HubError
from foundation.record import Record
from hub.render import printable
from orchestrator import holding, protocol
from orchestrator.protocol import status_from_json
from orchestrator.requests import connect
from orchestrator.store import Store, cluster_of
from orchestrator.waiting import from_disk
from swarm.overview import ask_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from foundation.workspace import Workspace

ANSWER_WITHIN_S = 1.0
"""How long all holders together may take; who takes longer is shown as not answering."""
SILENT = "unknown"
"""In place of a state: its holder does not answer."""


class MemberView(Record):
    """A VM."""

    name: str
    state: str
    """One of :data:`orchestrator.protocol.STATES`, or SILENT."""
    ip: str = ""
    pid: int = 0
    error: str = ""
    """Why it is not up, in words; "" if nothing is wrong."""
    reason: str = ""
    """The same as a slug."""

    def need(self) -> str:
        """Return what a person may want to do about it, "" if nothing is wrong."""
        if not self.error:
            return ""
        if self.reason == "no-answer":
            return self.error  # it names the VM, and the way out
        said = f"VM {self.name}: {self.error.splitlines()[0]}"
        if self.reason == "holder-killed":
            return f"{said}; `bones vm up {self.name}` boots it again, `bones vm prune` clears up"
        if self.state == SILENT:
            return f"{said}; `bones vm doctor` says more"
        if self.state == protocol.RUNNING:
            return said
        return f"{said}; `bones vm logs {self.name}` has more, `bones vm up {self.name}` boots it"


class ClusterView(Record):
    """VMs on one network."""

    name: str
    egress: bool
    """Whether it reaches the internet."""
    members: tuple[MemberView, ...]


def look(workspace: Workspace) -> tuple[tuple[ClusterView, ...], tuple[str, ...]]:
    """Return the clusters of *workspace*, and whose removal was begun and not finished.

    Changes nothing, and waits ANSWER_WITHIN_S at most.
    """
    store = Store.of_workspace(workspace)
    names = store.members()
    answers = ask_all(
        {name: store.place(name).socket for name in names},
        {"v": protocol.PROTOCOL_VERSION, "verb": protocol.STATUS},
        ANSWER_WITHIN_S,
    )
    found: dict[str, list[MemberView]] = {}
    for name in names:
        found.setdefault(cluster_of(name), []).append(_view(store, name, answers.get(name)))
    views = tuple(
        ClusterView(name=name, egress=store.egress(name) is not False, members=tuple(found[name]))
        for name in found
    )
    return views, tuple(store.half_removed())


def _view(store: Store, name: str, answer: Mapping[str, Any] | None) -> MemberView:
    try:
        if answer:
            status = status_from_json(answer)
        elif (has := holding.holder(store, name)) is not None:
            raise holding.silent(name, has)
        elif _is_being_launched(store, name):
            return MemberView(name=name, state=protocol.STARTING)
        else:
            status = from_disk(store, name)
    except HubError as error:
        return MemberView(name=name, state=SILENT, error=str(error), reason=error.reason)
    told = status.as_dict()
    return MemberView(**{field: told[field] for field in MemberView.field_names()})


def _is_being_launched(store: Store, name: str) -> bool:
    """Tell whether its socket listens already, of a holder that has not named itself yet."""
    wire = connect(store, name)
    if wire is None:
        return False
    wire.close()
    return True


def lines(views: Iterable[ClusterView]) -> Iterator[str]:
    """Yield a line for each VM, for people."""
    for view in views:
        for one in view.members:
            yield printable(f"{one.name:16} {one.state:11} {one.ip}".rstrip())


def summary(views: Iterable[ClusterView]) -> str:
    """Return how many of each cluster are in which state."""
    told = []
    for view in views:
        states: dict[str, int] = {}
        for one in view.members:
            states[one.state] = states.get(one.state, 0) + 1
        counted = ", ".join(f"{number} {state}" for state, number in states.items())
        told.append(f"{view.name}{'' if view.egress else ' (no egress)'}: {counted}")
    return "; ".join(told)
