"""Real guests: their disks, their ends, the templates they start from."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.atomic import write_file
from foundation.errors import HubError, Refused
from orchestrator import cache as caching
from orchestrator.backends.qemu import disk, kvm, templates
from orchestrator.backends.qemu.backend import QemuBackend
from orchestrator.packages import QEMU, Packages
from tests.orchestrator.vm import qemus
from tests.orchestrator.vm.qemus import CACHE, quiet, running, shell, spec
from tests.support import eventually, is_gone, kill, run_python

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache that has the shared one's packages and images, and no template."""
    monkeypatch.setenv(kvm.ACCEL, "tcg")  # not another trial
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("packages", "images"):
        os.symlink(CACHE / name, cache / name)
    return cache


async def test_what_is_on_the_disk_is_there_after_a_stop_and_after_a_kill(tmp_path: Path) -> None:
    wanted = spec(tmp_path, disk_mb=40)
    async with running(wanted) as machine:
        assert "/dev/vda /data ext4 rw" in await shell(machine, "cat /proc/mounts")
        size_kib = int((await shell(machine, "df -k /data | tail -1")).split()[1])
        assert 30 * 1024 < size_kib <= 40 * 1024
        await shell(machine, "echo one >/data/one")  # not synced: a stop does that
        assert await machine.stop(20) == "agent"
        assert (await machine.wait()).reason == "it was stopped"
    disk_bytes = os.stat(f"{wanted.directory}/{disk.NAME}").st_blocks * 512
    assert disk_bytes < 20 << 20, "it is sparse"
    async with running(wanted) as machine:
        assert await shell(machine, "cat /data/one") == "one\n"
        await shell(machine, "echo two >/data/two; sync")
        kill(machine.pid)
        assert (await machine.wait()).status == -signal.SIGKILL
    async with running(wanted) as machine:
        assert await shell(machine, "cat /data/one /data/two") == "one\ntwo\n"


async def test_who_uses_the_disk_has_time_to_save_its_work_before_a_stop(tmp_path: Path) -> None:
    wanted = spec(tmp_path, disk_mb=40)
    saver = (
        "cd /data; trap 'sleep 0.5; echo saved >work; exit' TERM; echo >/tmp/on; sleep 1000 & wait"
    )
    async with running(wanted) as machine:
        await shell(machine, f'mkfifo /tmp/on; (setsid sh -c "{saver}" &); cat /tmp/on')
        assert await machine.stop(20) == "agent"
    async with running(wanted) as machine:
        assert await shell(machine, "cat /data/work") == "saved\n"
        await shell(
            machine,
            "mkfifo /tmp/on; (cd /data; trap '' TERM; echo >/tmp/on; sleep 1000) & cat /tmp/on",
        )
        assert await machine.stop(4) == "agent", "who does not let go is killed"


async def test_a_disk_keeps_its_size_whatever_is_asked_for_later(tmp_path: Path) -> None:
    async with running(spec(tmp_path, disk_mb=40)):
        pass
    async with running(spec(tmp_path, disk_mb=80)) as machine:
        assert await shell(machine, "cat /sys/block/vda/size") == f"{40 * 2048}\n"
        await shell(machine, "grep -q ' /data ext4 rw' /proc/mounts")
        await shell(machine, "dd if=/dev/zero of=/data/full bs=1M count=25 2>&1; sync")


async def test_a_disk_that_does_not_mount_is_left_as_it_is(tmp_path: Path) -> None:
    wanted = spec(tmp_path, disk_mb=40)
    path = f"{wanted.directory}/{disk.NAME}"
    write_file(path, b"precious" * (5 << 20))
    with pytest.raises(HubError, match="could not become web-1"):
        async with running(wanted):
            pass
    assert qemus.content(path) == b"precious" * (5 << 20)


@pytest.mark.faults
async def test_a_disk_is_whole_or_absent(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from orchestrator.backends.base import Spec
from orchestrator.backends.qemu import disk
asyncio.run(disk.have(Spec(name="x", directory=sys.argv[1], cpus=1, memory_mb=1, disk_mb=64,
                           mac="", ip="", gateway="")))
"""
    assert (
        run_python(program, str(tmp_path), check=False, HUB_FAILPOINT="disk.made").returncode == -9
    )
    assert not (tmp_path / disk.NAME).exists()
    run_python(program, str(tmp_path))
    assert os.listdir(tmp_path) == [disk.NAME]


async def test_a_guest_that_does_not_answer_is_ended_in_time(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        await machine._running.qmp.execute("stop")  # as if it hung
        began = time.monotonic()
        assert await machine.stop(2) == "quit"
        assert time.monotonic() - began < 2
    async with running(spec(tmp_path)) as machine:
        os.kill(machine.pid, signal.SIGSTOP)
        began = time.monotonic()
        assert await machine.stop(1) == "killed"
        assert time.monotonic() - began < 2
        assert is_gone(machine.pid)


@pytest.mark.faults
async def test_a_vm_dies_with_who_started_it(tmp_path: Path) -> None:
    program = """
import asyncio, os, sys
from pathlib import Path
from foundation.failpoint import hit
from orchestrator.backends.qemu.backend import QemuBackend
from tests.orchestrator.vm.qemus import CACHE, spec
async def main():
    machine = await QemuBackend(str(CACHE)).start(spec(Path(sys.argv[1])), None)
    Path(sys.argv[1], "pid").write_text(str(machine.pid))
    hit("started")
asyncio.run(main())
"""
    killed = run_python(program, str(tmp_path), check=False, HUB_FAILPOINT="started")
    assert killed.returncode == -9, killed.stderr
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: is_gone(pid))


async def test_vms_of_one_template_share_what_it_was_and_nothing_else(tmp_path: Path) -> None:
    backend = QemuBackend(str(CACHE))
    async with (
        running(spec(tmp_path, 1), backend) as one,
        running(spec(tmp_path, 2), backend) as two,
    ):
        ask = "head -c 16 /dev/urandom | xxd -p; cat /proc/sys/kernel/random/boot_id; hostname"
        answers = [(await shell(machine, ask)).split() for machine in (one, two)]
        assert all(a != b for a, b in zip(*answers, strict=True))
        for machine in (one, two):
            maps = qemus.content(f"/proc/{machine.pid}/maps").decode()
            assert str(CACHE / "templates") in maps, "it was booted"
        before = await shell(two, "md5sum /bin/busybox")
        await shell(one, "dd if=/dev/urandom of=/bin/busybox2 bs=1M count=2 2>/dev/null")
        assert await shell(two, "ls /bin/busybox2 2>&1 || true") != "/bin/busybox2\n"
        assert await shell(two, "md5sum /bin/busybox") == before


async def test_guests_whose_ports_are_joined_reach_each_other(tmp_path: Path) -> None:
    ports = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with (
        running(spec(tmp_path, 1), port=ports[0]) as one,
        running(spec(tmp_path, 2), port=ports[1]) as two,
    ):
        assert [port.fileno() for port in ports] == [-1, -1], "the backend has them"
        await shell(one, "ping -c 2 -w 20 10.77.0.12")
        await shell(two, "ping -c 2 -w 20 -s 1400 10.77.0.11")


async def test_nothing_of_the_template_gets_onto_the_network(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        async with running(spec(tmp_path), port=theirs) as machine:
            await machine.execute(["ping", "-c", "1", "-W", "1", "10.77.0.99"])
            ours.setblocking(False)
            senders = set()
            while frame := _next_frame(ours):
                senders.add(frame[6:12].hex(":"))
        assert senders == {machine._spec.mac}


def _next_frame(port: socket.socket) -> bytes:
    try:
        return port.recv(65536)
    except BlockingIOError:
        return b""


@pytest.mark.faults
async def test_a_template_that_does_not_work_is_dropped_and_its_vm_booted(
    tmp_path: Path, cache: Path
) -> None:
    wanted = spec(tmp_path)
    await QemuBackend(str(CACHE)).prepare(wanted, qemus.quiet)
    for made in CACHE.glob("templates/*/"):
        copy = cache / "templates" / made.name
        copy.mkdir(parents=True)
        os.link(made / "ram", copy / "ram")  # nobody writes to it
        (copy / "state").write_bytes(qemus.content(str(made / "state"))[:1000])
    broken = set((cache / "templates").iterdir())
    async with running(wanted, QemuBackend(str(cache)), prepare=False) as machine:
        assert await shell(machine, "hostname") == "web-1\n"
        assert str(cache / "templates") not in qemus.content(f"/proc/{machine.pid}/maps").decode()
    assert len(broken - set((cache / "templates").iterdir())) == 1


@pytest.mark.faults
async def test_a_vm_that_cannot_start_for_a_reason_of_its_own_costs_nobody_the_template(
    tmp_path: Path,
) -> None:
    backend = QemuBackend(str(CACHE))
    wanted = spec(tmp_path, 2, disk_mb=40)
    async with running(wanted, backend):
        before = sorted((CACHE / "templates").iterdir())
        with pytest.raises(HubError, match="lock"):
            await backend.start(wanted, None)  # its disk is in use
    assert sorted((CACHE / "templates").iterdir()) == before


async def test_more_memory_than_this_machine_has_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(Refused, match="999999 MB of memory; this machine has"):
        await QemuBackend(str(tmp_path)).prepare(spec(tmp_path, memory_mb=999_999), qemus.quiet)
    assert os.listdir(tmp_path) == ["web-1"]


async def test_a_disk_that_has_vanished_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    wanted = spec(tmp_path, disk_mb=40)
    async with running(wanted):
        pass
    os.unlink(f"{wanted.directory}/{disk.NAME}")
    with pytest.raises(HubError, match=r"disk\.raw is gone, which web-1 had") as refused:
        await QemuBackend(str(CACHE)).start(wanted, None)
    assert refused.value.reason == "disk-missing"


async def test_what_vms_map_of_a_template_has_its_room_where_holes_take_some(small: Path) -> None:
    ram = small / "ram"
    for size, fits in ((10 << 20, True), (40 << 20, False)):
        with ram.open("wb") as file:
            file.truncate(size)
        if fits:
            templates._have_room(str(ram))
            assert ram.stat().st_blocks * 512 >= size
        else:
            with pytest.raises(OSError, match="No space"):
                templates._have_room(str(ram))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a file system of 24 MB."""
    place = tmp_path / "small"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    if subprocess.run(options, check=False, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def _grow(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=100m", place], check=True)


@pytest.mark.faults
async def test_a_guest_waits_for_room_on_this_machines_disk_and_loses_nothing(small: Path) -> None:
    write = "dd if=/dev/urandom of=/data/all bs=1M count=30 2>/dev/null; sync; md5sum /data/all"
    async with running(spec(small, disk_mb=40)) as machine:
        writing = asyncio.ensure_future(shell(machine, write))
        async with asyncio.timeout(60):
            while not machine.trouble:  # noqa: ASYNC110 - QEMU's own time
                await asyncio.sleep(0.02)
        with pytest.raises(HubError, match="web-1: this machine has no room") as refused:
            await machine.execute(["true"])
        assert refused.value.reason == "paused"
        _grow(small)
        async with asyncio.timeout(60):
            said = await writing
        assert machine.trouble == ""
        assert await shell(machine, "echo 3 >/proc/sys/vm/drop_caches; md5sum /data/all") == said


@pytest.mark.faults
async def test_a_killed_maker_of_a_template_leaves_nothing_that_matters(
    tmp_path: Path, cache: Path
) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from orchestrator.backends.qemu.backend import QemuBackend
from tests.orchestrator.vm.qemus import spec
asyncio.run(QemuBackend(sys.argv[1]).prepare(spec(Path(sys.argv[2])), print))
"""
    arguments = (program, str(cache), str(tmp_path))
    killed = run_python(*arguments, check=False, HUB_FAILPOINT="template.booting")
    assert killed.returncode == -9, killed.stdout + killed.stderr
    assert len(os.listdir(cache / "templates")) == 2, "a lock, and what was half made"
    async with caching.making(str(cache / "templates"), "", qemus.quiet):
        pass
    assert os.listdir(cache / "templates") == ["lock"]


async def test_a_template_that_cannot_be_made_is_told_once_and_is_no_failure(
    tmp_path: Path, cache: Path
) -> None:
    told: list[str] = []
    (cache / "templates").touch()  # no directory can be there
    backend = QemuBackend(str(cache))
    for _ in range(2):
        await backend.prepare(spec(tmp_path), told.append)
    assert [words.partition(":")[0] for words in told if "template" in words] == ["no template"]


async def test_a_qemu_that_refuses_says_why(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"(?i)memory|ram") as failed:
        await QemuBackend(str(CACHE), templates=False).start(
            spec(tmp_path, memory_mb=1 << 40), None
        )
    assert failed.value.reason == "qemu"


async def test_a_qemu_that_is_too_old_or_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "qemu"
    old.write_text("#!/bin/sh\necho QEMU emulator version 6.2.0\n")
    old.chmod(0o755)
    monkeypatch.setenv(QEMU, str(old))
    with pytest.raises(HubError, match=r"QEMU 6\.2\.0; VMs need 7\.2") as refused:
        await QemuBackend(str(CACHE)).prepare(spec(tmp_path), qemus.quiet)
    assert refused.value.reason == "qemu-version"
    monkeypatch.setenv(QEMU, "/bin/echo")
    with pytest.raises(HubError, match="/bin/echo is no QEMU"):
        await QemuBackend(str(CACHE)).prepare(spec(tmp_path), qemus.quiet)


async def test_a_vm_may_start_no_program(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        told = qemus.content(f"/proc/{machine.pid}/status").decode()
        assert "Seccomp:\t2" in told


async def test_kvm_is_used_only_if_a_boot_of_it_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = await Packages(str(CACHE)).qemu(qemus.quiet)
    sector = tmp_path / "sector"
    sector.write_bytes(kvm._SECTOR)
    assert await kvm.works(qemu, str(sector), "tcg", 30), "emulation always does"
    sector.write_bytes(b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa")  # jmp $
    began = time.monotonic()
    assert not await kvm.works(qemu, str(sector), "tcg", 0.3), "it hangs"
    assert time.monotonic() - began < 5
    assert not await kvm.works(qemu, str(sector), "nothing", 30), "it is refused"

    verdicts: list[str] = []
    monkeypatch.setattr(kvm, "DEVICE", "/dev/null")
    monkeypatch.setattr(kvm, "_DEADLINE_S", 0.5)
    for _ in range(2):
        assert await kvm.accel(str(tmp_path), qemu, verdicts.append) in ("kvm", "tcg")
    assert verdicts == ["trying whether KVM works here"], "once a boot"
    monkeypatch.setattr(kvm, "DEVICE", "/nope")
    assert await kvm.accel(str(tmp_path), qemu, verdicts.append) == "tcg"
    for named in ("kvm", "tcg"):
        monkeypatch.setenv(kvm.ACCEL, named)
        assert await kvm.accel(str(tmp_path), qemu, verdicts.append) == named
    monkeypatch.setenv(kvm.ACCEL, "hvf")
    with pytest.raises(Refused, match="kvm or tcg"):
        await kvm.accel(str(tmp_path), qemu, verdicts.append)


async def test_an_image_that_went_from_the_cache_is_made_again_for_the_next_vm(
    tmp_path: Path, cache: Path
) -> None:
    (cache / "images").unlink()
    backend = QemuBackend(str(cache), templates=False)
    await backend.prepare(spec(tmp_path), quiet)
    shutil.rmtree(cache / "images")
    await backend.prepare(spec(tmp_path), quiet)
    (image,) = (entry for entry in (cache / "images").iterdir() if entry.is_dir())
    assert sorted(os.listdir(image)) == ["initrd", "kernel"]
