"""``bones swarm rescue``, as a person and as a program meet it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from slotgc.pruning import prune
from tests.slotgc.worktrees import CHECKIN, Node, Tree, make_slot, make_trunk, plant, tree_of
from tests.support import CODE, data_of

BONES = CODE / "bin/bones"
BASE: Tree = {b"a": Node(b"one\n"), b"b": Node(b"two\n")}
EDITED: Tree = {b"a": Node(b"edited\n"), b"n\nl\xff": Node(b"", 0o755)}


def bones(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BONES, "swarm", "rescue", *words], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture
def name(repo: Path) -> str:
    """Return the name of a rescue in the repository."""
    make_trunk(repo)
    plant(make_slot(repo, "auth", BASE), EDITED)
    return prune(str(repo)).rescued["auth"]


@pytest.mark.parametrize("verb", ["ls", "restore"])
def test_every_verb_has_a_screen_of_help_with_an_example(repo: Path, verb: str) -> None:
    text = bones(repo, verb, "--help").stdout
    assert "Example:" in text
    assert "--json" in text
    assert "--root" in text
    assert len(text.splitlines()) <= 40


def test_ls_lists_in_words_and_in_json(repo: Path, name: str) -> None:
    done = bones(repo, "ls")
    assert done.returncode == 0
    assert done.stdout.split("  ")[0] == name
    assert done.stdout.endswith("1 changed, 1 added, 1 deleted  base cccccccccc\n")
    (repo / ".bones/rescue/junk").touch()
    assert "junk  damaged: it is not a directory" in bones(repo, "ls").stdout
    data = data_of(bones(repo, "ls", "--json").stdout)
    assert data["root"] == str(repo)
    found = {one["name"]: one for one in data["rescues"]}
    assert found["junk"]["state"] == "damaged"
    one = found[name]
    assert (one["slot"], one["state"], one["checkin"]) == ("auth", "done", CHECKIN)
    assert (one["added"], one["changed"], one["deleted"]) == (1, 1, 1)


def test_what_ls_says_of_deleting_a_rescue_deletes_it(repo: Path, name: str) -> None:
    (command,) = re.findall(r"`(rm [^`]*)`", bones(repo, "ls").stderr)
    restored = bones(repo, "restore", name).stderr
    assert f"`{command.replace('NAME', name)}`" in restored
    subprocess.run(command.replace("NAME", name), shell=True, cwd="/", check=True)
    assert "no rescues" in bones(repo, "ls").stderr


def test_ls_says_why_where_that_is_not_its_files(repo: Path, name: str) -> None:
    record = repo / ".bones/rescue" / name / "rescue.json"
    account = json.loads(record.read_text())
    record.write_text(json.dumps({**account, "reason": "its git has commits"}))
    assert "  base cccccccccc  its git has commits\n" in bones(repo, "ls").stdout


def test_without_rescues_ls_says_so_and_prints_no_data(repo: Path) -> None:
    done = bones(repo, "ls")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no rescues" in done.stderr


def test_no_name_or_record_steers_the_terminal(repo: Path, name: str) -> None:
    place = repo / ".bones/rescue"
    account = json.loads((place / name / "rescue.json").read_text())
    account["apart"] = ["\x1b]0;apart\x07"]
    for field in ("made_at", "checkin"):
        account[field] = "\x1b[2J"
    (place / name / "rescue.json").write_text(json.dumps(account))
    (place / "x\x1b[2J").mkdir()
    listed = bones(repo, "ls").stdout
    assert "\\x1b[2J" in listed
    assert "\x1b" not in listed + bones(repo, "restore", name).stderr


def test_in_a_deleted_directory_restore_says_so(repo: Path, name: str) -> None:
    deleted = repo / "deleted"
    deleted.mkdir()
    restoring: list[str | Path] = [BONES, "swarm", "rescue", "restore", name]
    done = subprocess.run(
        ["sh", "-c", f'rmdir ../deleted; exec "$@" --root {repo}', "-", *restoring],
        cwd=deleted,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr


def test_restore_makes_a_new_directory_here(repo: Path, name: str) -> None:
    done = bones(repo / "src", "restore", name)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert tree_of(repo / "src" / name) == EDITED
    assert done.stderr.startswith(f"bones: 2 files restored to {repo}/src/{name}\n")
    assert "bones: deleted: b" in done.stderr
    again = bones(repo / "src", "restore", name)
    assert f"0 files restored to {repo}/src/{name}, 2 as rescued already\n" in again.stderr


def test_a_place_that_is_no_directory_is_named_with_the_way_out(repo: Path, name: str) -> None:
    (repo / "file").write_text("mine")
    for to, words in (
        ("", "'' names no directory"),
        ("file", f"{repo}/file is not a directory"),
        ("missing/new", f"{repo}/missing is not a directory: make it first"),
    ):
        done = bones(repo, "restore", name, "--to", to)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
    assert (repo / "file").read_text() == "mine"


def test_restore_patches_a_tree_and_says_in_json_what_it_did(repo: Path, name: str) -> None:
    plant(repo / "copy", BASE)
    done = bones(repo, "restore", name, "--to", "copy", "--json")
    assert tree_of(repo / "copy") == EDITED
    data = data_of(done.stdout)
    assert data["written"] == ["a", {"b64": "bgps/w=="}]
    assert data["deleted"] == ["b"]
    assert data["to"] == str(repo / "copy")
    assert os.path.isdir(data["path"])  # the rescue stays


def test_a_conflict_is_an_error_that_names_the_paths(repo: Path, name: str) -> None:
    plant(repo / "copy", {**BASE, b"a": Node(b"theirs")})
    done = bones(repo, "restore", name, "--to", "copy", "--json")
    told = json.loads(done.stdout)
    assert told["schema"] == {"verb": "swarm.rescue.restore", "version": "v1"}
    assert told["error"]["reason"] == "conflict"
    assert told["error"]["exit_code"] == done.returncode == 1
    assert " at a;" in told["error"]["message"]
    assert tree_of(repo / "copy") == {**BASE, b"a": Node(b"theirs")}
    done = bones(repo, "restore", "nope")
    assert done.returncode == 1
    assert "bones swarm rescue ls" in done.stderr


@pytest.mark.parametrize(
    "words", [["bogus", "--json"], ["restore", "--json"], ["ls", "x", "--json"]]
)
def test_a_wrong_command_line_is_an_error_like_any_other(repo: Path, words: list[str]) -> None:
    done = bones(repo, *words)
    told = json.loads(done.stdout)
    assert told["schema"]["verb"] == f"swarm.rescue.{words[0]}"
    assert told["error"]["exit_code"] == done.returncode == 2


def test_a_damaged_record_is_an_error_that_says_where_the_files_are(repo: Path, name: str) -> None:
    place = repo / ".bones/rescue" / name
    (place / "rescue.json").write_text("junk")
    done = bones(repo, "restore", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"what was rescued is in {place}/wt, to copy by hand" in done.stderr
    assert f"{name}  damaged: " in bones(repo, "ls").stdout
