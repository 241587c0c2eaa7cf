"""The loop calls back what is due, and nothing else."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from hub.reactor import Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


def test_timers_fire_in_order_of_their_time(reactor: Reactor) -> None:
    seen: list[int] = []
    for number in (3, 1, 2):
        reactor.call_later(number / 100, partial(seen.append, number))
    reactor.call_later(0.05, reactor.stop)
    began_s = time.monotonic()
    reactor.run()
    assert seen == [1, 2, 3]
    assert time.monotonic() - began_s >= 0.05


def test_a_cancelled_timer_does_not_fire(reactor: Reactor) -> None:
    seen: list[str] = []
    first = reactor.call_later(0, lambda: reactor.cancel(second))
    second = reactor.call_later(0, lambda: seen.append("second"))
    reactor.call_later(0.01, reactor.stop)
    reactor.run()
    assert not seen
    reactor.cancel(first)
    reactor.cancel(None)


def test_a_timer_made_by_a_timer_waits_for_the_next_round(reactor: Reactor) -> None:
    read, write = os.pipe()
    seen: list[str] = []

    def again() -> None:
        seen.append("timer")
        reactor.call_later(0, again)

    def readable(_events: int) -> None:
        seen.append("descriptor")
        reactor.stop()

    reactor.watch(read, readable)
    os.write(write, b"x")
    reactor.call_later(0, again)
    reactor.run()
    assert seen[-1] == "descriptor", "timers that follow each other starve descriptors"
    os.close(read)
    os.close(write)


def test_stopping_ends_the_round(reactor: Reactor) -> None:
    seen: list[str] = []
    reactor.call_later(0, reactor.stop)
    reactor.call_later(0, lambda: seen.append("late"))
    reactor.run()
    assert not seen
    reactor.call_later(0, reactor.stop)
    reactor.run()
    assert seen == ["late"]


def test_it_sleeps_until_something_is_due(reactor: Reactor) -> None:
    read, write = os.pipe()
    thread = threading.Timer(0.1, os.write, (write, b"x"))
    reactor.watch(read, lambda _events: reactor.stop())
    before = time.thread_time()
    thread.start()
    reactor.run()
    assert time.thread_time() - before < 0.05
    thread.join()
    os.close(read)
    os.close(write)


def test_a_stale_event_is_not_given_to_the_next_owner(reactor: Reactor) -> None:
    one, two = os.pipe(), os.pipe()
    quiet = os.pipe()
    seen: list[str] = []

    def first(_events: int) -> None:
        other = two[0] if seen_fd[0] == one[0] else one[0]
        reactor.forget(other)
        os.dup2(quiet[0], other)  # closed, and its number given to another file
        reactor.watch(other, lambda _events: seen.append("woken for nothing"))
        reactor.forget(seen_fd[0])
        reactor.call_later(0.01, reactor.stop)

    seen_fd: list[int] = []

    def note(fd: int) -> None:
        def ready(events: int) -> None:
            seen_fd.append(fd)
            first(events)

        reactor.watch(fd, ready)

    for read, write in (one, two):
        note(read)
        os.write(write, b"x")
    reactor.run()
    assert seen == []
    assert len(seen_fd) == 1
    for fd in (*one, *two, *quiet):
        reactor.forget(fd)
        os.close(fd)


def test_watching_again_changes_what_is_watched(reactor: Reactor) -> None:
    read, write = os.pipe()
    seen: list[int] = []
    reactor.watch(write, lambda _events: seen.append(1), select.EPOLLIN)

    def writable(events: int) -> None:
        seen.append(events)
        reactor.stop()

    reactor.watch(write, writable, select.EPOLLOUT)
    reactor.run()
    assert seen == [select.EPOLLOUT]
    reactor.forget(write)
    reactor.forget(write)
    os.close(read)
    os.close(write)
