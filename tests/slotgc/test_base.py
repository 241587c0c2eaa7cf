"""base.json: what a worktree was; believed only where it is sound."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from foundation.errors import Corrupt
from slotgc import base
from slotgc.artifact import of_bytes
from tests.slotgc.worktrees import CHECKIN, Node, plant

if TYPE_CHECKING:
    from pathlib import Path

TREE = {
    b"a": Node(b"one\n"),
    b"bin/run": Node(b"#!/bin/sh\n", 0o755),
    b"link": Node(b"../else where", 0),
    b'odd/n\nl \xff\\"': Node(b""),
}


def indexed(top: Path) -> base.Base:
    plant(top / "wt", TREE)
    return base.index(f"{top}/wt", checkin=CHECKIN)


def test_an_index_knows_every_file_and_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    known = indexed(tmp_path)
    assert {path: row[:2] for path, row in known.files.items()} == {
        b"a": ("file", 4),
        b"bin/run": ("exec", 10),
        b"link": ("link", 13),
        b'odd/n\nl \xff\\"': ("file", 0),
    }
    known = known.replace(marked={b"odd \xff": ("<<<<<<< a", ">>>>>>> trunk 0123456789")})
    base.write(f"{tmp_path}/base.json", known)
    assert base.read(f"{tmp_path}/base.json") == known


def test_a_content_has_the_name_that_fossil_gives_it(tmp_path: Path) -> None:
    # Of `fossil sha1sum` and `fossil sha3sum`.
    assert of_bytes(b"one\n", "0" * 40) == "c7059bb19433cc3cabaa6236c83d56668a843dd2"
    assert of_bytes(b"one\n") == (
        "9241024260f87e2b901ed6972c48a17c4dc71e0939b0dd445f431f9cf406ca3a"
    )
    known = indexed(tmp_path)
    assert known.files[b"link"][2] == of_bytes(b"../else where")
    assert known.files[b"a"][2] == of_bytes(b"one\n")


def test_hashes_that_the_caller_knows_are_not_taken_again(tmp_path: Path) -> None:
    plant(tmp_path / "wt", TREE)
    known = base.index(f"{tmp_path}/wt", hashes={b"a": "f" * 40})
    assert known.files[b"a"][2] == "f" * 40
    assert known.files[b"bin/run"][2] == of_bytes(b"#!/bin/sh\n")


def test_the_bookkeeping_of_git_and_fossil_is_nobody_s_file(tmp_path: Path) -> None:
    own = (".fslckout", "_FOSSIL_", ".git/HEAD", ".fslckout-journal", "_FOSSIL_-wal")
    plant(tmp_path / "wt", {**TREE, **{name.encode(): Node(b"x") for name in own}})
    assert set(base.index(f"{tmp_path}/wt").files) == set(TREE)


def test_no_file_is_no_base(tmp_path: Path) -> None:
    assert base.read(f"{tmp_path}/base.json") is None


ROW = ["a", "file", 1, "0" * 40, 1, 2, 3]
SOUND: dict[str, Any] = {
    "schema": 1,
    "checkin": "",
    "indexed_ns": 5,
    "files": [ROW],
    "git": {"head": "", "refs": {}},
}


def row(**changes: Any) -> dict[str, Any]:
    names = ("path", "kind", "size", "hash", "mtime_ns", "ctime_ns", "inode")
    return {**SOUND, "files": [list({**dict(zip(names, ROW, strict=True)), **changes}.values())]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        1,
        "x",
        {},
        {**SOUND, "schema": 2},
        {**SOUND, "schema": None},
        {**SOUND, "checkin": None},
        {**SOUND, "checkin": "xyz"},
        {**SOUND, "checkin": "A" * 40},
        {**SOUND, "indexed_ns": -1},
        {**SOUND, "indexed_ns": 1.5},
        {**SOUND, "indexed_ns": True},
        {**SOUND, "files": {}},
        {**SOUND, "files": None},
        {**SOUND, "files": [None]},
        {**SOUND, "files": ["abcdefg"]},
        {**SOUND, "files": [ROW[:-1]]},
        {**SOUND, "files": [[*ROW, 1]]},
        {**SOUND, "files": [ROW, ROW]},
        {**SOUND, "git": None},
        {**SOUND, "git": {"head": ""}},
        {**SOUND, "git": {"head": 1, "refs": {}}},
        {**SOUND, "git": {"head": "", "refs": []}},
        {**SOUND, "git": {"head": "", "refs": {"refs/x": 1}}},
        {**SOUND, "marked": "a"},
        {**SOUND, "marked": [[]]},
        {**SOUND, "marked": [["a", 1]]},
        *(
            row(path=path)
            for path in (
                "",
                ".",
                "..",
                "/etc/passwd",
                "../x",
                "a/../../x",
                "a//b",
                "a/",
                "a/.",
                "a\0b",
                ".git/config",
                ".git",
                ".fslckout",
                "\ud800",
                None,
                1,
                ["a"],
                {"b64": "Li4veA=="},  # ../x
                {"b64": "!!"},
                {"b64": 1},
                {"b64": "eA==", "more": 1},
                {},
            )
        ),
        *(row(kind=kind) for kind in ("", "dir", None, 1, ["file"])),
        *(row(hash=name) for name in ("", "0" * 39, "0" * 63, "g" * 40, None, 0)),
        *(row(size=size) for size in (-1, 1.0, "1", None, True)),
        *(row(inode=inode) for inode in (-1, 1.5, None)),
    ],
)
def test_what_is_not_sound_is_no_base(tmp_path: Path, value: object) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(value))
    with pytest.raises(Corrupt, match=r"base\.json"):
        base.read(str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        json.dumps(SOUND).encode() + b"x",
        json.dumps(SOUND).encode()[:-10],
        b'{"schema":' + b"9" * 5000 + b"}",
        b'{"schema":1,"checkin":"","indexed_ns":NaN,"files":[],"git":{"head":"","refs":{}}}',
    ],
)
def test_what_is_no_json_is_no_base(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(content)
    with pytest.raises(Corrupt):
        base.read(str(path))


def test_one_that_is_too_long_or_no_file_is_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(SOUND))
    assert base.read(str(path)) is not None
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for other in ("link", "pipe", "."):
        with pytest.raises(Corrupt):
            base.read(f"{tmp_path}/{other}")
    monkeypatch.setattr(base, "LIMIT_BYTES", 10)
    with pytest.raises(Corrupt, match="longer"):
        base.read(str(path))


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    wrong = base.Base(checkin="no hash", indexed_ns=1, files={})
    with pytest.raises(ValueError, match="checkin"):
        base.write(f"{tmp_path}/base.json", wrong)
    assert not os.listdir(tmp_path)


def test_a_young_entry_proves_nothing(tmp_path: Path) -> None:
    known = indexed(tmp_path)
    status = os.lstat(tmp_path / "wt/a")
    entry = known.files[b"a"]
    assert not known.trusts(entry, status)
    older = known.replace(indexed_ns=status.st_ctime_ns + base.TICK_NS + 1)
    assert older.trusts(entry, status)
    for position in (1, 3, 4, 5):  # size, mtime, ctime, inode
        other = list(entry)
        other[position] = 0
        assert not older.trusts(tuple(other), status)  # type: ignore[arg-type]


def test_where_times_are_whole_seconds_an_entry_is_young_for_longer() -> None:
    second = 10**9
    known = base.Base(checkin="", indexed_ns=5 * second + second // 2, files={})

    def trusted(ctime_ns: int) -> bool:
        class Status:
            st_size, st_mtime_ns, st_ino, st_ctime_ns = 0, 1, 7, ctime_ns

        row = ("file", 0, "0" * 40, 1, ctime_ns, 7)
        return known.trusts(row, cast("os.stat_result", Status))

    assert trusted(5 * second + 1)
    assert not trusted(5 * second)
    assert trusted(2 * second)


# --- the log ---------------------------------------------------------------------------------

OLD_NS = 10**9 + 1
"""A change time long before anybody looked."""


def stamped(size: int, name: str, ctime_ns: int = OLD_NS) -> base.Row:
    return ("file", size, name * 64, OLD_NS, ctime_ns, 7)


def logged(top: Path, *steps: tuple[dict[bytes, base.Row], list[bytes]]) -> base.Base:
    """Write a base of a and b, and a line for each of *steps* (rows, removed); return the last."""
    known = base.Base(
        checkin="0" * 64,
        indexed_ns=2 * 10**9,
        files={b"a": stamped(1, "a"), b"b": stamped(2, "b")},
        git_head="ref: refs/heads/trunk",
        git_refs={"refs/heads/trunk": "0"},
        git_since_ns=5,
        log="11",
    )
    base.write(f"{top}/base.json", known)
    with (top / "base.log").open("wb") as log:
        for number, (rows, removed) in enumerate(steps, 1):
            files = {path: row for path, row in known.files.items() if path not in removed} | rows
            known = known.replace(
                checkin=str(number) * 64,
                indexed_ns=known.indexed_ns + 10**9,
                files=files,
                git_refs={"refs/heads/trunk": str(number)},
            )
            log.write(base.log_line(known, rows, removed, known.git_refs))
    return known


STEPS: list[tuple[dict[bytes, base.Row], list[bytes]]] = [
    ({b"a": stamped(3, "c")}, []),
    ({b"x\xff\n": stamped(4, "d")}, [b"b"]),
    ({b"a": stamped(5, "e"), b"b": stamped(2, "b")}, [b"x\xff\n", b"never there"]),
]


def test_the_log_says_what_has_become_of_the_base(tmp_path: Path) -> None:
    for count in range(len(STEPS) + 1):
        last = logged(tmp_path, *STEPS[:count])
        assert base.read(f"{tmp_path}/base.json") == last


def test_every_torn_log_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    last = logged(tmp_path, *STEPS)
    known = {count: logged(tmp_path, *STEPS[:count]) for count in range(len(STEPS) + 1)}
    assert logged(tmp_path, *STEPS) == last
    whole = (tmp_path / "base.log").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "base.log").write_bytes(whole[:length])
        assert base.read(f"{tmp_path}/base.json") == known[whole[:length].count(b"\n")]
    (tmp_path / "base.log").write_bytes(whole + b'{"log":"11"}\n' + whole)
    assert base.read(f"{tmp_path}/base.json") == last


def test_a_log_that_a_new_base_has_taken_in_says_nothing_more(tmp_path: Path) -> None:
    last = logged(tmp_path, *STEPS)
    later = last.replace(log="22", files={b"a": stamped(9, "f")})
    base.write(f"{tmp_path}/base.json", later)  # and killed before the log was removed
    assert base.read(f"{tmp_path}/base.json") == later
    line = base.log_line(later, {b"a": stamped(1, "a")}, [], {})
    with (tmp_path / "base.log").open("ab") as log:
        log.write(line)
    known = base.read(f"{tmp_path}/base.json")
    assert known is not None
    assert known.files == {b"a": stamped(1, "a")}
    base.write(f"{tmp_path}/base.json", later.replace(log=""))
    known = base.read(f"{tmp_path}/base.json")
    assert known is not None
    assert known.files == later.files


@pytest.mark.parametrize(
    "fault",
    [
        {"files": [["../x", "file", 1, "0" * 64, 1, 2, 3]]},
        {"files": [["a", "file", 1, "no hash", 1, 2, 3]]},
        {"files": None},
        {"removed": ["/etc/passwd"]},
        {"removed": None},
        {"removed": [1]},
        {"refs": None},
        {"refs": {"x": 1}},
        {"checkin": "x"},
        {"indexed_ns": -1},
        {"log": None},
    ],
)
def test_a_line_that_is_not_sound_ends_the_log(tmp_path: Path, fault: dict[str, Any]) -> None:
    logged(tmp_path, *STEPS)
    lines = (tmp_path / "base.log").read_bytes().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | fault).encode()
    (tmp_path / "base.log").write_bytes(b"\n".join(lines) + b"\n")
    found = base.read(f"{tmp_path}/base.json")
    if fault == {"log": None}:  # somebody else's: passed over
        assert found is not None
        assert found.checkin == "3" * 64
    else:
        assert found == logged(tmp_path, *STEPS[:1])


def test_a_file_that_was_young_when_it_was_indexed_does_not_look_old_by_a_later_line(
    tmp_path: Path,
) -> None:
    young_ns = 2 * 10**9 - 1
    last = logged(tmp_path, ({b"a": stamped(3, "c", 3 * 10**9 - 1)}, []), ({}, []))
    value = json.loads((tmp_path / "base.json").read_text())
    value["files"] = [["b", "file", 2, "b" * 64, OLD_NS, young_ns, 7]]
    (tmp_path / "base.json").write_text(json.dumps(value))
    known = base.read(f"{tmp_path}/base.json")
    assert known is not None
    assert known.indexed_ns == last.indexed_ns
    for path, ctime_ns, size in ((b"a", 3 * 10**9 - 1, 3), (b"b", young_ns, 2)):

        class Status:
            st_size, st_mtime_ns, st_ino, st_ctime_ns = size, OLD_NS, 7, ctime_ns

        assert not known.trusts(known.files[path], cast("os.stat_result", Status))


def test_git_s_part_is_as_old_as_the_worktree_whatever_the_log_says(tmp_path: Path) -> None:
    last = logged(tmp_path, *STEPS)
    assert last.git_since_ns == 5
    value = json.loads((tmp_path / "base.json").read_text())
    del value["git"]["since_ns"]
    (tmp_path / "base.json").write_text(json.dumps(value))
    known = base.read(f"{tmp_path}/base.json")
    assert known is not None
    assert known.git_since_ns == 2 * 10**9
    assert known.git_refs == {"refs/heads/trunk": "3"}
