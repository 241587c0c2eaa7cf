"""One at a time does what all need, and all who wait hear what takes long."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.turns import Turns


async def test_whoever_waits_is_told_what_takes_long_whenever_he_came() -> None:
    turns, gate, late, over = Turns(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    heard: dict[str, list[str]] = {"first": [], "second": [], "third": [], "fourth": []}
    done: list[str] = []

    async def take(name: str) -> None:
        async with turns.taken(heard[name].append) as tell:
            if name == "first":
                await gate.wait()
                tell("downloading")
                late.set()
                await over.wait()
            done.append(name)

    first, second = (asyncio.ensure_future(take(name)) for name in ("first", "second"))
    await asyncio.sleep(0)
    gate.set()
    await late.wait()
    third = asyncio.ensure_future(take("third"))
    await asyncio.sleep(0)
    over.set()
    await asyncio.gather(first, second, third)
    await take("fourth")
    assert heard == {
        "first": ["downloading"],
        "second": ["downloading"],
        "third": ["downloading"],
        "fourth": [],
    }
    assert done == ["first", "second", "third", "fourth"]


async def test_whoever_fails_or_gives_up_lets_the_next_one_have_the_turn() -> None:
    turns, heard = Turns(), list[str]()

    async def fail() -> None:
        async with turns.taken(heard.append) as tell:
            tell("failing")
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    async with turns.taken(heard.append):
        waiting = asyncio.ensure_future(turns.taken(heard.append).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with turns.taken(heard.append):
        assert heard == ["failing"]
    assert not turns._listening
