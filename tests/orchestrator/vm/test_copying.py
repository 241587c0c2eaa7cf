"""Archives into and out of a guest: exact; of a guest that lies nothing is written elsewhere."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Refused
from orchestrator import copying


def there_and_back(source: Path, target: Path) -> None:
    archive = io.BytesIO()
    copying.pack(str(source), "name", archive)
    archive.seek(0)
    copying.unpack(archive, str(target))


def test_a_directory_arrives_with_modes_links_and_empty_ones(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "run").write_bytes(b"\0\xff")
    (source / "run").chmod(0o755)
    (source / "link").symlink_to("run")
    os.mkfifo(source / "pipe")
    there_and_back(source, tmp_path / "target")
    target = tmp_path / "target"
    assert (target / "run").read_bytes() == b"\0\xff"
    assert stat.S_IMODE((target / "run").stat().st_mode) == 0o755
    assert os.readlink(target / "link") == "run"
    assert sorted(os.listdir(target)) == ["empty", "link", "run"]


def test_a_file_replaces_a_file_and_never_a_directory(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new\n")
    target.write_text("old\n")
    there_and_back(source, target)
    assert target.read_text() == "new\n"
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match="there"):
        there_and_back(source, tmp_path / "there")
    assert sorted(os.listdir(tmp_path)) == ["source", "target", "there"]


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "entries",
    [
        [entry("/absolute")],
        [entry("../beside")],
        [entry("a/../../beside")],
        [entry("a", tarfile.SYMTYPE, "/etc"), entry("a/passwd")],
        [entry("a", tarfile.SYMTYPE, "../..")],
        [entry("a/b", tarfile.SYMTYPE, "../../beside")],
        [entry("a", tarfile.LNKTYPE, "/etc/passwd")],
        [entry("a", tarfile.FIFOTYPE)],
        [entry("a", tarfile.BLKTYPE)],
        [entry("a"), entry("b")],
        [],
    ],
)
def test_what_would_write_elsewhere_is_refused_and_leaves_nothing(
    tmp_path: Path, entries: list[tarfile.TarInfo]
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for one in entries:
            tar.addfile(one)
    archive.seek(0)
    (tmp_path / "in").mkdir()
    with pytest.raises(Refused) as refused:
        copying.unpack(archive, str(tmp_path / "in/target"))
    assert refused.value.reason == "unsafe-archive"
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == []


def test_a_link_through_which_a_file_would_go_is_not_followed(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry("top", tarfile.DIRTYPE))
        tar.addfile(entry("top/out", tarfile.SYMTYPE, "in"))
        tar.addfile(entry("top/out/file"))
    archive.seek(0)
    with pytest.raises(OSError, match="out"):
        copying.unpack(archive, str(tmp_path / "target"))
    assert os.listdir(tmp_path) == []


@given(content=st.binary(max_size=3000), at=st.integers(0, 5000), byte=st.integers(0, 255))
def test_no_bytes_make_it_fail_otherwise_than_by_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, byte: int
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        told = entry("name")
        told.size = len(content)
        tar.addfile(told, io.BytesIO(content))
    damaged = bytearray(archive.getvalue())
    damaged[min(at, len(damaged) - 1)] = byte
    place = tmp_path_factory.mktemp("damaged")
    (place / "in").mkdir()
    try:
        copying.unpack(io.BytesIO(damaged), str(place / "in/target"))
    except (Refused, OSError):
        pass
    assert os.listdir(place) == ["in"]
    assert os.listdir(place / "in") in ([], ["target"])
