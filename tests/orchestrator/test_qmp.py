"""The client of QEMU's monitor: with a real QEMU that has no machine, and with peers that fail."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from foundation.errors import HubError, Unavailable
from orchestrator.qmp import LINE_LIMIT, Qmp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


@contextmanager
def monitored() -> Generator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Yield our end of the monitor of a QEMU without a machine, and its process."""
    program = shutil.which("qemu-system-x86_64")
    assert program is not None
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    words = ["-M", "none", "-nodefaults", "-no-user-config", "-display", "none"]
    monitor = ["-chardev", f"socket,id=qmp,fd={number}", "-mon", "qmp,mode=control"]
    process = subprocess.Popen([program, *words, *monitor], pass_fds=[number])
    theirs.close()
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def opened(
    **options: Any,
) -> AsyncGenerator[tuple[Qmp, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield a client and the other end of its socket, which has greeted and been answered."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    opening = asyncio.create_task(Qmp.open(ours, **options))
    writer.write(GREETING)
    asked = json.loads(await reader.readline())
    assert asked["execute"] == "qmp_capabilities"
    writer.write(json.dumps({"return": {}, "id": asked["id"]}).encode() + b"\r\n")
    qmp = await opening
    try:
        yield qmp, reader, writer
    finally:
        await qmp.close()
        writer.close()
        await writer.wait_closed()


@pytest.mark.vm
async def test_a_real_qemu_answers_refuses_tells_its_events_and_is_missed_when_it_ends() -> None:
    events: list[str] = []
    with monitored() as (sock, process):
        qmp = await Qmp.open(sock, on_event=lambda name, _data: events.append(name))
        status, version = await asyncio.gather(
            qmp.execute("query-status"), qmp.execute("query-version")
        )
        assert status["status"] == "running"
        assert version["qemu"]["major"] >= 7
        await qmp.execute("stop")
        assert events == ["STOP"]
        assert (await qmp.execute("query-status"))["status"] == "paused"
        assert "unknown command" in await qmp.monitor("no-such-thing")
        with pytest.raises(HubError, match=r"no-such-thing") as refused:
            await qmp.execute("no-such-thing")
        assert refused.value.reason == "qmp-refused"
        process.kill()
        await qmp.wait_closed()
        with pytest.raises(Unavailable) as gone:
            await qmp.execute("query-status")
        assert gone.value.reason == "qmp-gone"
        await qmp.close()


@pytest.mark.vm
def test_it_works_on_the_loop_that_our_processes_use() -> None:
    async def ask() -> str:
        with monitored() as (sock, _process):
            qmp = await Qmp.open(sock)
            status = await qmp.execute("query-status")
            await qmp.close()
            return str(status["status"])

    assert uvloop.run(ask()) == "running"


async def test_a_command_under_way_fails_when_the_other_end_closes() -> None:
    async with opened() as (qmp, reader, writer):
        asking = asyncio.create_task(qmp.execute("query-status"))
        await reader.readline()
        writer.close()
        with pytest.raises(Unavailable) as gone:
            await asking
        assert gone.value.reason == "qmp-gone"


async def test_answers_find_their_commands_whatever_comes_in_between() -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    async with opened(on_event=lambda *event: events.append(event)) as (qmp, reader, writer):
        asking = [asyncio.create_task(qmp.execute("a")), asyncio.create_task(qmp.execute("b"))]
        first, second = [json.loads(await reader.readline())["id"] for _ in asking]
        for message in (
            {"event": "JOB", "data": {"id": 1}},
            {"return": "B", "id": second},
            {"error": {"class": "GenericError", "desc": "nobody asked"}},
            {"return": "stale", "id": 4711},
            {"event": "STOP"},
            {"return": "A", "id": first},
        ):
            line = json.dumps(message).encode() + b"\r\n"
            writer.write(line[:7])
            await writer.drain()
            writer.write(line[7:])
        assert await asyncio.gather(*asking) == ["A", "B"]
        assert events == [("JOB", {"id": 1}), ("STOP", {})]


async def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    async with opened() as (qmp, reader, writer):
        with pytest.raises(Unavailable) as late:
            await qmp.execute("slow", timeout_s=0.01)
        assert late.value.reason == "qmp-no-answer"
        number = json.loads(await reader.readline())["id"]
        writer.write(json.dumps({"return": "late", "id": number}).encode() + b"\n")
        asking = asyncio.create_task(qmp.execute("next"))
        number = json.loads(await reader.readline())["id"]
        writer.write(json.dumps({"return": "in time", "id": number}).encode() + b"\n")
        assert await asking == "in time"


@pytest.mark.parametrize("said", [b"x" * (LINE_LIMIT + 1), b"not json\n", b"[1]\n"])
async def test_what_is_not_the_protocol_ends_the_connection(said: bytes) -> None:
    async with opened() as (qmp, _reader, writer):
        asking = asyncio.create_task(qmp.execute("query-status"))
        writer.write(said)
        with pytest.raises(Unavailable, match="not understood"):
            await asking
        await qmp.wait_closed()


async def test_whoever_never_greets_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(Unavailable) as silent:
            await Qmp.open(ours, timeout_s=0.01)
        assert silent.value.reason == "qmp-no-answer"
        assert ours.fileno() == -1
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(Unavailable) as gone:
        await Qmp.open(ours)
    assert gone.value.reason == "qmp-gone"
