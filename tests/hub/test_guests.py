"""The guests of a VM cluster before Fossil: they clone and read, until the cluster ends."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from foundation import codec
from foundation.workspace import Workspace
from hub.bus import connect
from hub.creds import new_key
from hub.trunk import guests, registry
from tests.hub.gitrepo import fossil
from tests.support import eventually, kill

if TYPE_CHECKING:
    from tests.support import Hub

real = pytest.mark.real


def ask(hub: Hub, verb: str, **body: object) -> dict[str, Any]:
    """Ask the real trunk, as a holder does before it has a key."""

    async def asked() -> bytes:
        async with await connect(hub.workspace) as operator:
            told = codec.dumps({"v": 1, "cluster": "web", **body}).encode()
            subject = f"clusters.request.{verb}"
            answer = await operator.request(subject, told, within_s=20.0, per_try_s=2.0)
            return answer.data

    return codec.loads_object(asyncio.run(asked()))


def register(hub: Hub, epoch: int, password: str) -> dict[str, Any]:
    keys = {"public": new_key()[1], "guest": new_key()[1]}
    return ask(hub, "register", epoch=epoch, password=password, **keys)


def url(hub: Hub, password: str) -> str:
    at = Path(hub.workspace.fossil_url).read_text().strip().removeprefix("http://")
    return f"http://vm.web:{password}@{at}/"


def login(workspace: Workspace) -> tuple[str, str] | None:
    with closing(sqlite3.connect(workspace.repository)) as db:
        rows = db.execute("SELECT login, cap FROM user WHERE login LIKE 'vm.%'").fetchall()
    assert len(rows) <= 1
    return rows[0] if rows else None


@real
def test_a_guest_clones_and_reads_and_does_not_push(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    assert register(hub, 1, "secret") == {"v": 1, "fossil": True}
    for wrong in ("", "wrong"):
        with pytest.raises(AssertionError):
            fossil("clone", url(hub, wrong), "refused.fossil", cwd=tmp_path)
    fossil("clone", "--save-http-password", url(hub, "secret"), "guest.fossil", cwd=tmp_path)
    tree = tmp_path / "tree"
    tree.mkdir()
    fossil("open", "../guest.fossil", cwd=tree)
    assert (tree / "README").read_text() == "hello\n"
    before = fossil("info", "trunk", "-R", hub.workspace.repository, cwd=tmp_path)
    (tree / "README").write_text("pushed\n")
    fossil("commit", "-m", "mine", "--user-override", "vm.web", cwd=tree)
    assert b"not authorized to write" in fossil("push", url(hub, "secret"), cwd=tree)
    assert fossil("info", "trunk", "-R", hub.workspace.repository, cwd=tmp_path) == before


@real
def test_a_later_holder_changes_the_password_and_the_end_takes_it(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    register(hub, 1, "first")
    assert register(hub, 2, "second")["fossil"] is True
    with pytest.raises(AssertionError):
        fossil("clone", url(hub, "first"), "first.fossil", cwd=tmp_path)
    fossil("clone", url(hub, "second"), "second.fossil", cwd=tmp_path)
    assert ask(hub, "leave.web", epoch=1)["error"]["reason"] == "superseded"
    fossil("pull", url(hub, "second"), "-R", "second.fossil", cwd=tmp_path)
    assert ask(hub, "leave.web", epoch=2) == {"v": 1, "fossil": True}
    said = fossil("pull", url(hub, "second"), "-R", "second.fossil", cwd=tmp_path)
    assert b"login failed" in said
    assert login(hub.workspace) is None


@real
@pytest.mark.faults
def test_a_login_whose_cluster_ended_unseen_is_removed_by_the_next_trunk(hub: Hub) -> None:
    """Killed between the two: the registry says that it left, Fossil still knows it."""
    hub.start()
    register(hub, 1, "secret")
    known = registry.read(hub.workspace).logins["vm:web"]
    hub.stop()
    registry.write(hub.workspace, {"vm:web": known.replace(public="", guest="")})
    assert login(hub.workspace) is not None
    hub.start()
    eventually(lambda: login(hub.workspace) is None)


@real
@pytest.mark.faults
def test_a_login_outlives_a_trunk_that_is_killed(hub: Hub) -> None:
    hub.start()
    register(hub, 1, "secret")
    kill(hub.child("trunk")["pid"])
    hub.wait_ready("trunk")
    assert register(hub, 2, "secret")["fossil"] is True
    assert login(hub.workspace) == ("vm.web", guests.CAPABILITIES)


def test_a_persons_login_is_not_taken_for_a_guests(seeded: Path) -> None:
    repository = Workspace(str(seeded)).repository
    with closing(sqlite3.connect(repository)) as db:
        db.execute("INSERT INTO user(login, pw, cap) VALUES('vm.web', 'x', 's')")
        db.commit()
    with pytest.raises(sqlite3.IntegrityError):
        guests.ensure(repository, "vm.web", "secret")
    guests.remove(repository, "vm.web")
    guests.keep_only(repository, set())
    assert login(Workspace(str(seeded))) == ("vm.web", "s")


def test_what_is_there_as_it_should_be_is_not_written_again(seeded: Path) -> None:
    repository = Workspace(str(seeded)).repository
    guests.ensure(repository, "vm.web", "secret")
    with closing(sqlite3.connect(repository)) as db:
        before = db.execute("PRAGMA data_version").fetchone()
        guests.ensure(repository, "vm.web", "secret")
        assert db.execute("PRAGMA data_version").fetchone() == before
        guests.ensure(repository, "vm.web", "other")
        assert db.execute("PRAGMA data_version").fetchone() != before


async def test_a_locked_repository_is_not_waited_for_long_and_written_when_it_is_free(
    seeded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "WITHIN_S", 0.05)
    workspace = Workspace(str(seeded))
    entry = registry.Entry(epoch=3, public=new_key()[1], joined="x")
    known: Any = SimpleNamespace(logins={"vm:web": entry})
    logged: list[str] = []
    made = guests.Guests(
        workspace.repository, lambda _level, event, **_fields: logged.append(event)
    )

    def asked(epoch: int, password: str) -> bytes:
        body = {"cluster": "web", "epoch": epoch, "password": password}
        return codec.dumps(body).encode()

    with closing(sqlite3.connect(workspace.repository, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert not await made.settle(known, asked(3, "secret"))
        db.execute("ROLLBACK")
    async with asyncio.timeout(20):
        while not await made.settle(known, asked(3, "secret")):
            pass
    assert await made.settle(known, asked(2, "of the one before"))
    assert login(workspace) == ("vm.web", guests.CAPABILITIES)
    with closing(sqlite3.connect(workspace.repository)) as db:
        digest = db.execute("SELECT pw FROM user WHERE login='vm.web'").fetchone()
    await made.settle(known, asked(3, "secret"))
    with closing(sqlite3.connect(workspace.repository)) as db:
        assert db.execute("SELECT pw FROM user WHERE login='vm.web'").fetchone() == digest
    assert logged == []
