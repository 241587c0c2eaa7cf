"""The writer with a real Fossil server: what it answers stands on trunk, once, on one line."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from foundation.errors import HubError, LeaseLost, Refused, Unavailable
from hub import fossil, place
from hub.commits import Conflict, Landed, new_id
from hub.fossil_repo import HUB_USER
from hub.repository import Repository
from hub.seed import password_path
from hub.trunk import contract, xfer
from hub.trunk import writer as writing
from hub.trunk.gate import Gate
from hub.trunk.head import Head
from hub.trunk.journal import Batch, Journal
from hub.trunk.ledger import Ledger, add_users
from hub.trunk.planning import Plan
from tests.hub.committing import (
    FossilServer,
    RunningWriter,
    assert_sound,
    files,
    name_of,
    propose,
)
from tests.hub.gitrepo import FOSSIL
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hub.commits import Proposal

pytestmark = pytest.mark.real


@pytest.fixture
def server(seeded: Path) -> Iterator[FossilServer]:
    with FossilServer(seeded) as running:
        yield running


@pytest.fixture
def writer(server: FossilServer) -> Iterator[RunningWriter]:
    with RunningWriter(server.workspace) as running:
        yield running


class Checkout:
    """A stock check-out on the hub's own repository file, as a slot's worktree is one."""

    def __init__(self, server: FossilServer, directory: Path, user: str = "stock") -> None:
        add_users(server.workspace.repository, [user])
        directory.mkdir()
        self.directory = directory
        self.user = user
        self("open", server.workspace.repository)

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [FOSSIL, *arguments],
            cwd=self.directory,
            env={**fossil.environment(str(self.directory.parent)), "USER": self.user},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def commit(self, path: str, content: str, *options: str, check: bool = True) -> str:
        (self.directory / path).write_text(content)
        self("add", path)
        return self("commit", "-m", f"stock: {path}", "--no-warnings", *options, check=check)


# --- landing -------------------------------------------------------------------------------


def test_a_commit_lands_with_its_slot_as_author_and_is_told_to_everybody(
    server: FossilServer, writer: RunningWriter
) -> None:
    landed = writer.commit(propose({"new.txt": b"hello\n"}, slot="auth", message="say hello"))
    with Repository(server.workspace.repository) as repository:
        row = repository.tip()
        assert (row.hash, row.user, row.comment) == (landed.checkin, "auth", "say hello")
        assert (row.parent, row.time) == (landed.parent, landed.time)
    assert files(server.workspace)["new.txt"] == b"hello\n"
    (arrival,) = writer.arrivals
    assert (arrival.checkin, arrival.slot, arrival.paths) == (landed.checkin, "auth", (b"new.txt",))
    assert_sound(server.workspace, [landed])


def test_commits_at_once_land_on_one_line_in_few_pushes(
    server: FossilServer, writer: RunningWriter
) -> None:
    answers = [writer.ask(propose({f"f{n}": b"%d" % n}, slot=f"s{n}")) for n in range(300)]
    landed = [answer() for answer in answers]
    assert_sound(server.workspace, landed)
    assert [one.slot for one in landed] == [f"s{n}" for n in range(300)]
    assert [one.checkin for one in writer.arrivals] == [one.checkin for one in landed]
    assert all(
        b.parent == a.checkin for a, b in zip(writer.arrivals, writer.arrivals[1:], strict=False)
    )
    assert {f"f{n}" for n in range(300)} < set(files(server.workspace))
    db = Ledger(server.workspace.repository)
    with db:
        pushes = db._db.execute("SELECT count(*) FROM rcvfrom WHERE nonce IS NOT NULL").fetchone()
    assert pushes[0] < 30


def test_what_is_asked_for_again_lands_once(server: FossilServer, writer: RunningWriter) -> None:
    asked = propose({"README": b"merged\n"}, base={"README": b"hello\n"}, slot="a")
    landed = writer.commit(asked)
    assert writer.commit(asked) == landed
    other = writer.commit(propose({"other": b"1"}))
    assert writer.commit(asked) == landed
    assert_sound(server.workspace, [landed, other])


def test_another_writer_knows_what_landed_before_it(server: FossilServer) -> None:
    base = b"".join(b"line %d\n" % n for n in range(20))
    mine = base.replace(b"line 3\n", b"mine\n")
    theirs = base.replace(b"line 15\n", b"theirs\n")
    asked = propose({"f": mine}, base={"f": base}, slot="b")
    with RunningWriter(server.workspace) as writer:
        first = writer.commit(propose({"f": base}))
        second = writer.commit(propose({"f": theirs}, base={"f": base}))
        landed = writer.commit(asked)
    assert [row[0] for row in landed.merged] == [b"f"]
    with RunningWriter(server.workspace) as writer:
        assert writer.commit(asked) == landed
        stranger = writer.commit(propose({"f": mine}, slot="thief", commit_id=asked.id))
    assert isinstance(stranger, Refused)
    assert stranger.reason == "id-taken"
    assert_sound(server.workspace, [first, second, landed])


def test_a_conflict_is_told_and_the_others_of_the_batch_land(
    server: FossilServer, writer: RunningWriter
) -> None:
    base = {"README": b"hello\n"}
    answers = [
        writer.ask(propose({"README": b"%d\n" % n}, base=base, slot=f"s{n}")) for n in range(5)
    ]
    answers += [writer.ask(propose({f"free{n}": b"x"}, slot=f"s{n}")) for n in range(5)]
    told = [answer() for answer in answers]
    won, lost, free = told[0], told[1:5], told[5:]
    for conflicts in lost:
        (conflict,) = conflicts
        assert isinstance(conflict, Conflict)
        assert (conflict.theirs_checkin, conflict.theirs_slot) == (won.checkin, "s0")
    assert_sound(server.workspace, [won, *free])


def test_a_commit_of_what_is_there_already_makes_no_checkin(
    server: FossilServer, writer: RunningWriter
) -> None:
    landed = writer.commit(propose({"f": b"1"}))
    again = writer.commit(propose({"f": b"1"}))
    assert (again.new, again.checkin) == (False, landed.checkin)
    assert_sound(server.workspace, [landed])


def test_a_large_content_goes_before_its_checkin(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[int] = []
    post = xfer.post

    def counted(url: str, body: bytes) -> xfer.Reply:
        bodies.append(len(body))
        return post(url, body)

    monkeypatch.setattr(xfer, "post", counted)
    large = os.urandom(writing.ALONE_BYTES + 1)
    spooled = os.urandom(writing.ALONE_BYTES + 2)
    Path(server.workspace.spool, name_of(spooled)).write_bytes(spooled)
    asked = propose({"large": large, "spooled": spooled, "small": b"x"})
    contents = {name: c for name, c in asked.contents.items() if c != spooled}
    landed = writer.commit(asked.replace(contents=contents, spooled=(name_of(spooled),)))
    assert isinstance(landed, Landed)
    assert [size > writing.ALONE_BYTES for size in bodies] == [True, True, False]
    tree = files(server.workspace)
    assert (tree["large"], tree["spooled"]) == (large, spooled)
    assert os.listdir(server.workspace.spool) == []
    assert_sound(server.workspace, [landed])


def test_what_nobody_fetched_from_the_spool_for_a_day_is_removed(server: FossilServer) -> None:
    for name, age_s in (("old", 86_500), ("young", 0)):
        path = Path(server.workspace.spool, name)
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    stranger = Path(server.workspace.spool, "directory")
    stranger.mkdir()
    os.utime(stranger, (0, 0))
    with RunningWriter(server.workspace):
        assert sorted(os.listdir(server.workspace.spool)) == ["directory", "young"]


# --- refusals ------------------------------------------------------------------------------


def test_a_superseded_leaf_is_refused_at_the_last_moment(server: FossilServer) -> None:
    def fence(proposal: Proposal) -> HubError | None:
        return LeaseLost("superseded", reason="superseded") if proposal.epoch < 2 else None

    with RunningWriter(server.workspace, fence=fence) as writer:
        refused = writer.commit(propose({"f": b"1"}, epoch=1))
        landed = writer.commit(propose({"f": b"2"}, epoch=2))
    assert isinstance(refused, LeaseLost)
    assert_sound(server.workspace, [landed])


@pytest.mark.faults
def test_on_a_full_disk_commits_are_refused_by_name_and_what_landed_is_still_told(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = propose({"f": b"1"})
    landed = writer.commit(asked)
    monkeypatch.setattr(place, "free_bytes", lambda _path: writing.LEAST_FREE_BYTES - 1)
    refused = writer.commit(propose({"f": b"2"}, base={"f": b"1"}))
    assert isinstance(refused, Refused)
    assert refused.reason == "disk-full"
    assert writer.commit(asked) == landed
    monkeypatch.undo()
    later = writer.commit(propose({"f": b"2"}, base={"f": b"1"}))
    assert_sound(server.workspace, [landed, later])


@pytest.mark.faults
def test_a_bug_met_by_one_commit_stops_no_other(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Plan.add

    def buggy(self: Plan, proposal: Proposal) -> Any:
        outcome = add(self, proposal)  # it has moved the tip
        if proposal.message == "poison":
            raise KeyError("a bug")
        return outcome

    monkeypatch.setattr(Plan, "add", buggy)
    answers = [
        writer.ask(propose({f"f{n}": b"1"}, message="poison" if n == 1 else "sound"))
        for n in range(4)
    ]
    told = [answer() for answer in answers]
    assert isinstance(told[1], HubError)
    assert told[1].reason == "bug"
    assert "buggy" in writer.events("bug")[0]["trace"]
    assert_sound(server.workspace, [told[0], told[2], told[3]])


@pytest.mark.faults
def test_what_fossil_does_not_take_stops_no_other(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = xfer.message

    def damaged(login: xfer.Login, artifacts: list[tuple[str, bytes]]) -> bytes:
        return message(login, [(n, c + b"?" if c == b"poison" else c) for n, c in artifacts])

    monkeypatch.setattr(xfer, "message", damaged)
    answers = [writer.ask(propose({f"f{n}": b"poison" if n == 1 else b"sound"})) for n in range(3)]
    told = [answer() for answer in answers]
    assert isinstance(told[1], Unavailable)
    assert told[1].reason == "commit-not-stored"
    assert "400" in str(told[1])
    assert_sound(server.workspace, [told[0], told[2]])
    with Journal(server.workspace.journal) as journal:
        assert journal.read() is None


# --- others on trunk -----------------------------------------------------------------------


def test_a_stock_commit_is_followed_and_told(
    server: FossilServer, writer: RunningWriter, tmp_path: Path
) -> None:
    checkout = Checkout(server, tmp_path / "stock")
    first = writer.commit(propose({"f": b"1"}))
    checkout("update")
    checkout.commit("theirs", "stock\n")
    eventually(lambda: len(writer.arrivals) == 2)
    adopted = writer.arrivals[-1]
    assert (adopted.slot, adopted.parent, adopted.paths) == ("stock", first.checkin, (b"theirs",))
    second = writer.commit(propose({"g": b"1"}))
    assert second.parent == adopted.checkin
    assert "theirs" in files(server.workspace)
    assert_sound(server.workspace, [first, second], others=1)


def test_a_stock_commit_on_an_old_checkin_is_refused_by_stock(
    server: FossilServer, writer: RunningWriter, tmp_path: Path
) -> None:
    checkout = Checkout(server, tmp_path / "stock")
    landed = writer.commit(propose({"f": b"1"}))
    assert "fork" in checkout.commit("theirs", "stock\n", check=False)
    checkout("update")
    checkout.commit("theirs", "again\n")
    assert_sound(server.workspace, [landed], others=1)


def test_a_stock_commit_between_the_look_and_the_push_makes_no_fork(
    server: FossilServer,
    writer: RunningWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The race that the guard in the repository is there for."""
    checkout = Checkout(server, tmp_path / "stock")
    post, raced = xfer.post, threading.Event()

    def after_stock(url: str, body: bytes) -> xfer.Reply:
        if not raced.is_set():
            raced.set()
            checkout.commit("theirs", "stock\n")
        reply = post(url, body)
        replies.append(reply.status)
        return reply

    replies: list[int] = []
    monkeypatch.setattr(xfer, "post", after_stock)
    answers = [writer.ask(propose({f"f{n}": b"1"}, slot=f"s{n}")) for n in range(3)]
    landed = [answer() for answer in answers]
    assert replies[0] == 400
    assert_sound(server.workspace, landed, others=1)
    assert [one.slot for one in writer.arrivals] == ["stock", "s0", "s1", "s2"]


def test_a_stock_commit_to_the_same_file_meanwhile_is_merged_or_told(
    server: FossilServer,
    writer: RunningWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkout = Checkout(server, tmp_path / "stock")
    post, raced = xfer.post, threading.Event()

    def after_stock(url: str, body: bytes) -> xfer.Reply:
        if not raced.is_set():
            raced.set()
            checkout.commit("README", "theirs\n")
        return post(url, body)

    monkeypatch.setattr(xfer, "post", after_stock)
    told = writer.commit(propose({"README": b"mine\n"}, base={"README": b"hello\n"}))
    (conflict,) = told
    assert conflict.theirs_slot == "stock"
    assert files(server.workspace)["README"] == b"theirs\n"
    assert_sound(server.workspace, [], others=1)


def test_a_fork_that_was_forced_is_told_and_the_line_goes_on(
    server: FossilServer, writer: RunningWriter, tmp_path: Path
) -> None:
    checkout = Checkout(server, tmp_path / "stock")
    first = writer.commit(propose({"f": b"1"}))
    checkout.commit("theirs", "stock\n", "--allow-fork")
    eventually(lambda: bool(writer.forks))
    second = writer.commit(propose({"g": b"1"}))
    assert second.parent == first.checkin
    assert first.checkin in writer.forks[0]
    assert [line["line"] for line in writer.events("trunk-forked")][:1] == [first.checkin]


def test_a_tip_that_was_moved_to_a_branch_is_let_go(
    server: FossilServer, writer: RunningWriter, tmp_path: Path
) -> None:
    checkout = Checkout(server, tmp_path / "stock")
    with Repository(server.workspace.repository) as repository:
        root = repository.tip().hash
    moved = writer.commit(propose({"f": b"1"}))
    checkout("amend", moved.checkin, "--branch", "aside")
    landed = writer.commit(propose({"g": b"1"}))
    assert landed.parent == root
    assert "f" not in files(server.workspace)
    assert_sound(server.workspace, [landed])


# --- faults --------------------------------------------------------------------------------


@pytest.mark.faults
def test_while_fossil_is_away_commits_wait_and_then_land_once(
    server: FossilServer, writer: RunningWriter
) -> None:
    first = writer.commit(propose({"f": b"1"}))
    server.kill()
    answers = [writer.ask(propose({f"g{n}": b"1"}, slot=f"s{n}")) for n in range(20)]
    eventually(lambda: bool(writer.events("fossil-away")))
    server.start()
    landed = [answer() for answer in answers]
    assert_sound(server.workspace, [first, *landed])
    assert len(writer.events("fossil-away")) == len(writer.events("fossil-back")) == 1


@pytest.mark.faults
@pytest.mark.slow
def test_fossil_killed_again_and_again_loses_and_doubles_nothing(
    server: FossilServer, writer: RunningWriter
) -> None:
    landed: list[Landed] = []
    stopping = threading.Event()

    def slot(number: int) -> None:
        count = 0
        while not stopping.is_set():
            count += 1
            landed.append(writer.commit(propose({f"{number}/{count}": b"x"}, slot=f"s{number}")))

    threads = [threading.Thread(target=slot, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for turn in range(8):
        reached = len(landed) + 10
        eventually(lambda due=reached: len(landed) >= due, 20)  # type: ignore[misc]
        if turn % 2:
            server.kill()
            server.start()
        else:  # the request in flight alone
            for pid in _children(server.process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
    stopping.set()
    for thread in threads:
        thread.join()
    assert_sound(server.workspace, landed)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.faults
def test_a_batch_in_the_journal_lands_when_a_writer_opens(server: FossilServer) -> None:
    batch = _unsent(server)
    with RunningWriter(server.workspace) as writer:
        (told,) = writer.events("journal")
        assert (told["missing"], told["outcome"]) == (2, "landed")
        assert writer.commit(propose({"f0": b"1"})).new is False
    with Repository(server.workspace.repository) as repository:
        assert [row.hash for row in repository.line()][-2:] == list(batch.checkins)
    with Journal(server.workspace.journal) as journal:
        assert journal.read() is None
    with RunningWriter(server.workspace) as writer:
        assert writer.events("journal") == []


@pytest.mark.faults
def test_a_batch_in_the_journal_that_had_landed_is_not_sent(server: FossilServer) -> None:
    batch = _unsent(server)
    xfer.post(xfer.read_url(server.workspace), batch.body)
    with RunningWriter(server.workspace) as writer:
        (told,) = writer.events("journal")
        assert (told["missing"], told["outcome"]) == (0, "had-landed")
    assert_sound(server.workspace, [], others=2)


@pytest.mark.faults
def test_a_batch_in_the_journal_that_comes_too_late_is_dropped(
    server: FossilServer, tmp_path: Path
) -> None:
    _unsent(server)
    Checkout(server, tmp_path / "stock").commit("theirs", "stock\n")
    with RunningWriter(server.workspace) as writer:
        (told,) = writer.events("journal")
        assert told["outcome"] == "superseded"
        landed = writer.commit(propose({"f0": b"1"}))
    assert_sound(server.workspace, [landed], others=1)


@pytest.mark.faults
def test_a_torn_journal_is_kept_aside_and_stops_nothing(server: FossilServer) -> None:
    _unsent(server)
    path = Path(server.workspace.journal, "batch")
    path.write_bytes(path.read_bytes()[:-1])
    with RunningWriter(server.workspace) as writer:
        (told,) = writer.events("journal-unreadable")
        assert Path(told["kept"]).exists()
        landed = writer.commit(propose({"f0": b"1"}))
    assert_sound(server.workspace, [landed])


def _unsent(server: FossilServer, content: bytes = b"1") -> Batch:
    """Leave a batch of two check-ins in the journal, as a writer that was killed before sending."""

    class Killed(BaseException):
        pass

    def killed(_url: str, _body: bytes) -> xfer.Reply:
        raise Killed

    ended = threading.Event()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(xfer, "post", killed)
        patched.setattr(threading, "excepthook", lambda _told: ended.set())
        with RunningWriter(server.workspace) as writer:
            with writer.writer._queue.arrival:  # both in one batch
                for number in range(2):
                    writer.writer.submit(propose({f"f{number}": content}), number)
            assert ended.wait(10)
    with Journal(server.workspace.journal) as journal:
        batch = journal.read()
    assert batch is not None
    assert len(batch.checkins) == 2
    return batch


@pytest.mark.faults
def test_a_repository_that_cannot_be_read_for_a_while_is_waited_for(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = writer.commit(propose({"f": b"1"}))
    position, failed = Ledger.position, threading.Event()

    def failing(self: Ledger, checkin: str) -> Any:
        if not failed.is_set():
            failed.set()
            raise HubError("disk I/O error", reason="corrupt")
        return position(self, checkin)

    monkeypatch.setattr(Ledger, "position", failing)
    second = writer.commit(propose({"g": b"1"}))
    assert [line["error"] for line in writer.events("trunk-stuck")] == ["disk I/O error"]
    assert_sound(server.workspace, [first, second])


@pytest.mark.faults
def test_who_asks_a_trunk_that_cannot_read_its_repository_is_told(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_self: Ledger, _checkin: str) -> Any:
        raise HubError("disk I/O error", reason="corrupt")

    monkeypatch.setattr(Ledger, "position", failing)
    told = writer.commit(propose({"f": b"1"}))
    assert isinstance(told, Unavailable)
    assert "disk I/O error" in str(told)
    monkeypatch.undo()
    assert_sound(server.workspace, [writer.commit(propose({"f": b"1"}))])


@pytest.mark.faults
def test_an_acknowledged_commit_is_synced_to_disk_first(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []
    fdatasync = os.fdatasync

    def noted(fd: int) -> None:
        fdatasync(fd)
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size))

    monkeypatch.setattr(os, "fdatasync", noted)
    log = f"{server.workspace.repository}-wal"
    for number in range(3):
        writer.commit(propose({f"f{number}": b"1"}))
        assert synced[-1] == (log, os.path.getsize(log))
        assert len(synced) == number + 1


def test_a_tip_of_later_today_is_told_and_followed_at_the_time_that_it_is(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 2 * 3600 * 10**9)
    first = writer.commit(propose({"f": b"1"}))
    monkeypatch.undo()
    second = writer.commit(propose({"g": b"1"}))
    assert second.time < first.time
    assert writer.events("clock-behind")[0]["ahead_ms"] > 3_600_000
    assert_sound(server.workspace, [first, second])


def test_a_stock_commit_of_the_last_moment_of_all_stops_nobody(
    server: FossilServer, tmp_path: Path
) -> None:
    checkout = Checkout(server, tmp_path / "stock")
    checkout.commit("s", "1\n", "--date-override", "9999-12-31T23:59:59.999")
    with RunningWriter(server.workspace) as writer:
        first = writer.commit(propose({"f": b"1"}))
        second = writer.commit(propose({"g": b"1"}))
    assert second.time[:2] == "20"
    assert_sound(server.workspace, [first, second], others=1)
    checkout("update")
    checkout("rebuild", server.workspace.repository)
    checkout.commit("t", "1\n", "--allow-older")
    with RunningWriter(server.workspace) as writer:
        third = writer.commit(propose({"h": b"1"}))
    assert_sound(server.workspace, [first, second, third], others=2)
    assert {"s", "f", "g", "t", "h"} <= set(files(server.workspace))


# --- one bad commit, and all the others ----------------------------------------------------


def together(writer: RunningWriter, *proposals: Proposal) -> list[Any]:
    """Ask for *proposals* in one batch; return the answers."""
    with writer.writer._queue.arrival:
        answers = [writer.ask(proposal) for proposal in proposals]
    return [answer() for answer in answers]


@pytest.mark.faults
def test_a_damaged_content_stops_the_commit_that_needs_it_and_no_other(
    server: FossilServer, writer: RunningWriter
) -> None:
    base = b"".join(b"line %d\n" % n for n in range(20))
    first = writer.commit(propose({"f": base}))
    second = writer.commit(propose({"f": base + b"theirs\n"}, base={"f": base}))
    db = sqlite3.connect(server.workspace.repository, isolation_level=None)
    (kept,) = db.execute("SELECT content FROM blob WHERE uuid=?", (name_of(base),)).fetchone()
    db.execute("UPDATE blob SET content=x'00000006ff' WHERE uuid=?", (name_of(base),))
    poison = propose({"f": b"mine\n" + base}, base={"f": base}, slot="poison")
    sound = [propose({f"g{n}": b"1"}, slot=f"s{n}") for n in range(3)]
    told = together(writer, sound[0], poison, *sound[1:])
    db.execute("UPDATE blob SET content=? WHERE uuid=?", (kept, name_of(base)))
    db.close()
    assert isinstance(told[1], Unavailable)
    assert name_of(base) in str(told[1])
    assert_sound(server.workspace, [first, second, told[0], told[2], told[3]])


class CrashingServer:
    """A server in front of Fossil that ends of every request with ``poison`` in it."""

    def __init__(self, server: FossilServer) -> None:
        self._behind = server.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        Path(server.workspace.fossil_url).write_text(f"http://127.0.0.1:{port}\n")
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                asker, _address = self._listener.accept()
            except OSError:
                return
            with asker, asker.makefile("rb") as stream:
                head = b"".join(iter(stream.readline, b"\r\n"))
                size = int(head.partition(b"Content-Length: ")[2].split()[0])
                body = stream.read(size)
                if b"poison" not in body:
                    with socket.create_connection(("127.0.0.1", self._behind)) as fossil_server:
                        fossil_server.sendall(head + b"\r\n" + body)
                        while chunk := fossil_server.recv(65_536):
                            asker.sendall(chunk)


@pytest.mark.faults
def test_a_commit_that_fossil_ends_of_keeps_no_other_waiting(
    server: FossilServer, writer: RunningWriter
) -> None:
    with CrashingServer(server):
        told = together(
            writer, *(propose({f"f{n}": b"poison" if n == 1 else b"1"}) for n in range(3))
        )
    assert isinstance(told[1], Unavailable)
    assert told[1].reason == "commit-not-stored"
    assert_sound(server.workspace, [told[0], told[2]])


@pytest.mark.faults
def test_a_batch_in_the_journal_that_fossil_ends_of_is_given_up(server: FossilServer) -> None:
    _unsent(server, b"poison")
    with CrashingServer(server), RunningWriter(server.workspace) as writer:
        assert writer.events("journal")[0]["outcome"].startswith("not-stored")
        landed = writer.commit(propose({"f": b"1"}))
    assert_sound(server.workspace, [landed])


@pytest.mark.faults
def test_a_bug_anywhere_in_the_writer_is_told_and_ends_nothing(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Head.landed_before

    def buggy(self: Head, proposal: Proposal) -> Any:
        if proposal.slot == "poison":
            raise KeyError("a bug")
        return before(self, proposal)

    monkeypatch.setattr(Head, "landed_before", buggy)
    told = together(writer, propose({"f": b"1"}, slot="poison"), propose({"g": b"1"}))
    assert isinstance(told[0], Unavailable)
    assert "buggy" in writer.events("bug")[0]["trace"]
    assert_sound(server.workspace, [told[1]])


@pytest.mark.faults
def test_removed_directories_are_made_anew(server: FossilServer) -> None:
    workspace = server.workspace
    shutil.rmtree(workspace.journal)
    shutil.rmtree(workspace.spool)
    contract.ensure(workspace, lambda *_told, **_fields: None)
    shutil.rmtree(workspace.journal)
    with RunningWriter(workspace) as writer:
        assert_sound(workspace, [writer.commit(propose({"f": b"1"}))])
    assert os.listdir(workspace.spool) == []


@pytest.mark.faults
def test_who_asks_a_trunk_that_cannot_begin_is_told(server: FossilServer) -> None:
    password = Path(password_path(server.workspace, HUB_USER))
    kept = password.read_bytes()
    password.unlink()
    writer = RunningWriter(server.workspace)
    asked = propose({"f": b"1"})
    answer = writer.ask(asked)
    writer._thread.start()
    told = answer()
    assert isinstance(told, Unavailable)
    assert str(password) in str(told)
    password.write_bytes(kept)
    landed = writer.commit(asked.replace(id=new_id()))
    writer.writer.stop()
    writer._thread.join(20)
    assert_sound(server.workspace, [landed])


def test_many_contents_go_in_requests_of_a_bounded_size(
    server: FossilServer, writer: RunningWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[int] = []
    post = xfer.post

    def counted(url: str, body: bytes) -> xfer.Reply:
        bodies.append(len(body))
        return post(url, body)

    monkeypatch.setattr(xfer, "post", counted)
    monkeypatch.setattr(writing, "BATCH_BYTES", 200_000)
    commits = []
    for number in range(4):
        content = {f"{number}/{n}": os.urandom(60_000) for n in range(8)}
        for one in content.values():
            Path(server.workspace.spool, name_of(one)).write_bytes(one)
        asked = propose(content, slot=f"s{number}")
        commits.append(asked.replace(contents={}, spooled=tuple(asked.contents)))
    landed = together(writer, *commits)
    assert max(bodies) < 220_000
    assert len(files(server.workspace)) >= 32
    assert_sound(server.workspace, landed)
    monkeypatch.setattr(writing, "COMMIT_BYTES", 100_000)
    refused = writer.commit(propose({"f": b"x" * 100_001}))
    assert refused.reason == "commit-too-large"


def test_a_leaf_that_was_superseded_while_the_gate_was_at_work_is_refused(
    server: FossilServer, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    Path(server.workspace.root, "bones.toml").write_text(f'[trunk]\nverify = "touch {began}"\n')

    def fence(proposal: Proposal) -> HubError | None:
        superseded = proposal.slot == "a" and began.exists()
        return LeaseLost("superseded", reason="superseded") if superseded else None

    with RunningWriter(server.workspace, fence=fence, gate=Gate(server.workspace)) as writer:
        refused = writer.commit(propose({"f": b"1"}, slot="a"))
        landed = writer.commit(propose({"g": b"1"}, slot="b"))
    assert isinstance(refused, LeaseLost)
    assert_sound(server.workspace, [landed])


def test_a_tip_that_is_moved_to_a_branch_between_the_look_and_the_push_is_let_go(
    server: FossilServer,
    writer: RunningWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkout = Checkout(server, tmp_path / "stock")
    moved = writer.commit(propose({"f": b"1"}))
    post, raced = xfer.post, threading.Event()

    def after_stock(url: str, body: bytes) -> xfer.Reply:
        if not raced.is_set():
            raced.set()
            checkout("amend", moved.checkin, "--branch", "aside")
        return post(url, body)

    monkeypatch.setattr(xfer, "post", after_stock)
    landed = writer.commit(propose({"g": b"1"}))
    assert landed.parent == moved.parent
    assert_sound(server.workspace, [landed])


# --- on disk before it is told -------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was synced: file, and its size then."""
    found: list[tuple[str, int]] = []
    fdatasync = os.fdatasync

    def noted(fd: int) -> None:
        fdatasync(fd)
        found.append((os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size))

    monkeypatch.setattr(os, "fdatasync", noted)
    return found


@pytest.mark.faults
def test_what_a_killed_trunk_had_pushed_is_synced_before_it_is_told(
    server: FossilServer, synced: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(_self: Ledger) -> None:
        ended.set()
        raise Killed

    ended = threading.Event()
    asked = propose({"f": b"1"})
    with Ledger(server.workspace.repository) as reader:  # as a kill does: the log stays
        assert reader.leaves()
        with monkeypatch.context() as patched:
            patched.setattr(threading, "excepthook", lambda _told: None)
            with RunningWriter(server.workspace) as writer:
                patched.setattr(Ledger, "sync", killed)
                writer.ask(asked)
                assert ended.wait(10)
        del synced[:]
        with RunningWriter(server.workspace) as writer:
            landed = writer.commit(asked)
        log = f"{server.workspace.repository}-wal"
        assert (log, os.path.getsize(log)) in synced
    assert_sound(server.workspace, [landed])


def test_a_stock_commit_is_synced_before_it_is_told_or_built_upon(
    server: FossilServer,
    writer: RunningWriter,
    synced: list[tuple[str, int]],
    tmp_path: Path,
) -> None:
    Checkout(server, tmp_path / "stock").commit("f", "1\n")
    eventually(lambda: bool(writer.arrivals))
    log = f"{server.workspace.repository}-wal"
    assert synced[-1] == (log, os.path.getsize(log))
    assert writer.commit(propose({"f": b"1\n"})).new is False
