"""The control protocol, piece by piece."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import codec, control
from foundation.control import Connection, LineBuffer
from foundation.errors import HubError, Refused, Unavailable, to_wire


@given(
    st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=6),
    st.binary(max_size=5).map(lambda rest: rest.replace(b"\n", b"")),
)
def test_lines_are_whole_wherever_the_bytes_are_cut(lines: list[bytes], rest: bytes) -> None:
    stream = b"".join(line + b"\n" for line in lines) + rest
    for cut in range(len(stream) + 1):
        buffer = LineBuffer()
        assert buffer.feed(stream[:cut]) + buffer.feed(stream[cut:]) == lines
    buffer = LineBuffer()
    assert [line for byte in stream for line in buffer.feed(bytes([byte]))] == lines


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_a_line_beyond_the_limit_is_refused(newline: bytes) -> None:
    with pytest.raises(ValueError, match="longer"):
        LineBuffer().feed(b"x" * (control.LINE_LIMIT + 1) + newline)
    buffer = LineBuffer()
    assert buffer.feed(b"x" * control.LINE_LIMIT) == []
    assert buffer.feed(b"\n") == [b"x" * control.LINE_LIMIT]
    assert buffer.feed(b"x" * control.LINE_LIMIT) == []
    with pytest.raises(ValueError, match="longer"):
        buffer.feed(b"x")


@contextmanager
def serving(path: str, answer: Callable[[socket.socket, bytes], None]) -> Iterator[None]:
    """Serve one connection at *path*: *answer* gets its socket and the first request."""
    listener = socket.socket(fileno=control.listen(path).detach())

    def serve() -> None:
        with listener.accept()[0] as client:
            request = client.recv(65536)
            if request:
                answer(client, request)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


def ask(path: Path, timeout_s: float = 5, **arguments: Any) -> dict[str, Any]:
    connection = Connection.open(str(path))
    assert connection is not None
    with connection:
        return connection.ask("verb", timeout_s=timeout_s, **arguments)


def test_progress_arrives_before_the_data(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def answer(client: socket.socket, request: bytes) -> None:
        assert codec.loads_object(request) == {"v": 1, "verb": "verb", "a": 1}
        for message in ({"progress": {"done": 1}}, {"progress": 7}, {"data": {"x": "y"}}):
            for byte in control.encode(message):
                client.sendall(bytes([byte]))

    with serving(str(tmp_path / "s"), answer):
        assert ask(tmp_path / "s", progress=seen.append, a=1) == {"x": "y"}
    assert seen == [{"done": 1}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"v":1,"error":{"kind":"Refused","reason":"why","message":"no"}}\n', "why"),
        (b'{"v":2,"data":{}}\n', "protocol-version"),
        (b'{"data":{}}\n', "protocol-version"),
        (b"[]\n", "protocol"),
        (b"{\n", "protocol"),
        (b"\xff\n", "protocol"),
        (b"x" * (control.LINE_LIMIT + 1), "protocol"),
        (b'{"v":1,', "gone"),
        (b"", "gone"),
    ],
)
def test_a_bad_answer_has_a_name(tmp_path: Path, line: bytes, reason: str) -> None:
    with (
        serving(str(tmp_path / "s"), lambda client, _request: client.sendall(line)),
        pytest.raises(HubError) as raised,
    ):
        ask(tmp_path / "s")
    assert raised.value.reason == reason
    if reason == "why":
        assert isinstance(raised.value, Refused)
    if reason == "protocol-version":
        assert raised.value.exit_code == 75
        assert "version 1" in str(raised.value)


def test_an_answer_that_does_not_come_is_a_time_out(tmp_path: Path) -> None:
    done = threading.Event()

    def waits(_client: socket.socket, _request: bytes) -> None:
        done.wait(10)

    with serving(str(tmp_path / "s"), waits):
        try:
            with pytest.raises(Unavailable) as raised:
                ask(tmp_path / "s", timeout_s=0.05)
        finally:
            done.set()
    assert raised.value.reason == "no-answer"


def test_progress_keeps_the_clock_from_running_out(tmp_path: Path) -> None:
    gate = threading.Event()

    def answer(client: socket.socket, _request: bytes) -> None:
        for _turn in range(8):
            client.sendall(control.encode({"progress": {}}))
            gate.wait(0.1)
        client.sendall(control.encode({"data": {}}))

    with serving(str(tmp_path / "s"), answer):
        assert ask(tmp_path / "s", timeout_s=0.5) == {}


def test_the_other_s_end_is_news(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(str(path), lambda client, _request: client.sendall(b"words\n")):
        connection = Connection.open(str(path))
        assert connection is not None
        with connection:
            assert connection.peer_uid() == os.getuid()
            assert not connection.wait_end(0.01)
            os.write(connection.fileno(), b"request\n")
            assert connection.wait_end(5)


def test_nobody_is_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert Connection.open(str(path)) is None
    assert Connection.open(str(tmp_path / "absent/s")) is None
    path.write_text("")
    assert Connection.open(str(path)) is None
    assert Connection.open(f"{path}/below") is None
    control.listen(str(path)).close()
    assert path.is_socket()
    assert Connection.open(str(path)) is None


def test_the_socket_is_its_owner_s_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        control.listen(str(tmp_path / "s")).close()
        assert os.umask(0) == 0, "the umask was not put back"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_a_path_of_any_length_will_do(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory-with-a-long-name"] * 20)
    deep.mkdir(parents=True)
    with serving(
        str(deep / "s"),
        lambda client, _request: client.sendall(control.encode({"data": {"deep": True}})),
    ):
        assert ask(deep / "s") == {"deep": True}


def test_a_directory_in_the_socket_s_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(OSError, match=r".") as raised:
        control.listen(str(tmp_path / "s"))
    assert raised.value.errno in (errno.EISDIR, errno.EPERM)
    assert Connection.open(str(tmp_path / "s")) is None


def test_no_descriptor_is_left_by_any_of_it(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    test_nobody_is_none(tmp_path)
    (tmp_path / "s").unlink()
    test_a_directory_in_the_socket_s_place_is_an_error(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_last_words_of_one_that_closed_before_the_question_are_heard() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(control.encode({"error": to_wire(Refused("no", reason="because"))}))
    theirs.close()
    with Connection(ours) as connection, pytest.raises(Refused, match="no"):
        connection.ask("start", timeout_s=1)
