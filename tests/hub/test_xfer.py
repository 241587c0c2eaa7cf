"""Pushing to a real Fossil server: what it stores, what it says, what the guard keeps out."""

from __future__ import annotations

import hashlib
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Refused
from hub import fossil, manifest
from hub.repository import Repository
from hub.seed import password_path
from hub.trunk import contract, estimates, guard, xfer
from hub.trunk.ledger import Ledger, add_users, connect
from tests.hub.committing import FossilServer, name_of
from tests.hub.gitrepo import FOSSIL
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hub.manifest import Checkin

pytestmark = pytest.mark.real


@pytest.fixture
def server(seeded: Path) -> Iterator[FossilServer]:
    with FossilServer(seeded) as running:
        yield running


def tip(server: FossilServer) -> str:
    with Repository(server.workspace.repository) as repository:
        return repository.tip().hash


def child(parent: str, content: bytes, *, baseline: str, tags: bytes = b"") -> Checkin:
    """Return a check-in of one file, and of *tags*, T cards that come before ours."""
    made = manifest.delta_checkin(
        baseline=baseline,
        cards=[manifest.file_card(b"file", "file", name_of(content))],
        comment="pushed",
        date=manifest.date_of(time.time_ns() // 1_000_000 + 1),
        user="a",
        parent=parent,
    )
    if not tags:
        return made
    text = made.manifest[:-35].replace(b"U a\n", tags + b"U a\n")
    text += b"Z %s\n" % hashlib.md5(text).hexdigest().encode()
    return manifest.Checkin(hash=hashlib.sha3_256(text).hexdigest(), manifest=text)


def push(server: FossilServer, *checkins: Checkin, content: bytes = b"") -> xfer.Reply:
    with Ledger(server.workspace.repository) as ledger:
        login = xfer.read_login(server.workspace, ledger.project_code())
    artifacts = [(name_of(content), content)] if content else []
    artifacts += [(one.hash, one.manifest) for one in checkins]
    return xfer.post(xfer.read_url(server.workspace), xfer.message(login, artifacts))


def landed(server: FossilServer, *checkins: Checkin) -> list[bool]:
    with Ledger(server.workspace.repository) as ledger:
        there = ledger.landed([one.hash for one in checkins])
    return [one.hash in there for one in checkins]


def blobs(server: FossilServer) -> int:
    db = connect(server.workspace.repository)
    try:
        return int(db.execute("SELECT count(*) FROM blob").fetchone()[0])
    finally:
        db.close()


def test_what_is_pushed_is_stored_and_pushed_again_changes_nothing(server: FossilServer) -> None:
    root = tip(server)
    one = child(root, b"1", baseline=root)
    two = child(one.hash, b"1", baseline=root)
    for _ in range(2):
        reply = push(server, one, two, content=b"1")
        assert reply == (200, (), ())
        assert landed(server, one, two) == [True, True]
        assert tip(server) == two.hash


def test_a_content_that_never_came_is_named(server: FossilServer) -> None:
    root = tip(server)
    one = child(root, b"nobody sent this", baseline=root)
    assert push(server, one).missing == (name_of(b"nobody sent this"),)


def test_a_damaged_artifact_stores_nothing_at_all(server: FossilServer) -> None:
    root = tip(server)
    one = child(root, b"1", baseline=root)
    before = blobs(server)
    reply = push(
        server, manifest.Checkin(hash=one.hash, manifest=one.manifest + b"x"), content=b"1"
    )
    assert reply.status == 400
    assert reply.errors
    assert blobs(server) == before


def test_a_wrong_password_is_said(server: FossilServer) -> None:
    Path(password_path(server.workspace, "hub")).write_text("wrong\n")
    root = tip(server)
    before = blobs(server)
    assert push(server, child(root, b"1", baseline=root), content=b"1").errors == ("login failed",)
    assert blobs(server) == before


@pytest.mark.faults
def test_a_missing_password_is_named(seeded: Path) -> None:
    server = FossilServer(seeded)
    path = Path(password_path(server.workspace, "hub"))
    path.unlink()
    with pytest.raises(Refused, match=str(path)):
        xfer.read_login(server.workspace, "code")


# --- the guard -----------------------------------------------------------------------------


def test_a_push_that_would_fork_trunk_is_not_stored(server: FossilServer) -> None:
    root = tip(server)
    one = child(root, b"1", baseline=root)
    push(server, one, content=b"1")
    before = blobs(server)
    rival = child(root, b"2", baseline=root)
    follower = child(rival.hash, b"2", baseline=root)
    good = child(one.hash, b"2", baseline=root)
    for pushed in ((rival,), (rival, follower), (good, rival), (rival, good)):
        reply = push(server, *pushed, content=b"2")
        assert reply.status in guard.REFUSED_STATUS
        assert "trunk has moved on" in " ".join(reply.errors)
        assert blobs(server) == before
    push(server, good, content=b"2")
    assert tip(server) == good.hash


def test_a_second_root_on_trunk_is_not_stored(server: FossilServer) -> None:
    root = manifest.checkin(
        files=[],
        comment="another root",
        date=manifest.date_of(time.time_ns() // 1_000_000),
        user="a",
        parent=None,
    )
    before = blobs(server)
    assert push(server, root).status in guard.REFUSED_STATUS
    assert blobs(server) == before


def test_a_branch_off_trunk_is_stored_anywhere(server: FossilServer) -> None:
    root = tip(server)
    one = child(root, b"1", baseline=root)
    tags = b"T *branch * idea\nT *sym-idea *\nT -sym-trunk *\n"
    branch = child(root, b"2", baseline=root, tags=tags)
    later = child(branch.hash, b"1", baseline=root)
    push(server, one, content=b"1")
    assert push(server, branch, content=b"2").errors == ()
    assert push(server, later, content=b"1").errors == ()
    with Ledger(server.workspace.repository) as ledger:
        assert ledger.leaves() == [one.hash]
        assert ledger.position(root) == (True, (one.hash,))
        assert ledger.position(branch.hash).on_trunk is False


def test_a_stock_push_that_would_fork_is_refused_until_it_is_a_branch(
    server: FossilServer, tmp_path: Path
) -> None:
    password = Path(password_path(server.workspace, "operator")).read_text().strip()
    url = f"http://operator:{password}@127.0.0.1:{server.port}"
    home = tmp_path / "clone"
    home.mkdir()

    def stock(*arguments: str) -> str:
        done = subprocess.run(
            [FOSSIL, *arguments],
            cwd=home,
            env={**fossil.environment(str(home)), "USER": "operator"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    stock("clone", url, "clone.fossil")
    stock("open", "clone.fossil", "--nosync")
    stock("settings", "autosync", "0")
    (home / "mine").write_text("mine\n")
    stock("add", "mine")
    assert "New_Version" in stock("commit", "-m", "mine")
    root = tip(server)
    one = child(root, b"1", baseline=root)
    push(server, one, content=b"1")
    assert "server says: 400" in stock("push", url)
    assert tip(server) == one.hash
    stock("amend", "current", "--branch", "mine")  # the way out: what is no fork is stored
    stock("push", url)
    assert tip(server) == one.hash
    with Repository(server.workspace.repository) as repository:
        assert repository.leaves() == [one.hash]
        assert repository.forks() == 0
    stock("pull", url)
    stock("update", one.hash)
    stock("merge", "mine")
    assert "New_Version" in stock("commit", "-m", "merged")
    stock("push", url)
    with Repository(server.workspace.repository) as repository:
        assert repository.tip().comment == "merged"
        assert "mine" in {path.decode() for path in repository.files(repository.tip().hash)}


def test_without_the_guard_the_server_stores_forks(seeded: Path) -> None:
    """Else the guard would guard nothing."""
    with FossilServer(seeded, guarded=False) as server:
        root = tip(server)
        push(server, child(root, b"1", baseline=root), content=b"1")
        push(server, child(root, b"2", baseline=root), content=b"2")
        with Ledger(server.workspace.repository) as ledger:
            assert len(ledger.leaves()) == 2


def test_this_fossil_keeps_the_contract_on_a_scratch_repository(tmp_path: Path) -> None:
    assert contract.attempt(FOSSIL, str(tmp_path)) is True


@pytest.mark.faults
def test_a_guard_that_does_not_work_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "SCRIPT", "set forks 0\n")
    assert contract.attempt(FOSSIL, str(tmp_path)) is False


# --- the estimates -------------------------------------------------------------------------


def test_a_push_reads_no_whole_table(server: FossilServer) -> None:
    def plans() -> str:
        db = connect(server.workspace.repository)
        asked = (
            "SELECT 1 FROM mlink WHERE mid=1 AND pmid=2",
            "SELECT tagid FROM tagxref WHERE rid=1",
        )
        told = [row[3] for one in asked for row in db.execute(f"EXPLAIN QUERY PLAN {one}")]
        db.close()
        return " ".join(told)

    assert "SCAN" in plans(), "Fossil's own estimates serve, and ours are not needed"
    db = connect(server.workspace.repository)
    assert estimates.install(db)
    assert not estimates.install(db)
    db.close()
    assert "SCAN" not in plans()
    root = tip(server)
    push(server, child(root, b"1", baseline=root), content=b"1")
    assert "SCAN" not in plans(), "Fossil has counted again"


def test_a_slot_becomes_a_user_who_cannot_log_in(server: FossilServer) -> None:
    add_users(server.workspace.repository, ["auth", "ui"])
    add_users(server.workspace.repository, ["auth", "db"])
    db = sqlite3.connect(server.workspace.repository)
    rows = db.execute("SELECT login, pw, cap FROM user WHERE info='a slot' ORDER BY 1").fetchall()
    db.close()
    assert rows == [("auth", "", ""), ("db", "", ""), ("ui", "", "")]
    with Ledger(server.workspace.repository) as ledger:
        login = xfer.Login(ledger.project_code(), "")
    body = xfer.message(login, []).replace(b"login hub ", b"login auth ")
    assert xfer.post(xfer.read_url(server.workspace), body).errors == ("login failed",)


# --- replies -------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.0 200 OK\r\n", b"SSH-2.0-x\r\n\r\n", b"\r\n\r\n"])
def test_what_is_no_reply_counts_as_none(reply: bytes) -> None:
    with pytest.raises(ConnectionError):
        xfer.parse(reply)


def test_nobody_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="refused"):
        xfer.post(f"http://127.0.0.1:{free_port()}", b"")


def test_a_server_that_hangs_up_in_mid_reply_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not asked.endswith(b"body"):  # what is not read would reset the connection
                    asked += connection.recv(65_536)
                connection.sendall(b"HTTP/1.0 200 OK\r\nConte")

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(OSError, match="answered"):
            xfer.post(f"http://127.0.0.1:{listener.getsockname()[1]}", b"body")
        thread.join()
