"""One question, one answer, never a wait."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hub.probe import Probe
from hub.reactor import Reactor
from tests.support import free_port


@contextmanager
def answering(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def run() -> None:
            client, _address = server.accept()
            with client:
                try:
                    serve(client)
                except OSError:
                    pass

        thread = threading.Thread(target=run)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def ask(port: int, *, until_line: bool = False, timeout_s: float = 5.0) -> tuple[bytes, str]:
    reactor = Reactor()
    answers: list[tuple[bytes, str]] = []

    def done(answer: bytes, error: str) -> None:
        answers.append((answer, error))
        reactor.stop()

    Probe(reactor, port, b"question\n", until_line=until_line, timeout_s=timeout_s, done=done)
    reactor.run()
    assert not reactor._callbacks
    assert not reactor._timers
    reactor.close()
    assert len(answers) == 1
    return answers[0]


def test_an_answer_is_all_until_the_end() -> None:
    def serve(client: socket.socket) -> None:
        assert client.recv(100) == b"question\n"
        for byte in b"line\nanother":
            client.sendall(bytes([byte]))

    with answering(serve) as port:
        assert ask(port) == (b"line\nanother", "")


def test_or_until_the_first_line() -> None:
    gate = threading.Event()

    def serve(client: socket.socket) -> None:
        client.sendall(b"INFO {}\r\nmore")
        gate.wait(5)

    with answering(serve) as port:
        assert ask(port, until_line=True) == (b"INFO {}\r", "")
        gate.set()


def test_nobody_is_an_error_at_once() -> None:
    began_s = time.monotonic()
    assert ask(free_port()) == (b"", "Connection refused")
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("until_line", [True, False])
def test_silence_is_an_error_in_time(*, until_line: bool) -> None:
    gate = threading.Event()
    with answering(lambda _client: bool(gate.wait(5)) and None) as port:  # type: ignore[arg-type]
        assert ask(port, until_line=until_line, timeout_s=0.05) == (b"", "no answer within 0.05 s")
        gate.set()


@pytest.mark.parametrize("until_line", [True, False])
def test_a_closed_door_is_an_error(*, until_line: bool) -> None:
    with answering(lambda _client: None) as port:
        assert ask(port, until_line=until_line)[1] in (
            "closed without an answer",
            "Connection reset by peer",
        )


def test_a_flood_is_cut_off() -> None:
    def serve(client: socket.socket) -> None:
        while True:
            client.sendall(b"x" * 65536)

    with answering(serve) as port:
        answer, error = ask(port, until_line=True)
    assert error
    assert len(answer) < 1024 * 1024


def test_a_cancelled_question_has_no_answer() -> None:
    reactor = Reactor()
    answers: list[bytes] = []
    with answering(lambda client: client.sendall(b"late")) as port:
        probe = Probe(
            reactor,
            port,
            b"q",
            until_line=False,
            timeout_s=5,
            done=lambda answer, _error: answers.append(answer),
        )
        probe.cancel()
        probe.cancel()
        socket.create_connection(("127.0.0.1", port)).close()
    reactor.call_later(0.01, reactor.stop)
    reactor.run()
    assert answers == []
    assert not reactor._callbacks
    reactor.close()
