"""The life of one member, driven at random and against every order of its ends."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from foundation.errors import HubError
from orchestrator.backends.base import Exit
from orchestrator.holder import member as members
from orchestrator.holder.member import Member
from orchestrator.holder.parts import Parts
from orchestrator.store import Options
from tests.orchestrator.vm.fake_parts import FakeNetwork

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from orchestrator.backends.base import Progress, Spec

_SEEDS = 250
_LONGEST_S = 0.05


class Machine:
    """A VM that is a future."""

    pid = 1
    trouble = ""
    is_busy = False

    def __init__(self, chance: random.Random, alive: set[Machine]) -> None:
        """Live."""
        self.chance = chance
        self.over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.alive = alive
        alive.add(self)

    async def ready(self) -> None:
        """Take a moment, and fail at times."""
        await asyncio.sleep(self.chance.random() * _LONGEST_S / 5)
        if self.chance.random() < 0.2:
            raise HubError("it is not ready", reason="x")

    async def stop(self, _timeout_s: float) -> str:
        """Return some turns after its end, as a real one does."""
        await asyncio.sleep(self.chance.random() * _LONGEST_S / 5)
        self.die()
        for _ in range(5):
            await asyncio.sleep(0)
        return "agent"

    def die(self) -> None:
        """End by itself."""
        self.alive.discard(self)
        if not self.over.done():
            self.over.set_result(Exit(status=0, reason="x"))

    def kill(self) -> None:
        """End soon."""
        asyncio.get_running_loop().call_later(self.chance.random() * _LONGEST_S / 25, self.die)

    async def wait(self) -> Exit:
        """Return at its end."""
        return await asyncio.shield(self.over)


class Backend:
    """One that takes its time, and fails at times."""

    name = "random"

    def __init__(self, chance: random.Random) -> None:
        """Start nothing yet."""
        self.chance = chance
        self.alive: set[Machine] = set()
        self.starting = 0

    async def prepare(self, _spec: Spec, progress: Progress) -> None:
        """At times it takes long."""
        if self.chance.random() < 0.3:
            progress("long")
        await asyncio.sleep(self.chance.random() * _LONGEST_S / 10)
        if self.chance.random() < 0.1:
            raise HubError("it cannot be prepared", reason="x")

    async def start(self, _spec: Spec, port: socket.socket) -> Machine:
        """Start, whoever has given that up meanwhile."""
        port.close()
        self.starting += 1
        try:
            await self._slowly()
        finally:
            self.starting -= 1
        if self.chance.random() < 0.2:
            raise HubError("it cannot be started", reason="x")
        return Machine(self.chance, self.alive)

    async def _slowly(self) -> None:
        at_s = asyncio.get_running_loop().time() + self.chance.random() * _LONGEST_S
        while (left_s := at_s - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left_s)
            except asyncio.CancelledError:
                if self.chance.random() < 0.5:  # else it is at a step that cannot be broken off
                    raise

    async def close(self) -> None:
        """Nothing is shared."""


def made(
    backend: Any,
    announce: Callable[..., None] = lambda *_event: None,
    *,
    over: Callable[[Member], None] = lambda _member: None,
    complain: Callable[[str, BaseException], None] = lambda _what, _error: None,
    network: FakeNetwork | None = None,
    boot_within_s: float = 5.0,
) -> Member:
    """Return a member that is to boot."""
    return Member(
        "web-1",
        "/nowhere",
        Options(),
        Parts(backend=backend, network=network or FakeNetwork(), announce=announce),
        neighbours=lambda _member: (),
        on_up=lambda _member: None,
        on_over=over,
        complain=complain,
        boot_within_s=boot_within_s,
        turns=asyncio.Semaphore(4),
    )


async def _wrong(seed: int, *, patient: bool) -> list[str]:
    """Return what is wrong after one life: the promises that were not kept.

    A *patient* one waits for all that it began before it is over.
    """
    chance = random.Random(seed)
    backend, network = Backend(chance), FakeNetwork()
    overs: list[tuple[str, int, int]] = []
    member = made(
        backend,
        over=lambda member: overs.append((member.state, backend.starting, len(backend.alive))),
        network=network,
        boot_within_s=chance.choice((0.01, 0.03, 1.0)),
    )
    member.begin()

    async def stop() -> str:
        await asyncio.sleep(chance.random() * 1.6 * _LONGEST_S)
        return await member.stop(chance.choice((0.0, 0.02, 1.0)))

    async def trouble() -> None:
        await asyncio.sleep(chance.random() * 1.6 * _LONGEST_S)
        if chance.random() < 0.5:
            member.kill()
        elif isinstance(member.machine, Machine):
            member.machine.die()

    async with asyncio.timeout(30):
        await asyncio.gather(trouble(), *(stop() for _ in range(chance.randint(1, 3))))
    await asyncio.sleep(2 * _LONGEST_S)  # whoever comes late has come by now
    wrong = []
    if len(overs) != 1:
        wrong.append(f"its end was told {overs}")
    if patient and any(over[1:] != (0, 0) for over in overs):
        wrong.append(f"something was left when it was over: {overs}")
    if member.state not in ("stopped", "error"):
        wrong.append(f"it is {member.state}")
    if backend.alive:
        wrong.append(f"{len(backend.alive)} VMs are nobody's")
    if network.ports:
        wrong.append("it has a port")
    return wrong


@pytest.mark.parametrize("patience_s", [30.0, 0.02])
async def test_whatever_happens_a_life_ends_once_and_leaves_no_vm_and_no_port(
    monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(members, "_BEGUN_WITHIN_S", patience_s)
    monkeypatch.setattr(members, "_REAPED_WITHIN_S", patience_s)
    lost: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: lost.append(context))
    found = await asyncio.gather(*(_wrong(seed, patient=patience_s > 1) for seed in range(_SEEDS)))
    assert {seed: wrong for seed, wrong in enumerate(found) if wrong} == {}
    assert lost == [], "an error of a start that was given up is nobody's bug"


class _Quick(Backend):
    """One that does what it is to do, at once."""

    async def prepare(self, _spec: Spec, _progress: Progress) -> None:
        """Nothing is needed."""

    async def start(self, _spec: Spec, port: socket.socket) -> Machine:
        """Start."""
        port.close()
        return Machine(_Always(), self.alive)


class _Always(random.Random):
    def random(self) -> float:
        return 0.5


async def test_of_two_who_stop_a_vm_both_are_told_how_it_went() -> None:
    member = made(_Quick(_Always()))
    member.begin()
    async for status, _note in member.changes():
        if status.state == "running":
            break
    one, other = await asyncio.gather(member.stop(1), member.stop(1))
    assert (one, other) == ("agent", "agent")


async def test_an_announcement_that_fails_breaks_off_no_life() -> None:
    complaints: list[str] = []

    def announce(*_event: object) -> None:
        raise OSError(28, "No space left on device")

    member = made(
        _Quick(_Always()), announce, complain=lambda what, _error: complaints.append(what)
    )
    member.begin()
    async for status, _note in member.changes():
        if status.state == "running":
            break
    assert await member.stop(1) == "agent"
    assert member.state == "stopped"
    assert "web-1 is stopped, which could not be announced" in complaints
