"""The wire: whatever one peer sends, the holder answers it and serves the others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from foundation import control as framing
from foundation.errors import HubError, Refused, Unavailable
from orchestrator import control, protocol
from orchestrator.holder.verbs import Verbs
from orchestrator.protocol import Status, pack, status_from_json, unpack
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.holders import up
from tests.support import CODE, eventually, is_gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.store import Store

pytestmark = pytest.mark.faults

MANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def connected(store: Store, name: str = "web-1") -> socket.socket:
    """Return a plain connection to the socket of *name*."""
    sock = socket.socket(socket.AF_UNIX)
    framing.through_directory(store.place(name).socket, sock.connect)
    sock.settimeout(20)
    return sock


def answers(sock: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield what comes, to the end."""
    with sock.makefile("rb") as file:
        for line in file:
            yield json.loads(line)


def asked(store: Store, *lines: bytes, name: str = "web-1") -> dict[str, Any]:
    """Send *lines*; return the last thing that is said before data or an error ends it."""
    with connected(store, name) as sock:
        for line in lines:
            sock.sendall(line)
        for message in answers(sock):
            if "progress" not in message:
                return message
    raise AssertionError("no answer")


def request(verb: object, **arguments: object) -> bytes:
    """Return a request's line."""
    return json.dumps({"v": protocol.PROTOCOL_VERSION, "verb": verb, **arguments}).encode() + b"\n"


# --- what is said --------------------------------------------------------------------------


def test_an_unknown_verb_is_an_error_by_its_name(store: Store) -> None:
    up(store, "web-1")
    for verb in ("dance", None, 7, ["stop"]):
        error = asked(store, request(verb))["error"]
        assert error["reason"] == "unknown-verb"
        assert repr(verb) in error["message"]


def test_another_version_is_refused_loudly_by_the_holder_too(store: Store) -> None:
    up(store, "web-1")
    error = asked(store, b'{"v":2,"verb":"status"}\n')["error"]
    assert error["reason"] == "protocol-version"
    assert "does not match" in error["message"]
    bound = asked(store, b'{"v":2,"verb":"bind"}\n')
    assert bound["data"] == {"version": protocol.PROTOCOL_VERSION}, "which is how one is told"


def test_requests_of_one_connection_are_answered_in_their_order(store: Store) -> None:
    up(store, "web-1", "web-2")
    with connected(store) as sock:
        sock.sendall(request("status") + request("dance") + request("list"))
        said = answers(sock)
        assert next(said)["data"]["name"] == "web-1"
        assert next(said)["error"]["reason"] == "unknown-verb"
        members = next(said)["data"]["members"]
        assert [member["name"] for member in members] == ["web-1", "web-2"]


def test_only_the_process_that_launched_it_binds_itself_to_a_holder(store: Store) -> None:
    up(store, "web-1")
    with connected(store) as sock:
        sock.sendall(request("bind") + request("ack"))
        said = answers(sock)
        assert "data" in next(said)
        assert next(said)["error"]["reason"] == "not-the-parent"
    assert control.get_status(store, "web-1").running


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_process_is_not_served_even_where_the_file_lets_it_in(store: Store) -> None:
    up(store, "web-1")
    place = store.place("web-1")
    directory = os.open(place.directory, os.O_PATH)
    program = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        "try: sock.sendall(sys.argv[2].encode())\n"
        "except OSError: pass  # it is refused already\n"
        "print(sock.recv(999).decode())"
    )

    def said() -> str:
        return subprocess.run(
            [
                sys.executable,
                "-I",
                "-c",
                program,
                f"/proc/self/fd/{directory}/holder.sock",
                request("status").decode(),
            ],
            check=False,
            capture_output=True,
            text=True,
            pass_fds=[directory],
            cwd="/",
        ).stdout.strip()

    os.chmod(place.directory, 0o711)
    try:
        assert said() == "", "the socket's mode keeps it out"
        os.chmod(place.socket, 0o666)
        assert "VM web-1 is user 0's, and answers nobody else" in said()
        assert control.get_status(store, "web-1").running
    finally:
        os.close(directory)


# --- what is hostile -----------------------------------------------------------------------


def test_garbage_of_any_kind_is_answered_or_closed_and_others_are_served(store: Store) -> None:
    found = up(store, "web-1", "web-2")

    @MANY
    @given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
    def send(pieces: list[bytes], torn: bool) -> None:
        with connected(store) as sock:
            try:
                for piece in pieces:
                    sock.sendall(piece if torn else piece + b"\n")
                sock.shutdown(socket.SHUT_WR)
                for message in answers(sock):
                    assert message["error"]["reason"] in {"protocol", "protocol-version"}
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert control.get_status(store, "web-2").pid == found["web-2"].pid

    send()
    assert "a bug" not in holders.log_of(store, "web-1")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ARGUMENTS = ("name", "options", "argv", "env", "cwd", "stdin", "directory", "path", "follow",
             "guest_port", "host_port", "bytes", "end", "timeout_s")  # fmt: skip
VERBS = ("status", "wait", "list", "add", "exec", "put", "get", "forward", "forwards", "unforward",
         "bind", "ack")  # fmt: skip


def test_wrong_arguments_of_every_verb_are_refused_in_words(store: Store) -> None:
    found = up(store, "web-1", "web-2")

    @MANY
    @given(
        st.sampled_from(VERBS),
        st.dictionaries(st.sampled_from(ARGUMENTS), ANYTHING, max_size=5),
        ANYTHING,
    )
    def send(verb: str, arguments: dict[str, object], timeout: object) -> None:
        arguments.pop("follow", None)
        if isinstance(timeout, int | float) and 0 <= timeout <= protocol.DOWNLOAD_WITHIN_S:
            timeout = "soon"  # a real stop
        for line in (request(verb, **arguments), request("stop", timeout_s=timeout)):
            answer = asked(store, line, request("put", end=True), request("status", end=True))
            assert "bug" not in json.dumps(answer), answer
        assert control.get_status(store, "web-1").pid == found["web-1"].pid

    send()
    assert "a bug" not in holders.log_of(store, "web-1")


def test_a_line_that_is_too_long_is_refused_and_others_are_served(store: Store) -> None:
    up(store, "web-1", "web-2")
    with connected(store) as sock:
        try:
            while True:
                sock.sendall(b"x" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
    with connected(store) as sock:
        sock.sendall(b"x" * (protocol.LINE_LIMIT + 1) + b"\n")
        assert next(answers(sock))["error"]["reason"] == "protocol"
        assert sock.recv(1) == b""
    assert control.get_status(store, "web-2").running


def test_many_slow_ones_keep_nobody_waiting_and_are_let_go(store: Store) -> None:
    up(store, "web-1", settings={"request_within_s": 1})
    slow = [connected(store) for _ in range(40)]
    try:
        for sock in slow:
            sock.sendall(b'{"v":1,"verb":"sta')
        assert control.get_status(store, "web-1").running
        assert all(sock.recv(1) == b"" for sock in slow)
    finally:
        for sock in slow:
            sock.close()


def test_who_does_not_take_its_output_is_given_up(store: Store) -> None:
    up(store, "web-1")
    with connected(store) as sock:
        sock.sendall(request("exec", argv=["sh", "-c", "echo $$; exec cat /dev/zero"]))
        first = json.loads(sock.makefile("rb").readline())
        pid = int(unpack(first["progress"]["bytes"]).split()[0])
        eventually(lambda: is_gone(pid), 30)
        assert control.get_status(store, "web-1").running


def test_who_is_one_too_many_is_told_so(store: Store) -> None:
    few = "from orchestrator.holder import server; server.CONNECTIONS = 3"
    program = holders.HOLDER.replace("os._exit(", f"{few}\nos._exit(")
    wanted = holders.config("web-1").replace(program=(sys.executable, "-c", program, str(CODE)))
    control.spawn(store, wanted).close()
    control.wait_members(store, ["web-1"], 30)
    following: list[socket.socket] = []
    eventually(lambda: _follows(store, following) == 3)
    with pytest.raises(Unavailable, match="has 3 connections") as caught:
        control.get_status(store, "web-1")
    assert (caught.value.reason, caught.value.exit_code) == ("busy", 75)
    with pytest.raises(Unavailable):
        control.stop(store, "web-1")
    for sock in following:
        sock.close()
    eventually(lambda: _is_served(store))


def _follows(store: Store, following: list[socket.socket]) -> int:
    """Follow the console once more, if that is allowed by now; return how often it is."""
    sock = connected(store)
    sock.sendall(request("logs", follow=True))
    with sock.makefile("rb") as said:
        is_served = b"progress" in said.readline()
    if is_served:
        following.append(sock)
    else:
        sock.close()
    return len(following)


def _is_served(store: Store) -> bool:
    try:
        return control.get_status(store, "web-1").running
    except Unavailable:
        return False


async def test_nobody_binds_itself_to_a_detached_holder() -> None:
    """Of a client outside of the holder's pid namespace the kernel says that its pid is 0."""
    detached: Any = SimpleNamespace(launch=SimpleNamespace(parent=0))
    outsider: Any = SimpleNamespace(member="web-1", pid=0, bound=False)
    asking = {"v": protocol.PROTOCOL_VERSION, "verb": protocol.BIND_ACK}
    with pytest.raises(Refused, match="only the process that launched"):
        await Verbs(detached).answer(asking, outsider)
    assert not outsider.bound


def test_a_forked_client_and_an_early_end_end_nothing(store: Store) -> None:
    """Connections that close at every point of a binding."""
    with control.spawn(store, holders.config("web-1", bound=True)):
        control.wait_members(store, ["web-1"], 30)
        for lines in ((), (request("bind"),), (request("bind"), b'{"v":1,"verb":"ac')):
            with connected(store) as sock:
                for line in lines:
                    sock.sendall(line)
                if lines:
                    assert "data" in next(answers(sock))
        assert control.get_status(store, "web-1").running


# --- what follows a request ----------------------------------------------------------------


def follows(content: bytes) -> bytes:
    """Return a line of what follows a request."""
    return json.dumps({"v": protocol.PROTOCOL_VERSION, "bytes": pack(content)}).encode() + b"\n"


END = json.dumps({"v": protocol.PROTOCOL_VERSION, "end": True}).encode() + b"\n"


def test_input_may_pause_for_longer_than_a_request_may(store: Store) -> None:
    up(store, "web-1", settings={"request_within_s": 0.2})
    with connected(store) as sock:
        sock.sendall(request("exec", argv=["cat"], stdin=True) + follows(b"one "))
        until_s = time.monotonic() + 0.6
        eventually(lambda: time.monotonic() > until_s)
        sock.sendall(follows(b"two") + END)
        said = answers(sock)
        assert unpack(next(said)["progress"]["bytes"]) == b"one two"
        assert next(said)["data"] == {"status": 0}


def test_what_is_refused_before_its_bytes_have_come_is_said_at_once_and_they_are_no_requests(
    store: Store, tmp_path: Path
) -> None:
    small = "from orchestrator import protocol; protocol.UPLOAD_LIMIT = 1 << 16"
    program = holders.HOLDER.replace("os._exit(", f"{small}\nos._exit(")
    wanted = holders.config("web-1").replace(program=(sys.executable, "-c", program, str(CODE)))
    control.spawn(store, wanted).close()
    control.wait_members(store, ["web-1"], 30)
    with connected(store) as sock:
        piece = bytes(1 << 15)
        sock.sendall(request("put", path="/x") + follows(piece) * 3)
        said = answers(sock)
        assert next(said)["error"]["reason"] == "too-large"
        sock.sendall(follows(piece) * 3 + b"nonsense\n" + END + request("status"))
        assert next(said)["data"]["name"] == "web-1"
    holders.go_wrong(store, "web-2", ready_gate=str(tmp_path / "never"))
    control.request_member(store, "web-1", "web-2", options=holders.SMALL)
    with connected(store, "web-2") as sock:
        for asking in (request("put", path="/x"), request("exec", argv=["cat"], stdin=True)):
            sock.sendall(asking)
            said = answers(sock)
            assert next(said)["error"]["reason"] == "not-running", "nothing had to be sent for that"
            sock.sendall(follows(piece) + END + request("status"))
            assert next(said)["data"]["state"] == "starting"


# --- values --------------------------------------------------------------------------------


@given(st.binary(max_size=1000))
def test_bytes_come_out_as_they_went_in(content: bytes) -> None:
    assert unpack(pack(content)) == content


@pytest.mark.parametrize("text", [None, 7, "ä", "a", "====", ["aGk="]])
def test_what_is_no_base64_is_refused(text: object) -> None:
    with pytest.raises(Refused):
        unpack(text)


@given(ANYTHING)
@example({"state": []})
def test_what_is_no_status_is_said_to_be_none(value: object) -> None:
    with pytest.raises(HubError, match="not a member's status"):
        status_from_json(value)


def test_a_status_of_a_later_version_with_more_in_it_is_understood() -> None:
    status = Status(name="a", pid=1, running=True, ip="", state="starting")
    assert status_from_json({**status.as_dict(), "more": 1}) == status


def test_chunks_fit_into_lines() -> None:
    line = protocol.encode({"progress": {"out": 1, "bytes": pack(b"\xff" * protocol.CHUNK)}})
    assert len(line) <= protocol.LINE_LIMIT
