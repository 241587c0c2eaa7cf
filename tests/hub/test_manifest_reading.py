"""A manifest is read as it was written, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Corrupt
from hub import manifest, manifest_reading
from hub.manifest_reading import parse
from tests.hub.gitrepo import ODD_NAMES

HASHES = st.binary(min_size=32, max_size=32)
PATHS = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.binary(min_size=1, max_size=30).filter(lambda path: b"\0" not in path),
)
PERMISSIONS = {b"": "file", b" x": "exec", b" l": "link"}
PARENT, BASELINE = "a" * 64, "b" * 40


def sealed(cards: bytes) -> bytes:
    """Return *cards* with the line that makes an artifact of them."""
    return cards + b"Z %s\n" % hashlib.md5(cards).hexdigest().encode()


@given(
    files=st.dictionaries(PATHS, st.tuples(st.sampled_from(sorted(PERMISSIONS)), HASHES)),
    comment=st.text().filter(bool),
    user=st.text(min_size=1).filter(lambda name: name.isprintable()),
    parent=st.sampled_from([None, PARENT]),
)
def test_what_we_write_is_what_we_read(
    files: dict[bytes, tuple[bytes, bytes]], comment: str, user: str, parent: str | None
) -> None:
    written = manifest.checkin(
        files=[(path, *files[path]) for path in sorted(files)],
        comment=comment,
        date="2026-01-02T03:04:05.678",
        user=user,
        parent=parent,
    )
    read = parse(written.manifest)
    assert read.files == [
        (path, files[path][1].hex(), PERMISSIONS[files[path][0]]) for path in sorted(files)
    ]
    assert (read.comment, read.user) == (comment, user)
    assert (read.date, read.baseline) == ("2026-01-02T03:04:05.678", "")
    assert read.parents == (() if parent is None else (parent,))


def test_every_card_of_a_check_in_is_understood() -> None:
    read = parse(
        sealed(
            b"B %s\nC a\\sb\\n\\\\c\nD 2026-01-02T03:04:05\n"
            b"F gone\n"
            b"F lat\xedn\\s1 %s w old\\sname\n"
            b"F run %s x\n"
            b"N text/plain\nP %s %s\nQ +%s\nR %s\n"
            b"T *branch * trunk\nT *sym-trunk *\nT +commit-id * 12\\s3\nU a\\sb\n"
            % (
                BASELINE.encode(),
                b"1" * 64,
                b"2" * 40,
                PARENT.encode(),
                BASELINE.encode(),
                b"9" * 64,
                b"0" * 32,
            )
        )
    )
    assert read.as_dict() == {
        "baseline": BASELINE,
        "comment": "a b\n\\c",
        "date": "2026-01-02T03:04:05",
        "files": [
            [b"gone", "", ""],
            [b"lat\xedn 1", "1" * 64, "file"],
            [b"run", "2" * 40, "exec"],
        ],
        "parents": [PARENT, BASELINE],
        "tags": [["*branch", "*", "trunk"], ["*sym-trunk", "*", ""], ["+commit-id", "*", "12 3"]],
        "user": "a b",
    }


def test_a_signed_manifest_is_read_without_its_signature() -> None:
    cards = sealed(b"C x\nD 2026-01-02T03:04:05\nU ada\n")
    signed = (
        b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n"
        + cards
        + b"-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"
    )
    assert parse(signed).user == "ada"


GOOD = b"C x\nD 2026-01-02T03:04:05\nF a %s\nP %s\nU ada\n" % (b"1" * 64, PARENT.encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just text\n",
        GOOD,
        sealed(GOOD)[:-1],
        sealed(GOOD).replace(b"C x", b"C y"),
        sealed(b""),
        sealed(GOOD.replace(b"C x\n", b"")),
        sealed(GOOD.replace(b"D 2026-01-02T03:04:05\n", b"")),
        sealed(GOOD + b"W 3\nabc\n"),  # a wiki page
        sealed(b"D 2026-01-02T03:04:05\nT +x %s\nU ada\n" % PARENT.encode()),  # a control artifact
        sealed(GOOD.replace(b"F a ", b"F a\n# ")),
        sealed(GOOD.replace(b"F a", b"Fa")),
        sealed(GOOD.replace(b"1" * 64, b"1" * 64 + b" q")),
        sealed(GOOD.replace(b"1" * 64, b"1" * 64 + b" x old too-much")),
        sealed(GOOD.replace(b" " + b"1" * 64, b"")),  # removed, but from what?
        sealed(GOOD.replace(b"1" * 64, b"\xff" * 64)),
        sealed(GOOD.replace(PARENT.encode(), b"nobody")),
        sealed(b"B x\n" + GOOD),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(Corrupt, match="no check-in's manifest"):
        parse(content)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise_than_by_name(cards: bytes) -> None:
    for content in (sealed(cards), sealed(b"C x\nD 2\n" + cards), sealed(b"C x\nD 2\nF " + cards)):
        try:
            parse(content)
        except Corrupt as error:
            assert error.reason == "not-a-manifest"  # noqa: PT017 - either is right


@pytest.mark.slow
def test_fifty_thousand_files_are_read_in_half_a_second() -> None:
    written = manifest.checkin(
        files=[
            (b"some/where/deep/in/the/tree/%05d.txt" % number, b"", number.to_bytes(32, "big"))
            for number in range(50_000)
        ],
        comment="big",
        date="2026-01-02T03:04:05.678",
        user="ada",
        parent=None,
    )
    best_s = min(_seconds(written.manifest) for _turn in range(3))
    assert best_s <= 0.5


def _seconds(content: bytes) -> float:
    begun = time.process_time()
    assert len(manifest_reading.parse(content).files) == 50_000
    return time.process_time() - begun
