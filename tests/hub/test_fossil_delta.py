"""A delta that Fossil makes is read as Fossil reads it; what is none is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import fossil_delta
from tests.hub.gitrepo import FOSSIL, fossil

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, bytes], bytes]:
    """Return the stock encoder: (source, target) → delta."""
    place = tmp_path_factory.mktemp("deltas")

    def made(source: bytes, target: bytes) -> bytes:
        (place / "source").write_bytes(source)
        (place / "target").write_bytes(target)
        fossil("test-delta-create", "source", "target", "delta", cwd=place)
        return (place / "delta").read_bytes()

    return made


TEXTS = st.lists(st.sampled_from([b"line one\n", b"another\n" * 9, b"\0\1\2", b"x" * 300])).map(
    b"".join
)


@given(source=TEXTS, target=TEXTS, edits=st.lists(st.binary(max_size=70), max_size=3))
def test_what_stock_fossil_encodes_is_decoded(
    encode: Callable[[bytes, bytes], bytes], source: bytes, target: bytes, edits: list[bytes]
) -> None:
    for number, edit in enumerate(edits):
        at = number * len(source) // len(edits)
        target = source[:at] + edit + source[at:] + target
    assert fossil_delta.apply(source, encode(source, target)) == target


def test_a_delta_of_big_contents_is_mostly_copies(
    encode: Callable[[bytes, bytes], bytes],
) -> None:
    source = b"".join(b"%d lines and counting\n" % number for number in range(20_000))
    target = source[100_000:] + b"new\n" + source[:200_000]
    delta = encode(source, target)
    assert len(delta) < 200
    assert fossil_delta.apply(source, delta) == target


@given(source=st.binary(max_size=50), delta=st.binary(max_size=50))
def test_no_bytes_make_it_fail_otherwise_than_by_name(source: bytes, delta: bytes) -> None:
    try:
        fossil_delta.apply(source, delta)
    except ValueError as error:
        assert str(error).startswith("no Fossil delta: ")  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"4",
        b"4;",
        b"4\n",
        b"4\n4",
        b"4\n4@0;",
        b"4\n4@1,0;",  # beyond the source
        b"4\n3@0,0;",  # shorter than it says
        b"3\n4@0,0;",  # longer
        b"4\n4:abc",
        b"4\n4@0,",
        b"4\n!@0,0;",
    ],
)
def test_what_is_no_delta_of_the_source_is_refused(delta: bytes) -> None:
    with pytest.raises(ValueError, match="no Fossil delta"):
        fossil_delta.apply(b"abcd", delta)


def test_the_stock_decoder_agrees_about_one_written_by_hand(tmp_path: Path) -> None:
    delta = b"6\n2@1,4:new!1JHiD2;"
    (tmp_path / "source").write_bytes(b"abcd")
    (tmp_path / "delta").write_bytes(delta)
    done = subprocess.run(
        [FOSSIL, "test-delta-apply", "source", "delta", "target"],
        cwd=tmp_path,
        env={"USER": "test", "HOME": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert (tmp_path / "target").read_bytes() == b"bcnew!"
    assert fossil_delta.apply(b"abcd", delta) == b"bcnew!"
