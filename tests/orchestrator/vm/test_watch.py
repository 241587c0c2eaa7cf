"""Being woken by changes, and what that saves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import LeaseLost
from foundation.workspace import Workspace
from orchestrator import bus, control
from orchestrator.watch import NAMED, WRITTEN, Watch
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.holders import up
from tests.support import eventually

if TYPE_CHECKING:
    from orchestrator.store import Store


async def test_a_change_since_the_last_one_is_told_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    with Watch(str(file), WRITTEN) as content, Watch(str(tmp_path), NAMED) as names:
        assert not await content.change(0.01)
        with file.open("a") as more:
            more.write("b")
        assert await content.change(10)
        assert not await content.change(0.01), "it was told"
        assert not await names.change(0.01), "no name is new"
        (tmp_path / "other").touch()
        assert await names.change(10)
        os.rename(file, tmp_path / "third")
        assert await names.change(10)
        waiting = asyncio.ensure_future(names.change(10))
        await asyncio.sleep(0)
        (tmp_path / "fourth").touch()
        assert await waiting


async def test_what_is_not_there_never_changes_and_no_descriptor_stays(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (str(tmp_path / "none"), str(tmp_path)):
        with Watch(path, NAMED) as watch:
            assert not await watch.change(0.01)
        watch.close()
    assert len(os.listdir("/proc/self/fd")) == before


def _switches(pid: int) -> int:
    """Return how often the process has been woken."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


@pytest.mark.faults
def test_who_follows_a_console_that_says_nothing_costs_next_to_nothing(store: Store) -> None:
    up(store, "web-1")
    holder = holders.holder_pid(store, "web-1")
    following = control.logs(store, "web-1", follow=True)
    assert next(following) == b"web-1 boots\n"
    before = _switches(holder)
    assert control.execute(store, "web-1", ["sleep", "1"]).status == 0
    assert _switches(holder) - before < 18, "twenty times a second is more"
    console = Path(store.place("web-1").console)
    with console.open("ab") as file:
        file.write(b"more\n")
    assert next(following) == b"more\n"
    os.replace(_new(console), console)
    assert next(following) == b"new\n"
    with console.open("ab") as file:
        file.write(b"more of it\n")
    assert next(following) == b"more of it\n"
    control.stop(store, "web-1")
    assert list(following) == []
    eventually(lambda: not control.is_running(store, "web-1"))


def _new(console: Path) -> Path:
    beside = console.with_name("beside")
    beside.write_bytes(b"new\n")
    return beside


async def test_a_hub_that_comes_is_found_although_nobody_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "_LOOK_EVERY_S", 3600.0)
    workspace = Workspace(str(tmp_path))
    os.mkdir(workspace.state)
    looks, found = [], asyncio.Event()

    def listens(_workspace: Workspace) -> bool:
        looks.append(os.path.exists(workspace.socket))
        return looks[-1]

    async def made_link(_bus: bus.Bus, _workspace: Workspace) -> None:
        found.set()
        raise LeaseLost("that is all")

    monkeypatch.setattr(bus, "_listens", listens)
    monkeypatch.setattr(bus.Bus, "_made_link", made_link)
    one = bus.Bus(workspace.root, "web", 1)
    while not looks:  # noqa: ASYNC110 - a thread does it
        await asyncio.sleep(0.001)
    os.mknod(workspace.socket)
    async with asyncio.timeout(10):
        await found.wait()
    assert looks == [False, True]
    await one.close(0.0)
