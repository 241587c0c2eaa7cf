"""A hub in a container: as its first process, and behind another root directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hub import registry
from tests.hub.test_census import roles
from tests.support import HUB, Hub, data_of, eventually, processes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.real

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc"]


@contextmanager
def as_first_process(hub: Hub) -> Iterator[Run]:
    """Run the hub as pid 1 of a pid namespace; yield how to run another `hub` beside it."""
    container = subprocess.Popen([*UNSHARE, str(HUB), "start"], cwd=hub.root, stdout=-3, stderr=-3)
    try:
        hub.wait_ready()
        (outside,) = (pid for pid, role in roles(hub.root).items() if role == "hub")
        inside = ["nsenter", "--target", str(outside), "--pid", "--mount", str(HUB)]
        yield lambda *words: subprocess.run(
            [*inside, *words, "--root", str(hub.root)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        os.kill(outside, signal.SIGTERM)
        assert container.wait(20) == 0
    finally:
        for survivor in processes_of("", str(hub.root)):
            signal.pidfd_send_signal(survivor.pidfd, signal.SIGKILL)
            os.close(survivor.pidfd)
        container.kill()
        container.wait()


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no pid namespaces here")


def test_a_hub_that_is_the_first_process_is_a_hub_like_any(hub: Hub) -> None:
    """The entry point of a container: `hub start` with nothing above it."""
    told = []
    for _turn in range(2):
        with as_first_process(hub) as run:
            eventually(Path(registry.path_of(str(hub.root))).exists)
            seen = hub.run("status", "--all", "--json", "--root", str(hub.root)).stdout
            assert [one["registered"] for one in data_of(seen)["hubs"]] == [True], "from outside"
            (one,) = data_of(run("status", "--all", "--json").stdout)["hubs"]
            assert (one["pid"], one["state"], one["registered"]) == (1, "running", True)
            assert data_of(run("reap", "--dry-run", "--json").stdout)["spared"] == []
            found = {f["name"]: f for f in data_of(run("doctor", "--json").stdout)["findings"]}
            assert [found[n]["level"] for n in ("strays", "hub-json", "pidfiles")] == ["ok"] * 3
            told.append(json.loads(Path(hub.workspace.discovery).read_text()))
        assert registry.entries() == ([], [])
    assert told[0]["epoch"] + 1 == told[1]["epoch"]
    assert told[0]["hub_id"] == told[1]["hub_id"]


def test_a_hub_behind_another_root_directory_is_not_judged_by_paths_of_ours(
    hub: Hub, tmp_path: Path
) -> None:
    """A chroot has our namespaces: what it calls /w is somewhere else to us, and not moved."""
    if os.geteuid() != 0:
        pytest.skip("only root can chroot")
    root = tmp_path / "root"
    script = f"""
for place in /*; do
    [ -d "$place" ] && [ ! -L "$place" ] && [ "$place" != /w ] || continue
    mkdir -p "{root}$place" && mount --rbind "$place" "{root}$place"
done
for place in /*; do [ -L "$place" ] && cp -P "$place" "{root}$place"; done
mkdir -p "{root}/w" && mount --bind "{hub.root}" "{root}/w"
PATH=$PATH:/usr/sbin:/sbin
chroot "{root}" "{HUB}" start --detach --root /w
"{HUB}" reap --dry-run --json --root /w
chroot "{root}" "{HUB}" stop --root /w
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    told = data_of(done.stdout)
    assert told["reaped"] == []
    assert {(one["root"], one["role"]) for one in told["spared"]} == {("/w", "hub")}
