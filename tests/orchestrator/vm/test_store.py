"""What is on disk of VMs, and who may touch it."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import Corrupt, HubError, OwnedByAnother, Refused
from orchestrator.store import Options, Store, check_name, cluster_of, in_order
from owner import private
from tests.support import eventually, run_python

OPTIONS = Options(disk_mb=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store that nobody uses but this test."""
    made = Store(tmp_path / "vms")
    made.make()
    return made


def made(store: Store, name: str, options: Options = OPTIONS) -> Options:
    """Create member *name*; return the options that it has."""
    lock = store.take(name)
    assert lock is not None
    config = store.create(name, options)
    private.close(lock)
    return config.options


def created(store: Store, name: str) -> Path:
    """Create member *name* with a disk; return the disk."""
    made(store, name)
    disk = Path(store.place(name).disk)
    disk.write_bytes(b"dear")
    return disk


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("web-3", "web"),
        ("web-1-2", "web-1"),
        ("web-", "web-"),
        ("web-x", "web-x"),
        ("-5", "-5"),
        ("node-2024", "node"),
        ("web", "web"),
        ("web--1", "web-"),
    ],
)
def test_a_cluster_is_a_name_less_one_number(name: str, cluster: str) -> None:
    assert cluster_of(name) == cluster


@pytest.mark.parametrize("name", ["a", "web-1", "0", "a" * 63, "a--b"])
def test_a_host_name_can_be_a_members(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "..", "a\n", "ä", "a" * 64, "web 1", "a\0"]
)
def test_anything_else_is_refused_by_its_value(store: Store, name: str) -> None:
    with pytest.raises(Refused) as caught:
        store.place(name)
    assert caught.value.reason == "bad-name"
    assert repr(name) in str(caught.value)


@given(st.text(alphabet="ab-019./\n\0", max_size=8))
def test_no_name_leads_out_of_the_store(name: str) -> None:
    store = Store("/nowhere")
    try:
        place = store.place(name)
    except Refused:
        return
    assert os.path.normpath(place.config) == place.config
    assert place.directory == f"/nowhere/{cluster_of(name)}/{name}"


def test_members_are_in_the_order_that_people_count() -> None:
    assert in_order({"web-10", "web-2", "db", "web", "web-1"}) == [
        "db",
        "web",
        "web-1",
        "web-2",
        "web-10",
    ]


# --- creating ------------------------------------------------------------------------------


def test_a_members_options_are_those_that_it_was_created_with(store: Store) -> None:
    assert not store.exists("web-1")
    created(store, "web-1")
    config = store.config("web-1")
    assert config.options == OPTIONS
    again = store.create("web-1", Options(cpus=8))
    assert again == config == store.config("web-1")
    assert os.stat(store.place("web-1").config).st_mode & 0o777 == 0o600
    assert os.stat(store.directory).st_mode & 0o777 == 0o700
    assert store.members() == store.members("web") == ["web-1"]
    assert store.clusters() == ["web"]


@pytest.mark.parametrize(
    "options",
    [
        {"cpus": 0},
        {"cpus": 65},
        {"memory_mb": 1},
        {"disk_mb": -1},
        {"cpus": "2"},
        {"cpus": True},
        {"egress": 0},
        {"egress": "no"},
    ],
)
def test_options_that_no_vm_can_have_are_refused_by_name_and_value(
    store: Store, options: dict[str, Any]
) -> None:
    ((name, value),) = options.items()
    with pytest.raises(Refused, match=f"{name}={value!r}") as caught:
        store.create("web", Options(**options))
    assert caught.value.reason == "bad-option"
    assert not store.exists("web")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema":1,"name":"other"}', "\0" * 9])
def test_a_damaged_config_is_shown_and_the_disk_stays(store: Store, content: str) -> None:
    disk = created(store, "web")
    Path(store.place("web").config).write_text(content)
    with pytest.raises(Corrupt, match=r"config\.json"):
        store.config("web")
    assert disk.read_bytes() == b"dear"
    assert store.members() == ["web"]


def test_what_does_not_exist_is_said_to_be_made_by_up(store: Store) -> None:
    with pytest.raises(Refused, match="bones vm up web"):
        store.config("web")
    store.place("web")
    assert store.members() == []
    assert store.members("../..") == []


def test_a_directory_without_a_config_is_no_member(store: Store) -> None:
    lock = store.take("web-1")
    assert lock is not None
    assert not store.exists("web-1")
    assert store.members() == []
    private.close(lock)


def test_a_cluster_keeps_the_egress_that_its_first_member_was_created_with(store: Store) -> None:
    assert store.egress("web") is None
    closed = Options(egress=False)
    assert not made(store, "web-1", closed).egress
    assert store.egress("web") is False
    assert not made(store, "web-2").egress, "nobody else there is a way out"
    assert made(store, "db").egress
    assert made(store, "db-1", closed).egress
    assert (store.egress("web"), store.egress("db")) == (False, True)
    store.destroy("web-1")
    assert store.egress_of("web", Options()) is False
    store.destroy("web-2")
    assert store.egress("web") is None
    assert made(store, "web-1").egress, "another cluster of that name"


def test_a_vm_of_before_there_was_a_choice_has_egress_and_a_damaged_one_has_none(
    store: Store,
) -> None:
    created(store, "web-1")
    path = Path(store.place("web-1").config)
    before = path.read_text()
    assert '"egress":true' in before
    path.write_text(before.replace('"egress":true,', "").replace(',"egress":true', ""))
    assert store.egress("web") is True
    path.write_text("{")
    assert store.egress("web") is False, "if nobody can say"
    path.write_text(before)
    created(store, "web-2")
    path.write_text("{")
    assert store.egress("web") is True, "its sibling says it"


# --- locks ---------------------------------------------------------------------------------


def test_a_member_and_a_cluster_have_one_holder(store: Store) -> None:
    for take, name in ((store.take, "web-1"), (store.take_cluster, "web")):
        lock = take(name)
        assert lock is not None
        assert take(name) is None
        private.close(lock)
        again = take(name)
        assert again is not None
        private.close(again)


def test_a_forked_child_does_not_hold_what_its_parent_lets_go(store: Store) -> None:
    lock = store.take("web-1")
    assert lock is not None
    read, write = os.pipe()
    forked, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.write(told, b"it runs, and has let go of what is not its own")
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.read(forked, 1)
    os.close(forked)
    os.close(told)
    private.close(lock)
    again = store.take("web-1")
    os.close(write)
    os.waitpid(child, 0)
    assert again is not None
    private.close(again)


def test_a_lock_on_what_was_just_destroyed_counts_for_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(store, "web-1")
    flock = fcntl.flock
    moved = f"{store.directory}/elsewhere"

    def late(fd: int, operation: int) -> None:
        if not os.path.exists(moved):  # between the opening and the lock
            os.rename(store.place("web-1").directory, moved)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = store.take("web-1")
    assert lock is not None
    assert os.path.samestat(os.fstat(lock), os.stat(store.place("web-1").lock))
    private.close(lock)


# --- destroying ----------------------------------------------------------------------------


def test_a_destroy_takes_the_disk_and_an_empty_cluster_and_nothing_else(store: Store) -> None:
    one, two = created(store, "web-1"), created(store, "web-2")
    assert store.destroy("web-1")
    assert not one.exists()
    assert two.read_bytes() == b"dear"
    assert not store.destroy("web-1"), "again is no error"
    assert store.destroy("web-2")
    assert os.listdir(store.directory) == []


def test_a_destroy_is_refused_while_a_holder_has_the_member(store: Store) -> None:
    disk = created(store, "web-1")
    lock = store.take("web-1")
    assert lock is not None
    with pytest.raises(OwnedByAnother, match="stop it") as caught:
        store.destroy("web-1")
    assert caught.value.reason == "running"
    assert disk.read_bytes() == b"dear"
    private.close(lock)
    assert store.destroy("web-1")


def test_a_cluster_that_is_held_keeps_its_directory_which_is_its_lock(store: Store) -> None:
    created(store, "web-1")
    lock = store.take_cluster("web")
    assert lock is not None
    assert store.destroy("web-1")
    assert store.take_cluster("web") is None, "a new directory would be a second lock"
    private.close(lock)
    store.sweep("web")
    assert os.listdir(store.directory) == []


_DESTROY = """
import sys
from orchestrator.store import Store
Store(sys.argv[1]).destroy("web-1")
"""


@pytest.mark.faults
@pytest.mark.parametrize("step", ["destroy.renamed", "destroy.removed"])
def test_a_destroy_that_was_killed_is_finished_by_the_next(store: Store, step: str) -> None:
    created(store, "web-1")
    done = run_python(_DESTROY, store.directory, check=False, HUB_FAILPOINT=step)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not store.exists("web-1"), "one rename takes it away"
    new = created(store, "web-1")
    assert new.read_bytes() == b"dear", "a new one has a disk of its own"
    assert store.destroy("web-1")
    assert os.listdir(store.directory) == []


# --- what became of it ---------------------------------------------------------------------


def test_why_a_member_is_not_up_is_noted_until_it_boots_again(store: Store) -> None:
    created(store, "web-1")
    assert store.ended("web-1") == {}
    store.note_end("web-1", HubError("no luck", reason="luck"))
    assert store.ended("web-1") == {"error": "no luck", "reason": "luck"}
    store.forget_end("web-1")
    assert store.ended("web-1") == {}


def test_a_pidfile_with_junk_names_nobody(store: Store) -> None:
    created(store, "web-1")
    assert store.holder_of("web-1") is None
    for junk in ("", "12", "[]", '{"pid": 1}', "\xff"):
        Path(store.place("web-1").pidfile).write_text(junk)
        assert store.holder_of("web-1") is None


def test_of_two_that_remove_the_last_of_a_cluster_one_removes_its_directory(store: Store) -> None:
    made(store, "web")
    cluster = os.path.dirname(store.place("web").directory)
    other = os.open(cluster, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # as one that has just found something of ours in it
    removing = threading.Thread(target=store.destroy, args=("web",))
    removing.start()
    try:
        eventually(lambda: not os.listdir(cluster))
    finally:
        os.close(other)
        removing.join()
    assert not os.path.exists(cluster)
