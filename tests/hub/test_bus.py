"""The client: what is acknowledged is stored once, what is denied is an error at once."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path

import pytest

from foundation.errors import HubError, NotRunning, Refused, Unavailable
from hub.bus import WRONG_LAST_SEQUENCE, Bus, Login, StreamRefused, connect
from hub.creds import seed_path
from hub.nats import MAX_PAYLOAD_BYTES, config_path
from hub.trunk.streams import CONFIGS, ensure
from tests.hub.bus_server import Server, copied_server, make_workspace
from tests.support import eventually

pytestmark = pytest.mark.real

SUBJECT = "vm.c.m.event.x"


async def stored(bus: Bus) -> int:
    messages = (await bus.call("STREAM.INFO.EVENTS", within_s=10.0))["state"]["messages"]
    return int(messages)


def test_a_message_sent_twice_is_stored_once(tmp_path: Path) -> None:
    async def twice() -> None:
        async with await connect(server.workspace, "hub") as bus:
            await ensure(bus, CONFIGS["EVENTS"])
            first = await bus.publish(SUBJECT, b"{}", msg_id="1")
            again = await bus.publish(SUBJECT, b"{}", msg_id="1")
            assert (first.seq, first.duplicate) == (1, False)
            assert (again.seq, again.duplicate) == (1, True)
            assert await stored(bus) == 1

    with Server(tmp_path) as server:
        asyncio.run(twice())


@pytest.mark.faults
@pytest.mark.slow
def test_kill_9_of_the_server_while_publishing_loses_nothing_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    total, kills = 600, 4

    async def publish(bus: Bus, done: list[int], worker: int) -> None:
        for number in range(total // 4):
            await bus.publish(SUBJECT, b"{}", msg_id=f"{worker}-{number}", within_s=30.0)
            done.append(number)

    async def kill_at_times(done: list[int]) -> None:
        for turn in range(1, kills + 1):
            due = turn * total // (kills + 1)
            await asyncio.to_thread(eventually, lambda: len(done) >= due)  # noqa: B023 - awaited
            server.kill()
            await asyncio.to_thread(server.start)

    async def run() -> None:
        done: list[int] = []
        async with await connect(server.workspace, "hub") as bus:
            await ensure(bus, CONFIGS["EVENTS"])
            async with asyncio.TaskGroup() as group:
                group.create_task(kill_at_times(done))
                for worker in range(4):
                    group.create_task(publish(bus, done, worker))
            assert len(done) == total
            assert await stored(bus) == total

    with Server(tmp_path) as server:
        asyncio.run(run())


def test_a_denied_publish_fails_at_once_and_the_connection_lives_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            await connect(server.workspace, "hub") as hub,
            await connect(server.workspace, "operator") as operator,
        ):
            await ensure(hub, CONFIGS["EVENTS"])
            started = time.monotonic()
            with pytest.raises(Refused) as refused:
                await operator.publish("hub.event.Ready", b"{}", msg_id="1", within_s=20.0)
            assert refused.value.reason == "denied"
            assert time.monotonic() - started < 5.0
            await operator.publish(SUBJECT, b"{}", msg_id="2")
            assert await stored(operator) == 1

    with Server(tmp_path) as server:
        asyncio.run(run())


def test_a_failed_expectation_says_which(tmp_path: Path) -> None:
    async def run() -> None:
        async with await connect(server.workspace, "hub") as bus:
            await ensure(bus, CONFIGS["EVENTS"])
            expected = {"Nats-Expected-Last-Sequence": "5"}
            with pytest.raises(StreamRefused) as refused:
                await bus.publish(SUBJECT, b"{}", msg_id="1", headers=expected)
            assert refused.value.code == WRONG_LAST_SEQUENCE
            with pytest.raises(StreamRefused) as refused:
                await bus.publish(
                    SUBJECT,
                    b"{}",
                    msg_id="2",
                    headers={
                        "Nats-Expected-Last-Subject-Sequence": "5",
                        "Nats-Expected-Last-Subject-Sequence-Subject": "slot.*.event.>",
                    },
                )
            assert refused.value.code == WRONG_LAST_SEQUENCE

    with Server(tmp_path) as server:
        asyncio.run(run())


def test_a_subject_that_nobody_serves_is_unavailable_by_the_deadline(tmp_path: Path) -> None:
    async def run() -> None:
        async with await connect(server.workspace, "hub") as bus:
            with pytest.raises(Unavailable) as late:
                await bus.publish("nobody.listens", b"", msg_id="1", within_s=0.3)
            assert late.value.reason == "bus-timeout"

    with Server(tmp_path) as server:
        asyncio.run(run())


@pytest.mark.faults
def test_a_server_that_is_gone_makes_requests_fail_by_their_deadline(tmp_path: Path) -> None:
    async def run() -> None:
        async with await connect(server.workspace, "hub") as bus:
            server.kill()
            with pytest.raises(Unavailable):
                await bus.publish(SUBJECT, b"{}", msg_id="1", within_s=0.5)

    with Server(tmp_path) as server:
        asyncio.run(run())


@pytest.mark.faults
def test_a_connection_that_was_refused_on_its_return_says_that_it_is_closed(
    tmp_path: Path,
) -> None:
    """Another workspace's server on our port: asking it again and again leads nowhere."""

    async def run() -> None:
        async with await connect(server.workspace, "hub") as bus:
            server.kill()
            other.use_port(server.port)
            with other:
                async with asyncio.timeout(20):
                    await bus.closed.wait()
                with pytest.raises(Unavailable) as closed:
                    await bus.publish(SUBJECT, b"{}", msg_id="1")
                assert closed.value.reason == "bus-closed"

    other = Server(tmp_path / "other")
    with Server(tmp_path / "mine") as server:
        asyncio.run(run())


def test_no_recorded_address_means_not_running(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    with pytest.raises(NotRunning, match="hub start"):
        asyncio.run(connect(workspace))


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "nats://127.0.0.1:notaport", "nats://h:1:2\0", "nats://127.0.0.1:99999"],
)
def test_a_damaged_address_means_not_running(tmp_path: Path, text: str) -> None:
    workspace = make_workspace(tmp_path)
    Path(workspace.nats_url).write_text(text)
    with pytest.raises(NotRunning):
        asyncio.run(connect(workspace))


def test_an_address_where_nobody_listens_means_not_running(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with pytest.raises(NotRunning):
        asyncio.run(connect(server.workspace))


def test_somebody_else_on_the_port_means_not_running(tmp_path: Path) -> None:
    server = Server(tmp_path)

    def greet() -> None:
        with listener.accept()[0] as peer:
            peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with socket.create_server(("127.0.0.1", server.port)) as listener:
        stranger = threading.Thread(target=greet)
        stranger.start()
        with pytest.raises(NotRunning, match="does not speak NATS"):
            asyncio.run(connect(server.workspace))
        stranger.join()


@pytest.mark.faults
def test_a_listener_that_says_nothing_is_unavailable_by_the_deadline(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(Unavailable),
    ):
        asyncio.run(connect(server.workspace, within_s=0.3))


def test_a_key_that_the_server_does_not_know_is_refused_at_once(tmp_path: Path) -> None:
    stranger = make_workspace(tmp_path / "stranger")
    with Server(tmp_path / "mine") as server:
        Path(stranger.nats_url).write_text(f"nats://127.0.0.1:{server.port}\n")
        started = time.monotonic()
        with pytest.raises(HubError) as refused:
            asyncio.run(connect(stranger, "hub", within_s=20.0))
        assert refused.value.reason == "denied"
        assert time.monotonic() - started < 5.0


@pytest.mark.faults
def test_the_server_of_a_copied_workspace_is_not_ours_although_it_knows_our_keys(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with await connect(server.workspace, "hub") as bus:
            server.kill()
            copy.use_port(server.port)
            with copy:
                async with asyncio.timeout(20):
                    await bus.closed.wait()
                with pytest.raises(Unavailable) as closed:
                    await bus.publish(SUBJECT, b"{}", msg_id="1")
                assert closed.value.reason == "bus-closed"
                with pytest.raises(Unavailable) as foreign:
                    await connect(server.workspace, "hub")
                assert foreign.value.reason == "bus-foreign"

    server, copy = copied_server(tmp_path)
    with server:
        asyncio.run(run())


def test_a_configuration_that_was_removed_locks_nobody_out(tmp_path: Path) -> None:
    async def run() -> None:
        async with await connect(server.workspace, "hub") as bus:
            await ensure(bus, CONFIGS["EVENTS"])

    with Server(tmp_path) as server:
        Path(config_path(server.workspace)).unlink()
        asyncio.run(run())


@pytest.mark.parametrize("damage", [b"", b"SUABC\n", b"\xff"])
def test_a_key_that_is_none_is_named_before_anything_is_asked(
    tmp_path: Path, damage: bytes
) -> None:
    with Server(tmp_path) as server:
        Path(seed_path(server.workspace, "hub")).write_bytes(damage)
        with pytest.raises(Refused, match=r"nats-hub\.nk") as refused:
            asyncio.run(connect(server.workspace, "hub"))
        assert refused.value.reason == "creds-missing"


def test_a_connection_that_was_never_made_can_be_closed() -> None:
    async def run() -> None:
        async with Bus("nats://127.0.0.1:1", Login("", "nobody")) as bus:
            pass
        assert bus.closed.is_set()

    asyncio.run(run())


@pytest.mark.parametrize("subject", ["", "a b", "a..b"])
def test_an_impossible_subject_is_refused_in_our_words(tmp_path: Path, subject: str) -> None:
    async def run() -> None:
        async with await connect(server.workspace, "hub") as bus:
            with pytest.raises(HubError):
                await bus.publish(subject, b"{}", msg_id="1", within_s=0.5)
            with pytest.raises(Refused) as refused:
                await bus.publish(SUBJECT, b"x" * (MAX_PAYLOAD_BYTES + 1), msg_id="2")
            assert refused.value.reason == "bus-impossible"
            await ensure(bus, CONFIGS["EVENTS"])

    with Server(tmp_path) as server:
        asyncio.run(run())


def test_an_answer_that_is_no_acknowledgement_is_said_to_be_none(tmp_path: Path) -> None:
    """A service that listens on a subject which no stream has."""

    async def run() -> None:
        async with (
            await connect(server.workspace, "hub") as bus,
            await connect(server.workspace, "hub") as service,
        ):
            feed = await service.feed()
            for payload in (b"[", b"{}", b'{"seq":"1"}'):
                asking = asyncio.ensure_future(bus.publish(feed.inbox, b"", msg_id="1"))
                question = await feed.next(10.0)
                assert question is not None
                await service.send(question.reply, payload, reply="")
                with pytest.raises(Unavailable) as failed:
                    await asking
                assert failed.value.reason == "bus-failed"

    with Server(tmp_path) as server:
        asyncio.run(run())


@pytest.mark.faults
def test_whatever_is_asked_of_a_closed_connection_fails_in_our_words(tmp_path: Path) -> None:
    async def run() -> None:
        bus = await connect(server.workspace, "hub")
        feed = await bus.feed()
        await bus.close()
        for call in (
            bus.request(SUBJECT),
            bus.publish(SUBJECT, b"", msg_id="1"),
            bus.send(SUBJECT, b"", reply="x"),
            bus.feed(),
            feed.close(),
        ):
            with pytest.raises(Unavailable):
                await call
        await bus.close()

    with Server(tmp_path) as server:
        asyncio.run(run())
