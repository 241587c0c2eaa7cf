"""`bones purge` and VMs: none that runs loses its disk, and no disk goes unnamed."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Refused, Unavailable
from foundation.workspace import Workspace
from orchestrator import control
from orchestrator.purge import without_vms
from orchestrator.store import Store
from owner import private
from tests.orchestrator.vm.holders import BLIND, SMALL, config, end_holders, up
from tests.orchestrator.vm.test_vm_cli import bones

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.faults]


@pytest.fixture
def vms(repo: Path) -> Iterator[Store]:
    """Return the store of a workspace."""
    Workspace(str(repo)).make_state()
    store = Store.of_workspace(Workspace(str(repo)))
    yield store
    end_holders(store)


def purge(root: Path, *words: str) -> tuple[int, str]:
    done = bones(root, "purge", *words)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_a_vm_that_runs_keeps_a_workspace_from_being_purged(repo: Path, vms: Store) -> None:
    up(vms, "web-1", "web-2", settings=BLIND)
    for words in (("--yes",), ("--dry-run",)):
        code, said = purge(repo, *words)
        assert code == 1
        assert "VMs run in" in said
        assert "web-1" in said
        assert "`bones down` ends them" in said
    assert control.get_status(vms, "web-1").state == "running"
    os.unlink(vms.place("web-1").socket)
    assert "web-1" in purge(repo, "--yes")[1], "whoever cannot be asked is alive too"


def test_the_disks_that_go_are_named_and_go_only_with_that(repo: Path, vms: Store) -> None:
    up(vms, "web-1", "web-2", "db")
    for name in ("web-1", "web-2", "db"):
        control.stop(vms, name)
    os.unlink(vms.place("web-2").disk)
    code, said = purge(repo, "--dry-run")
    assert code == 0
    assert [line.strip() for line in said.splitlines() if "disk of VM" in line] == [
        "the disk of VM db",
        "the disk of VM web-1",
    ]
    told = json.loads(bones(repo, "purge", "--dry-run", "--json").stdout)["data"]
    assert told["vms"] == ["db", "web-1"]
    assert os.path.exists(vms.place("web-1").disk)
    code, said = purge(repo, "--yes")
    assert (code, "nothing of ours is left" in said) == (0, True)
    assert not os.path.exists(vms.directory)


def test_no_vm_is_started_while_a_workspace_is_purged(repo: Path, vms: Store) -> None:
    with without_vms(Workspace(str(repo))), pytest.raises(Unavailable, match="being purged"):
        control.spawn(vms, config("web"))
    launching = vms.enter()
    assert launching is not None
    try:
        with pytest.raises(Refused, match="just being started"), without_vms(Workspace(str(repo))):
            pytest.fail("it is being launched")
    finally:
        private.close(launching)
    assert up(vms, "web")["web"].state == "running"


def test_a_member_that_is_a_link_to_elsewhere_is_not_removed_and_harms_no_other(
    vms: Store, tmp_path: Path
) -> None:
    up(vms, "web-1")
    control.stop(vms, "web-1")
    elsewhere = tmp_path / "large"
    place = vms.place("web-1").directory
    os.rename(place, elsewhere)
    os.symlink(elsewhere, place)
    assert up(vms, "web-1")["web-1"].state == "running", "its owner has moved it"
    control.stop(vms, "web-1")
    with pytest.raises(Refused, match="is a link"):
        vms.destroy("web-1")
    assert (elsewhere / "disk.raw").exists()
    assert up(vms, "web-1", "web-2")["web-2"].state == "running"
    assert vms.config("web-2").options == SMALL
