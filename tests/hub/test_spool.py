"""The spool: what is too long for a message arrives whole or not at all, and does not stay."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foundation.errors import Refused, Unavailable
from foundation.workspace import Workspace
from hub import commits, spool
from hub.commits import Conflict, Conflicted, Landed
from tests.hub.committing import propose
from tests.slotgc.leaves import leaf, make_slot

if TYPE_CHECKING:
    from hub.commits import Parcel, Proposal

MANY = propose({f"directory/{n}/file": b"%d" % n for n in range(8000)})
SHORT = propose({"f": b"1"})
LANDED = Landed(
    checkin="1" * 64,
    parent="2" * 64,
    time="2026-01-01T00:00:00.000",
    slot="a",
    message="m",
    merged=tuple((b"directory/%d" % n, "file", "3" * 64) for n in range(12_000)),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def posted(directory: Path, proposal: Proposal = MANY) -> Parcel:
    message, name = spool.post(str(directory), proposal)
    parcel = commits.request_parcel(message)
    assert parcel is not None
    assert parcel.name == name
    return parcel


def test_a_commit_of_many_paths_is_a_short_message_and_a_file_of_ours(directory: Path) -> None:
    message, name = spool.post(str(directory), MANY)
    assert len(message) < 500
    parcel = directory / name
    assert [parcel] == list(directory.iterdir())
    assert stat.S_IMODE(parcel.stat().st_mode) == 0o600
    assert hashlib.sha3_256(parcel.read_bytes()).hexdigest() == name
    asked = commits.request_parcel(message)
    assert asked is not None
    assert (asked.id, asked.slot, asked.epoch) == (MANY.id, MANY.slot, MANY.epoch)
    assert spool.opened(str(directory), asked) == MANY
    assert spool.post(str(directory), MANY) == (message, name)
    spool.discard(str(directory), name)
    assert list(directory.iterdir()) == []


def test_a_commit_that_fits_into_a_message_touches_no_spool(directory: Path) -> None:
    message, name = spool.post(str(directory), SHORT)
    assert name == ""
    assert commits.request_parcel(message) is None
    assert commits.decode(message) == SHORT
    assert not directory.exists()


def test_more_changes_than_a_parcel_holds_are_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PARCEL_BYTES", commits.MESSAGE_BYTES)
    with pytest.raises(Refused, match="8000 changes are too many") as refused:
        spool.post(str(directory), MANY)
    assert refused.value.reason == "too-many-changes"
    assert not directory.exists()


def _removed(path: Path) -> None:
    path.unlink()


def _linked(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _cut_short(path: Path) -> None:
    os.truncate(path, 1000)


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"[")


@pytest.mark.parametrize(
    "spoil", [_removed, _linked, _a_directory, _a_pipe, _cut_short, _longer, _damaged]
)
def test_what_is_not_the_very_file_that_the_message_names_is_not_read(
    directory: Path, spoil: object
) -> None:
    parcel = posted(directory)
    assert callable(spoil)
    spoil(directory / parcel.name)
    with pytest.raises(Unavailable) as missing:
        spool.opened(str(directory), parcel)
    assert missing.value.reason == "parcel-missing"


def test_a_spoiled_parcel_is_put_there_again(directory: Path) -> None:
    parcel = posted(directory)
    _damaged(directory / parcel.name)
    with pytest.raises(Unavailable):
        spool.opened(str(directory), parcel)
    assert spool.opened(str(directory), posted(directory)) == MANY


def test_another_commit_than_the_message_says_is_refused(directory: Path) -> None:
    parcel = posted(directory)
    with pytest.raises(Refused, match="another than"):
        spool.opened(str(directory), parcel.replace(slot="b"))


@pytest.mark.parametrize(
    "parcel",
    ['["../../../etc/passwd",100]', '["%s",0]' % ("a" * 64), '["%s",99999999999]' % ("a" * 64),
     '["%s"]' % ("a" * 64), '"%s"' % ("a" * 64)],
)  # fmt: skip
def test_a_message_that_names_no_sound_parcel_is_not_understood(parcel: str) -> None:
    rest = f',"id":"{"0" * 32}","slot":"a","epoch":1}}'
    with pytest.raises(ValueError, match="parcel"):
        commits.request_parcel(f'{{"v":1,"parcel":{parcel}{rest}'.encode())
    with pytest.raises(ValueError, match="parcel"):
        commits.answer_parcel(f'{{"v":1,"parcel":{parcel}}}'.encode())


def test_a_long_answer_is_a_parcel_that_is_gone_once_it_is_read(directory: Path) -> None:
    message = spool.post_answer(str(directory), LANDED)
    assert len(message) < 500
    assert len(list(directory.iterdir())) == 1
    assert spool.answered(str(directory), message) == LANDED
    assert list(directory.iterdir()) == []
    with pytest.raises(Unavailable):  # then trunk is asked again
        spool.answered(str(directory), message)


def test_of_very_many_conflicts_as_many_are_told_as_fit_and_the_rest_is_counted(
    directory: Path,
) -> None:
    conflicts = tuple(
        Conflict(path=b"directory/%d" % n, reason="both changed it", base_hash="1" * 64,
                 mine_hash="2" * 64, theirs_hash="3" * 64, theirs_checkin="4" * 64, theirs_slot="b")
        for n in range(20_000)
    )  # fmt: skip
    message = spool.post_answer(str(directory), conflicts)
    assert len(message) <= commits.MESSAGE_BYTES
    with pytest.raises(Conflicted) as refused:
        spool.answered(str(directory), message)
    assert len(refused.value.conflicts) + refused.value.left_out == 20_000
    assert len(refused.value.conflicts) > 500


# --- sweeping ------------------------------------------------------------------------------


NOW_NS = time.time_ns()
HOUR_NS = 3600 * 10**9


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(str(tmp_path))
    os.makedirs(made.spool)
    return made


def lay(workspace: Workspace, name: str, age_ns: int) -> None:
    path = Path(workspace.spool, name)
    path.write_bytes(b"x")
    os.utime(path, ns=(NOW_NS - age_ns,) * 2)


def test_without_a_living_leaf_only_what_is_young_stays(workspace: Workspace) -> None:
    lay(workspace, "young", spool.YOUNG_NS // 2)
    lay(workspace, "young.1.2.tmp", spool.YOUNG_NS // 2)
    lay(workspace, "left", spool.YOUNG_NS + 10**9)
    lay(workspace, "left.1.2.tmp", spool.YOUNG_NS + 10**9)
    spool.sweep(workspace, NOW_NS)
    assert sorted(os.listdir(workspace.spool)) == ["young", "young.1.2.tmp"]


def test_what_a_living_leaf_may_ask_for_stays_for_a_day(workspace: Workspace) -> None:
    make_slot(Path(workspace.root), "auth")
    with leaf(Path(workspace.root), "auth"):
        born_ns = NOW_NS - 2 * HOUR_NS
        os.utime(f"{workspace.swarm}/auth/leaf.pid", ns=(born_ns, born_ns))
        lay(workspace, "before", 3 * HOUR_NS)
        lay(workspace, "since", HOUR_NS)
        lay(workspace, "since.1.2.tmp", HOUR_NS)
        spool.sweep(workspace, NOW_NS)
        assert os.listdir(workspace.spool) == ["since"]
        spool.sweep(workspace, NOW_NS + spool.SPOOLED_NS)
    assert os.listdir(workspace.spool) == []
