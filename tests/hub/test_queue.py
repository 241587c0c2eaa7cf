"""What waits for the writer: in batches, and one by one after a failure."""

from __future__ import annotations

from hub.trunk.queue import ATTEMPTS, Asked, Queue
from tests.hub.committing import propose


def ask(slot: str) -> Asked:
    return Asked(propose({slot: b"1"}, slot=slot), slot, [])


def take(queue: Queue) -> list[object]:
    taken = queue.take(within_s=0, last_took_s=0, is_alone=lambda: False)
    return [asked.ticket for asked in taken]


def test_what_has_failed_is_tried_by_itself_whatever_is_put_before_it() -> None:
    queue = Queue()
    first, second = ask("a"), ask("b")
    queue.put(first)
    queue.put(second)
    assert take(queue) == ["a", "b"]
    assert queue.put_back([first, second], "not stored") == []
    queue.put_first(ask("c"))
    queue.put(ask("d"))
    assert [take(queue) for _turn in range(4)] == [["c"], ["a"], ["b"], ["d"]]


def test_who_has_failed_often_enough_is_given_up() -> None:
    queue = Queue()
    asked = ask("a")
    for _attempt in range(ATTEMPTS - 1):
        assert queue.put_back([asked], "not stored") == []
        assert take(queue) == ["a"]
    assert queue.put_back([asked], "not stored") == [asked]
    assert take(queue) == []
