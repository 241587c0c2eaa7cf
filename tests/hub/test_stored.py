"""How a push leaves the file: nothing copied while commits come, a baseline read at once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hub import fossil
from hub.repository import Repository
from hub.trunk import anchor, baseline
from tests.hub.committing import FossilServer, RunningWriter, assert_sound, propose
from tests.hub.gitrepo import FOSSIL
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.real


@pytest.fixture
def server(seeded: Path) -> Iterator[FossilServer]:
    with FossilServer(seeded) as running:
        yield running


@pytest.fixture
def writer(server: FossilServer) -> Iterator[RunningWriter]:
    with RunningWriter(server.workspace) as running:
        yield running


def digest(path: str) -> str:
    # Not read by this process: to close the file would end all locks that SQLite has on it here.
    return subprocess.run(["sha256sum", path], capture_output=True, check=True, text=True).stdout


def without_log(repository: str, directory: Path) -> str:
    """Return the tip as the database file has it by itself."""
    alone = directory / "alone.fossil"
    subprocess.run(["cp", repository, alone], check=True)
    with Repository(str(alone)) as opened:
        return opened.tip().hash


def test_while_commits_come_the_log_is_not_copied_and_when_they_pause_it_is(
    server: FossilServer, writer: RunningWriter, tmp_path: Path
) -> None:
    repository = server.workspace.repository
    landed = [writer.commit(propose({"f": b"1"}))]
    before = digest(repository)
    landed += [writer.commit(propose({f"f{number}": b"1"})) for number in range(5)]
    assert digest(repository) == before
    eventually(lambda: without_log(repository, tmp_path) == landed[-1].checkin)
    assert_sound(server.workspace, landed)


def test_however_long_commits_come_the_log_stays_small(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Path(f"{server.workspace.repository}-wal")
    monkeypatch.setattr(anchor, "PUSHES", 4)
    landed = [writer.commit(propose({f"f{number}": b"1"})) for number in range(8)]
    size = log.stat().st_size
    landed += [writer.commit(propose({f"g{number}": b"1"})) for number in range(24)]
    assert log.stat().st_size < 2 * size
    assert_sound(server.workspace, landed)


def test_however_much_goes_ahead_of_a_commit_the_log_is_copied_meanwhile(
    server: FossilServer, writer: RunningWriter
) -> None:
    log = Path(f"{server.workspace.repository}-wal")
    landed = [writer.commit(propose({"f": b"1"}))]
    for turn in range(6):
        large = {f"l{turn}-{number}": os.urandom(5 << 20) for number in range(2)}
        landed.append(writer.commit(propose(large)))
    assert log.stat().st_size < 4 * (5 << 20)
    assert_sound(server.workspace, landed)


def test_a_baseline_is_stored_plain_and_nothing_of_it_changes(
    server: FossilServer, writer: RunningWriter
) -> None:
    landed = [writer.commit(propose({f"{number}.txt": b"1" for number in range(400)}))]
    repository = server.workspace.repository

    def stored() -> tuple[int, bytes]:
        with sqlite3.connect(repository) as db:
            query = "SELECT size, content FROM blob WHERE uuid=?"
            size, content = db.execute(query, (landed[0].checkin,)).fetchone()
        db.close()
        return int(size), bytes(content)

    eventually(lambda: len(stored()[1]) > stored()[0])
    size, content = stored()
    manifest = zlib.decompress(content[4:])
    assert len(manifest) == size
    assert hashlib.sha3_256(manifest).hexdigest() == landed[0].checkin
    said = subprocess.run(
        [FOSSIL, "artifact", landed[0].checkin, "-R", repository],
        env=fossil.environment(server.workspace.state),
        capture_output=True,
        check=True,
    ).stdout
    assert said == manifest
    assert not baseline.store_plain(repository, landed[0].checkin)
    landed.append(writer.commit(propose({"f": b"2"})))
    assert_sound(server.workspace, landed)


def test_what_is_no_large_artifact_of_its_own_stays_as_it_is(
    server: FossilServer, writer: RunningWriter
) -> None:
    text = b"".join(b"line %d of a text that hardly compresses\n" % n for n in range(2000))
    changed = text + b"and another\n"
    first = writer.commit(propose({"f": text}))
    second = writer.commit(propose({"f": changed}, base={"f": text}))
    repository = server.workspace.repository
    older = hashlib.sha3_256(text).hexdigest()
    with sqlite3.connect(repository) as db:
        query = "SELECT count(*) FROM delta JOIN blob USING (rid) WHERE uuid=?"
        assert db.execute(query, (older,)).fetchone() == (1,)
    db.close()
    assert not baseline.store_plain(repository, older)  # Fossil keeps it as a delta
    assert not baseline.store_plain(repository, second.checkin)  # small
    assert not baseline.store_plain(repository, "0" * 64)
    assert_sound(server.workspace, [first, second])
