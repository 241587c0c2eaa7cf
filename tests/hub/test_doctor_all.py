"""`hub doctor --all`: every workspace of a hub, the registry itself, and who lost a workspace."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hub import registry
from hub.doctor import in_workspace
from tests.hub.test_census import marked, orphan
from tests.hub.test_status_all import beside, started
from tests.support import Hub, data_of, delete

pytestmark = pytest.mark.real


def examined(hub: Hub, code: int, **environment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the findings on the machine by name, and what was found by workspace."""
    below = hub.root.parent
    words = ["doctor", "--all", "--json", "--root", str(below)]
    done = hub.run(*words, cwd=below, environment=environment)
    assert done.returncode == code, done.stdout + done.stderr
    data = data_of(done.stdout)
    return (
        {finding["name"]: finding for finding in data["findings"]},
        {one["root"]: one for one in data["workspaces"]},
    )


def test_each_workspace_of_a_hub_is_examined_and_summed_up(hub: Hub) -> None:
    other = beside(hub, "second")
    started(hub, other)
    os.chmod(other.workspace.creds, 0o750)
    wide, workspaces = examined(hub, 1)
    assert [wide[name]["level"] for name in ("registry", "hubs", "reap")] == ["ok"] * 3
    assert list(workspaces) == [str(hub.root), str(other.root)]
    assert [one["problems"] for one in workspaces.values()] == [0, 1]
    assert {"hub", "ports", "repository"} <= {
        finding["name"] for finding in workspaces[str(hub.root)]["findings"]
    }
    text = hub.run("doctor", "--all", "--root", str(hub.root.parent), cwd=hub.root.parent).stdout
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("this machine: ")]
    assert [line for line in lines if line.startswith(f"{hub.root}: ") and "no problems" in line]
    assert [line for line in lines if line.startswith(f"{other.root}: ") and "1 problem" in line]
    assert f"         fix: chmod 700 {other.workspace.creds}" in lines
    other.stop()


def test_what_in_the_registry_is_none_is_a_warning_with_the_command(hub: Hub) -> None:
    place = Path(registry.directory())
    place.mkdir(parents=True)
    (place / "it's.json").write_text("{")
    wide, workspaces = examined(hub, 0)
    assert workspaces == {}
    assert wide["registry"]["level"] == "warning"
    assert os.system(wide["registry"]["fix"]) == 0  # as a person types it
    assert examined(hub, 0)[0]["registry"]["level"] == "ok"


def test_what_could_steer_a_terminal_is_shown_escaped(hub: Hub) -> None:
    place = Path(registry.directory())
    place.mkdir(parents=True)
    (place / "\x1b[2J.json").write_text("{")
    said = hub.run("doctor", "--all", "--root", str(hub.root)).stdout
    assert "\x1b" not in said
    assert said.count("\\x1b[2J.json") == 2, "in the finding and in its fix"


def test_a_hub_of_another_home_is_a_warning(hub: Hub, tmp_path: Path) -> None:
    started(hub)
    wide, workspaces = examined(hub, 0, XDG_STATE_HOME=str(tmp_path / "elsewhere"))
    assert wide["hubs"]["level"] == "warning"
    assert str(hub.root) in wide["hubs"]["evidence"]
    assert list(workspaces) == [str(hub.root)]


@pytest.mark.faults
def test_a_hub_that_lost_its_workspace_is_a_problem_that_reap_mends(hub: Hub) -> None:
    (info,) = started(hub)
    os.kill(info["pid"], signal.SIGSTOP)
    delete(hub.root)
    wide, workspaces = examined(hub, 1)
    assert workspaces == {}
    assert (wide["reap"]["level"], wide["reap"]["fix"]) == ("problem", "hub reap")
    assert str(info["pid"]) in wide["reap"]["evidence"]
    hub.run("reap", "--yes", "--root", str(hub.root), cwd=hub.root.parent)
    assert examined(hub, 0)[0]["reap"]["level"] == "ok"


def test_strays_that_are_ours_are_reaps_business_and_others_a_persons(hub: Hub) -> None:
    def strays() -> tuple[str, str]:
        found = {finding.name: finding for finding in in_workspace(str(hub.root))}["strays"]
        return found.level, found.fix

    assert strays() == ("ok", "")
    with marked(hub.root) as other, orphan(hub.workspace):
        assert strays() == ("problem", f"hub reap && kill {other.pid}")
    with orphan(hub.workspace):
        assert strays() == ("problem", "hub reap")
        hub.run("reap", "--yes", "--root", str(hub.root))
        assert strays() == ("ok", "")
