"""VMs from Python: the examples of docs/library.md, and what a cluster does when one fails."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import orchestrator
from foundation.errors import Refused
from hub.events import read
from orchestrator import control
from orchestrator.cluster import VM, Cluster
from orchestrator.store import Store
from tests.docs.test_documents import examples
from tests.orchestrator.vm.holders import end_holders, up
from tests.support import CODE, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Hub

pytestmark = [pytest.mark.real]


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_of_the_library_runs_and_leaves_no_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("hello\n")
    exec(compile(examples()[-3], "docs/library.md", "exec"), {})
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    store = Store("vms")
    assert store.members() == ["web-1", "web-2", "web-3"]
    assert [VM(store, name).state for name in store.members()] == ["stopped"] * 3


@pytest.mark.vm
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_fixtures_give_a_test_vms_and_take_them_away(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(
        examples()[-1] + "\n\ndef test_one(vm):\n    assert vm.name == 'test-one-a'\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "orchestrator.pytest_plugin"),
            *("-p", "no:cacheprovider", f"--basetemp={tmp_path}/temp", "test_example.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CODE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert not [path for path in (tmp_path / "temp").rglob("*") if path.suffix == ".raw"]


def test_the_example_of_the_bus_runs(hub: Hub) -> None:
    store = Store.of_workspace(hub.workspace)
    hub.start()
    hub.wait_ready()
    try:
        up(store, "web-1", "web-2", settings={"workspace": str(hub.root)})
        eventually(lambda: _is_on_the_bus(hub))
        done = subprocess.run(
            [sys.executable, "-c", examples()[-2]],
            cwd=hub.root,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        end_holders(store)
    assert done.stdout.splitlines() == [
        "web-1 running 10.77.0.11",
        "web-2 running 10.77.0.12",
        "web-1 is stopping",
    ], done.stderr


def _is_on_the_bus(hub: Hub) -> bool:
    """Tell whether the holder has said all that it had to say, so that it can be asked."""

    async def kinds() -> list[str]:
        return [one.kind async for one in read(hub.workspace) if one.subject.startswith("vm.")]

    return asyncio.run(kinds()).count("running") == 2


def test_what_the_documents_call_a_reason_is_one() -> None:
    text = (CODE / "docs/library.md").read_text()
    table = text.partition("| they raise |")[2].partition("\n\n")[0]
    slugs = set(re.findall(r"`([a-z]+(?:-[a-z0-9]+)+)`", table)) - {"web-1"}
    code = "".join(path.read_text() for path in (CODE / "orchestrator").rglob("*.py"))
    unknown = {slug for slug in slugs if f'"{slug}"' not in code}
    assert len(slugs) > 20
    assert not unknown


def test_names_of_several_clusters_are_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="db"):
        Cluster(["web-1", "db"], store=tmp_path / "vms")
    with pytest.raises(Refused, match="name"):
        Cluster([], store=tmp_path / "vms")
    with pytest.raises(Refused, match="no member"):
        Cluster(["web-1"], store=tmp_path / "vms").vm("web-2")
    assert not (tmp_path / "vms").exists()


def test_the_library_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    program = (
        "import orchestrator, sys; assert 'orchestrator.cluster' not in sys.modules; "
        "from orchestrator import Cluster, VM; assert VM is orchestrator.cluster.VM; "
        "assert {'Cluster', 'VM'} <= set(dir(orchestrator)); print(Cluster.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CODE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "orchestrator.cluster\n", done.stderr
    with pytest.raises(AttributeError, match="nothing"):
        orchestrator.nothing  # noqa: B018


def test_a_command_is_words_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="uname -a"):
        VM(Store(tmp_path / "vms"), "web").execute("uname -a")
    assert VM.exec is VM.execute


def test_a_vm_that_is_not_running_is_named_with_the_way_out(tmp_path: Path) -> None:
    vm = VM(Store(tmp_path / "vms"), "web")
    with pytest.raises(Refused, match="no VM web"):
        vm.execute(["true"])
    assert not vm.destroy()
    assert not control.is_running(vm.store, "web")
