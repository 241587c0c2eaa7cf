"""Commits of many paths, and of much content: landed once whatever is killed, in nobody's way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import LeaseLost, Refused
from hub import spool
from hub.bus import connect
from hub.commits import STARTED, SUBJECT, Landed
from hub.repository import Repository
from hub.trunk import queue
from tests.hub.committing import FossilServer, RunningWriter, assert_sound, files, name_of, propose
from tests.hub.test_trunk_commits import ASKED_WITHIN_S, Committers, Servers
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from foundation.workspace import Workspace
    from hub.bus import Bus
    from hub.commits import Proposal

pytestmark = [pytest.mark.real]

PATHS = 8000
"""More than a message of the bus has room for."""
EACH = 256 << 10


@pytest.fixture
def servers(seeded: Path) -> Iterator[Servers]:
    with Servers(seeded) as running:
        yield running


def many(**options: Any) -> Proposal:
    """Return a commit of many small files."""
    return propose({f"many/{n % 50}/{n}": b"%d" % n for n in range(PATHS)}, **options)


def much(workspace: Workspace, **options: Any) -> Proposal:
    """Return a commit of more contents than a batch takes, which lie in the spool."""
    count = queue.BATCH_BYTES // EACH + 1
    made = {f"much/{n}": b"%7d\n" % n * (EACH // 8) for n in range(count)}
    asked = propose(made, **options)
    for name, content in asked.contents.items():
        Path(workspace.spool, name).write_bytes(content)
    return asked.replace(contents={}, spooled=tuple(asked.contents))


def both(workspace: Workspace) -> Proposal:
    """Return a commit of many paths and of much content."""
    few, large = many(), much(workspace)
    return few.replace(changes=(*few.changes, *large.changes), spooled=large.spooled)


async def ask(workspace: Workspace, bus: Bus, proposal: Proposal) -> Landed:
    """Ask for *proposal* as a leaf does, until it is answered."""
    while True:
        message, name = spool.post(workspace.spool, proposal)
        answer = await bus.request(
            f"{SUBJECT}.{proposal.slot}", message, within_s=ASKED_WITHIN_S, per_try_s=2.0
        )
        landed = spool.answered(workspace.spool, answer.data)
        spool.discard(workspace.spool, name)
        return landed


def commit(workspace: Workspace, proposal: Proposal) -> Landed:
    async def run() -> Landed:
        async with await connect(workspace, "hub") as bus:
            await bus.subscribe(STARTED, lambda *_told: bus.resend())
            return await ask(workspace, bus, proposal)

    return asyncio.run(run())


@pytest.mark.slow
def test_a_commit_of_very_many_paths_lands_while_others_do(servers: Servers) -> None:
    asked = both(servers.workspace)
    with Committers(servers.workspace, 2) as others:
        landed = commit(servers.workspace, asked)
        others.more(2)
    assert commit(servers.workspace, asked).checkin == landed.checkin
    with Repository(servers.workspace.repository) as repository:
        assert len(repository.changes(landed.checkin)) == len(asked.changes)
    assert_sound(servers.workspace, [landed, *others.landed])
    eventually(lambda: os.listdir(servers.workspace.spool) == [])


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("step", ["parcel-opened", "part-pushed@2", "journalled", "synced"])
def test_trunk_killed_at_any_step_of_a_large_commit_lands_it_once(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    asked = both(servers.workspace)
    servers.trunk.kill()
    monkeypatch.setenv("HUB_FAILPOINT", f"trunk.{step}")
    servers.trunk.start().until_ready()

    async def run() -> Landed:
        async with await connect(servers.workspace, "hub") as bus:
            await bus.subscribe(STARTED, lambda *_told: bus.resend())
            asking = asyncio.create_task(ask(servers.workspace, bus, asked))
            assert await asyncio.to_thread(servers.trunk.ended_within, 30) == -9
            monkeypatch.delenv("HUB_FAILPOINT")
            servers.trunk.kill()
            servers.trunk.start()
            return await asking

    landed = asyncio.run(run())
    with Repository(servers.workspace.repository) as repository:
        assert len(repository.changes(landed.checkin)) == len(asked.changes)
    assert_sound(servers.workspace, [landed])
    eventually(lambda: os.listdir(servers.workspace.spool) == [])


def test_a_parcel_in_another_s_name_lands_nothing(servers: Servers) -> None:
    async def run() -> None:
        async with await connect(servers.workspace, "hub") as bus:
            message, _name = spool.post(servers.workspace.spool, many(slot="a"))
            answer = await bus.request(f"{SUBJECT}.b", message, within_s=ASKED_WITHIN_S)
            with pytest.raises(Refused, match="may not commit as"):
                spool.answered(servers.workspace.spool, answer.data)

    asyncio.run(run())
    assert_sound(servers.workspace, [])


# --- the writer alone ----------------------------------------------------------------------


@pytest.fixture
def server(seeded: Path) -> Iterator[FossilServer]:
    with FossilServer(seeded) as running:
        yield running


def test_others_land_between_two_parts_of_a_large_commit(server: FossilServer) -> None:
    large, small = much(server.workspace), propose({"f": b"1"}, slot="b")
    answers: list[Callable[[], Any]] = []

    def fence(proposal: Proposal) -> None:
        if proposal == large and not answers:
            answers.append(writer.ask(small))

    with RunningWriter(server.workspace, fence=fence) as writer:
        landed = writer.commit(large)
        other = answers[0]()
        assert landed.parent == other.checkin
        eventually(lambda: os.listdir(server.workspace.spool) == [])
    assert_sound(server.workspace, [landed, other])
    assert len(files(server.workspace)) == len(large.changes) + 4


def test_what_would_not_land_is_not_sent_ahead(server: FossilServer) -> None:
    large = much(server.workspace)
    stale = large.changes[-1].replace(base_kind="file", base_hash=name_of(b"what never was"))
    with RunningWriter(server.workspace) as writer:
        conflicts = writer.commit(large.replace(changes=(*large.changes[:-1], stale)))
    assert [one.path for one in conflicts] == [stale.path]
    with Repository(server.workspace.repository) as repository:
        assert not any(map(repository.has, large.spooled))
    assert_sound(server.workspace, [])


def test_a_leaf_that_is_superseded_meanwhile_lands_nothing(server: FossilServer) -> None:
    asked = []

    def fence(proposal: Proposal) -> LeaseLost | None:
        asked.append(proposal)
        return LeaseLost("superseded", reason="superseded") if len(asked) > 2 else None

    with RunningWriter(server.workspace, fence=fence) as writer:
        refused = writer.commit(much(server.workspace))
    assert isinstance(refused, LeaseLost)
    assert len(asked) == 3
    assert_sound(server.workspace, [])


@pytest.mark.parametrize(("content", "reason"), [(None, "missing"), (b"x", "damaged")])
def test_a_content_that_is_not_what_it_is_called_is_named_by_its_path(
    server: FossilServer, content: bytes | None, reason: str
) -> None:
    large = much(server.workspace)
    path = Path(server.workspace.spool, large.spooled[-1])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with RunningWriter(server.workspace) as writer:
        refused = writer.commit(large)
    assert isinstance(refused, Refused)
    assert refused.reason == f"content-{reason}"
    assert f"much/{len(large.changes) - 1}" in str(refused)
    assert_sound(server.workspace, [])
