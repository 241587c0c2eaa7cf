"""What a check is given, and what it answers."""

from __future__ import annotations

import os
import shlex

from foundation.errors import Refused
from foundation.record import Record
from foundation.workspace import Workspace
from hub import discovery
from hub.status import HubStatus, status_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, Self

    from foundation.errors import HubError
    from hub.discovery import Discovery

    Level = Literal["ok", "warning", "problem"]

FOSSIL = "USER=hub fossil"
"""How a person runs fossil on the trunk: it refuses a login that the repository lacks."""


class Verdict(Record):
    """What a check found."""

    level: Level
    evidence: str
    """What was seen, with the value."""
    fix: str = ""
    """The command to type; empty where all is well."""


class Finding(Verdict):
    """The verdict of the check *name*, a stable slug for programs."""

    name: str

    @classmethod
    def of(cls, name: str, verdict: Verdict) -> Self:
        """Return *verdict* under the name of its check."""
        return cls(name=name, **verdict.as_dict())


def ok(evidence: str) -> Verdict:
    """All is well: *evidence* says with which value."""
    return Verdict(level="ok", evidence=evidence)


def warning(evidence: str, fix: str) -> Verdict:
    """It works, but a person should know."""
    return Verdict(level="warning", evidence=evidence, fix=fix)


def problem(evidence: str, fix: str) -> Verdict:
    """It does not work, or cannot be trusted."""
    return Verdict(level="problem", evidence=evidence, fix=fix)


def way_out(error: HubError, otherwise: str) -> str:
    """Return the command that *error* names between backquotes, else *otherwise*."""
    quoted = str(error).split("`")
    return quoted[1] if len(quoted) > 2 and "…" not in quoted[1] else otherwise  # noqa: PLR2004


class Scene(Record):
    """The workspace under examination, with what every check would ask again."""

    workspace: Workspace
    status: HubStatus
    record: Discovery | None
    """What ``hub.json`` claims."""
    here: bool
    """The current directory is in it, so commands need no ``--root``."""

    @classmethod
    def of(cls, root: str | None) -> Self:
        """Look at the workspace around *root*.

        Raises:
            Refused: there is none.
        """
        workspace = Workspace.find(root)
        return cls(
            workspace=workspace,
            status=_status_of(workspace),
            record=discovery.read(workspace),
            here=_is_here(workspace),
        )

    @property
    def runs(self) -> bool:
        """A hub answers and has been ready: its files should be true."""
        return self.status.info is not None

    @property
    def stopped(self) -> bool:
        """No hub answers, so that nothing of it should be left."""
        return self.status.state == "stopped"

    def hub(self, arguments: str) -> str:
        """Return the command ``hub`` *arguments* for this workspace."""
        place = "" if self.here else f" --root {shlex.quote(self.workspace.root)}"
        return f"hub {arguments}{place}"

    def renew(self) -> str:
        """Return the command that brings up a hub that was started anew."""
        start = self.hub("start --detach")
        return start if self.stopped else f"{self.hub('stop')} && {start}"

    def while_stopped(self, command: str) -> str:
        """Return *command*, for which no hub may run, with what must come before it."""
        return command if self.stopped else f"{self.hub('stop')} && {command}"


def _status_of(workspace: Workspace) -> HubStatus:
    """Return the state of the hub; of one that is not ours it cannot be known."""
    try:
        return status_of(workspace)
    except Refused as error:
        return HubStatus(state="unknown", root=workspace.root, reason=str(error))


def _is_here(workspace: Workspace) -> bool:
    from hub.verbs import ROOT_VARIABLE  # noqa: PLC0415 - it draws in every verb

    if os.environ.get(ROOT_VARIABLE):
        return False
    try:
        return Workspace.find().root == workspace.root
    except Refused:
        return False
