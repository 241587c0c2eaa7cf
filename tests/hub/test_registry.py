"""The machine-wide registry: every running hub stands in it, and nothing in it is believed."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import Refused
from foundation.process import Identity
from hub import registry
from hub.info import HubInfo
from hub.registration import Registration
from hub.registry import Entry
from tests.support import Hub, data_of, eventually, run_python, stranger

NOBODY = 65534


def own_identity() -> Identity:
    identity = Identity.of(os.getpid())
    assert identity is not None
    return identity


def entry(root: str = "/w", **changes: Any) -> Entry:
    return Entry(
        schema=registry.SCHEMA,
        root=root,
        directory=[1, 2],
        hub_id="ab",
        epoch=3,
        identity=own_identity(),
        fossil_url="http://127.0.0.1:1",
        nats_url="nats://127.0.0.1:2",
        started_at="2026-11-21T02:34:53.211Z",
        version="0",
    ).replace(**changes)


def registration(root: str = "/w", identity: Identity | None = None) -> Registration:
    info = HubInfo(
        root=root,
        hub_id="ab",
        epoch=3,
        pid=os.getpid(),
        fossil_pid=0,
        nats_pid=0,
        fossil_url="http://127.0.0.1:1",
        nats_url="nats://127.0.0.1:2",
        started_at="x",
    )
    return Registration(info, directory=(1, 2), identity=identity or own_identity())


def file_of(root: str | Path) -> Path:
    return Path(registry.path_of(str(root)))


# --- a hub's own entry -----------------------------------------------------------------------


@pytest.mark.real
def test_a_running_hub_stands_in_the_registry_and_a_stopped_one_does_not(hub: Hub) -> None:
    info = hub.start()
    path = file_of(hub.root)
    eventually(path.exists)
    found = registry.read(str(path))
    state = os.stat(hub.workspace.state)
    assert (found.root, found.epoch, found.hub_id) == (str(hub.root), info["epoch"], info["hub_id"])
    assert (found.identity.pid, found.identity.state()) == (info["pid"], "alive")
    assert found.directory == [state.st_dev, state.st_ino]
    assert (found.fossil_url, found.nats_url) == (info["fossil_url"], info["nats_url"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    hub.stop()
    assert os.listdir(path.parent) == []


@pytest.mark.real
@pytest.mark.slow
def test_an_entry_that_is_deleted_while_the_hub_runs_is_written_again(hub: Hub) -> None:
    info = hub.start()
    path = file_of(hub.root)
    eventually(path.exists)
    shutil.rmtree(path.parent.parent)
    eventually(path.exists, 15)
    assert registry.read(str(path)).identity.pid == info["pid"]


@pytest.mark.real
@pytest.mark.parametrize("place", ["file", "link", "foreign", "relative-is-not-used"])
def test_a_registry_that_cannot_be_used_is_a_warning_and_never_a_failed_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    state = tmp_path / "xdg"
    state.mkdir()
    bones = state / "bones"
    if place == "file":
        bones.write_text("")
    elif place == "link":
        bones.symlink_to(tmp_path)
    elif place == "foreign":
        bones.mkdir()
        os.chown(bones, NOBODY, NOBODY)
    elif place == "relative-is-not-used":
        monkeypatch.setenv("HOME", str(state))
        (state / ".local").write_text("")
        state = Path("xdg")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    hub.start()
    hub.wait_ready()
    eventually(lambda: bool(hub.logged("not-registered")))
    assert hub.logged("not-registered")[0]["level"] == "warning"
    assert hub.status()["state"] == "running"
    hub.stop()
    assert not (hub.root / "xdg").exists()


def test_what_is_damaged_is_written_again_and_what_is_whole_is_not() -> None:
    one = registration()
    assert one.keep() == ""
    path = file_of("/w")
    before = path.stat()
    assert one.keep() == ""
    assert path.stat().st_ino == before.st_ino
    path.unlink()
    for damage in ("{", "", "{}"):
        path.write_text(damage)
        assert one.keep() == ""
        assert registry.read(str(path)).root == "/w"
        path.unlink()
        assert one.keep() == ""
        assert registry.read(str(path)).root == "/w"
        path.unlink()
    path.symlink_to("/etc/passwd")
    assert one.keep() == ""
    assert not path.is_symlink()
    assert one.withdraw() == ""
    assert not path.exists()


def test_the_entry_of_another_living_hub_of_that_path_is_neither_replaced_nor_removed() -> None:
    mine, other = registration(), registration(identity=own_identity().replace(namespace=1))
    assert mine.keep() == ""
    assert other.keep() == ""  # it has just become ready
    assert mine.keep() == ""
    assert mine.withdraw() == ""
    assert registry.read(str(file_of("/w"))).identity.namespace == 1
    registry.write(entry(identity=own_identity().replace(boot="x")))  # of one that is dead
    assert mine.keep() == ""
    assert registry.read(str(file_of("/w"))).identity == own_identity()


def test_the_entry_of_another_hub_is_replaced_once_that_is_killed() -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        identity = Identity.of(other.pid)
        assert identity is not None
        mine, its = registration(), registration(identity=identity)
        assert mine.keep() == its.keep() == mine.keep() == ""
        assert registry.read(str(file_of("/w"))).identity == identity
        other.kill()
    assert mine.keep() == ""
    assert registry.read(str(file_of("/w"))).identity == own_identity()
    assert mine.withdraw() == ""


def test_what_goes_wrong_is_told_once_until_it_is_well_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "xdg"
    place.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    one = registration()
    assert [bool(one.keep()) for _turn in range(3)] == [True, False, False]
    place.unlink()
    assert one.keep() == ""
    shutil.rmtree(place)
    place.write_text("")
    assert [bool(one.keep()) for _turn in range(2)] == [True, False]


# --- where it is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s"),
        ({"XDG_STATE_HOME": "/s/", "HOME": "/h"}, "/s"),
        ({"XDG_STATE_HOME": "s", "HOME": "/h"}, "/h/.local/state"),
        ({"XDG_STATE_HOME": "", "HOME": "/h/"}, "/h/.local/state"),
        ({"HOME": "/h"}, "/h/.local/state"),
        ({"HOME": "h"}, None),
        ({"HOME": ""}, None),
        ({}, None),
    ],
)
def test_it_is_where_the_xdg_specification_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str | None
) -> None:
    for name in ("XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own = f"{pwd.getpwuid(os.geteuid()).pw_dir}/.local/state"
    assert registry.directory() == f"{expected or own}/bones/workspaces"


def test_root_makes_nothing_in_a_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root is kept from it")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    with pytest.raises(Refused) as refused:
        registry.write(entry())
    assert refused.value.reason == "registry-foreign"
    assert os.listdir(home) == []


def test_a_registry_of_another_user_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    registry.write(entry())
    os.chown(tmp_path / "bones/workspaces", NOBODY, NOBODY)
    entries, unreadable = registry.entries()
    assert entries == []
    assert "another user's" in unreadable[0].reason


@pytest.mark.parametrize("root", ["/", "/w", "/a b/ü/\n", "/\udcff", "/" + "x/" * 2000 + "x"])
def test_any_root_can_be_registered_and_read_back(root: str) -> None:
    registry.write(entry(root))
    assert registry.entries() == ([entry(root)], [])
    assert len(file_of(root).stem) == 16
    assert registry.withdraw(entry(root))
    assert registry.entries() == ([], [])


def test_the_name_of_an_entry_is_the_same_without_the_small_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys  # noqa: PLC0415

    with_it = registry.path_of("/w")
    monkeypatch.setitem(sys.modules, "_blake2", None)
    assert registry.path_of("/w") == with_it


# --- what is no entry ------------------------------------------------------------------------


def forged(**changes: Any) -> bytes:
    return json.dumps({**entry().as_dict(), **changes}).encode()


def accused(**changes: Any) -> bytes:
    return forged(identity={**own_identity().as_dict(), **changes})


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "torn": forged()[:-5],
    "nul": b"\0" * 100,
    "not-utf-8": b"\xff\xfe",
    "bom": b"\xef\xbb\xbf" + forged(),
    "huge": b"[" * 10_000_000,
    "nested": b"[" * 60_000,
    "a-list": b"[]",
    "a-number": b"1e999",
    "null": b"null",
    "an-empty-object": b"{}",
    "another-schema": forged(schema=2),
    "no-schema": forged(schema=None),
    "a-field-more": forged(more=1),
    "a-root-that-is-relative": forged(root="w"),
    "a-root-that-climbs": forged(root="/w/../etc"),
    "a-root-with-a-nul": forged(root="/w\0"),
    "a-root-that-is-a-number": forged(root=7),
    "a-root-that-is-no-name": forged(root="/\ud800"),
    "a-root-that-is-too-long": forged(root="/" + "x" * 5000),
    "another-root-than-its-name": forged(root="/etc"),
    "a-directory-that-is-none": forged(directory=[1]),
    "a-directory-of-truths": forged(directory=[True, True]),
    "an-epoch-below-zero": forged(epoch=-1),
    "an-epoch-that-is-true": forged(epoch=True),
    "a-url-that-is-a-list": forged(nats_url=["x"]),
    "a-version-that-is-none": forged(version=None),
    "no-identity": forged(identity=None),
    "pid-0": accused(pid=0),
    "pid-minus-1": accused(pid=-1),
    "pid-beyond-all": accused(pid=2**31),
    "pid-of-a-float": accused(pid=1e3),
    "pid-of-another-user": accused(uid=os.geteuid() + 1),
}


def test_thirty_hostile_entries_are_named_each_and_hide_nobody(hub: Hub) -> None:
    assert len(HOSTILE) >= 30
    registry.write(entry(str(hub.root)))
    place = Path(registry.directory())
    for name, content in HOSTILE.items():
        path = place / f"{name}.json"
        path.write_bytes(content)
        if name != "another-root-than-its-name":
            right = file_of("/w")
            path.rename(right)  # so that the content is what decides
            with pytest.raises((OSError, ValueError)):
                registry.read(str(right))
            right.rename(path)
    (place / "directory.json").mkdir()
    (place / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(place / "fifo.json")
    (place / "no entry at all").write_text("x")
    entries, unreadable = registry.entries()
    assert [one.root for one in entries] == [str(hub.root)]
    assert {Path(bad.path).stem for bad in unreadable} == {*HOSTILE, "directory", "link", "fifo"}
    assert all(bad.reason and "\n" not in bad.reason for bad in unreadable)


@pytest.mark.real
def test_a_listing_beside_hostile_entries_shows_the_hub_and_the_way_out(hub: Hub) -> None:
    info = hub.start()
    eventually(file_of(hub.root).exists)
    place = Path(registry.directory())
    for name, content in HOSTILE.items():
        (place / f"{name}.json").write_bytes(content)
    with stranger():
        listed = data_of(hub.run("status", "--all", "--root", str(hub.root), "--json").stdout)
        assert [(one["root"], one["pid"]) for one in listed["hubs"]] == [
            (str(hub.root), info["pid"])
        ]
        assert len(listed["notes"]) == len(HOSTILE)
        for name in HOSTILE:
            note = next(note for note in listed["notes"] if f"/{name}.json" in note)
            assert f"`rm -r {place}/{name}.json`" in note


def test_two_users_with_one_registry_do_not_read_each_other(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    place = tmp_path / "bones/workspaces"
    program = """
import os, sys
from hub import registry
os.setgid(65534); os.setuid(65534)
os.environ["XDG_STATE_HOME"] = sys.argv[1]
print(registry.entries()[0], registry.entries()[1][0].reason)
"""
    place.mkdir(parents=True)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
            path.chmod(path.stat().st_mode | 0o055)
    done = run_python(program, str(tmp_path))
    assert done.stdout.startswith("[] ")
    assert "another user's" in done.stdout
