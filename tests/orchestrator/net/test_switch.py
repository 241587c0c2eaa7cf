"""The switch, with sockets as guests."""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from orchestrator.net.addresses import Address, Addresses
from orchestrator.net.policy import guest_source
from orchestrator.net.switch import KEPT_BYTES, MACS_PER_PORT, Port, Switch, anything, silently
from tests.orchestrator.net.frames import ALL, arp, ethernet, ipv4
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.net.policy import Filter

SOON_S = 5.0
SIZE = 1400


class Guest:
    """A guest behind a port of its own."""

    def __init__(self, switch: Switch, name: str, *, guarded: bool = False) -> None:
        """Plug it in, and open its port."""
        self.address: Address = ADDRESSES.reserve(name)
        self.mac, self.ip = self.address.packed
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(SOON_S)
        SOCKETS.append(self.socket)
        inward: Filter = guest_source(self.mac, self.ip) if guarded else anything
        self.port: Port = switch.add(theirs, inward=inward)
        switch.open(self.port)

    def frame(self, to: bytes, words: bytes = b"") -> bytes:
        """Return a frame of ours."""
        packet = ipv4(words, source=self.ip, to=self.ip, protocol=17)
        return ethernet(packet, to=to, source=self.mac, kind=0x0800)

    def send(self, to: bytes, words: bytes = b"") -> bytes:
        """Send and return a frame."""
        frame = self.frame(to, words)
        self.socket.send(frame)
        return frame

    def hears(self) -> bytes:
        """Return the next frame that arrives."""
        return self.socket.recv(1 << 16)

    def has_sent(self, frames: int, switch: Switch) -> None:
        """Wait until the switch is done with *frames* frames of ours."""
        eventually(lambda: self.port.frames_in >= frames)
        switch._do(lambda: None)  # carried out between two batches

    def hears_nothing(self) -> bool:
        """Tell whether nothing has arrived; take it if it has."""
        if not select.select([self.socket], [], [], 0)[0]:
            return True
        self.hears()
        return False


ADDRESSES = Addresses("test")
SOCKETS: list[socket.socket] = []
"""Of all guests of a test."""


@pytest.fixture
def switch() -> Iterator[Switch]:
    """Return a switch that is closed at the end."""
    made = Switch()
    yield made
    made.close()
    while SOCKETS:
        SOCKETS.pop().close()


def test_everybody_hears_what_is_for_all_and_one_what_is_for_one(switch: Switch) -> None:
    a, b, c = (Guest(switch, name) for name in "abc")
    hello = a.send(ALL, b"hello")
    assert b.hears() == c.hears() == hello
    answer = b.send(a.mac, b"only you")
    assert a.hears() == answer
    again = a.send(b.mac, b"and only you")
    assert b.hears() == again
    a.has_sent(2, switch)
    b.has_sent(1, switch)
    a.send(a.mac, b"myself")
    a.has_sent(3, switch)
    assert a.hears_nothing()
    assert c.hears_nothing()


def test_a_frame_for_someone_unknown_reaches_whoever_it_may_be(switch: Switch) -> None:
    a, b, c = (Guest(switch, name) for name in "abc")
    lost = a.send(b"\x02\0\0\0\0\0", b"are you there")
    assert b.hears() == c.hears() == lost
    a.has_sent(1, switch)
    assert a.hears_nothing()


def test_a_guest_that_moves_to_another_port_is_found_there(switch: Switch) -> None:
    a, b, c = (Guest(switch, name) for name in "abc")
    b.send(ALL)
    assert a.hears()
    assert c.hears()
    moved = ethernet(bytes(40), to=ALL, source=b.mac, kind=0x0800)
    c.socket.send(moved)
    assert a.hears() == b.hears() == moved
    frame = a.send(b.mac)
    assert c.hears() == frame
    a.has_sent(1, switch)
    assert b.hears_nothing()


def test_a_frame_as_somebody_else_goes_nowhere_and_misleads_nobody(switch: Switch) -> None:
    a, b, c = (Guest(switch, name, guarded=True) for name in "abc")
    b.send(ALL)
    assert a.hears()
    assert c.hears()
    c.socket.send(ethernet(bytes(40), to=a.mac, source=b.mac, kind=0x0800))
    c.socket.send(arp(2, mac=c.mac, ip=b.ip, asked=a.ip, to=a.mac))
    c.socket.send(c.frame(a.mac).replace(c.ip, b.ip))
    c.has_sent(3, switch)
    frame = a.send(b.mac)
    assert b.hears() == frame
    a.has_sent(1, switch)
    assert a.hears_nothing()
    assert c.hears_nothing()
    assert c.port.counts().refused == {"spoofed": 3}


def test_nothing_goes_through_a_closed_port_and_all_through_an_open_one(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    switch.shut(b.port)
    a.send(ALL, b"early")
    b.send(ALL, b"as somebody that I was before")
    a.has_sent(1, switch)
    b.has_sent(1, switch)
    assert a.hears_nothing()
    assert b.hears_nothing()
    assert b.port.counts().closed == 2
    switch.open(b.port)
    in_time = a.send(ALL, b"in time")
    assert b.hears() == in_time
    myself = b.send(ALL, b"as myself")
    assert a.hears() == myself


def test_a_new_port_is_closed(switch: Switch) -> None:
    a = Guest(switch, "a")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        port = switch.add(theirs)
        a.send(ALL)
        ours.send(a.frame(ALL))
        eventually(lambda: port.counts().closed == 2)
        assert a.hears_nothing()


def test_a_port_that_is_full_makes_nobody_wait_and_loses_only_what_is_too_much(
    switch: Switch,
) -> None:
    a, b, c = (Guest(switch, name) for name in "abc")
    a.send(ALL)
    for guest in (b, c):
        guest.hears()
        guest.send(a.mac)
        a.hears()
    frames = 2 * KEPT_BYTES // SIZE
    for number in range(frames):
        a.send(b.mac, number.to_bytes(4, "big") + bytes(SIZE))
    a.has_sent(frames, switch)
    note = a.send(c.mac, b"others are served")
    assert c.hears() == note
    kept = frames - b.port.counts().dropped
    assert KEPT_BYTES // (SIZE + 100) < kept < frames
    numbers = [int.from_bytes(b.hears()[34:38], "big") for _ in range(kept)]
    assert numbers == list(range(kept))
    late = a.send(b.mac, b"late")
    assert b.hears() == late
    eventually(lambda: b.port.counts().frames_out == kept + 2)  # the first was the greeting


def test_what_is_kept_for_a_full_port_is_not_for_who_comes_after(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    b.send(a.mac)
    a.hears()
    for _ in range(200):
        a.send(b.mac, bytes(SIZE))
    a.has_sent(200, switch)
    switch.shut(b.port)
    switch.open(b.port)
    fresh = a.send(ALL, b"fresh")
    stale = 0
    while b.hears() != fresh:  # what the kernel had already
        stale += 1
    assert stale < 200
    assert stale + b.port.counts().dropped == 200


def test_what_is_kept_goes_out_in_order(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    b.send(ALL)
    a.hears()
    frames, ahead = 5000, threading.Semaphore(300)

    def talk() -> None:
        for number in range(frames):
            ahead.acquire()
            a.send(b.mac, number.to_bytes(4, "big"))

    talking = threading.Thread(target=talk, daemon=True)
    talking.start()
    eventually(lambda: len(b.port.kept) > 0)
    for number in range(frames):
        assert b.hears()[34:38] == number.to_bytes(4, "big")
        ahead.release()
    talking.join()
    assert b.port.counts().dropped == 0


def test_a_guest_that_is_gone_disturbs_nobody(switch: Switch) -> None:
    a, b, c = (Guest(switch, name) for name in "abc")
    b.send(ALL)
    a.hears()
    c.hears()
    for _ in range(200):  # some are kept for it
        a.send(b.mac, bytes(SIZE))
    a.has_sent(200, switch)
    b.socket.close()
    for _ in range(10):
        frame = a.send(ALL)
        assert c.hears() == frame
    switch._do(lambda: None)
    assert switch._epoll.poll(0) == []  # nothing keeps the thread awake
    assert b.port.counts().dropped >= 10
    switch.remove(b.port)
    switch.remove(b.port)
    frame = a.send(b.mac, b"flooded: it is unknown again")
    assert c.hears() == frame


def test_ports_come_and_go_while_others_talk(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    b.send(ALL)
    a.hears()
    heard: list[int] = []
    frames = 5000

    def talk() -> None:
        for number in range(frames):
            a.send(b.mac, number.to_bytes(4, "big"))

    def listen() -> None:
        while len(heard) < frames:
            frame = b.hears()
            if frame[6:12] == a.mac:
                heard.append(int.from_bytes(frame[34:38], "big"))

    threads = [threading.Thread(target=work, daemon=True) for work in (talk, listen)]
    for thread in threads:
        thread.start()
    turns = 0
    while any(thread.is_alive() for thread in threads):
        c = Guest(switch, "c")
        c.send(ALL)
        switch.shut(c.port)
        switch.remove(c.port)
        c.socket.close()
        turns += 1
    for thread in threads:
        thread.join()
    assert heard == list(range(frames))
    assert turns > 10


def test_a_removed_port_is_closed_at_the_guests_end_too(switch: Switch) -> None:
    a = Guest(switch, "a")
    switch.remove(a.port)
    with pytest.raises(ConnectionRefusedError):
        a.socket.send(b"anyone")


def test_a_guest_that_invents_stations_fills_no_memory(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    for number in range(1000):
        mac = b"\x02\x01" + number.to_bytes(4, "big")
        a.socket.send(ethernet(bytes(40), to=b.mac, source=mac, kind=0x0800))
    for _ in range(100):
        a.socket.send(ethernet(bytes(40), to=b.mac, source=b"\x03" + bytes(5), kind=0x0800))
    a.has_sent(1100, switch)
    assert len(switch._learned) == a.port.macs == MACS_PER_PORT
    switch.shut(a.port)
    assert not switch._learned


def test_a_filter_that_fails_lets_nothing_through_and_ends_nothing(switch: Switch) -> None:
    a, b, c = (Guest(switch, name) for name in "abc")

    def fails(frame: bytes) -> str:
        raise IndexError(len(frame))

    a.port.inward = fails
    a.send(c.mac)
    a.has_sent(1, switch)
    b.port.outward = fails
    b.send(ALL)
    assert a.hears()
    assert c.hears()
    c.send(b.mac)
    c.has_sent(1, switch)
    assert b.hears_nothing()
    assert a.port.counts().refused == c.port.counts().refused == {"bug": 1}
    b.port.outward = anything
    frame = c.send(b.mac)
    assert b.hears() == frame


def test_who_is_refused_is_told_what_the_port_has_to_say(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    b.port.outward = lambda _frame: "because"
    b.port.rejects = lambda frame, reason: frame[6:12] + frame[:6] + reason.encode()
    frame = a.send(ALL)
    assert a.hears() == a.mac + ALL + b"because"
    a.has_sent(1, switch)
    assert b.hears_nothing()
    b.port.rejects = silently
    a.send(ALL)
    a.has_sent(2, switch)
    assert a.hears_nothing()
    b.port.outward = anything
    assert a.send(ALL) == b.hears() == frame


def test_what_is_no_frame_is_counted_and_nothing_else(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    a.socket.send(b"")
    a.socket.send(ALL + a.mac + b"\x08")
    a.has_sent(2, switch)
    assert b.hears_nothing()
    assert a.port.counts().refused == {"short": 2}


def test_what_goes_through_is_counted(switch: Switch) -> None:
    a, b = (Guest(switch, name) for name in "ab")
    frame = a.send(ALL, b"count me")
    assert b.hears() == frame
    a.has_sent(1, switch)
    b.has_sent(0, switch)
    came, went = a.port.counts(), b.port.counts()
    assert (came.frames_in, came.bytes_in) == (went.frames_out, went.bytes_out) == (1, len(frame))
    assert came.frames_out == went.frames_in == 0
    assert came.closed == came.dropped == 0


def test_a_closed_switch_leaves_no_thread_and_no_descriptor() -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    switch = Switch()
    guests = [Guest(switch, name) for name in "ab"]
    guests[0].send(ALL)
    switch.close()
    switch.close()
    while SOCKETS:
        SOCKETS.pop().close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(RuntimeError, match="closed"):
        switch.open(guests[0].port)
