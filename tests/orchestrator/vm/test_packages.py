from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from foundation.errors import HubError, Refused
from orchestrator import cache, packages
from orchestrator.child import run
from orchestrator.packages import BUSYBOX, KERNEL, MODULES, QEMU, Packages
from tests.orchestrator.vm import qemus
from tests.support import run_python


async def test_a_qemu_that_is_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(QEMU, str(tmp_path / "nope"))
    with pytest.raises(Refused, match=f"{QEMU}={tmp_path}/nope: no such program"):
        await Packages(str(tmp_path)).qemu(qemus.quiet)
    monkeypatch.setenv(QEMU, "/bin/true")
    assert (await Packages(str(tmp_path)).qemu(qemus.quiet)).argv("-x") == ["/bin/true", "-x"]


async def test_a_kernel_that_is_named_needs_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNEL, "/bin/true")
    with pytest.raises(Refused, match=f"{KERNEL} and {MODULES} belong together"):
        await Packages(str(tmp_path)).guest(qemus.quiet)
    monkeypatch.setenv(MODULES, str(tmp_path / "nope"))
    with pytest.raises(Refused, match="not there"):
        await Packages(str(tmp_path)).guest(qemus.quiet)
    monkeypatch.setenv(MODULES, str(tmp_path))
    monkeypatch.setenv(BUSYBOX, "/bin/true")
    guest = await Packages(str(tmp_path)).guest(qemus.quiet)
    assert (guest.kernel, guest.modules, guest.busybox) == ("/bin/true", str(tmp_path), "/bin/true")


async def test_without_apt_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HubError, match=r"install QEMU .*Fedora.*BONES_QEMU") as no_qemu:
        await Packages(str(tmp_path)).qemu(qemus.quiet)
    with pytest.raises(HubError, match="BONES_VM_KERNEL") as no_guest:
        await Packages(str(tmp_path)).guest(qemus.quiet)
    assert (no_qemu.value.reason, no_guest.value.reason) == ("no-qemu", "no-guest")


@pytest.mark.slow
async def test_a_download_that_fails_says_why_and_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_KERNEL_PACKAGE", "linux-image-of-nobody")
    with pytest.raises(HubError, match=r"(?s)of-nobody.*BONES_VM_KERNEL") as failed:
        await Packages(str(tmp_path)).guest(qemus.quiet)
    assert failed.value.reason == "no-guest"
    assert os.listdir(tmp_path / "packages") == ["lock"], "nothing half made is left"


async def test_what_was_fetched_runs() -> None:
    guest = await qemus.guest()
    said = await run([guest.busybox, "echo", "here"], cwd="/", env={}, within_s=20)
    assert said == "here\n"
    assert qemus.content(guest.kernel)[0x202:0x206] == b"HdrS"
    assert qemus.content(f"{guest.modules}/modules.builtin")


async def test_one_makes_and_the_others_wait(tmp_path: Path) -> None:
    room = str(tmp_path / "room")
    told: list[str] = []
    made: list[str] = []

    async def make(name: str) -> None:
        async with cache.making(room, f"{name} waits", told.append) as new:
            assert os.listdir(room).count(os.path.basename(new)) == 1
            if not cache.has(f"{room}/thing"):
                made.append(name)
                await asyncio.sleep(0)  # the others have their turn, and must not come in
                os.mkdir(f"{new}/thing")
                os.rename(f"{new}/thing", f"{room}/thing")

    await asyncio.gather(make("a"), make("b"), make("c"))
    assert made == ["a"]
    assert sorted(told) == ["b waits", "c waits"]
    assert sorted(os.listdir(room)) == ["lock", "thing"]


async def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="XDG_CACHE_HOME") as refused:
        async with cache.making(f"{tmp_path}/file/room", "", qemus.quiet):
            pass
    assert refused.value.reason == "cache"


@pytest.mark.faults
async def test_what_a_killed_maker_left_is_swept(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from foundation.failpoint import hit
from orchestrator import cache
async def main():
    async with cache.making(sys.argv[1], "", print) as new:
        open(new + "/half", "w").close()
        hit("half")
asyncio.run(main())
"""
    room = tmp_path / "room"
    killed = run_python(program, str(room), check=False, HUB_FAILPOINT="half")
    assert killed.returncode == -9
    assert len(os.listdir(room)) == 2
    async with cache.making(str(room), "", qemus.quiet) as new:
        assert os.listdir(new) == []
    assert os.listdir(room) == ["lock"]


def test_of_what_was_made_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        os.utime(tmp_path / str(number), (number, number))
    cache.use(str(tmp_path / "0"))
    cache.keep_newest(str(tmp_path), 2)
    assert sorted(os.listdir(tmp_path)) == ["0", "4"]


async def test_a_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(HubError, match=r"longer than 0\.1 s"):
        await run(["/bin/sleep", "100"], cwd="/", env=dict(os.environ), within_s=0.1)
