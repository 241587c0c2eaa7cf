"""Joining: who becomes owner, what a follower learns, how it is handed over."""

from __future__ import annotations

import _thread
import math
import os
import stat
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foundation import filesystem
from foundation.errors import Corrupt, Refused, Unavailable
from foundation.process import Identity
from owner import ENDPOINT_META_KEY, FOLLOWER, OWNER, join, joining, tenure, workers
from owner import inspect as inspect_lease
from owner import lease as rules
from owner.holder import Holder
from owner.tenure import Tenure
from tests.owner.files import (
    change,
    descriptors,
    dismiss_idle,
    guard_held,
    guard_of,
    store,
    stored,
    syncs_told,
)
from tests.support import CODE, eventually, run_python

if TYPE_CHECKING:
    from collections.abc import Callable

TTL_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot.owner"


def test_the_first_becomes_owner_and_the_second_a_follower_that_knows_it(path: Path) -> None:
    with join(path, ttl_s=TTL_S, endpoint="nats://127.0.0.1:4222", meta={"slot": "auth"}) as a:
        b = join(path, ttl_s=TTL_S)
        assert (a.role, a.is_owner) == (OWNER, True)
        assert (b.role, b.is_owner) == (FOLLOWER, False)
        assert a.epoch == b.epoch == 1
        assert a.instance_id == b.instance_id
        assert a.endpoint == b.endpoint == "nats://127.0.0.1:4222"
        assert b.holder == a.holder == inspect_lease(path)
        assert b.holder.pid == os.getpid()
        assert b.holder.meta == {"slot": "auth", ENDPOINT_META_KEY: "nats://127.0.0.1:4222"}
        assert b.holder.ttl_s == TTL_S
        assert b.holder.acquired_at.endswith("Z")
        assert "owner" in repr(a)
        assert b.release()  # nothing to release
        assert a.is_owner
    assert inspect_lease(path) is None


def test_a_release_hands_over_at_once_and_the_epoch_goes_on(path: Path) -> None:
    instances = set()
    for turn in range(1, 6):
        a = join(path, ttl_s=3600)
        assert (a.role, a.epoch) == (OWNER, turn)
        instances.add(a.instance_id)
        assert a.release()
        assert a.release(), "releasing twice is no error"
        assert not a.is_owner
        assert not a.lost.is_set()
        assert a.lost_reason == ""
    assert len(instances) == 5


def test_a_release_after_a_takeover_leaves_the_other_alone(path: Path) -> None:
    a = join(path, ttl_s=TTL_S)
    a.cancel()
    change(path, deadline_ns=1)  # as if it had hung till then
    with join(path, ttl_s=TTL_S) as b:
        assert b.epoch == 2
        assert a.release()
        assert b.is_owner
        with b.fenced():
            pass
        assert inspect_lease(path) == b.holder


def test_a_release_that_cannot_be_recorded_says_so_and_can_be_repeated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenure, "WAIT_S", 0.05)
    a = join(path, ttl_s=TTL_S)
    with guard_held(path):
        assert a.release() is False
        assert not a.is_owner
        assert join(path, ttl_s=TTL_S).role == FOLLOWER, "it is free at its deadline"
    assert a.release() is True
    with join(path, ttl_s=TTL_S) as b:
        assert (b.role, b.epoch) == (OWNER, 2)


@pytest.mark.parametrize("what", ["delete", "restore"])
def test_whatever_becomes_of_the_record_the_epoch_goes_on(path: Path, what: str) -> None:
    join(path, ttl_s=TTL_S).release()
    early = stored(path)
    for _turn in range(3):
        join(path, ttl_s=TTL_S).release()
    if what == "delete":
        path.unlink()
    else:
        store(path, early, copy=False)
    with join(path, ttl_s=TTL_S) as a:
        assert (a.role, a.epoch) == (OWNER, 5)


def test_a_record_deleted_under_its_owner_lets_nobody_in_and_comes_back(path: Path) -> None:
    with join(path, ttl_s=1.0, endpoint="here") as a:
        path.unlink()
        b = join(path, ttl_s=TTL_S)
        assert (b.role, b.epoch, b.instance_id) == (FOLLOWER, 1, a.instance_id)
        assert inspect_lease(path) is not None
        eventually(path.exists)
        assert inspect_lease(path) == a.holder
        assert a.is_owner


def test_a_guard_deleted_under_its_owner_lets_nobody_in_and_comes_back(path: Path) -> None:
    with join(path, ttl_s=1.0) as a:
        guard_of(path).unlink()
        assert join(path, ttl_s=TTL_S).role == FOLLOWER
        eventually(lambda: guard_of(path).exists() and guard_of(path).stat().st_size > 0)
        assert a.is_owner
        with a.fenced() as epoch:
            assert epoch == 1
    guard_of(path).unlink()
    with join(path, ttl_s=TTL_S) as b:
        assert (b.role, b.epoch) == (OWNER, 2), "the record knows the epoch, too"


def test_an_owner_whose_files_are_both_gone_is_owner_no_more(path: Path) -> None:
    a = join(path, ttl_s=1.0)
    path.unlink()
    guard_of(path).unlink()
    assert a.lost.wait(10)
    assert "removed" in a.lost_reason
    assert a.release()


def test_the_files_are_private_and_nothing_else_is_left(path: Path) -> None:
    before = descriptors()
    old = os.umask(0)
    try:
        with join(path, ttl_s=TTL_S, renew_interval_s=0.05) as a:
            first = stored(path).deadline_ns
            eventually(lambda: stored(path).deadline_ns > first)
            with a.fenced():
                pass
    finally:
        os.umask(old)
    assert sorted(os.listdir(path.parent)) == ["slot.owner", "slot.owner.lock"]
    for file in (path, guard_of(path)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    eventually(lambda: descriptors() <= before)


def test_a_refused_join_leaves_no_descriptor(path: Path) -> None:
    with join(path, ttl_s=TTL_S):
        before = descriptors()
        join(path, ttl_s=TTL_S)
        path.unlink()  # so that the guard decides
        join(path, ttl_s=TTL_S)
        path.write_text("junk")
        with pytest.raises(Corrupt):
            join(path, ttl_s=TTL_S)
        assert descriptors() <= before


@pytest.mark.parametrize("left", [0, 1])
def test_without_a_thread_to_renew_nobody_becomes_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    started: list[object] = []

    def start(call: Callable[[], object], arguments: tuple[()]) -> None:
        if len(started) == left:
            raise RuntimeError("can't start new thread")
        started.append(_thread.start_new_thread(call, arguments))

    monkeypatch.setattr(workers, "_idle", [])
    before = descriptors()
    with monkeypatch.context() as few_left:
        few_left.setattr(workers, "start_new_thread", start)
        with pytest.raises(Unavailable) as error:
            join(path, ttl_s=TTL_S)
    assert error.value.reason == "no-threads"
    assert inspect_lease(path) is None
    assert not path.exists(), "it was refused before anything was written"
    assert len(workers._idle) == left, "it sleeps until the next join"
    assert descriptors() <= before
    join(path, ttl_s=TTL_S).release()
    dismiss_idle()
    eventually(lambda: descriptors() <= before)


@pytest.mark.parametrize("which", [1, 2])
def test_ctrl_c_in_a_join_leaves_no_lease_no_descriptor_and_no_trouble(
    path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    monkeypatch.setattr(workers, "_idle", [])
    before = descriptors()
    started: list[object] = []
    troubles: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", troubles.append)

    def interrupted(call: Callable[[], object], arguments: tuple[()]) -> None:
        started.append(_thread.start_new_thread(call, arguments))
        if len(started) == which:
            raise KeyboardInterrupt

    with monkeypatch.context() as ctrl_c:
        ctrl_c.setattr(workers, "start_new_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            join(path, ttl_s=3600)
    assert inspect_lease(path) is None
    dismiss_idle()
    eventually(lambda: descriptors() <= before)
    assert not troubles


@pytest.mark.parametrize("after", ["hired", "acquired", "begun"])
def test_ctrl_c_at_a_step_of_a_join_leaves_no_lease_and_no_thread_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    steps = {
        "hired": (joining, "_acquire"),
        "acquired": (Tenure, "run"),
        "begun": (Holder, "of"),
    }

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_idle", [])
    before = descriptors()
    with monkeypatch.context() as ctrl_c:
        ctrl_c.setattr(*steps[after], interrupted)
        with pytest.raises(KeyboardInterrupt):
            join(path, ttl_s=3600)
    assert inspect_lease(path) is None
    assert len(workers._idle) == 2
    assert descriptors() <= before
    dismiss_idle()


@pytest.mark.parametrize(
    "arguments",
    [
        *({"ttl_s": ttl_s} for ttl_s in (0, -1, 0.05, 8 * 86400, math.nan, math.inf)),
        *(
            {"ttl_s": 10, "renew_interval_s": interval_s}
            for interval_s in (0, -1, 5.1, 10, math.nan, math.inf)
        ),
        {"ttl_s": 10, "meta": {"a": 1}},
        {"ttl_s": 10, "meta": {1: "a"}},
        {"ttl_s": 10, "meta": {"a": "b" * 8192}},
        {"ttl_s": 10, "endpoint": "\N{SNOWMAN}" * 1400},
        {"ttl_s": 10, "endpoint": "x", "meta": {ENDPOINT_META_KEY: "y"}},
    ],
)
def test_an_argument_out_of_bounds_is_named_and_changes_nothing(
    path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"ttl_s|renew_interval_s|meta|endpoint"):
        join(path, **arguments)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("name", ["", "a\0b", "/tmp/"])
def test_a_path_that_names_no_file_is_refused(name: str) -> None:
    for call in (lambda: join(name, ttl_s=TTL_S), lambda: inspect_lease(name)):
        with pytest.raises(ValueError, match="path"):
            call()


@pytest.mark.parametrize("arguments", [{"ttl_s": "3"}, {"ttl_s": 3, "renew_interval_s": "1"}])
def test_a_time_that_is_no_number_is_named(path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"ttl_s is '3'|renew_interval_s is '1'"):
        join(path, **arguments)
    assert not list(path.parent.iterdir())


def test_the_package_shows_its_names_before_they_are_asked_for() -> None:
    assert {"join", "inspect", "watch", "Owner"} <= set(dir(__import__("owner")))


def test_a_path_counts_from_where_one_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with join(path.name, ttl_s=TTL_S, renew_interval_s=0.05) as a:
        os.chdir("/")
        first = stored(path).deadline_ns
        eventually(lambda: stored(path).deadline_ns > first)
        assert a.path == str(path)


def test_a_directory_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(Refused, match="nowhere") as error:
        join(path.parent / "nowhere" / "slot.owner", ttl_s=TTL_S)
    assert error.value.reason == "no-directory"


def test_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "network_kind_of", lambda _path: "nfs4")
    with pytest.raises(Refused, match="nfs4") as error:
        join(path, ttl_s=TTL_S)
    assert error.value.reason == "network-filesystem"
    assert not list(path.parent.iterdir())


def test_the_epoch_is_on_disk_before_the_lease_is_seen(path: Path) -> None:
    synced: list[tuple[str, bool]] = []

    def told(file: str) -> None:
        assert rules.decode(guard_of(path).read_bytes()).epoch == 1, "written before"
        synced.append((file, path.exists()))

    with syncs_told(told), join(path, ttl_s=TTL_S, renew_interval_s=0.05) as a:
        assert synced == [(str(guard_of(path)), False), (str(path.parent), False)]
        first = stored(path).deadline_ns
        eventually(lambda: stored(path).deadline_ns > first)
        assert len(synced) == 2, "a renewal costs no sync"
        assert a.is_owner


def test_a_slow_disk_does_not_eat_into_the_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda _fd: gate.wait(0.5))
    with join(path, ttl_s=0.6) as a:
        assert a.is_owner


def test_the_front_imports_nothing_before_it_is_asked() -> None:
    done = run_python(
        "import sys; before = set(sys.modules); import owner\n"
        "assert set(sys.modules) - before <= {'owner', '__future__'}, set(sys.modules) - before\n"
        "owner.inspect\n"
        "slow = {'threading', 'ctypes', 're', 'json', 'asyncio', 'typing', 'enum', 'pathlib'}\n"
        "assert not slow & (set(sys.modules) - before), slow & set(sys.modules)\n"
        "owner.join; owner.Owner; owner.Holder; owner.watch\n"
        "print(owner.OWNER, owner.FOLLOWER, owner.ENDPOINT_META_KEY)\n"
        "try: owner.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    assert done.stdout == "owner follower endpoint\nmodule 'owner' has no attribute 'nothing'\n"


# --- records that cannot be read ------------------------------------------------------------


def junk(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"hello\n",
                "number": b"12",
                "binary": bytes(range(256)),
                "long": b" " * 9000,
                "deep": b"[" * 8000,
                "future": b'{"schema":2}',
                "nul": b"\0" * 400,
            }[kind]
        )


KINDS = ["link", "loop", "fifo", "directory", "empty", "text", "number", "binary", "long", "deep"]


@pytest.mark.parametrize("kind", [*KINDS, "future", "nul"])
def test_a_record_that_cannot_be_read_makes_nobody_owner(path: Path, kind: str) -> None:
    for had_owner in (False, True):
        if had_owner:
            join(path, ttl_s=TTL_S).release()
        junk(path, kind)
        for call in (lambda: join(path, ttl_s=TTL_S), lambda: inspect_lease(path)):
            with pytest.raises(Corrupt, match="stop whoever uses it, then remove") as error:
                call()
            assert str(path) in str(error.value)
            assert "if it was one" in str(error.value).lower()  # it may be a mistyped path
            assert error.value.reason == "lease-corrupt"
        if kind == "directory":
            path.rmdir()
        else:
            path.unlink()  # as the error said
    with join(path, ttl_s=TTL_S) as a:
        assert (a.role, a.epoch) == (OWNER, 2)


@pytest.mark.parametrize("kind", ["empty", "text", "link"])
def test_a_record_garbled_under_its_owner_is_mended_by_him(path: Path, kind: str) -> None:
    with join(path, ttl_s=1.0) as a:
        junk(path, kind)
        with pytest.raises(Corrupt):
            join(path, ttl_s=TTL_S)
        eventually(lambda: path.is_file() and not path.is_symlink() and b"schema" in read(path))
        assert a.is_owner
        assert join(path, ttl_s=TTL_S).holder == a.holder


def read(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["empty", "nul", "text"])
def test_a_record_torn_by_a_power_cut_is_nobodys(path: Path, kind: str) -> None:
    a = join(path, ttl_s=TTL_S)
    boot = a.holder.identity.replace(boot="00000000-0000-4000-8000-000000000000")
    a.release()
    lease = change(path, identity=boot, deadline_ns=2**62, epoch=7)
    assert inspect_lease(path) is None
    junk(path, kind)
    assert inspect_lease(path) is None
    with join(path, ttl_s=TTL_S) as b:
        assert (b.role, b.epoch) == (OWNER, lease.epoch + 1)


@pytest.mark.parametrize("content", [b"hello", b'{"epoch":3}', b"x" * 9000, b"{}" * 300])
def test_a_guard_that_is_none_makes_nobody_owner(path: Path, content: bytes) -> None:
    join(path, ttl_s=TTL_S).release()
    guard_of(path).write_bytes(content)
    with pytest.raises(Corrupt, match="then remove this file") as error:
        join(path, ttl_s=TTL_S)
    assert error.value.reason == "guard-corrupt"
    guard_of(path).unlink()
    with join(path, ttl_s=TTL_S) as a:
        assert a.epoch == 2


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_is_no_file_is_no_guard(path: Path, kind: str) -> None:
    before = descriptors()
    junk(guard_of(path), kind)
    with pytest.raises(Corrupt, match="no regular file"):
        join(path, ttl_s=TTL_S)
    assert descriptors() <= before


def test_a_link_in_the_place_of_the_next_record_is_not_followed(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    Path(f"{path}.tmp").symlink_to(precious)
    with join(path, ttl_s=TTL_S):
        assert stored(path).epoch == 1
    assert precious.read_text() == "keep me"


def test_what_cannot_be_cleared_away_is_named_and_leaves_the_lease_free(path: Path) -> None:
    Path(f"{path}.tmp").mkdir()
    for _turn in range(2):
        with pytest.raises(Unavailable, match=r"slot\.owner\.tmp"):
            join(path, ttl_s=3600)
    Path(f"{path}.tmp").rmdir()
    with join(path, ttl_s=TTL_S) as a:
        assert (a.role, a.epoch) == (OWNER, 3)


def test_a_lease_longer_than_any_renewal_makes_it_is_shown_to_a_person(path: Path) -> None:
    with join(path, ttl_s=TTL_S) as a:
        change(path, deadline_ns=2**62)
        for call in (lambda: join(path, ttl_s=TTL_S), lambda: inspect_lease(path)):
            with pytest.raises(Corrupt, match=f"pid {os.getpid()}"):
                call()
        assert a.is_owner


# --- whose process lives, as far as one can know ----------------------------------------------


def taken_over(path: Path, **changes: int | str) -> bool:
    """Tell whether a lease whose identity is *changed* is free; its holder does not renew."""
    a = join(path, ttl_s=3600)
    identity = a.holder.identity
    a.release()
    change(path, deadline_ns=held_until(path), identity=identity.replace(**changes))
    b = join(path, ttl_s=3600)
    b.release()
    return b.role == OWNER


def held_until(path: Path) -> int:
    with join(path, ttl_s=3600):
        return stored(path).deadline_ns


def test_only_a_proven_death_frees_a_lease(path: Path) -> None:
    assert taken_over(path, pid=4194303)  # nobody
    me = Identity.of(os.getpid())
    assert me is not None
    if me.inode:
        assert taken_over(path, inode=me.inode + 1)  # another process has the pid now
        assert not taken_over(path, start=1), "the inode decides: ticks differ between namespaces"


@pytest.mark.parametrize(
    "changes", [{}, {"namespace": 1}, {"namespace": 1, "pid": 4194303}, {"inode": 0}]
)
def test_a_doubt_counts_as_alive(path: Path, changes: dict[str, int]) -> None:
    assert not taken_over(path, **changes)


def test_a_lease_of_another_boot_is_free(path: Path) -> None:
    assert taken_over(path, boot="another")


def test_the_documents_example_runs(tmp_path: Path) -> None:
    import owner  # noqa: PLC0415

    assert owner.__doc__ is not None
    example = textwrap.dedent(owner.__doc__.partition("\n\n")[2].rpartition("\n\n")[0])
    (tmp_path / ".orchestrator/leases").mkdir(parents=True)
    run_python(
        f"import os; os.chdir({str(tmp_path)!r}); url = ''; write = lambda epoch: open('w', 'x')\n"
        + example,
        PYTHONPATH=str(CODE),
    )
    assert (tmp_path / "w").exists()
