"""The reader of events: all of them, in order, whatever the servers do meanwhile."""

from __future__ import annotations

import asyncio
import io
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation import codec
from foundation.errors import NotRunning, Refused, Unavailable
from hub.bus import connect, read_url
from hub.event_words import line, summary
from hub.events import Event, read
from hub.eventview import print_events
from hub.trunk.streams import CONFIGS, ensure
from hub.wording import starting
from tests.hub.bus_server import Server, copied_server, free_port, make_workspace
from tests.support import HUB, Hub, copy_workspace, eventually, port_of

if TYPE_CHECKING:
    from foundation.workspace import Workspace

pytestmark = pytest.mark.real


async def publish(workspace: Workspace, numbers: range) -> None:
    async with await connect(workspace, "hub") as bus:
        await ensure(bus, CONFIGS["EVENTS"])
        for number in numbers:
            await bus.publish(
                f"slot.s{number % 3}.event.x",
                codec.dumps({"kind": "x", "data": {"number": number}}).encode(),
                msg_id=str(number),
            )


async def collect(workspace: Workspace, after: int = 0) -> list[Event]:
    return [event async for event in read(workspace, after, find=read_url)]


def said(workspace: Workspace, *, after: int = 0, as_json: bool = False) -> str:
    out = io.StringIO()
    print_events(workspace, after=after, follow=False, as_json=as_json, out=out, find=read_url)
    return out.getvalue()


def test_all_events_come_in_order_and_from_where_one_asks(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(600)))
        events = asyncio.run(collect(server.workspace))
        assert [event.seq for event in events] == list(range(1, 601))
        assert [event.data["number"] for event in events] == list(range(600))
        assert [event.seq for event in asyncio.run(collect(server.workspace, 597))] == [
            598,
            599,
            600,
        ]
        assert asyncio.run(collect(server.workspace, 600)) == []


def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    async def consumers() -> int:
        async with await connect(server.workspace) as bus:
            return int((await bus.call("STREAM.INFO.EVENTS"))["state"]["consumer_count"])

    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(5)))
        asyncio.run(collect(server.workspace))
        assert asyncio.run(consumers()) == 0


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("other_port", [False, True])
def test_a_follower_outlives_the_server_and_misses_nothing(
    tmp_path: Path, *, other_port: bool
) -> None:
    total = 90

    async def follow(seen: list[int]) -> None:
        async with aclosing(read(server.workspace, 0, follow=True, find=read_url)) as events:
            async for event in events:
                seen.append(event.data["number"])
                if len(seen) == total:
                    return

    async def run() -> list[int]:
        seen: list[int] = []
        await publish(server.workspace, range(30))
        async with asyncio.TaskGroup() as group:
            group.create_task(follow(seen))
            for turn in (30, 60):
                await publish(server.workspace, range(turn - 10, turn))  # again: same ids
                server.kill()
                if other_port:
                    server.use_port(free_port())
                await asyncio.to_thread(server.start)
                await publish(server.workspace, range(turn, turn + 30))
        return seen

    with Server(tmp_path) as server:
        assert asyncio.run(asyncio.wait_for(run(), 50)) == list(range(total))


@pytest.mark.faults
def test_what_the_store_lost_is_told_in_its_place(tmp_path: Path) -> None:
    """As after a bit flip in the middle: deletes are denied, so the stream is made without."""

    async def run() -> list[Event]:
        async with await connect(server.workspace, "hub") as bus:
            await ensure(bus, {**CONFIGS["EVENTS"], "deny_delete": False})
            for number in range(6):
                await bus.publish("hub.event.x", b"{}", msg_id=str(number))
            for seq in (3, 4, 6):
                await bus.call("STREAM.MSG.DELETE.EVENTS", {"seq": seq})
        return await collect(server.workspace)

    with Server(tmp_path) as server:
        events = asyncio.run(run())
    assert [event.kind for event in events] == ["x", "x", "missing", "x", "missing"]
    assert events[2].data == {"first": 3, "last": 4}
    assert events[4].data == {"first": 6, "last": 6}
    assert "events 3 to 4 are missing" in line(events[2])


@pytest.mark.faults
def test_a_message_that_rotted_on_disk_is_told_in_its_place(tmp_path: Path) -> None:
    """The server itself does not count it: its state says that nothing is missing."""
    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(9)))
        server.stop()
        (block,) = Path(server.workspace.nats).glob("jetstream/HUB/streams/EVENTS/msgs/*.blk")
        content = bytearray(block.read_bytes())
        content[content.index(b'"number":4') + 9] ^= 1
        block.write_bytes(content)
        server.start()
        events = asyncio.run(collect(server.workspace))
    assert [event.kind for event in events] == ["x"] * 4 + ["missing"] + ["x"] * 4
    assert events[4].data == {"first": 5, "last": 5}


def test_a_message_that_is_no_event_is_shown_as_such(tmp_path: Path) -> None:
    async def run() -> list[Event]:
        async with await connect(server.workspace, "hub") as bus:
            await ensure(bus, CONFIGS["EVENTS"])
            await bus.publish("hub.event.x", b"\xff\x1b[31m", msg_id="1")
            await bus.publish("hub.event.x", b"{}", msg_id="2", headers={"Nats-Stream": "KV"})
            await bus.publish("hub.event.x", b'{"free": "form"}', msg_id="3")
        return await collect(server.workspace)

    with Server(tmp_path) as server:
        events = asyncio.run(run())
    assert [event.kind for event in events] == ["unreadable", "unreadable", "x"]
    assert events[2].data == {"free": "form"}


@pytest.mark.faults
def test_a_message_that_is_no_text_is_shown_in_its_place_and_stops_no_reader(
    tmp_path: Path,
) -> None:
    async def run() -> tuple[list[Event], list[Event]]:
        async with await connect(server.workspace, "hub") as bus:
            await ensure(bus, CONFIGS["EVENTS"])
            await bus._connection.client._send_command(b"PUB slot.s1.event.\xff 2\r\n{}\r\n")
            for _ in range(300):
                await bus.send("slot.s1.event.x", b'{"kind":"x"}')
            await bus.publish("slot.s1.event.last", b"{}", msg_id="last")
        following: list[Event] = []
        async with aclosing(read(server.workspace, follow=True, find=read_url)) as events:
            async with asyncio.timeout(20):
                async for event in events:
                    following.append(event)
                    if event.kind == "last":
                        break
        return await collect(server.workspace), following

    with Server(tmp_path) as server:
        collected, following = asyncio.run(run())
    kinds = [event.kind for event in collected]
    assert kinds == ["unreadable"] + ["x"] * 300 + ["last"]
    assert following == collected


def test_a_position_beyond_the_end_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(2)))
        with pytest.raises(Refused) as refused:
            asyncio.run(collect(server.workspace, 3))
        assert refused.value.reason == "events-replaced"


def test_before_trunk_made_the_stream_there_are_no_events(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        assert asyncio.run(collect(server.workspace)) == []


def test_without_a_hub_the_reader_says_so(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    with pytest.raises(NotRunning) as not_running:
        print_events(workspace, after=0, follow=False, as_json=False, out=io.StringIO())
    assert str(not_running.value) == f"no hub runs in {tmp_path}: `{starting()}`"


def test_a_hub_whose_bus_is_down_says_that_it_may_come_back(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="hub status") as down:
        said(Server(tmp_path).workspace)
    assert down.value.reason == "bus-down"


def test_what_is_written_beside_it_does_not_stand_for_a_hub(tmp_path: Path) -> None:
    """A stopped workspace, or a copied one, whose recorded server answers and knows its key."""
    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(1)))
        for follow in (False, True):
            out = io.StringIO()
            with pytest.raises(NotRunning):
                print_events(server.workspace, after=0, follow=follow, as_json=True, out=out)
            assert out.getvalue() == ""


@pytest.mark.faults
def test_a_follower_waits_while_others_have_the_address_of_its_hub(tmp_path: Path) -> None:
    """First a workspace that refuses its key, then a copy that does not."""

    async def run() -> list[Event]:
        seen: list[Event] = []
        asked = asyncio.Event()

        def find(workspace: Workspace) -> str:
            loop.call_soon_threadsafe(asked.set)
            return read_url(workspace)

        async def follow() -> None:
            async with aclosing(read(server.workspace, follow=True, find=find)) as events:
                async for event in events:
                    seen.append(event)
                    if len(seen) == 2:
                        return

        loop = asyncio.get_running_loop()
        await publish(server.workspace, range(1))
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow())
            await asyncio.to_thread(eventually, lambda: len(seen) == 1)
            server.kill()
            for other in (stranger, copy):
                other.use_port(server.port)
                with other:
                    if other is copy:
                        await publish(copy.workspace, range(10, 13))
                    for _ in range(3):
                        asked.clear()
                        async with asyncio.timeout(20):
                            await asked.wait()
                assert not following.done()
            server.use_port(free_port())
            server.start()
            await publish(server.workspace, range(1, 2))
        return seen

    stranger = Server(tmp_path / "stranger", "original")
    server, copy = copied_server(tmp_path)
    with server:
        events = asyncio.run(asyncio.wait_for(run(), 50))
    assert [event.data["number"] for event in events] == [0, 1]


def test_json_is_one_envelope_with_all_events(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(2)))
        told = codec.loads_object(said(server.workspace, as_json=True))
        assert codec.loads_object(said(server.workspace, after=2, as_json=True))["data"] == {
            "events": []
        }
    assert told["schema"] == {"verb": "hub.events", "version": "v1"}
    assert [event["seq"] for event in told["data"]["events"]] == [1, 2]
    assert set(told["data"]["events"][0]) == {"seq", "time", "subject", "kind", "data"}


def test_for_people_it_is_a_line_an_event(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(2)))
        lines = said(server.workspace).splitlines()
    assert len(lines) == 2
    assert lines[1].split()[0] == "2"
    assert lines[1].endswith("slot.s1.event.x  number=1")


def test_without_a_stdout_nothing_is_followed(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        asyncio.run(publish(server.workspace, range(1)))
        print_events(server.workspace, after=0, follow=True, as_json=True, out=None, find=read_url)
    with pytest.raises(NotRunning):
        print_events(server.workspace, after=0, follow=True, as_json=True, out=None)


# --- `hub events`, with a whole hub ----------------------------------------------------------


@contextmanager
def _following(hub: Hub, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``hub events -f`` in the workspace of *hub*."""
    follower = subprocess.Popen(
        [HUB, "events", "-f", *options],
        cwd=hub.root,
        bufsize=0,  # what readline would read ahead, select does not see
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with follower:
        try:
            yield follower
        finally:
            follower.kill()


def _line(follower: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert follower.stdout is not None
    readable, _, _ = select.select([follower.stdout], [], [], 20)
    assert readable
    return codec.loads_object(follower.stdout.readline())


def _stderr(follower: subprocess.Popen[bytes]) -> bytes:
    assert follower.stderr is not None
    return follower.stderr.read()


def _shell(hub: Hub, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}", HUB],
        cwd=hub.root, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_following_prints_an_event_an_envelope_and_says_that_it_was_interrupted(
    hub: Hub,
) -> None:
    hub.start()
    hub.wait_ready()
    with _following(hub, "--json") as follower:
        first = _line(follower)
        assert first["schema"] == {"verb": "hub.events", "version": "v1"}
        assert set(first["data"]) == {"seq", "time", "subject", "kind", "data"}
        assert first["data"]["kind"] == "ready"
        told = [first]
        asyncio.run(publish(hub.workspace, range(2, 3)))
        while told[-1]["data"]["data"] != {"number": 2}:  # a new trunk has a check-in to announce
            told.append(_line(follower))
        assert [line["data"]["seq"] for line in told] == list(range(1, len(told) + 1))
        assert {line["data"]["kind"] for line in told} <= {"ready", "checkin", "x"}
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130
        assert _stderr(follower) == b""


@pytest.mark.faults
def test_a_follower_goes_on_when_its_hub_comes_back_on_another_port(hub: Hub) -> None:
    old = hub.start()
    hub.wait_ready()
    with _following(hub, "--json") as follower:
        assert _line(follower)["data"]["kind"] == "ready"
        hub.stop()
        assert hub.run("events").returncode == 3
        stranger = Server(hub.root.parent / "stranger")
        stranger.use_port(port_of(old["nats_url"]))
        with stranger:
            assert hub.run("events").returncode == 3
            new = hub.start()
            assert new["nats_url"] != old["nats_url"]
            kinds = []
            while "ready" not in kinds:
                kinds.append(_line(follower)["data"]["kind"])
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130
        assert _stderr(follower) == b""


@pytest.mark.faults
def test_a_copy_without_a_hub_does_not_show_the_events_of_the_original(hub: Hub) -> None:
    hub.start()
    hub.wait_ready()
    assert hub.run("events").stdout != ""
    copy_workspace(hub.root, hub.root.parent / "copy")
    for options in ([], ["--json"], ["-f"]):
        done = Hub(hub.root.parent / "copy").run("events", *options)
        assert done.returncode == 3, done.stdout
        assert "ready in" not in done.stdout


def test_a_reader_that_went_away_ends_a_follower_without_a_word_and_without_an_event(
    hub: Hub,
) -> None:
    hub.start()
    hub.wait_ready()
    with _following(hub, "--json") as follower:
        _line(follower)
        assert follower.stdout is not None
        follower.stdout.close()
        assert follower.wait(10) == 0
        assert _stderr(follower) == b""


def test_a_stdout_that_takes_nothing_ends_it_in_at_most_a_line(hub: Hub) -> None:
    hub.start()
    hub.wait_ready()
    asyncio.run(publish(hub.workspace, range(300)))
    for options in ("", "--json", "-f", "-f --json"):
        headed = _shell(hub, f'"$0" events {options} | head -c 1')
        assert (headed.returncode, headed.stderr) == (0, ""), options
        closed = _shell(hub, f'"$0" events {options} >&-')
        assert (closed.returncode, closed.stderr) == (0, ""), options
        full = _shell(hub, f'"$0" events {options} > /dev/full')
        assert (full.returncode, full.stderr) == (1, "hub: No space left on device\n"), options


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (
            "child-exited",
            {"child": "nats", "pid": 7, "status": -9, "uptime_s": 61.234},
            "nats was ended by signal 9 after 61.2 s (pid 7)",
        ),
        (
            "child-exited",
            {"child": "fossil", "pid": 7, "status": 1, "uptime_s": 1},
            "fossil exited with 1 after 1 s (pid 7)",
        ),
        (
            "child-restarted",
            {"child": "nats", "pid": 8, "restarts": 2, "down_ms": 12},
            "nats restarted in 12 ms (pid 8, restart 2)",
        ),
        ("failed", {"child": "nats", "reason": "5 exits in 30 s"}, "nats failed: 5 exits in 30 s"),
        ("stopping", {}, "stopping: ?"),
        ("stopping", {"reason": "a\x1b[31m\nb"}, "stopping: a?[31m?b"),
        ("ready", {"pid": [1], "took_ms": {"a": 1}}, "ready in a=1 ms: ? ? (pid [1])"),
        (
            "checkin",
            {"checkin": "0123456789abcdef", "slot": "auth", "message": "Mend\n\nit", "count": 2},
            "auth 0123456789 Mend (2 files)",
        ),
        (
            "checkin",
            {"checkin": "0123456789abcdef", "slot": "auth", "message": "Mend", "count": 1},
            "auth 0123456789 Mend (1 file)",
        ),
        ("something-new", {"a": 1, "b": [2]}, "a=1 b=[2]"),
    ],
)
def test_a_summary_says_what_happened(kind: str, data: dict[str, Any], words: str) -> None:
    event = Event(seq=1, time="2026-01-01T00:00:00.000Z", subject="hub.event.x", kind=kind,
                  data=data)  # fmt: skip
    assert summary(event) == words


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (
            "joined",
            {"task": "keys", "pid": 7, "worktree": "/w", "checkin": "0123456789abcdef"},
            "joined at 0123456789 (pid 7) keys",
        ),
        (
            "conflict",
            {"paths": ["a", "b c"], "count": 2},
            "refused, others have changed the same in 2 files: a b c",
        ),
        ("run-started", {"pid": 8, "argv": ["sh", "-c", "x"]}, "runs sh -c x (pid 8)"),
        ("run-ended", {"status": -9, "checkin": ""}, "the agent was ended by signal 9"),
        ("closed", {"result": "fail", "summary": "gave up"}, "closed (fail) gave up"),
        ("of-another", {"paths": ["a"]}, 'paths=["a"]'),
    ],
)
def test_what_a_slot_announces_is_said_in_words(
    kind: str, data: dict[str, Any], words: str
) -> None:
    event = Event(seq=1, time="", subject=f"slot.a.event.{kind}", kind=kind, data=data)
    assert summary(event) == words


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("running", {"pid": 7, "ip": "10.77.0.11"}, "runs at 10.77.0.11 (pid 7)"),
        (
            "error",
            {"pid": 0, "ip": "", "reason": "vm-died", "was": "running", "error": "it ended"},
            "failed (vm-died, was running): it ended",
        ),
        ("stopped", {"pid": 0, "ip": ""}, "stopped"),
        ("gateway-failed", {"error": "it died"}, "has no way out of its network: it died"),
        ("gateway-restarted", {"error": "it died"}, "has its way out again"),
        (
            "forward-lost",
            {"host_port": 8080, "error": "taken"},
            "port 8080 no longer leads to it: taken",
        ),
        ("of-another", {"x": 1}, "x=1"),
    ],
)
def test_what_becomes_of_a_vm_is_said_in_words(kind: str, data: dict[str, Any], words: str) -> None:
    event = Event(seq=1, time="", subject=f"vm.web.web-1.event.{kind}", kind=kind, data=data)
    assert summary(event) == words


def test_a_line_shows_nothing_that_a_terminal_would_act_on() -> None:
    event = Event(seq=1, time="\x1b[2J\ud800", subject="slot.\x1b]0;x", kind="b",
                  data={"\x07": "\r"})  # fmt: skip
    assert line(event) == "     1  ?[2J?  slot.?]0;x  ?=?"


def test_a_line_shows_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-2")
    import time  # noqa: PLC0415

    time.tzset()
    event = Event(seq=12, time="2026-01-01T00:00:00.000Z", subject="slot.a.event.b", kind="b",
                  data={})  # fmt: skip
    assert line(event) == "    12  2026-01-01 02:00:00  slot.a.event.b"
    monkeypatch.undo()
    time.tzset()
    assert os.environ.get("TZ") != "Etc/GMT-2"
