"""The protocol as bytes: however they arrive, the messages are the same."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.wire import Message, Wire, checked, parse_headers, publish_command

if TYPE_CHECKING:
    from collections.abc import Callable

GREETING = b'INFO {"server_id":"N1","max_payload":10}\r\n'
TRAFFIC = (
    GREETING
    + b"MSG a.b 1 3\r\nxyz\r\n"
    + b"PING\r\n"
    + b"MSG a.b 2 _INBOX_x.1 5\r\n\r\nMSG\r\n"
    + b"HMSG a.b 1 18 20\r\nNATS/1.0\r\nK: v\r\n\r\nhi\r\n"
    + b"HMSG _INBOX_x.1 1 $JS.ACK.x 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    + b"-ERR 'Permissions Violation for Publish to \"a b\"'\r\n"
    + b"+OK\r\n"
    + b"MSG a.b 3 0\r\n\r\n"
)
MESSAGES = [
    (1, Message("a.b", "", b"xyz", {})),
    (2, Message("a.b", "_INBOX_x.1", b"\r\nMSG", {})),
    (1, Message("a.b", "", b"hi", {"K": "v"})),
    (1, Message("_INBOX_x.1", "$JS.ACK.x", b"", {"Status": "503"})),
    (3, Message("a.b", "", b"", {})),
]


class Pipe(asyncio.Transport):
    """What a transport does for a protocol, as far as bytes go."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.aborted = True


def fed(chunks: list[bytes]) -> tuple[list[tuple[int, Message]], list[str], Wire, Pipe]:
    """Return what comes of *chunks* that arrive one by one."""
    messages: list[tuple[int, Message]] = []
    errors: list[str] = []

    async def run() -> Wire:
        wire = Wire(
            lambda sid, message: messages.append((sid, message)), errors.append, lambda _wire: None
        )
        wire.connection_made(pipe)
        for chunk in chunks:
            if not pipe.aborted:
                wire.data_received(chunk)
        wire.connection_lost(None)
        return wire

    pipe = Pipe()
    return messages, errors, asyncio.run(run()), pipe


@given(st.lists(st.integers(0, len(TRAFFIC)), max_size=12))
def test_bytes_cut_anywhere_are_the_same_messages(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(TRAFFIC)]
    chunks = [TRAFFIC[a:b] for a, b in itertools.pairwise(at) if a != b]
    messages, errors, wire, pipe = fed(chunks)
    assert messages == MESSAGES
    assert errors == ['Permissions Violation for Publish to "a b"']
    assert pipe.written == b"PONG\r\n"
    assert wire.server_id == "N1"
    assert not pipe.aborted


def test_a_byte_at_a_time_is_the_same_too() -> None:
    assert fed([TRAFFIC[at : at + 1] for at in range(len(TRAFFIC))])[0] == MESSAGES


@given(st.binary(max_size=200))
def test_whatever_arrives_after_the_greeting_ends_at_most_the_connection(data: bytes) -> None:
    _, _, wire, pipe = fed([GREETING, data, b"\r\n"])
    assert not pipe.aborted or wire.error


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH_9.2", b"HTTP/1.1 400 Bad Request\r\n", b"INFO []\r\n", b"INFO {\r\n", b"\0"],
)
def test_who_does_not_speak_the_protocol_is_left_at_once(data: bytes) -> None:
    _, _, wire, pipe = fed([data])
    assert pipe.aborted
    assert wire.error
    assert wire.info.result() is None


def test_a_line_without_an_end_is_not_gathered_for_ever() -> None:
    _, _, wire, pipe = fed([GREETING, *[b"x" * 60_000] * 3])
    assert pipe.aborted
    assert wire.error


HEADER_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00")).map(str.strip)


@given(
    st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True), HEADER_TEXT),
    st.binary(max_size=100),
)
def test_a_message_arrives_as_it_was_published(headers: dict[str, str], payload: bytes) -> None:
    command = publish_command("a.b", "r", payload, headers, limit=1_000_000)
    verb, _, rest = command.partition(b" a.b r ")
    delivered = (b"HMSG" if verb == b"HPUB" else b"MSG") + b" a.b 7 r " + rest
    [(sid, message)] = fed([GREETING, delivered])[0]
    assert (sid, message.data, message.reply) == (7, payload, "r")
    assert {name: value.strip() for name, value in headers.items()} == message.headers


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: publish_command("", "", b"", limit=9), "no subject"),
        (lambda: publish_command("a b", "", b"", limit=9), "no subject"),
        (lambda: publish_command("a\r\nPUB b", "", b"", limit=9), "no subject"),
        (lambda: publish_command(".a", "", b"", limit=9), "no subject"),
        (lambda: publish_command("a", "", b"x" * 10, limit=9), "10 bytes"),
        (lambda: publish_command("a", "", b"", {"K": "v"}, limit=9), "18 bytes"),
        (lambda: publish_command("a", "", b"", {"K": "v\r\nX: y"}, limit=99), "line's end"),
        (lambda: publish_command("a", "", b"", {"K:": "v"}, limit=99), "name a header"),
        (lambda: publish_command("a", "", b"", {"": "v"}, limit=99), "name a header"),
        (lambda: publish_command("a", "b c", b"", limit=99), "no subject"),
    ],
)
def test_what_would_be_read_as_something_else_is_not_sent(
    make: Callable[[], bytes], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@given(st.text(max_size=20))
def test_a_subject_is_one_word_of_a_line(subject: str) -> None:
    with contextlib.suppress(ValueError):
        assert len(f"PUB {checked(subject)} 3\r\n".split()) == 3


@given(st.binary(max_size=100))
def test_headers_are_read_or_refused(block: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_headers(b"NATS/1.0" + block)


@pytest.mark.parametrize("reply", ["", "_INBOX_x.1", "$JS.ACK.a.b", "$JS.ACK.S.c.1.x.3.4.5"])
def test_what_no_consumer_delivered_has_no_place_in_a_stream(reply: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Message("a", reply, b"", {}).stored()


def test_where_a_stream_keeps_a_message_is_in_its_reply() -> None:
    for reply in ("$JS.ACK.S.c.1.5.3.1700.0", "$JS.ACK.d.h.S.c.1.5.3.1700.0.r"):
        assert Message("a", reply, b"", {}).stored() == (5, 1700)
