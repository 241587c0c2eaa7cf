"""Who can call whom by name, as members come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError
from orchestrator import control
from orchestrator.backends.base import Spec
from orchestrator.backends.qemu import identity
from orchestrator.holder import telling
from orchestrator.holder.telling import Telling
from tests.orchestrator.vm import holders
from tests.orchestrator.vm.holders import SMALL, go_wrong, up
from tests.support import eventually

if TYPE_CHECKING:
    from orchestrator.store import Store


def known(store: Store, name: str) -> set[str]:
    """Return what the guest of *name* knows: ADDRESS NAME."""
    path = Path(store.place(name).directory) / "guest/neighbours"
    return set(path.read_text().splitlines())


@pytest.mark.faults
def test_all_members_know_each_other_however_many_join_at_once(
    store: Store, tmp_path: Path
) -> None:
    up(store, "web-1")
    gate = tmp_path / "gate"
    names = [f"web-{number}" for number in range(2, 7)]
    for name in names:
        go_wrong(store, name, ready_gate=str(gate))
        control.request_member(store, "web-1", name, options=SMALL)
    gate.touch()
    found = control.wait_members(store, ["web-1", *names], 30)
    everybody = {f"{status.ip} {name}" for name, status in found.items()}
    wanted = {name: everybody - {f"{status.ip} {name}"} for name, status in found.items()}
    eventually(lambda: {name: known(store, name) for name in found} == wanted)


@pytest.mark.faults
def test_a_name_is_forgotten_when_its_address_is_anothers(store: Store) -> None:
    up(store, "web-1", "web-2")
    control.stop(store, "web-2")
    nine = control.add_member(store, "web-1", "web-9", options=SMALL)
    eventually(lambda: known(store, "web-1") == {f"{nine.ip} web-9"})


@pytest.mark.faults
def test_a_guest_that_could_not_be_told_is_told_again(store: Store, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    go_wrong(store, "web-1", unsociable=str(gate))
    up(store, "web-1")
    two = control.add_member(store, "web-1", "web-2", options=SMALL)
    words = "web-1 does not know the others by name"
    eventually(lambda: words in holders.log_of(store, "web-1"))
    assert known(store, "web-1") == set()
    gate.touch()
    eventually(lambda: known(store, "web-1") == {f"{two.ip} web-2"})
    assert holders.log_of(store, "web-1").count(words) == 1, "said once, however often it is tried"


def test_the_file_of_names_has_the_guest_itself_and_those_that_there_are() -> None:
    spec = Spec(
        name="web-1",
        directory="/x",
        cpus=1,
        memory_mb=64,
        disk_mb=0,
        mac="02:00:00:00:00:01",
        ip="10.77.0.11/24",
        gateway="10.77.0.1",
        neighbours=(("web-2", "10.77.0.12"),),
    )
    own = "127.0.0.1 localhost\n10.77.0.11 web-1\n"
    assert identity.hosts(spec, ()) == own.encode()
    other = (("web-9", "10.77.0.12"),)
    assert identity.hosts(spec, other) == f"{own}10.77.0.12 web-9\n".encode()
    made = [one.arguments for one in identity.become(spec, 0.0, bytes(32))]
    assert any(f"{own}10.77.0.12 web-2\n".encode() in arguments for arguments in made)


# --- telling -------------------------------------------------------------------------------


async def test_a_change_during_a_telling_is_told_after_it_and_two_are_never_told_at_once() -> None:
    now, told, at_once = 0, [], []
    go_on = asyncio.Event()

    async def tell() -> None:
        at_once.append(1)
        assert len(at_once) == 1
        what = now
        await go_on.wait()
        told.append(what)
        at_once.pop()

    one = Telling("x", tell, lambda _what, _error: None)
    for now in (1, 2, 3):  # noqa: B007 - told by the closure
        one.change()
        await asyncio.sleep(0)
    go_on.set()
    await one.first()
    assert told == [1, 3]
    one.close()


async def test_a_telling_that_fails_is_complained_of_once_and_a_change_is_tried_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "AGAIN_S", 0.001)
    monkeypatch.setattr(telling, "WITHIN_S", 0.01)
    tries, complaints = 0, []
    fails, often = True, asyncio.Event()

    async def tell() -> None:
        nonlocal tries
        tries += 1
        if tries > 3:
            often.set()
        if tries % 2 and fails:
            raise HubError("no", reason="agent")
        if fails:
            await asyncio.sleep(3600)

    one = Telling("x", tell, lambda what, error: complaints.append((what, type(error))))
    one.change()
    await often.wait()
    assert complaints == [("x", HubError)]
    monkeypatch.setattr(telling, "AGAIN_AT_MOST_S", 3600.0)
    fails = False
    one.change()
    await one.first()
    before = tries
    await asyncio.sleep(0.02)
    assert tries == before, "what has been told is not told again"
    one.close()
