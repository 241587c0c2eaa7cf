from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from foundation.errors import HubError
from orchestrator.image import boot, caller, images, initrd, kernel
from orchestrator.image.cpio import Archive
from orchestrator.image.modules import NEEDED, Modules, needs, unsigned
from tests.orchestrator.vm import qemus


def listed(busybox: str, archive: bytes, *options: str) -> str:
    """Return what busybox's cpio tells of *archive*."""
    done = subprocess.run(
        [busybox, "cpio", *options], input=archive, capture_output=True, check=True
    )
    return done.stdout.decode()


async def test_an_archive_is_read_by_another_cpio_as_it_was_written() -> None:
    archive = Archive()
    archive.directory("d", 0o750)
    archive.file("d/odd", b"x" * 5, 0o640)
    archive.file("d/empty", b"")
    archive.symlink("d/link", "odd")
    archive.device("null", 1, 3, 0o666)
    raw = archive.to_bytes()
    busybox = (await qemus.guest()).busybox
    assert listed(busybox, raw, "-t").split() == ["d", "d/odd", "d/empty", "d/link", "null"]
    table = listed(busybox, raw, "-tv")
    assert "drwxr-x---" in table
    assert "-rw-r-----" in table
    assert "link -> odd" in table
    assert "crw-rw-rw-" in table


def test_a_path_in_an_archive_is_relative() -> None:
    with pytest.raises(ValueError, match="/etc"):
        Archive().file("/etc", b"")


async def test_debians_kernel_is_unpacked_and_anything_else_is_left_alone() -> None:
    bzimage = qemus.content((await qemus.guest()).kernel)
    unpacked = kernel.unpacked(bzimage)
    assert unpacked is not None
    assert unpacked.startswith(b"\x7fELF")
    assert b"Linux version" in unpacked
    assert kernel.unpacked(b"") is None
    assert kernel.unpacked(bytes(4096)) is None
    assert kernel.unpacked(bzimage[:1_000_000]) is None


async def test_a_module_comes_after_what_it_needs() -> None:
    modules = Modules((await qemus.guest()).modules).in_order(NEEDED)
    names = [name for name, _content in modules]
    assert set(names) >= {"virtio_net", "virtio_console", "virtio_blk"}
    assert len(set(names)) == len(names)
    for place, (_name, content) in enumerate(modules):
        assert set(needs(content)) <= set(names[:place])


async def test_modules_are_without_their_signatures_which_guests_would_verify() -> None:
    for _name, content in Modules((await qemus.guest()).modules).in_order(NEEDED):
        assert b"Module signature" not in content
    magic = b"~Module signature appended~\n"
    signed = b"ELF" + b"s" * 40 + bytes(8) + (40).to_bytes(4, "big") + magic
    assert unsigned(signed) == b"ELF"
    assert unsigned(b"ELF") == b"ELF"


def test_a_module_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\n")
    modules = Modules(str(tmp_path))
    assert modules.in_order(["virtio"]) == [], "it is part of the kernel"
    with pytest.raises(HubError, match="no module virtio_net"):
        modules.in_order(["virtio-net"])


async def test_an_image_is_made_once_and_anew_when_something_changes(tmp_path: Path) -> None:
    guest = await qemus.guest()
    own = tmp_path / "busybox"
    own.write_bytes(qemus.content(guest.busybox))
    own.chmod(0o755)
    guest = guest.replace(busybox=str(own))
    first = await images.have(str(tmp_path), guest, qemus.quiet)
    assert b"virtio" in qemus.content(first.initrd)
    inode = os.stat(first.initrd).st_ino
    assert os.stat((await images.have(str(tmp_path), guest, qemus.quiet)).initrd).st_ino == inode
    os.utime(own, (1, 1))
    assert (await images.have(str(tmp_path), guest, qemus.quiet)).key != first.key


async def test_an_initramfs_starts_the_caller_and_an_agent_for_every_channel() -> None:
    guest = await qemus.guest()
    root = initrd.build(b"", ["sh", "init"], Modules(guest.modules))
    assert re.findall(rb"::respawn:[^\n]*", root) == [
        b"::respawn:/etc/call",
        *(b"::respawn:/etc/agent %d" % channel for channel in range(initrd.CHANNELS)),
    ]


async def test_what_a_guest_does_first_is_a_list_of_system_calls() -> None:
    guest = await qemus.guest()
    modules = Modules(guest.modules).in_order(NEEDED)
    program = boot.program(Modules(guest.modules))
    begin = program.index(bytes(16) + len(program[0x1000:]).to_bytes(4, "little"))
    assert begin == 0x1000, "a page of its own"
    made = caller.results(program[begin:])  # where results will be the numbers are now
    assert made.count(175) == len(modules), "init_module"
    assert made[-2:] == [59, 60], "execve, and exit if that fails"
    assert all(content in program for _name, content in modules)
