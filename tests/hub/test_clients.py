"""Whatever arrives on the control socket, the hub lives and answers the next one."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.control import LINE_LIMIT
from tests.support import CODE, Hub, eventually, is_gone

pytestmark = pytest.mark.real


@contextmanager
def connected(hub: Hub) -> Iterator[socket.socket]:
    directory = os.open(hub.workspace.state, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(f"/proc/self/fd/{directory}/hub.sock")
            yield sock
    finally:
        os.close(directory)


def answers(hub: Hub, *requests: Any) -> list[dict[str, Any]]:
    """Return the answers to *requests*: dicts, or bytes to be sent as they are."""
    with connected(hub) as sock, sock.makefile("rwb") as lines:
        for request in requests:
            line = request if isinstance(request, bytes) else json.dumps(request).encode()
            lines.write(line + b"\n")
        lines.flush()
        return [json.loads(lines.readline()) for _request in requests]


def well(hub: Hub) -> bool:
    (answer,) = answers(hub, {"v": 1, "verb": "status"})
    return bool(answer["data"]["phase"] == "ready")


def test_requests_are_answered_in_their_order(hub: Hub) -> None:
    info = hub.start()
    one, two, three = answers(
        hub, {"v": 1, "verb": "status"}, {"v": 1, "verb": "start"}, {"v": 1, "verb": "dance"}
    )
    assert one["data"]["info"] == info
    assert two["data"] == info
    assert three["error"]["reason"] == "unknown-verb"
    assert "dance" in three["error"]["message"]


@pytest.mark.parametrize("version", [0, 2, 99, -1, "1", None, [], {}, 1e99])
def test_another_version_is_told_both(hub: Hub, version: Any) -> None:
    hub.start()
    (answer,) = answers(hub, {"v": version, "verb": "status"})
    assert answer["v"] == 1
    assert answer["error"]["reason"] == "protocol-version"
    assert answer["error"]["kind"] == "Unavailable"
    (answer,) = answers(hub, {"verb": "status"})
    assert answer["error"]["reason"] == "protocol-version"


def test_a_stop_is_understood_whatever_its_version(hub: Hub) -> None:
    info = hub.start()
    answers(hub, {"v": 99, "verb": "stop"})
    eventually(lambda: is_gone(info["pid"]))


NEWER = """
import json, os, socket, sys
from foundation import control
listener = socket.socket(fileno=control.listen(sys.argv[1]).detach())
print("listening", flush=True)
while True:
    client, _ = listener.accept()
    client.recv(65536)
    client.sendall(b'{"v": 99, "data": {}}\\n')
    client.close()
"""


def test_a_hub_of_another_version_is_exit_75(hub: Hub) -> None:
    hub.start()
    hub.stop()
    with subprocess.Popen(
        [sys.executable, "-c", NEWER, hub.workspace.socket],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    ) as newer:
        assert newer.stdout is not None
        newer.stdout.readline()
        try:
            done = hub.run("start", "--detach")
            assert done.returncode == 75
            assert "version 99" in done.stderr
            assert "version 1" in done.stderr
            assert hub.run("status").returncode == 4
        finally:
            newer.kill()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "v": JSON | st.just(1),
        "verb": JSON | st.sampled_from(["status", "start", "show"]),
        "reason": JSON,
        "arguments": JSON | st.lists(st.text(max_size=5), max_size=3),
    },
)


@pytest.mark.faults
def test_hostile_bytes_hurt_nobody(hub: Hub) -> None:
    info = hub.start()

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=200),
                REQUESTS.map(lambda r: json.dumps(r).encode() + b"\n"),
                st.just(b"x" * (LINE_LIMIT + 2)),
                st.just(b"[" * 50_000 + b"\n"),
                st.just(b"\n" * 1000),
            ),
            max_size=5,
        ),
        st.sampled_from(["close", "half", "reset", "read"]),
    )
    def attack(chunks: list[bytes], end: str) -> None:
        with connected(hub) as sock:
            try:
                for chunk in chunks:
                    sock.sendall(chunk)
                if end == "half":
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                elif end == "read" and chunks:
                    sock.settimeout(0.001)
                    sock.recv(100)
            except OSError:
                pass  # it had enough of us

    attack()
    assert well(hub)
    assert hub.status()["info"] == info
    assert "Traceback" not in hub.log("hub")
    assert len(hub.logged("ready")) == 1


@pytest.mark.faults
def test_a_client_that_never_reads_or_never_finishes_holds_nobody_up(hub: Hub) -> None:
    info = hub.start()
    with connected(hub) as deaf, connected(hub) as slow:
        deaf.settimeout(0.2)
        try:
            for _turn in range(5000):
                deaf.sendall(b'{"v":1,"verb":"status"}\n')
        except OSError:
            pass
        slow.sendall(b'{"v":1,"verb":')
        assert well(hub)
        hub.stop()
        assert is_gone(info["pid"])


@pytest.mark.faults
def test_more_clients_than_descriptors_do_not_stop_the_hub(hub: Hub) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

    done = subprocess.run(
        [CODE / "bin/hub", "start", "--detach"],
        cwd=hub.root,
        preexec_fn=few,
        check=True,
        capture_output=True,
    )
    assert done.returncode == 0
    hub.wait_ready()
    pid = hub.pids()["hub"]
    crowd = []
    directory = os.open(hub.workspace.state, os.O_PATH)
    try:
        for _turn in range(300):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            sock.connect(f"/proc/self/fd/{directory}/hub.sock")
            crowd.append(sock)
        nats = hub.pids()["nats"]
        os.kill(nats, signal.SIGKILL)
        eventually(lambda: hub.pids()["nats"] != nats, 20)
        before = cpu_ticks(pid)
        gate = threading.Event()
        gate.wait(1.0)
        assert cpu_ticks(pid) - before < 50, "it spins"
    finally:
        for sock in crowd:
            sock.close()
        os.close(directory)
    assert well(hub)
    hub.wait_ready()


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_an_idle_hub_sleeps(hub: Hub) -> None:
    info = hub.start()
    hub.wait_ready()
    before = cpu_ticks(info["pid"])
    threading.Event().wait(1.0)
    assert cpu_ticks(info["pid"]) - before <= 2


def test_a_waiting_client_that_leaves_does_not_end_the_start(hub: Hub, tmp_path: Path) -> None:
    slow = tmp_path / "nats-server"
    from hub.nats import find_server  # noqa: PLC0415

    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow.write_text(f'#!/bin/sh\nread line < {gate}\nexec {find_server()} "$@"\n')
    slow.chmod(0o755)
    starting = hub.begin("start", "--detach", HUB_NATS_SERVER=str(slow))
    eventually(lambda: Path(hub.workspace.socket).exists() and len(hub.logged("starting")) == 1)
    waiting = [hub.begin("start", "--detach") for _turn in range(3)]
    with connected(hub) as sock:
        sock.sendall(b'{"v":1,"verb":"start"}\n')
    waiting[0].kill()
    waiting[0].communicate()
    gate.write_text("go\n")
    for process in (starting, *waiting[1:]):
        _out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
    assert hub.status()["state"] == "running"
