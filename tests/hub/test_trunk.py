"""The trunk process: every event of the outbox on the bus once, in order, whatever dies."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation import codec
from hub import outbox
from hub.bus import StreamRefused, connect
from hub.creds import seed_path
from hub.outbox import Outbox
from hub.trunk.announcer import Announcer
from hub.trunk.streams import CONFIGS, Mark, StreamState, ensure
from tests.hub.bus_server import Server, Trunk, copied_server, fill, free_port
from tests.support import eventually

if TYPE_CHECKING:
    from foundation.workspace import Workspace
    from hub.bus import Bus

pytestmark = pytest.mark.real


async def _stored(workspace: Workspace) -> list[dict[str, Any]]:
    async with await connect(workspace, "operator") as bus:
        state = (await bus.call("STREAM.INFO.EVENTS"))["state"]
        if not state["messages"]:
            return []
        return [
            {"subject": message["subject"], **codec.loads_object(_decoded(message["data"]))}
            for seq in range(int(state["first_seq"]), int(state["last_seq"]) + 1)
            if (message := (await bus.call("STREAM.MSG.GET.EVENTS", {"seq": seq}))["message"])
        ]


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)


def stored(workspace: Workspace) -> list[dict[str, Any]]:
    """Return every event in the stream, in its order."""
    return asyncio.run(_stored(workspace))


def published(workspace: Workspace) -> list[int]:
    return [event["seq"] for event in stored(workspace)]


def count(workspace: Workspace) -> int:
    async def ask() -> int:
        async with await connect(workspace, "operator") as bus:
            return int((await bus.call("STREAM.INFO.EVENTS"))["state"]["messages"])

    return asyncio.run(ask())


def test_ready_means_that_what_was_in_the_outbox_is_on_the_bus(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        fill(server.workspace, 5, kind="child-exited")
        with Trunk(server.workspace) as trunk:
            trunk.until_ready()
            events = stored(server.workspace)
    assert [event["subject"] for event in events] == ["hub.event.child-exited"] * 5
    assert [event["data"]["number"] for event in events] == list(range(5))
    assert set(events[0]) == {"subject", "seq", "time", "kind", "epoch", "data"}


def test_a_newline_publishes_what_was_appended(tmp_path: Path) -> None:
    with Server(tmp_path) as server, Trunk(server.workspace) as trunk:
        trunk.until_ready()
        box = Outbox(server.workspace.outbox, epoch=2)
        for number in range(1, 4):
            box.append("ready", {})
            trunk.wake()
            eventually(lambda due=number: count(server.workspace) == due)  # type: ignore[misc]
        box.close()
        assert published(server.workspace) == [1, 2, 3]


@pytest.mark.faults
def test_a_trunk_started_again_publishes_nothing_twice(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        for turn in range(1, 4):
            fill(server.workspace, 3)
            with Trunk(server.workspace) as trunk:
                trunk.until_ready()
                assert published(server.workspace) == list(range(1, 3 * turn + 1))


@pytest.mark.faults
@pytest.mark.slow
def test_kill_9_of_trunk_and_of_nats_in_mid_publishing_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    total = 1200
    with Server(tmp_path) as server:
        fill(server.workspace, total)
        for turn in range(1, 4):
            with Trunk(server.workspace) as trunk:
                eventually(_reached(server.workspace, turn * total // 5), 30)
                trunk.kill()
        with Trunk(server.workspace) as trunk:
            eventually(_reached(server.workspace, 4 * total // 5), 30)
            server.kill()
            server.start()
            trunk.until_ready()
        assert published(server.workspace) == list(range(1, total + 1))


def _reached(workspace: Workspace, due: int) -> Any:
    def holds() -> bool:
        try:
            return count(workspace) >= due
        except StreamRefused:  # not made yet
            return False

    return holds


@pytest.mark.faults
def test_trunk_outlives_the_server_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with Server(tmp_path) as server, Trunk(server.workspace) as trunk:
        trunk.until_ready()
        for turn in range(1, 4):
            server.kill()
            fill(server.workspace, 2)
            trunk.wake()
            server.start()
            eventually(lambda due=2 * turn: count(server.workspace) == due)  # type: ignore[misc]
        assert published(server.workspace) == list(range(1, 7))


@pytest.mark.faults
def test_a_server_that_starts_later_is_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path)
    fill(server.workspace, 2)
    with Trunk(server.workspace) as trunk:
        eventually(lambda: bool(trunk.complaints()))
        with server:
            trunk.until_ready()
            assert published(server.workspace) == [1, 2]
    (complaint,) = trunk.complaints()
    assert complaint["event"] == "bus-failed"
    assert complaint["reason"] == "not-running"


@pytest.mark.faults
def test_nothing_is_published_into_the_server_of_a_copied_workspace(tmp_path: Path) -> None:
    """It knows our keys, and got the port that ours had until it was killed."""
    server, copy = copied_server(tmp_path)
    with server, Trunk(server.workspace) as trunk:
        fill(server.workspace, 1)
        trunk.until_ready()
        server.kill()
        copy.use_port(server.port)
        with copy:
            fill(server.workspace, 2)
            trunk.wake()
            eventually(lambda: "bus-foreign" in [line.get("reason") for line in trunk.logged()])
            server.use_port(free_port())
            server.start()
            eventually(lambda: count(server.workspace) == 3)
            with pytest.raises(StreamRefused):
                count(copy.workspace)


@pytest.mark.faults
def test_a_server_that_refuses_our_key_is_waited_out(tmp_path: Path) -> None:
    """As a port that became another workspace's, before ours is back on a new one."""
    stranger, server = Server(tmp_path / "stranger"), Server(tmp_path / "mine")
    own = server.port
    server.use_port(stranger.port)
    fill(server.workspace, 1)
    with stranger, Trunk(server.workspace) as trunk:
        eventually(lambda: bool(trunk.complaints()))
        server.use_port(own)
        with server:
            trunk.until_ready()
            assert published(server.workspace) == [1]
    assert [line["reason"] for line in trunk.complaints()] == ["denied"]


@pytest.mark.faults
@pytest.mark.parametrize("damage", [b"", b"junk\n"])
def test_a_damaged_key_is_named_and_trunk_waits_for_a_sound_one(
    tmp_path: Path, damage: bytes
) -> None:
    with Server(tmp_path) as server:
        path = Path(seed_path(server.workspace, "hub"))
        sound = path.read_bytes()
        path.write_bytes(damage)
        with Trunk(server.workspace) as trunk:
            eventually(lambda: bool(trunk.complaints()))
            path.write_bytes(sound)
            trunk.until_ready()
    (complaint,) = trunk.complaints()
    assert complaint["reason"] == "creds-missing"
    assert str(path) in complaint["error"]
    assert "hub restart" in complaint["error"]


@pytest.mark.faults
def test_sigterm_ends_it_at_once_even_when_the_server_hangs(tmp_path: Path) -> None:
    with Server(tmp_path) as server, Trunk(server.workspace) as trunk:
        trunk.until_ready()
        server.process.send_signal(signal.SIGSTOP)
        fill(server.workspace, 1)
        trunk.wake()
        started = time.monotonic()
        trunk.process.terminate()
        assert trunk.ended_within(5) == 0
        assert time.monotonic() - started < 1.0


def test_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    with Server(tmp_path) as server, Trunk(server.workspace) as trunk:
        trunk.until_ready()
        trunk.stdin.close()
        assert trunk.ended_within(5) == 0
        assert trunk.stdout.read() == b""
    assert trunk.complaints() == []


@pytest.mark.faults
def test_the_end_of_stdin_ends_it_also_before_it_is_ready(tmp_path: Path) -> None:
    with Trunk(Server(tmp_path).workspace) as trunk:
        eventually(lambda: bool(trunk.complaints()))
        trunk.stdin.close()
        assert trunk.ended_within(5) == 0


def test_events_that_were_given_up_are_told_as_lost(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        box = Outbox(server.workspace.outbox, rotate_at_bytes=500)
        for _ in range(50):
            box.append("ready", {})
        first = outbox.read_after(server.workspace.outbox, 0)[0].seq
        with Trunk(server.workspace) as trunk:
            trunk.until_ready()
            events = stored(server.workspace)
            box.append("x", {"not json": object()})  # a gap as a full disk leaves it
            box.append("ready", {})
            trunk.wake()
            eventually(lambda: count(server.workspace) == len(events) + 2)
            later = stored(server.workspace)[len(events) :]
        box.close()
    assert events[0]["kind"] == "events-lost"
    assert events[0]["data"] == {"first": 1, "last": first - 1, "count": first - 1}
    assert [event["seq"] for event in events[1:]] == list(range(first, 51))
    assert [event["kind"] for event in later] == ["events-lost", "ready"]
    assert later[0]["data"] == {"first": 51, "last": 51, "count": 1}


def test_an_outbox_that_was_deleted_starts_again_without_being_mistaken(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        for _ in range(2):
            fill(server.workspace, 3)
            with Trunk(server.workspace) as trunk:
                trunk.until_ready()
            for name in os.listdir(server.workspace.outbox):
                os.unlink(f"{server.workspace.outbox}/{name}")
        assert published(server.workspace) == [1, 2, 3, 1, 2, 3]


async def test_no_event_is_doubled_after_the_dedup_window(server: Server) -> None:
    """Two publishers that both believe that they are at the beginning, and no window."""

    async def _numbers(bus: Bus) -> int:
        return int((await bus.call("STREAM.INFO.EVENTS"))["state"]["messages"])

    config = {**CONFIGS["EVENTS"], "duplicate_window": 100_000_000}
    async with await connect(server.workspace, "hub") as bus:
        await ensure(bus, config)
        stale = Announcer(bus, server.workspace.outbox)
        assert await stale.drain() == 0
        assert await Announcer(bus, server.workspace.outbox).drain() == 0
        fill(server.workspace, 3)
        assert await Announcer(bus, server.workspace.outbox).drain() == 3
        await asyncio.sleep(0.3)  # the window has to pass; nothing signals that
        assert await stale.drain() == 0
        assert await _numbers(bus) == 3


async def test_a_message_of_somebody_elses_does_not_hide_how_far_we_got(server: Server) -> None:
    async with await connect(server.workspace, "hub") as bus:
        await ensure(bus, CONFIGS["EVENTS"])
        fill(server.workspace, 3)
        assert await Announcer(bus, server.workspace.outbox).drain() == 3
        await bus.publish("slot.a.event.x", b"{}", msg_id="a")
        await bus.publish("hub.event.forged", b"{}", msg_id="b")
        await bus.publish("slot.a.event.x", b"{}", msg_id="c")
        fill(server.workspace, 1)
        assert await Announcer(bus, server.workspace.outbox).drain() == 1


async def test_a_stream_with_another_configuration_is_brought_into_line(server: Server) -> None:
    async with await connect(server.workspace, "hub") as bus:
        other = {**CONFIGS["EVENTS"], "duplicate_window": 1_000_000_000, "allow_atomic": False}
        await ensure(bus, {**other, "subjects": ["hub.event.>"]})
        await bus.publish("hub.event.x", b"{}", msg_id="1")
        assert (await ensure(bus, CONFIGS["EVENTS"])).last_seq == 1
        config = (await bus.call("STREAM.INFO.EVENTS"))["config"]
        assert {key: config[key] for key in CONFIGS["EVENTS"] if config.get(key)} == {
            key: value for key, value in CONFIGS["EVENTS"].items() if value
        }


def test_a_stream_that_cannot_be_changed_is_named_and_nothing_is_ready(tmp_path: Path) -> None:
    async def in_memory() -> None:
        async with await connect(server.workspace, "hub") as bus:
            await bus.call("STREAM.CREATE.EVENTS", {**CONFIGS["EVENTS"], "storage": "memory"})

    with Server(tmp_path) as server:
        asyncio.run(in_memory())
        with Trunk(server.workspace) as trunk:
            eventually(lambda: bool(trunk.complaints()))
            trunk.stdin.close()
            assert trunk.stdout.read() == b""
    complaint = trunk.complaints()[0]
    assert complaint["reason"] == "stream-config"
    assert "storage" in complaint["error"]


@pytest.mark.faults
def test_a_store_that_forgot_is_reported_once(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        fill(server.workspace, 5)
        with Trunk(server.workspace) as trunk:
            trunk.until_ready()
        server.kill()
        (block,) = Path(server.workspace.nats).glob("jetstream/HUB/streams/EVENTS/msgs/*.blk")
        block.with_name("index.db").unlink(missing_ok=True)
        content = bytearray(block.read_bytes())
        content[len(content) // 2] ^= 1
        block.write_bytes(content)
        server.start()
        for _ in range(2):
            with Trunk(server.workspace) as trunk:
                trunk.until_ready()
        reports = [event for event in stored(server.workspace) if event["kind"] == "store-damaged"]
    assert len(reports) == 1
    assert reports[0]["data"]["expected"]["last_seq"] == 5
    assert reports[0]["data"]["found"]["last_seq"] < 5
    assert [line["level"] for line in trunk.logged() if line["event"] == "store-damaged"] == [
        "error"
    ]


@pytest.mark.faults
def test_a_stream_whose_metadata_was_damaged_keeps_its_events(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        fill(server.workspace, 5)
        with Trunk(server.workspace) as trunk:
            trunk.until_ready()
        server.stop()
        (meta,) = Path(server.workspace.nats).glob("jetstream/HUB/streams/EVENTS/meta.inf")
        meta.write_bytes(meta.read_bytes()[:-20])
        server.start()
        fill(server.workspace, 1)
        with Trunk(server.workspace) as trunk:
            trunk.until_ready()
        assert published(server.workspace) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"last_seq":"x"}', b"\xff"])
def test_a_damaged_mark_proves_nothing(tmp_path: Path, content: bytes) -> None:
    workspace = Server(tmp_path).workspace
    Path(workspace.nats, "events.mark").write_bytes(content)
    mark = Mark(workspace)
    assert mark.damage(StreamState(created="x", last_seq=0, deleted=0)) is None
    mark.note(StreamState(created="x", last_seq=7, deleted=0))
    again = Mark(workspace)
    assert again.damage(StreamState(created="x", last_seq=6, deleted=0)) is not None
    assert again.damage(StreamState(created="x", last_seq=7, deleted=1)) is not None
    assert again.damage(StreamState(created="y", last_seq=7, deleted=0)) is None
    assert again.damage(StreamState(created="x", last_seq=8, deleted=0)) is None


def test_everything_is_loaded_before_it_is_ready(tmp_path: Path) -> None:
    """An upgrade under a running hub must not put new modules into old code."""

    def imports() -> int:
        return trunk.log.read_bytes().count(b"import time:")

    with Server(tmp_path) as server, Trunk(server.workspace, "-X", "importtime") as trunk:
        trunk.until_ready()
        before = imports()
        assert before > 100
        server.kill()
        fill(server.workspace, 1)
        trunk.wake()
        server.start()
        eventually(lambda: count(server.workspace) == 1)
        assert imports() == before
