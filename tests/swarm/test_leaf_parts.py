"""The parts of a leaf that need no hub."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from foundation import codec
from foundation.errors import HubError, Unavailable
from foundation.workspace import Workspace
from hub.bus import connect
from hub.outgoing import KEPT
from hub.trunk.accounts import SUBJECTS, Accounts
from swarm.leaf import joining
from swarm.leaf.agent import LINE_BYTES, MESSAGE_BYTES, Agent
from swarm.leaf.announcing import Announcer
from swarm.leaf.life import NEXT, SERVING
from swarm.leaf.link import Link
from tests.hub.bus_server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hub.bus import Bus
    from swarm.leaf.life import LifeEvent

ANY_TIME: tuple[LifeEvent, ...] = ("hub-lost", "hub-back", "lost", "end")
"""What comes from outside comes when it likes."""


def test_what_comes_from_outside_is_foreseen_in_every_phase() -> None:
    for phase in {*NEXT.values(), *(before for before, _event in NEXT)}:
        for event in ANY_TIME:
            assert (phase, event) in NEXT, (phase, event)


def test_a_close_that_fails_is_foreseen_whatever_has_come_meanwhile() -> None:
    reached = {"closing"}
    while (
        more := {
            after
            for (phase, event), after in NEXT.items()
            if phase in reached and event in ANY_TIME
        }
        - reached
    ):
        reached |= more
    for phase in reached | {"gone"}:
        assert (phase, "kept") in NEXT


def test_nothing_leads_back_from_a_lost_slot() -> None:
    for (phase, _event), after in NEXT.items():
        if phase in ("lost", "gone", "ended"):
            assert after not in SERVING
            assert after != "closing"


def test_a_leaf_away_from_its_hub_keeps_its_latest_events_and_no_more(tmp_path: Path) -> None:
    async def fill() -> int:
        link = Link(Workspace(str(tmp_path)), "alpha", on_change=print, on_superseded=print)
        events = Announcer(link, "alpha", print)
        for number in range(KEPT + 500):
            events.announce("updated", number=number)
        assert not await events.flush(0.01)
        with pytest.raises(Unavailable):
            await events.tell("closed", within_s=0.01)
        return events.waiting

    assert asyncio.run(fill()) == KEPT


def test_without_a_hub_a_request_says_how_to_have_one(tmp_path: Path) -> None:
    async def ask() -> None:
        link = Link(Workspace(str(tmp_path)), "alpha", on_change=print, on_superseded=print)
        await link.request("trunk.request.commit.alpha", b"", within_s=0.01)

    with pytest.raises(HubError, match="`bones up`"):
        asyncio.run(ask())


@pytest.mark.real
@pytest.mark.faults
def test_an_outage_of_the_bus_leaves_nothing_behind_in_a_leaf(tmp_path: Path) -> None:
    async def subscriptions(sys: Bus) -> list[str]:
        subject = f"$SYS.REQ.SERVER.{sys.server_id}.CONNZ"
        answer = await sys.request(subject, b'{"subscriptions": true}')
        connections = codec.loads_object(answer.data)["data"]["connections"]
        return [one for each in connections if each["name"] == "alpha" for one in _listed(each)]

    async def echo(_subject: str, payload: bytes, _headers: Mapping[str, str]) -> bytes:
        return payload

    async def outlive(server: Server) -> tuple[list[str], list[str]]:
        workspace = server.workspace
        turned = asyncio.Event()
        link = Link(workspace, "alpha", on_change=lambda _away: turned.set(), on_superseded=print)

        async def until(*, away: bool) -> None:
            while bool(link.away) is not away:
                turned.clear()
                await turned.wait()

        async with (
            asyncio.timeout(60),
            await connect(workspace, "hub") as trunk,
            await connect(workspace, "sys") as sys,
        ):
            accounts = Accounts(workspace, sys)
            await trunk.serve(SUBJECTS, accounts.answer)
            await trunk.serve("trunk.request.>", echo)
            await link.register(1, 10)
            await link.begin(10)
            before = await subscriptions(sys)
            for _ in range(3):
                server.kill()
                await until(away=True)
                await asyncio.to_thread(server.restart)
                await until(away=False)
            # What is answered came after whatever it has subscribed to.
            assert await link.request("trunk.request.x.alpha", b"!", within_s=20) == b"!"
            await sys.until_connected()
            after = await subscriptions(sys)
            await link.end()
            await accounts.close()
        return before, after

    with Server(tmp_path) as server:
        before, after = asyncio.run(outlive(server))
    assert after == before
    assert "trunk.started" in after


def _listed(connection: dict[str, Any]) -> list[str]:
    return sorted(connection["subscriptions_list"])


def test_no_slot_is_made_on_a_disk_that_is_all_but_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining.require_room(str(tmp_path))
    full = SimpleNamespace(f_bavail=1000, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(Unavailable, match=r"3\.9 MiB are left"):
        joining.require_room(str(tmp_path))


def output_of(script: str, directory: Path) -> tuple[int, list[tuple[int, bytes]]]:
    """Run *script*; return its exit status and the pieces of its output."""

    async def run() -> tuple[int, list[tuple[int, bytes]]]:
        pieces: list[tuple[int, bytes]] = []
        agent = Agent(
            ["/bin/sh", "-c", script],
            environment=dict(os.environ),
            umask=0o027,
            directory=str(directory),
            lines=lambda whole, first: pieces.append((first, whole)),
        )
        return await agent.wait(), pieces

    return asyncio.run(run())


def test_output_comes_as_whole_lines_with_their_numbers(tmp_path: Path) -> None:
    script = "for n in 1 2 3; do printf 'half '; printf 'line %s\\n' $n; done; printf 'the rest'"
    status, pieces = output_of(script, tmp_path)
    assert status == 0
    assert b"".join(whole for _first, whole in pieces) == (
        b"half line 1\nhalf line 2\nhalf line 3\nthe rest\n"
    )
    number = 1
    for first, whole in pieces:
        assert first == number
        assert whole.endswith(b"\n")
        number += whole.count(b"\n")


def test_much_output_comes_in_messages_that_the_bus_takes(tmp_path: Path) -> None:
    script = f"head -c {3 * MESSAGE_BYTES} /dev/zero | tr '\\0' x; seq 20000"
    _status, pieces = output_of(script, tmp_path)
    assert max(len(whole) for _first, whole in pieces) <= MESSAGE_BYTES
    lines = [line for _first, whole in pieces for line in whole.splitlines()]
    assert max(map(len, lines)) == LINE_BYTES
    said = b"".join(whole for _first, whole in pieces).replace(b"\n", b"")
    numbers = b"".join(b"%d" % number for number in range(1, 20001))
    assert said == b"x" * 3 * MESSAGE_BYTES + numbers


def test_what_an_agent_left_running_ends_with_it(tmp_path: Path) -> None:
    status, pieces = output_of("trap '' TERM; sleep 1000 & echo started; exit 7", tmp_path)
    assert (status, pieces) == (7, [(1, b"started\n")])


def test_an_agent_s_files_have_the_modes_of_whoever_ran_it(tmp_path: Path) -> None:
    output_of("echo x > made", tmp_path)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640
