"""The errand that removes clean dead slots, seen from the supervisor."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from foundation.errors import HubError, to_wire
from foundation.workspace import Workspace
from hub import collection
from hub.collection import Collection
from hub.errand import Errand, report
from hub.reactor import Reactor
from tests.slotgc.worktrees import Node, make_slot, make_trunk

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TREE = {b"a": Node(b"1\n")}


def collected(root: Path) -> tuple[dict[str, Any], str]:
    """Run it in the workspace *root*; return its report and what went wrong."""
    workspace = Workspace(str(root))
    os.makedirs(workspace.logs, exist_ok=True)
    reactor = Reactor()
    told: list[tuple[dict[str, Any], str]] = []

    def end(report: dict[str, Any], wrong: str) -> None:
        told.append((report, wrong))
        reactor.stop()

    Collection(reactor, workspace, on_end=end)
    reactor.run()
    reactor.close()
    return told[0]


def test_it_tells_what_it_has_removed(tmp_path: Path) -> None:
    make_trunk(tmp_path)
    make_slot(tmp_path, "clean", TREE)
    assert collected(tmp_path) == ({"removed": ["clean"], "failed": {}}, "")


def main() -> None:
    """Be an errand that cannot look."""
    report(fail=to_wire(HubError("the swarm cannot be read", reason="swarm")))
    sys.exit(1)


def test_why_it_could_not_look_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(reactor: Reactor, workspace: Workspace, _module: str, *rest: Any, **on: Any) -> Any:
        return Errand(reactor, workspace, __name__, *rest, **on)

    monkeypatch.setattr(collection, "Errand", another)
    assert collected(tmp_path)[1] == "the swarm cannot be read"
