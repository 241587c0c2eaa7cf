"""Which port a server gets, and who has it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Refused
from hub import ports
from hub.ports import any_free, check_pins, choose, holder_of, is_free, listener_inodes, parse
from tests.support import CODE, free_port, taken_port


def test_the_pinned_port_is_used_though_others_are_preferred() -> None:
    pinned, other = free_port(), free_port()
    assert choose("nats", pinned=pinned, preferred=[other]) == pinned


def test_the_first_free_of_the_preferred_is_used() -> None:
    free = free_port()
    with taken_port() as taken:
        assert choose("nats", pinned=None, preferred=[None, taken, free]) == free
        other = choose("nats", pinned=None, preferred=[None, taken])
        assert other not in (None, taken)
        assert is_free(other)


def test_a_taken_pinned_port_names_its_holder() -> None:
    with taken_port() as taken:
        with pytest.raises(Refused) as raised:
            choose("nats", pinned=taken, preferred=[])
        assert raised.value.reason == "port-taken"
        assert f"port {taken}" in str(raised.value)
        assert re.search(rf"pid {os.getpid()} \(.+\)", str(raised.value))
        assert not is_free(taken)
        assert len(listener_inodes(taken)) == 1
    assert is_free(taken)
    assert holder_of(taken) is None


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("1", 1), ("65535", 65535), ("08765", 8765), ("0", None), ("65536", None), ("", None),
        ("-1", None), ("+1", None), (" 1", None), ("1e3", None), ("٣", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_a_text_is_a_port_or_none(text: str, port: int | None) -> None:
    assert parse(text) == port


def test_both_servers_cannot_be_pinned_to_one_port() -> None:
    for fossil, nats in ((None, None), (9000, None), (None, 9000), (9000, 9001)):
        check_pins(fossil, nats)
    with pytest.raises(Refused) as raised:
        check_pins(9000, 9000)
    assert raised.value.reason == "port-invalid"
    assert str(raised.value) == "--fossil-port and --nats-port are both 9000; they must differ"


@given(st.integers(max_value=0) | st.integers(min_value=65536))
def test_a_number_that_is_no_port_is_refused(number: int) -> None:
    with pytest.raises(Refused) as raised:
        choose("fossil", pinned=number, preferred=[])
    assert raised.value.reason == "port-invalid"


def test_a_listener_on_all_addresses_counts() -> None:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert not is_free(port)
        assert holder_of(port) is not None


def test_a_connection_in_time_wait_does_not_hold_a_port() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _address = server.accept()
        served.close()  # the side that closes first waits
        client.recv(1)
        client.close()
    assert is_free(port)


def test_a_free_port_is_none_of_those_for_outgoing_connections() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        low, high = map(int, file.read().split())
    chosen = {any_free() for _turn in range(50)}
    assert all(is_free(port) for port in chosen)
    if low > ports._LOWEST + 1000:
        assert not [port for port in chosen if low <= port <= high]
    assert len(chosen) > 40


def test_without_a_port_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_bind", lambda _port: None)
    with pytest.raises(OSError, match="no free port"):
        any_free()


NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import encodings.ascii, pwd
import hub.ports, foundation.errors
os.setgid(65534)
os.setuid(65534)
try:
    print(hub.ports.choose("nats", pinned=80, preferred=[]))
except foundation.errors.Refused as error:
    print(error.reason, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_port_that_is_only_root_s_is_not_called_taken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, CODE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if done.stdout == "80\n":
        pytest.skip("anybody may bind port 80 here")
    assert not done.stdout.startswith("port-taken"), done.stdout
    assert "1024" in done.stdout or "privilege" in done.stdout or "root" in done.stdout
