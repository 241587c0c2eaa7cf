"""The journal: a batch as it was sent, or nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.trunk.journal import Batch, Journal

PARENT, ONE, TWO = "a" * 64, "b" * 64, "c" * 64
BATCH = Batch(PARENT, (ONE, TWO), b"login hub\nfile b 3\nxyz\x00\xff\n" * 100)


def test_a_batch_is_read_as_it_was_recorded(tmp_path: Path) -> None:
    with Journal(str(tmp_path)) as journal:
        assert journal.read() is None
        journal.record(Batch(PARENT, (ONE,), b"an earlier and longer one" * 1000))
        journal.record(BATCH)
        assert journal.read() == BATCH
    with Journal(str(tmp_path)) as journal:
        assert journal.read() == BATCH
        journal.clear()
        assert journal.read() is None
    with Journal(str(tmp_path)) as journal:
        assert journal.read() is None


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    with Journal(str(tmp_path)) as journal:
        journal.record(BATCH)
        assert stat.S_IMODE(os.stat(journal.path).st_mode) == 0o600


@given(cut=st.integers(min_value=1))
def test_a_torn_batch_is_none(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    directory = tmp_path_factory.mktemp("journal")
    with Journal(str(directory)) as journal:
        journal.record(BATCH)
        size = os.path.getsize(journal.path)
        os.truncate(journal.path, cut % (size - 1) + 1)
        with pytest.raises(ValueError, match=r"line|body|JSON|describe"):
            journal.read()


@pytest.mark.parametrize(
    "content",
    [
        b"junk",
        b"\n",
        b"[]\n",
        b"{}\nbody",
        b'{"v":1,"parent":"x","checkins":[],"size":0,"digest":""}\n',
        b'{"v":2}\n',
        b"\xff" * 100,
    ],
)
def test_what_is_no_batch_is_kept_aside_and_the_journal_serves_on(
    tmp_path: Path, content: bytes
) -> None:
    Path(tmp_path, "batch").write_bytes(content)
    with Journal(str(tmp_path)) as journal:
        with pytest.raises(ValueError, match=r"line|body|JSON|object|utf-8"):
            journal.read()
        aside = journal.set_aside()
        assert Path(aside).read_bytes() == content
        assert journal.read() is None
        journal.record(BATCH)
        assert journal.read() == BATCH
    assert Path(aside).read_bytes() == content


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (tmp_path / "batch").symlink_to(elsewhere)
    with pytest.raises(OSError, match="batch"):
        Journal(str(tmp_path))
    assert elsewhere.read_bytes() == b"mine"
