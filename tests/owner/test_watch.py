"""A watcher learns who owns, and of every end of it: death, hanging, release."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Corrupt, Unavailable
from owner import FOLLOWER, OWNER, Holder, join, watch
from owner import inspect as inspect_lease
from tests.owner.files import change, descriptors, guard_held, guard_of
from tests.owner.instances import Instance
from tests.support import eventually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot.owner"


def test_it_tells_the_state_at_once_and_then_each_change(path: Path) -> None:
    before = descriptors()
    with watch(path) as changes:
        assert next(changes) is None
        for turn in (1, 2):
            a = join(path, ttl_s=10, endpoint=f"e{turn}")
            holder = next(changes)
            assert holder == a.holder
            assert holder is not None
            assert (holder.epoch, holder.endpoint) == (turn, f"e{turn}")
            a.release()
            assert next(changes) is None
    assert list(changes) == []
    with join(path, ttl_s=10) as a:
        assert next(watch(path)) == a.holder
    eventually(lambda: descriptors() <= before)


def test_a_release_and_an_acquisition_between_two_looks_are_one_change(path: Path) -> None:
    a = join(path, ttl_s=10)
    with watch(path) as changes:
        assert next(changes) == a.holder
        for _turn in range(3):  # the files may get the inodes and times of those before
            a.release()
            a = join(path, ttl_s=10)
        assert next(changes) == a.holder
        a.release()


def test_renewals_are_no_news(path: Path) -> None:
    told: list[Holder | None] = []
    with join(path, ttl_s=1.0, renew_interval_s=0.05) as a, watch(path) as changes:
        watcher = threading.Thread(target=lambda: told.extend(changes))
        watcher.start()
        assert not a.lost.wait(1.2)
        changes.close()
        watcher.join(10)
        assert told == [a.holder]


def test_a_death_is_told_at_once_and_the_follower_takes_over(path: Path) -> None:
    with Instance(path) as a, Instance(path) as b:
        assert a.become(3600) == (OWNER, 1)
        assert b.become(3600) == (FOLLOWER, 1)
        b.tell("take_over(3600)")
        eventually(lambda: watches_over(b, a))
        killed_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        a.kill()
        took_ms = (b.answer() - killed_ns) / 1e6
        assert took_ms < 1000, "not after its ttl, and not by luck"
        assert b.ask("o.role, o.epoch") == (OWNER, 2)


def watches_over(one: Instance, other: Instance) -> bool:
    """Tell whether *one* has a pidfd of *other* open."""
    for fd in os.listdir(f"/proc/{one.pid}/fdinfo"):
        try:
            with open(f"/proc/{one.pid}/fdinfo/{fd}") as file:
                if f"Pid:\t{other.pid}\n" in file.read():
                    return True
        except OSError:
            continue
    return False


def test_a_hung_owner_is_taken_over_at_its_deadline_and_not_before(path: Path) -> None:
    with Instance(path) as a, watch(path) as changes:
        assert a.become(0.5) == (OWNER, 1)
        assert next(changes) is not None
        with guard_held(path):  # not in a renewal
            a.freeze()
        deadline_ns = change(path).deadline_ns
        assert next(changes) is None
        assert time.clock_gettime_ns(time.CLOCK_BOOTTIME) >= deadline_ns
        with join(path, ttl_s=10) as b:
            assert b.epoch == 2
            a.thaw()
            assert a.ask("o.lost.wait(10), o.is_owner") == (True, False)
            assert b.is_owner


def test_an_event_loop_watches_beside_its_other_work(path: Path) -> None:
    async def run() -> list[int | None]:
        told: list[int | None] = []
        changes = watch(path)
        with Instance(path) as a:
            async for holder in changes:
                told.append(None if holder is None else holder.pid)
                if len(told) == 1:
                    a.become(3600)
                elif len(told) == 2:
                    assert holder is not None
                    assert holder.pid == a.pid
                    told[1] = 0
                    await asyncio.sleep(0.05)  # it waits by then, or looks again
                    a.kill()
                else:
                    changes.close()
        return told

    before = descriptors()
    assert asyncio.run(run()) == [None, 0, None]
    assert descriptors() <= before


def test_a_cancelled_watch_leaves_nothing_and_goes_on_later(path: Path) -> None:
    async def run() -> None:
        with join(path, ttl_s=10) as a:
            changes = watch(path)
            assert await changes.__anext__() == a.holder
            before = descriptors()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(changes.__anext__(), 0.05)
            assert descriptors() <= before
            a.release()
            assert await asyncio.wait_for(changes.__anext__(), 10) is None

    asyncio.run(run())


def test_closing_it_from_elsewhere_ends_a_wait(path: Path) -> None:
    changes = watch(path)
    assert next(changes) is None
    threading.Timer(0.05, changes.close).start()
    assert list(changes) == []


def test_what_it_cannot_read_it_raises_and_goes_on_when_it_can(path: Path) -> None:
    with join(path, ttl_s=3600) as a, watch(path) as changes:
        assert next(changes) == a.holder
        content = path.read_bytes()
        path.write_bytes(b"junk")
        for _turn in range(2):
            with pytest.raises(Corrupt):
                next(changes)
        path.write_bytes(content)
        a.release()
        assert next(changes) is None


def test_a_directory_that_is_not_there_has_no_owner(path: Path) -> None:
    assert inspect_lease(path.parent / "nowhere" / "slot.owner") is None


def test_looking_takes_no_lock_and_makes_no_file(path: Path) -> None:
    assert inspect_lease(path) is None
    assert next(watch(path)) is None
    assert not list(path.parent.iterdir())
    with join(path, ttl_s=10) as a, a.fenced():
        assert inspect_lease(path) == a.holder
        assert next(watch(path)) == a.holder
        assert join(path, ttl_s=10).role == FOLLOWER, "held: nobody needs the guard to know"


def test_without_descriptors_looking_is_an_error_and_not_an_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def fails(name: str, *arguments: int) -> int:
        if str(name).startswith(str(path)):
            raise OSError(24, "Too many open files", name)
        return real(name, *arguments)

    with join(path, ttl_s=3600):
        monkeypatch.setattr(os, "open", fails)
        with pytest.raises(Unavailable):
            inspect_lease(path)
        monkeypatch.undo()
        path.unlink()
        guard_of(path).write_bytes(b"junk")
        with pytest.raises(Corrupt):
            inspect_lease(path)
