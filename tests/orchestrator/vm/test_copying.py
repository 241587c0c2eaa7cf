"""Archives into and out of a guest: exact; of a guest that lies nothing is written elsewhere."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Refused
from orchestrator import copying, targets

if TYPE_CHECKING:
    from collections.abc import Sequence


def copy(source: Path | str, target: Path | str) -> list[str]:
    archive = io.BytesIO()
    left_out = copying.pack(str(source), archive)
    archive.seek(0)
    assert copying.unpack(archive, str(target)) == []
    return left_out


def tree(place: Path) -> dict[str, str]:
    """Return what is below *place*: a file's content, a link's target, "/" for a directory."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_symlink():
            what = f"-> {os.readlink(path)}"
        else:
            what = "/" if path.is_dir() else path.read_text()
        found[str(path.relative_to(place))] = what
    return found


# --- honest copies ---------------------------------------------------------------------------


def test_a_directory_arrives_with_permissions_links_and_empty_ones(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "no/such/target"
    long = "n" * 200
    (source / "empty").mkdir(parents=True)
    (source / "deep" / long / long).mkdir(parents=True)
    (source / "run").write_bytes(b"\0\xff" * 700_000)
    (source / "run").chmod(0o4755)
    (source / "link").symlink_to("run")
    (source / "deep" / "up").symlink_to(f".././deep/{long}/{long}/nothing")
    (source / "deep" / "same").hardlink_to(source / "run")
    (source / "odd \udcff\n").touch()
    assert copy(source, target) == []
    assert (target / "run").read_bytes() == b"\0\xff" * 700_000
    assert (target / "run").samefile(target / "deep/same")
    assert stat.S_IMODE((target / "run").stat().st_mode) == 0o755
    assert os.readlink(target / "link") == "run"
    assert os.readlink(target / "deep/up").endswith("nothing")
    assert (target / "deep" / long / long).is_dir()
    assert sorted(os.listdir(target)) == ["deep", "empty", "link", "odd \udcff\n", "run"]


def test_a_link_that_is_named_itself_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "to-directory").symlink_to(tmp_path / "to")
    (tmp_path / "to").mkdir()
    (tmp_path / "to/one").write_text("one\n")
    copy(tmp_path / "to-file", tmp_path / "got")
    assert tree(tmp_path)["got"] == "content\n"
    for number, source in enumerate(("to-directory", "to-directory/", "to/.")):
        copy(f"{tmp_path}/{source}", tmp_path / str(number))
        assert tree(tmp_path / str(number)) == {"one": "one\n"}
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        copy(tmp_path / "dangling", tmp_path / "other")


def test_sockets_and_pipes_are_left_out_and_named_and_alone_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(source / "socket"))
    assert copy(source, tmp_path / "target") == [f"{source}/pipe", f"{source}/socket"]
    assert tree(tmp_path / "target") == {"file": ""}
    for name in ("pipe", "socket"):
        with pytest.raises(Refused, match=f"{name} is neither file nor directory") as refused:
            copy(source / name, tmp_path / "other")
        assert refused.value.reason == "no-file"


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 1000)
    with (tmp_path / "tall").open("wb") as file:
        file.truncate(1 << 40)
    archive = io.BytesIO()
    with pytest.raises(Refused, match="copy its parts") as refused:
        copying.pack(str(tmp_path), archive, limit=1 << 20)
    assert refused.value.reason == "too-large"
    assert len(archive.getvalue()) < 1 << 20


def test_a_file_replaces_a_file_or_a_link_and_never_a_directory(tmp_path: Path) -> None:
    source, target, link = (tmp_path / name for name in ("source", "target", "link"))
    source.write_text("new\n")
    target.write_text("old\n")
    (tmp_path / "there").mkdir()
    link.symlink_to("there")
    copy(source, target)
    copy(source, link)
    assert tree(tmp_path) == {
        "link": "new\n", "source": "new\n", "target": "new\n", "there": "/",
    }  # fmt: skip
    with pytest.raises(Refused, match="there is a directory") as refused:
        copy(source, tmp_path / "there")
    assert refused.value.reason == "in-the-way"
    assert sorted(os.listdir(tmp_path)) == ["link", "source", "target", "there"]


def test_a_directory_goes_into_one_that_is_there_or_nowhere(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "both/new").mkdir(parents=True)
    (source / "both/changed").write_text("new\n")
    (source / "both/link").symlink_to("changed")
    (target / "both").mkdir(parents=True)
    (target / "both/changed").write_text("old\n")
    (target / "both/link").symlink_to("/etc")
    (target / "both/kept").write_text("kept\n")
    copy(source, target)
    copy(source, f"{target}/")
    after = {
        "both": "/", "both/changed": "new\n", "both/kept": "kept\n", "both/link": "-> changed",
        "both/new": "/",
    }  # fmt: skip
    assert tree(target) == after
    (source / "both/kept").mkdir()
    (source / "both/changed").write_text("newest\n")
    with pytest.raises(Refused, match="kept is no directory") as refused:
        copy(source, target)
    assert refused.value.reason == "in-the-way"
    assert tree(target) == after
    shutil.rmtree(target / "both")
    (target / "both").symlink_to(tmp_path)
    with pytest.raises(Refused, match="both is no directory"):
        copy(source, target)


def test_what_cannot_be_written_is_said_of_the_path_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    with pytest.raises(NotADirectoryError) as failed:
        copy(tmp_path / "file", tmp_path / "file/new/one")
    assert failed.value.filename == str(tmp_path / "file/new/one")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("source", "within"),
    [
        ("site", "/data/site"),
        ("a/site/", "/data/site"),
        ("site/.", "/data/"),
        (".", "/data/"),
        ("..", "/data/"),
        ("/", "/data/"),
    ],
)
def test_into_a_directory_a_copy_goes_under_its_own_name(source: str, within: str) -> None:
    assert targets.within("/data/", source) == within


# --- a guest that lies -----------------------------------------------------------------------


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def directory(name: str) -> tarfile.TarInfo:
    return entry(name, tarfile.DIRTYPE)


def link(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, target)


def archive_of(entries: Sequence[tarfile.TarInfo]) -> io.BytesIO:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for one in entries:
            tar.addfile(one)
    archive.seek(0)
    return archive


def refused(archive: io.BytesIO, place: Path) -> Refused:
    """Return how *archive* is refused, which leaves nothing in *place*."""
    (place / "in").mkdir()
    with pytest.raises(Refused) as caught:
        copying.unpack(archive, str(place / "in/no/target"))
    assert os.listdir(place) == ["in"]
    assert os.listdir(place / "in") == []
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry("/absolute")],
        [entry("../beside")],
        [directory("a"), entry("a/../../beside")],
        [directory("a"), entry("a/../b")],
        [entry("a"), entry("b")],
        [directory("a"), entry("b")],
        [directory("."), entry("../b")],
        [directory("a"), entry("ab")],
        [entry("a"), entry("a")],
        [directory("a"), entry("a/b"), entry("a/./b")],
        [directory("a"), directory("a")],
        [directory("a"), entry("a/b/c")],
        [entry("a"), entry("a/b")],
        [directory("a"), entry("a/b", tarfile.FIFOTYPE), entry("a/b/c")],
        [directory("a"), link("a/b", "."), entry("a/b/c")],
        [directory("a"), link("a/b", "c"), link("a/b", "d")],
        [link("a", "b")],
        [link("a", ".")],
        [link("a", "/etc"), entry("a/passwd")],
        [directory("a"), link("a/b", "/etc")],
        [directory("a"), link("a/b", "..")],
        [directory("a"), link("a/b", "../a")],
        [directory("a"), link("a/b", "./.././a/c")],
        [directory("a"), directory("a/b"), link("a/b/c", "../../beside")],
        [directory("a"), link("a/p", "."), link("a/q", "p/..")],
        [directory("a"), directory("a/d"), link("a/q", "d/../..")],
        [directory("."), link("q", "..")],
        [directory("a"), link("a/b", "")],
        [directory("a"), link("a/b", "x" * 5000)],
        [entry("a", tarfile.LNKTYPE, "/etc/passwd")],
        [directory("a"), entry("a/b", tarfile.LNKTYPE, "a/c")],
        [directory("a"), entry("a/b", tarfile.LNKTYPE, "a")],
        [directory("a"), entry("a/b", tarfile.LNKTYPE, "../a")],
        [directory("a"), link("a/c", "b"), entry("a/b", tarfile.LNKTYPE, "a/c")],
        [entry("a", tarfile.FIFOTYPE)],
        [entry("a", tarfile.BLKTYPE)],
        [entry("a", tarfile.GNUTYPE_SPARSE)],
        [entry("a", tarfile.XHDTYPE)],
        [entry("a", b"?")],
        [entry("n" * 300)],
        [entry("n" * 5000)],
        [entry("\x1b]0;title\x07" * 30)],
        [directory("/".join("d" * depth)) for depth in range(1, 300)],
    ],
)
def test_what_would_lead_elsewhere_is_refused_and_leaves_nothing(
    tmp_path: Path, entries: list[tarfile.TarInfo]
) -> None:
    assert refused(archive_of(entries), tmp_path).reason == "unsafe-archive"


def header(entry: tarfile.TarInfo, size: int) -> bytes:
    """Return a header that tells *size*, whatever follows."""
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


SPARSE = bytearray(header(entry("a", tarfile.GNUTYPE_SPARSE), 0))
SPARSE[483:495] = b"%011o\0" % (3 << 30)  # its real size
SPARSE[148:156] = b"%06o\0 " % (sum(SPARSE[:148]) + 8 * 32 + sum(SPARSE[156:]))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unsafe-archive"),
        (b"x" * 10_000, "unsafe-archive"),
        (bytes(SPARSE) + bytes(1024), "unsafe-archive"),
        (header(entry("././@LongLink", b"L"), 3) * 5000 + bytes(1024), "unsafe-archive"),
        (header(entry("././@LongLink", b"L"), 1 << 60), "unsafe-archive"),
        (header(entry("x", b"x"), 1 << 60), "unsafe-archive"),
        (b"".join([header(entry("x", b"x"), 512), b"22 GNU.sparse.map=a,b\n".ljust(512, b"\0")]),
         "unsafe-archive"),
        (header(entry("a"), 1000), "unsafe-archive"),
        (header(entry("a"), -1), "unsafe-archive"),
        (header(directory("a"), 512) + bytes(1536), "unsafe-archive"),
        (header(entry("a"), 1 << 62), "too-large"),
    ],
)  # fmt: skip
def test_an_archive_that_is_none_is_refused_as_such(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    assert refused(io.BytesIO(content), tmp_path).reason == reason


def test_what_becomes_of_an_archive_is_bounded_in_files_and_in_bytes(tmp_path: Path) -> None:
    many = [directory("a"), *(entry(f"a/{number}") for number in range(100))]
    with pytest.raises(Refused, match="more than 0 MiB") as refused:
        copying.unpack(archive_of(many), str(tmp_path / "target"), limit=100 * 4096)
    assert refused.value.reason == "too-large"
    assert os.listdir(tmp_path) == []
    copying.unpack(archive_of(many), str(tmp_path / "target"), limit=101 * 4096)
    assert len(os.listdir(tmp_path / "target")) == 100


def test_pipes_and_devices_of_a_guest_are_left_out_and_named(tmp_path: Path) -> None:
    special = [
        entry(f"./a/{kind.decode()}", kind)
        for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
    ]
    archive = archive_of([directory("./a"), *special, entry("./a/file")])
    assert copying.unpack(archive, str(tmp_path / "target")) == ["a/6", "a/3", "a/4"]
    assert tree(tmp_path / "target") == {"file": ""}


DIRECTORIES = ["top", "top/a", "top/a/b"]
PARTS = st.sampled_from(["..", "..", ".", "a", "b", "l"])
LINKS = st.dictionaries(
    st.builds("{}/{}".format, st.sampled_from(DIRECTORIES), st.just("l")),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "", "../", "../../"]),
        st.sampled_from([".", "a", "a/b", "l", "b/l"]),
        st.sampled_from(["", "", "/..", "/../.."]),
    ),
    min_size=1,
    max_size=3,
)
NAMES = st.lists(PARTS, max_size=3).map(lambda parts: "/".join(["top", *parts]))
OTHERS = st.lists(
    st.builds(entry, NAMES, st.sampled_from([tarfile.DIRTYPE, tarfile.REGTYPE, b"1"]), NAMES),
    max_size=1,
)


@given(LINKS, OTHERS)
def test_no_archive_makes_anything_that_leads_out_of_the_copy(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], others: list[tarfile.TarInfo]
) -> None:
    place = tmp_path_factory.mktemp("lies")
    target = place / "in/target"
    entries = [*map(directory, DIRECTORIES), *(link(*one) for one in links.items()), *others]
    try:
        copying.unpack(archive_of(entries), str(target))
    except Refused:
        assert os.listdir(place) == []
        return
    assert os.listdir(place) == ["in"]
    assert os.listdir(place / "in") == ["target"]
    for path in target.rglob("*"):
        led = os.path.realpath(path)
        assert led == str(target) or led.startswith(f"{target}/"), (path, led)


@given(content=st.binary(max_size=3000), at=st.integers(0, 5000), byte=st.integers(0, 255))
def test_no_bytes_make_it_fail_otherwise_than_by_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int, byte: int
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(directory("name"))
        told = entry("name/" + "n" * 120)
        told.size = len(content)
        tar.addfile(told, io.BytesIO(content))
    damaged = bytearray(archive.getvalue())
    damaged[min(at, len(damaged) - 1)] = byte
    place = tmp_path_factory.mktemp("damaged")
    reason = ""
    try:
        copying.unpack(io.BytesIO(damaged), str(place / "in/target"))
    except Refused as refused:
        reason = refused.reason
    assert reason in ("", "unsafe-archive", "too-large")
    assert sorted(os.listdir(place)) == ([] if reason else ["in"])
