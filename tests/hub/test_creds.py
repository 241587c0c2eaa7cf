"""The keys of the bus: private, made once, and whole whatever is killed when."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import nkeys
import pytest

from foundation.errors import Refused
from foundation.workspace import Workspace
from hub.creds import ensure_creds, intact, new_key, read_seed, seed_path
from hub.nats import ROLES, read_users
from hub.nkey import is_public_key
from tests.hub.bus_server import CODE, make_workspace

KILLED_AT = """
import os, sys
sys.path.insert(0, {code!r})
from foundation.workspace import Workspace
from hub.creds import ensure_creds
import nkeys
left = int(sys.argv[2])
def count(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.chmod", "os.listdir", "os.mkdir"):
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
sys.addaudithook(count)
ensure_creds(Workspace(sys.argv[1]))
os._exit(0)
"""


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(workspace.creds).iterdir()}


def assert_sound(workspace: Workspace) -> None:
    """The public keys are those of the seeds, and nobody else may read either."""
    public = read_users(workspace)
    for role in ROLES:
        pair = nkeys.from_seed(bytearray(read_seed(workspace, role).encode()))
        assert pair.public_key.decode() == public[role]
        assert stat.S_IMODE(os.stat(seed_path(workspace, role)).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(workspace.creds).st_mode) == 0o700
    assert len(set(public.values())) == len(ROLES)
    assert sorted(contents(workspace)) == sorted(
        ["nats-users.json", *(f"nats-{role}.nk" for role in ROLES)]
    )


def test_seeds_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    assert_sound(workspace)
    before = contents(workspace)
    ensure_creds(workspace)
    assert contents(workspace) == before


def test_two_workspaces_share_no_key(tmp_path: Path) -> None:
    first, second = (read_users(make_workspace(tmp_path / name)) for name in "ab")
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize("damage", [b"", b"SU", b"\0" * 58, b"\xff\xfe", b"x" * 5000, b"SUABC\n"])
def test_a_damaged_seed_is_made_anew_and_no_other(tmp_path: Path, damage: bytes) -> None:
    workspace = make_workspace(tmp_path)
    before = contents(workspace)
    Path(seed_path(workspace, "operator")).write_bytes(damage)
    ensure_creds(workspace)
    assert_sound(workspace)
    after = contents(workspace)
    assert after["nats-hub.nk"] == before["nats-hub.nk"]
    assert after["nats-sys.nk"] == before["nats-sys.nk"]


def test_every_torn_seed_is_made_anew(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    path = Path(seed_path(workspace, "hub"))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        ensure_creds(workspace)
        assert_sound(workspace)
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"hub":1}', b"\0\0\0", b'{"hub":{}}'])
def test_a_damaged_list_of_users_costs_no_seed(tmp_path: Path, damage: bytes) -> None:
    workspace = make_workspace(tmp_path)
    before = contents(workspace)
    Path(workspace.creds, "nats-users.json").write_bytes(damage)
    ensure_creds(workspace)
    assert contents(workspace) == before


def test_somebody_elses_seed_gets_its_own_public_key(tmp_path: Path) -> None:
    workspace, other = make_workspace(tmp_path / "a"), make_workspace(tmp_path / "b")
    seed = Path(seed_path(other, "hub")).read_bytes()
    Path(seed_path(workspace, "hub")).write_bytes(seed)
    ensure_creds(workspace)
    assert_sound(workspace)
    assert read_users(workspace)["hub"] == read_users(other)["hub"]


def test_a_seed_of_another_kind_is_not_used(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    account = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_ACCOUNT)
    Path(seed_path(workspace, "hub")).write_bytes(account)
    ensure_creds(workspace)
    assert_sound(workspace)


def test_an_open_seed_is_closed_to_others(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    os.chmod(seed_path(workspace, "hub"), 0o644)
    os.chmod(workspace.creds, 0o755)
    before = contents(workspace)
    ensure_creds(workspace)
    assert_sound(workspace)
    assert contents(workspace) == before


def test_a_link_is_replaced_and_what_it_names_is_not_touched(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"precious")
    os.unlink(seed_path(workspace, "hub"))
    os.symlink(elsewhere, seed_path(workspace, "hub"))
    ensure_creds(workspace)
    assert_sound(workspace)
    assert elsewhere.read_bytes() == b"precious"


def test_a_directory_in_the_place_of_a_seed_is_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    path = seed_path(workspace, "hub")
    os.unlink(path)
    os.mkdir(path)
    with pytest.raises(Refused, match="is a directory"):
        ensure_creds(workspace)


def test_a_missing_seed_says_how_to_get_one(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    os.unlink(seed_path(workspace, "operator"))
    with pytest.raises(Refused, match="hub restart") as refused:
        read_seed(workspace, "operator")
    assert refused.value.reason == "creds-missing"


@pytest.mark.parametrize("damage", [b"", b"\n", b"SU", b"\xff\xfe", b"x" * 5000, b"SUABC\n"])
def test_what_is_no_seed_is_named_and_never_used(tmp_path: Path, damage: bytes) -> None:
    workspace = make_workspace(tmp_path)
    Path(seed_path(workspace, "hub")).write_bytes(damage)
    with pytest.raises(Refused, match=r"nats-hub\.nk.*hub restart") as refused:
        read_seed(workspace, "hub")
    assert refused.value.reason == "creds-missing"


@pytest.mark.parametrize("name", ["nats-hub.nk", "nats-operator.nk", "nats-users.json"])
def test_a_file_that_is_not_as_it_was_made_is_seen(tmp_path: Path, name: str) -> None:
    workspace = make_workspace(tmp_path)
    assert intact(workspace)
    path = Path(workspace.creds, name)
    path.write_bytes(path.read_bytes()[:-10])
    assert not intact(workspace)
    path.unlink()
    assert not intact(workspace)
    ensure_creds(workspace)
    assert intact(workspace)


@pytest.mark.faults
@pytest.mark.slow
def test_killed_at_any_step_the_next_call_completes_it(tmp_path: Path) -> None:
    step, status = 0, -9
    while status == -9:
        root = tmp_path / str(step)
        (root / ".git").mkdir(parents=True)
        workspace = Workspace(str(root))
        workspace.make_state()
        status = subprocess.run(
            [sys.executable, "-c", KILLED_AT.format(code=str(CODE)), str(root), str(step)],
            check=False,
        ).returncode
        survivors = contents(workspace)
        ensure_creds(workspace)
        assert_sound(workspace)
        after = contents(workspace)
        kept = [name for name in survivors if name.endswith(".nk")]
        assert all(after[name] == survivors[name] for name in kept), f"step {step}"
        step += 1
    assert status == 0
    assert step > 10


# --- keys of slots -------------------------------------------------------------------------


def test_no_two_keys_are_alike_and_each_is_one() -> None:
    made = [new_key() for _ in range(50)]
    assert len({public for _, public in made}) == 50
    assert all(is_public_key(public) for _, public in made)
    assert all(seed.startswith("SU") for seed, _ in made)


def test_any_letter_changed_makes_a_key_none() -> None:
    key = new_key()[1]
    for at in range(56):
        other = "A" if key[at] != "A" else "B"
        assert not is_public_key(key[:at] + other + key[at + 1 :])
    for wrong in (None, 1, b"U", "", key.lower(), key + "A", key[:-1] + "=", "Ü" + key[1:]):
        assert not is_public_key(wrong)


def test_making_a_key_takes_no_time() -> None:
    new_key()
    began_s = time.perf_counter()
    for _ in range(50):
        new_key()
    assert (time.perf_counter() - began_s) / 50 < 0.005
