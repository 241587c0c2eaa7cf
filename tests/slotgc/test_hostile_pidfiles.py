"""Whatever a leaf.pid or a leaf.json holds: nobody is taken for dead or for ours by it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation import codec
from foundation.process import PID_MAX
from slotgc import dead_slots, kill, live_slots, prune_dead
from slotgc.leaf import DEAD, JUNK, LIVE, UNKNOWN, look, read_record
from tests.slotgc.leaves import identity_of, make_slot, process, sign, workspace_of
from tests.support import eventually, stranger

if TYPE_CHECKING:
    from collections.abc import Callable

    from foundation.process import Identity

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

# --- leaf.pid ----------------------------------------------------------------------------------

TEXTS: dict[str, bytes] = {
    "empty": b"",
    "torn": b"\n",
    "nuls": b"\0\0\0\0\n",
    "a number and a nul": b"4242\0",
    "not utf-8": b"\xff\xfe\n",
    "bom": b"\xef\xbb\xbf4242\n",
    "10 MB": b"4242\n" + b" " * 10_000_000,
    "nested brackets": b"[" * 60,
    "0": b"0\n",
    "-1": b"-1\n",
    "1": b"1\n",
    "beyond the largest pid": b"%d\n" % (PID_MAX + 1),
    "2**31": b"2147483648\n",
    "2**64": b"18446744073709551616\n",
    "1e3": b"1e3\n",
    "True": b"True\n",
    "None": b"None\n",
    "quoted": b'"123"\n',
    "self": b"self\n",
    "two numbers": b"42 42\n",
    "hexadecimal": b"0x10\n",
    "underscore": b"4_2\n",
    "plus": b"+42\n",
    "other digits": "٣٤\n".encode(),
    "superscript": "²²\n".encode(),
}


def elsewhere(slot: Path, pid: int) -> Path:
    """Return a file outside the slot that names *pid*."""
    other = slot.parent.parent / "other.pid"
    other.write_text(f"{pid}\n")
    return other


def link(slot: Path, pid: int) -> None:
    (slot / "leaf.pid").symlink_to(elsewhere(slot, pid))


def dangling(slot: Path, pid: int) -> None:
    (slot / "leaf.pid").symlink_to(f"{slot}/{pid}")


def fifo(slot: Path, pid: int) -> None:
    assert pid
    os.mkfifo(slot / "leaf.pid")


def directory(slot: Path, pid: int) -> None:
    (slot / "leaf.pid" / str(pid)).mkdir(parents=True)


def unix_socket(slot: Path, pid: int) -> None:
    assert pid
    with socket.socket(socket.AF_UNIX) as sock:
        before = os.getcwd()
        os.chdir(slot)
        try:
            sock.bind("leaf.pid")
        finally:
            os.chdir(before)


def foreign(slot: Path, pid: int) -> None:
    (slot / "leaf.pid").write_text(f"{pid}\n")
    os.chown(slot / "leaf.pid", 65534, 65534)


FILES: list[Callable[[Path, int], None]] = [link, dangling, fifo, directory, unix_socket]


def assert_junk(root: Path) -> None:
    found = look(workspace_of(root), "a")
    assert (found.state, found.pid, found.reason) == (JUNK, 0, "leaf.pid holds no pid")
    assert (live_slots(root), dead_slots(root)) == ([], [])
    assert prune_dead(str(root)) == []
    assert (root / ".bones/swarm/a").is_dir()


@pytest.mark.parametrize("kind", TEXTS)
def test_a_leaf_pid_that_holds_no_pid_is_neither_dead_nor_alive(tmp_path: Path, kind: str) -> None:
    make_slot(tmp_path, "a", TEXTS[kind])
    assert_junk(tmp_path)


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_a_leaf_pid_that_is_no_file_of_ours_is_junk_whomever_it_names(
    tmp_path: Path, make: Callable[[Path, int], None]
) -> None:
    with stranger() as one:
        make(make_slot(tmp_path), one.pid)
        assert_junk(tmp_path)


@as_root
def test_a_leaf_pid_of_another_user_is_junk(tmp_path: Path) -> None:
    with stranger() as one:
        foreign(make_slot(tmp_path), one.pid)
        assert_junk(tmp_path)


@pytest.mark.parametrize("content", ["{}", "{}\n", "  {}  \n", "\n{}\n", "000{}\n"])
def test_a_number_is_a_number_however_it_was_written(tmp_path: Path, content: str) -> None:
    with stranger() as one:
        make_slot(tmp_path, "a", content.format(one.pid).encode())
        assert [slot.pid for slot in live_slots(tmp_path)] == [one.pid]
    assert dead_slots(tmp_path) == ["a"]


# --- leaf.json ---------------------------------------------------------------------------------


def record(identity: Identity, **changes: object) -> bytes:
    """Return a record of *identity* in which some fields of it are wrong."""
    fields = identity.as_dict() | changes
    return codec.dumps({"schema": 1, "identity": fields}).encode() + b"\n"


def without(identity: Identity, name: str) -> bytes:
    fields = identity.as_dict()
    del fields[name]
    return codec.dumps({"schema": 1, "identity": fields}).encode()


def schema(identity: Identity, value: object) -> bytes:
    return codec.dumps({"schema": value, "identity": identity.as_dict()}).encode()


RECORDS: dict[str, Callable[[Identity], bytes]] = {
    "empty": lambda _one: b"",
    "torn": lambda one: record(one)[: len(record(one)) // 2],
    "nuls": lambda one: b"\0" * len(record(one)),
    "a nul after it": lambda one: record(one) + b"\0",
    "not utf-8": lambda one: record(one).replace(b"}}", b'},"x":"\xff"}'),
    "bom": lambda one: b"\xef\xbb\xbf" + record(one),
    "10 MB": lambda one: record(one) + b" " * 10_000_000,
    "nested brackets": lambda _one: b"[" * 8000,
    "nested objects": lambda _one: b'{"a":' * 1600,
    "0": lambda one: record(one, pid=0),
    "-1": lambda one: record(one, pid=-1),
    "1": lambda one: record(one, pid=1),
    "2**31": lambda one: record(one, pid=2**31),
    "2**64": lambda one: record(one, pid=2**64),
    "1e3": lambda one: record(one).replace(b'"pid":%d' % one.pid, b'"pid":1e3'),
    "a float": lambda one: record(one, pid=float(one.pid)),
    "True": lambda one: record(one, pid=True),
    "None": lambda one: record(one, pid=None),
    "quoted": lambda one: record(one, pid=str(one.pid)),
    "self": lambda one: record(one, pid="self"),
    "negative inode": lambda one: record(one, inode=-1),
    "boot is a number": lambda one: record(one, boot=1),
    "no boot": lambda one: without(one, "boot"),
    "another field": lambda one: record(one, more=1),
    "identity alone": lambda one: codec.dumps(one.as_dict()).encode(),
    "identity is a list": lambda one: b'{"schema":1,"identity":[%s]}' % record(one),
    "a list": lambda one: b"[" + record(one) + b"]",
    "two records": lambda one: record(one) * 2,
    "another schema": lambda one: schema(one, 2),
    "schema True": lambda one: schema(one, value=True),
    "schema quoted": lambda one: schema(one, "1"),
}


def put(slot: Path, content: bytes) -> None:
    """Write leaf.json as we do, so that only *content* can be held against it."""
    (slot / "leaf.json").write_bytes(content)
    (slot / "leaf.json").chmod(0o600)


def test_a_sound_leaf_json_proves_whom_it_names(tmp_path: Path) -> None:
    with process() as running:
        slot = make_slot(tmp_path, "a", running.pid)
        put(slot, record(identity_of(running.pid)))
        assert look(workspace_of(tmp_path), "a").state == LIVE
        assert kill(running.pid, workspace_dir=tmp_path)


def assert_proves_nothing(root: Path, pid: int) -> None:
    """The stranger with *pid*, whom leaf.pid names too, counts as alive and is left alone."""
    found = look(workspace_of(root), "a")
    reason = f"pid {pid} is alive and nothing proves that it is the leaf"
    assert (found.state, found.reason) == (UNKNOWN, reason)
    assert dead_slots(root) == []
    assert not kill(pid, workspace_dir=root)
    assert prune_dead(str(root)) == []


@pytest.mark.parametrize("kind", RECORDS)
def test_a_leaf_json_that_is_not_sound_proves_nothing(tmp_path: Path, kind: str) -> None:
    with stranger() as one:
        slot = make_slot(tmp_path, "a", one.pid)
        put(slot, RECORDS[kind](identity_of(one.pid)))
        assert read_record(str(slot)) is None
        assert_proves_nothing(tmp_path, one.pid)


@pytest.mark.parametrize(
    "kind", ["link", "fifo", "directory", "group may write", "others may write"]
)
def test_a_leaf_json_that_somebody_else_could_have_written_proves_nothing(
    tmp_path: Path, kind: str
) -> None:
    with stranger() as one:
        slot = make_slot(tmp_path, "a", one.pid)
        path = slot / "leaf.json"
        if kind == "link":
            other = tmp_path / "elsewhere.json"
            other.write_bytes(record(identity_of(one.pid)))
            other.chmod(0o600)
            path.symlink_to(other)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            path.write_bytes(record(identity_of(one.pid)))
            path.chmod(0o660 if kind.startswith("group") else 0o606)
        assert_proves_nothing(tmp_path, one.pid)


@as_root
def test_a_leaf_json_of_another_user_proves_nothing(tmp_path: Path) -> None:
    with stranger() as one:
        slot = make_slot(tmp_path, "a", one.pid)
        put(slot, record(identity_of(one.pid)))
        os.chown(slot / "leaf.json", 65534, 65534)
        assert_proves_nothing(tmp_path, one.pid)


@pytest.mark.parametrize("change", [{"inode": 1}, {"start": 1, "inode": 0}])
def test_a_record_of_who_had_the_pid_before_is_of_a_dead_leaf_and_no_proof(
    tmp_path: Path, change: dict[str, int]
) -> None:
    with stranger() as one:
        if "start" not in change and identity_of(one.pid).inode == 0:
            pytest.skip("this kernel's pidfds share one inode")
        slot = make_slot(tmp_path, "a", one.pid)
        put(slot, record(identity_of(one.pid), **change))
        assert look(workspace_of(tmp_path), "a").state == DEAD
        assert not kill(one.pid, workspace_dir=tmp_path)


def test_a_record_of_another_boot_is_no_proof(tmp_path: Path) -> None:
    with stranger() as one:
        slot = make_slot(tmp_path, "a", one.pid)
        put(slot, record(identity_of(one.pid), boot="another"))
        assert look(workspace_of(tmp_path), "a").state == DEAD
        assert not kill(one.pid, workspace_dir=tmp_path)


def test_a_record_of_a_zombie_is_of_a_dead_leaf(tmp_path: Path) -> None:
    slot = make_slot(tmp_path)
    with process() as running:
        sign(slot, running.pid)
        running.kill()
        eventually(lambda: dead_slots(tmp_path) == ["a"])
        assert kill(running.pid, workspace_dir=tmp_path)


def test_one_bad_record_hides_no_other(tmp_path: Path) -> None:
    for name, content in (("a", b"[" * 8000), ("b", b"")):
        put(make_slot(tmp_path, name), content)
    (make_slot(tmp_path, "c") / "leaf.json").mkdir()
    slot = make_slot(tmp_path, "d")
    with process() as running:
        sign(slot, running.pid)
        assert look(workspace_of(tmp_path), "d").state == LIVE
        assert kill(running.pid, workspace_dir=tmp_path)
