"""What is copied into real guests: at its place when it is whole, and otherwise not there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import HubError, Refused
from orchestrator import copying
from orchestrator.backends.base import Execution
from orchestrator.backends.qemu import agent, transfer
from tests.orchestrator.vm.qemus import running, shell, spec

if TYPE_CHECKING:
    from orchestrator.backends.qemu.machine import QemuMachine

pytestmark = [pytest.mark.vm, pytest.mark.real, pytest.mark.slow]


async def put(machine: QemuMachine, local: Path, remote: str) -> None:
    archive = io.BytesIO()
    copying.pack(str(local), archive)
    await machine.put(archive.getvalue(), remote)


async def why_not(machine: QemuMachine, local: Path, remote: str) -> str:
    with pytest.raises(HubError) as failed:
        await put(machine, local, remote)
    assert "bones-put" not in str(failed.value)
    return f"{failed.value.reason}: {failed.value}"


async def get(machine: QemuMachine, remote: str, local: Path) -> list[str]:
    return copying.unpack(io.BytesIO(await machine.get(remote)), str(local))


def site(place: Path) -> Path:
    """Make a tree of what is easily lost."""
    (place / "site/sub").mkdir(parents=True)
    (place / "site/empty").mkdir()
    (place / "site/.hidden").write_text("hidden\n")
    (place / "site/..odd").write_text("odd\n")
    (place / "site/sub/-a b").write_text("content\n")
    (place / "site/link").symlink_to("sub/-a b")
    return place / "site"


@pytest.mark.timeout(120)
async def test_a_copy_is_at_its_place_when_it_is_whole_and_otherwise_not_there(
    tmp_path: Path,
) -> None:
    source = site(tmp_path)
    (tmp_path / "file").write_text("file\n")
    (tmp_path / "tall").write_bytes(b"x" * 200_000)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(50 << 20)
    async with running(spec(tmp_path, 5, disk_mb=40)) as machine:
        # A directory is made, then gone into: on its own file system, even where that is mounted.
        for remote in ("/data/new/site", "/data/new/site", "/data", "relative/-site"):
            await put(machine, source, remote)
        (source / "sub/-a b").write_text("changed\n")
        await shell(machine, "echo kept >/data/new/site/sub/kept; ln -s new /data/way")
        await put(machine, source, "/data/way/site/")
        said = await shell(
            machine, "cd /data/new/site; cat 'sub/-a b' sub/kept; cat /data/way/site/l*"
        )
        assert said == "changed\nkept\nchanged\n"
        assert await shell(machine, "find /root -name .hidden") == "/root/relative/-site/.hidden\n"

        # A file replaces a file or a link; directories and files never each other.
        await shell(machine, "ln -s /etc /data/etc; mkdir /data/.bones-put-99999")
        await put(machine, tmp_path / "file", "/data/etc")
        await put(machine, tmp_path / "file", "/data/empty/etc")
        assert await shell(machine, "cat /data/etc /data/empty/etc; ls /etc/hosts") == (
            "file\nfile\n/etc/hosts\n"
        )
        for local, remote, what in (
            ("file", "/data", "/data is a directory"),
            ("site", "/data/etc", "/data/etc is no directory"),
        ):
            assert f"in-the-way: web-5: {what}" in await why_not(machine, tmp_path / local, remote)
        await shell(machine, "rm -r /data/new/site/empty; echo there >/data/new/site/empty")
        (source / "sub/-a b").write_text("not to be seen\n")
        assert "site/empty is no directory" in await why_not(machine, source, "/data/new/site")
        assert await shell(machine, "cat '/data/new/site/sub/-a b'") == "changed\n"

        # What has no room is told so, and is not there in part.
        for remote, hint in (("/tmp/huge", True), ("/root/huge", True), ("/data/huge", False)):
            why = await why_not(machine, tmp_path / "huge", remote)
            assert f"no-room: web-5 has no room for {remote}: it takes 51 MB" in why
            assert why.endswith("kept in a guest's memory") == hint
        await shell(machine, "dd if=/dev/zero of=/data/filling bs=64K 2>/dev/null || true")
        why = await why_not(machine, tmp_path / "tall", "/data/tall")
        assert why == "no-room: web-5 has no room for /data/tall: nothing more can be written there"
        await shell(machine, "rm /data/filling")
        left = await shell(machine, "ls -A /tmp /root; ls -A /data")
        assert left == (
            "/root:\nrelative\n\n/tmp:\n..odd\n.hidden\nempty\netc\nlink\nlost+found\nnew\nsub\nway\n"
        ), "what another one, killed, has left is gone as well"


@pytest.mark.timeout(120)
async def test_a_copy_out_is_the_thing_and_what_cannot_be_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = site(tmp_path)
    async with running(spec(tmp_path, 6)) as machine:
        await put(machine, source, "site")
        await shell(machine, "mkfifo site/pipe; ln -s site to-site; ln -s site/.hidden to-file")
        for number, remote in enumerate(("site", "/root/site/", "to-site", "site/.", "./to-site/")):
            assert await get(machine, remote, tmp_path / str(number)) in (["site/pipe"], ["pipe"])
            copied = sorted(path.name for path in (tmp_path / str(number)).rglob("*"))
            assert copied == sorted(path.name for path in source.rglob("*"))
        assert await get(machine, "to-file", tmp_path / "file") == []
        assert (tmp_path / "file").read_text() == "hidden\n"
        await shell(machine, "cd site; ln -s . p; ln -s p/.. q; ln -s /nope dangling")
        with pytest.raises(Refused, match=r"'./site/[dq].*may lead out"):
            await get(machine, "site", tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        await shell(machine, "dd if=/dev/zero of=sparse bs=1 count=1 seek=40M 2>/dev/null")
        for remote, reason in (
            ("/nope", "no-such-path"),
            ("site/dangling", "no-such-path"),
            ("site/.hidden/", "no-such-path"),
            ("site/pipe", "no-file"),
            ("/", "bad-path"),
            ("/tmp/..", "bad-path"),
        ):
            with pytest.raises(Refused) as refused:
                await machine.get(remote)
            assert refused.value.reason == reason
        monkeypatch.setattr(agent, "MOST_COLLECTED", 1 << 20)
        with pytest.raises(Refused, match=r"1 MiB, .*: copy its parts") as refused:
            await machine.get("sparse")
        assert refused.value.reason == "too-large"


def lying(status: int, said: bytes) -> transfer.Execute:
    """Return a guest's execute, that of one whose agent says what it likes."""

    async def execute(_argv: list[str], **_how: object) -> Execution:
        return Execution(status=status, stdout=said, stderr=said)

    return execute


async def test_what_a_guest_says_of_a_copy_is_told_in_short_and_steers_no_terminal() -> None:
    said = b"x" * 3_000_000 + b"\n\x1b]0;title\x07\xff\n/tmp/.bones-put-12/a"
    for status in (1, 68, 69, 128 + 9):
        guest = lying(status, said)
        for asked in (transfer.put(guest, "web", b"", "/a"), transfer.get(guest, "web", "/a")):
            with pytest.raises(HubError) as failed:
                await asked
            assert str(failed.value).isprintable()
            assert len(str(failed.value)) < 1500
    with pytest.raises(HubError, match="takes 1 MB, and 0 MB are free"):
        await transfer.put(lying(69, b"memory " + b"9" * 5000), "web", b"", "/a")
