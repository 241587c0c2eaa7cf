"""Files are whole or absent."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import atomic
from foundation.atomic import read_bounded, remove, write_all, write_file
from tests.support import CODE

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from foundation.atomic import write_file
size = 200_000
write_file(sys.argv[2], b"a" * size, durable=False)
print("first", flush=True)
while True:
    for letter in (b"b", b"c"):
        write_file(sys.argv[2], letter * size, durable=False)
"""


def test_content_and_mode_are_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o022)
    try:
        write_file(str(path), b"one")
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"one", 0o600)
        write_file(str(path), b"two", mode=0o644, durable=False)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o644)
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.faults
@pytest.mark.parametrize("turn", range(5))
def test_a_killed_writer_leaves_the_file_whole(tmp_path: Path, turn: int) -> None:
    path = tmp_path / "file"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, CODE, path], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"first\n"
        seen = {path.read_bytes() for _look in range(50 + 10 * turn)}
        writer.kill()
    seen.add(path.read_bytes())
    assert seen <= {letter * 200_000 for letter in (b"a", b"b", b"c")}
    write_file(str(path), b"next")  # what the killed one left is in nobody's way
    assert path.read_bytes() == b"next"


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    failures: list[BaseException] = []

    def write(letter: bytes) -> None:
        try:
            for _turn in range(100):
                write_file(path, letter * 10_000, durable=False)
                content = read_bounded(path, 10_000)
                assert content == content[:1] * 10_000
        except BaseException as error:  # noqa: BLE001 - to be shown by the test
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(str(path), b"old")

    def full(_fd: int, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        write_file(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_planted_in_the_temporary_name_s_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    temporary = f"file.{threading.get_native_id()}.{os.getpid()}.tmp"
    (tmp_path / temporary).symlink_to("victim")
    with pytest.raises(OSError, match="symbolic"):
        write_file(str(tmp_path / "file"), b"content")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_directory_in_the_file_s_place_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(str(tmp_path / "file"), b"content")
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_named_without_a_directory_goes_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_file("file", b"here")
    assert (tmp_path / "file").read_bytes() == b"here"


@given(st.binary(max_size=100), st.integers(0, 110))
def test_reading_is_bounded(content: bytes, limit: int) -> None:
    fd = os.memfd_create("file")
    try:
        write_all(fd, content)
        path = f"/proc/{os.getpid()}/fd/{fd}"
        with pytest.raises(OSError, match="symbolic"):
            read_bounded(path, limit)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_what_fits_is_read_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert read_bounded(str(path), 100) == b"x" * size
    path.write_bytes(b"x" * 101)
    with pytest.raises(ValueError, match="longer than 100"):
        read_bounded(str(path), 100)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("fifo", "directory", "link", "absent"):
        with pytest.raises(OSError, match=r"."):
            read_bounded(str(tmp_path / name), 100)


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert remove(str(tmp_path / "file"))
    assert not remove(str(tmp_path / "file"))
