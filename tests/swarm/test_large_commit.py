"""A slot commits more paths than a message has room for, and that is undone again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import swarm
from foundation.errors import Unavailable
from hub.commits import MESSAGE_BYTES
from hub.repository import Repository
from swarm.reverting import revert
from tests.support import eventually
from tests.swarm.leaves import end_leaves

if TYPE_CHECKING:
    from tests.support import Hub

pytestmark = [pytest.mark.real, pytest.mark.slow]

FILES = 6000
NAME_BYTES = 100
"""Of a path: so that fewer will do."""


def fill(slot: swarm.Slot, text: str) -> None:
    """Write very many files."""
    for number in range(FILES):
        path = Path(slot.worktree, f"{number % 20:0{NAME_BYTES}}/{number}")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_commit_of_very_many_files_lands_and_is_undone(swarm_hub: Hub) -> None:
    assert FILES * NAME_BYTES * 2 > MESSAGE_BYTES
    slot = swarm.join(swarm_hub.root, "alpha")
    fill(slot, "1\n")
    done = slot.commit("very many")
    assert (done.files, done.new, slot.changes()) == (FILES, True, ())
    undone = revert(swarm_hub.workspace, done.checkin)
    with Repository(swarm_hub.workspace.repository) as repository:
        assert len(repository.changes(done.checkin)) == FILES
        assert repository.difference(done.parent, undone.checkin) == []
    eventually(lambda: os.listdir(swarm_hub.workspace.spool) == [])


@pytest.mark.faults
@pytest.mark.parametrize("step", ["commit.spooled", "commit.answered"])
def test_a_leaf_killed_on_the_way_of_very_many_files_loses_and_doubles_none(
    lone_hub: Hub, step: str
) -> None:
    lone_hub.start(HUB_FAILPOINT=step)
    slot = swarm.join(lone_hub.root, "alpha")
    fill(slot, "1\n")
    with pytest.raises(Unavailable):
        slot.commit("very many")
    lone_hub.stop()
    lone_hub.start()
    again = swarm.join(lone_hub.root, "alpha")
    landed = again.commit("very many")
    assert landed.new
    assert again.changes() == ()
    with Repository(lone_hub.workspace.repository) as repository:
        line = repository.line()
        assert [len(repository.changes(row.hash)) for row in line[1:]] == [FILES]
    end_leaves(lone_hub.root)
