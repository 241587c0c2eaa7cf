"""Check-ins as trunk writes them, by what stock Fossil makes of them."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from hub import manifest
from hub.fossil_repo import RepositoryFile
from hub.repository import Repository
from hub.trees import Entry
from hub.trunk.tip import Tip, keeps_delta
from tests.hub.gitrepo import FOSSIL, ODD_NAMES, fossil

if TYPE_CHECKING:
    from hub.manifest import Checkin

pytestmark = pytest.mark.real

KINDS = {"": "file", "x": "exec", "l": "link"}
NOW_MS = 1_790_000_000_000
Files = dict[bytes, Entry]
Row = tuple[str | int | None, ...]


def name_of(content: bytes) -> str:
    return hashlib.sha3_256(content).hexdigest()


class Stored(NamedTuple):
    """A repository that stock Fossil made of check-ins."""

    path: Path

    def rows(self, query: str, *values: str) -> list[Row]:
        database = sqlite3.connect(self.path)
        database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        try:
            return database.execute(query, values).fetchall()
        finally:
            database.close()

    def files(self, checkin: str) -> Files:
        """Return the tree of *checkin* as Fossil's own ``files_of_checkin`` has it."""
        said = fossil(
            "sql",
            "-R",
            str(self.path),
            "SELECT hex(filename) || ' ' || uuid || ' ' || coalesce(perm, '') "
            f"FROM files_of_checkin('{checkin}')",
            cwd=self.path.parent,
        )
        rows = [line.strip("'").split(" ") for line in said.decode().splitlines()]
        return {bytes.fromhex(path): Entry(KINDS[perm], uuid) for path, uuid, perm in rows}

    def tags(self) -> list[Row]:
        return self.rows(
            "SELECT tagname, tagtype, value, uuid FROM tagxref JOIN tag USING (tagid) "
            "JOIN blob USING (rid) ORDER BY 1, 4"
        )


def store(place: Path, contents: set[bytes], checkins: list[Checkin]) -> Stored:
    home = place / "home"
    home.mkdir()
    path = str(place / "trunk.fossil")
    with RepositoryFile.create(FOSSIL, path, str(home)) as tool:
        RepositoryFile.created(tool, path)
    with RepositoryFile(path) as file:
        code = file.project_code
        file.add(map(manifest.pack, contents))
        file.close()
    RepositoryFile.store(FOSSIL, path, checkins, code, str(home))
    return Stored(Path(path))


def root(files: Files) -> tuple[Checkin, Tip]:
    made = manifest.checkin(
        files=(
            (path, manifest.PERMISSION_OF[files[path].kind], bytes.fromhex(files[path].hash))
            for path in sorted(files)
        ),
        comment="root",
        date=manifest.date_of(NOW_MS - 10),
        user="hub",
        parent=None,
    )
    tip = Tip(
        checkin=made.hash,
        parent="",
        time_ms=NOW_MS - 10,
        files=dict(files),
        baseline=made.hash,
        baseline_files=files,
    )
    return made, tip


def test_fossil_sees_the_tree_that_each_of_many_random_check_ins_means(tmp_path: Path) -> None:
    dice = random.Random(5)
    contents = {b"content %d\n" % number for number in range(30)}
    entries = [Entry(kind, name_of(c)) for c in sorted(contents) for kind in KINDS.values()]
    paths = [*ODD_NAMES, *(b"many/%d/file" % number for number in range(40))]
    files = {path: dice.choice(entries) for path in paths[:-10]}
    first, tip = root(files)
    checkins, trees = [first], [dict(tip.files)]
    for number in range(60):
        changes: dict[bytes, Entry | None] = {
            path: dice.choice([None, *entries, files.get(path)])
            for path in dice.sample(paths, dice.randint(1, 4))
        }
        made, _step = tip.extend(
            changes,
            slot=f"s{number % 3}",
            message="m\\ \n",
            commit_id=f"{number:032x}",
            now_ms=tip.time_ms,
        )
        checkins.append(made)
        trees.append(dict(tip.files))
    deltas = [one.manifest.startswith(b"B ") for one in checkins]
    assert 2 <= deltas.count(False) < deltas.count(True), "both forms must be among them"

    stored = store(tmp_path, contents, checkins)
    for rebuilt in (False, True):
        if rebuilt:
            fossil("rebuild", str(stored.path), cwd=tmp_path)
        with Repository(str(stored.path)) as repository:
            assert [row.hash for row in repository.line()] == [one.hash for one in checkins]
            assert (repository.forks(), repository.leaves()) == (0, [checkins[-1].hash])
            assert [repository.files(one.hash) for one in checkins] == trees
        for at in (0, 1, 20, 40, 60):
            assert stored.files(checkins[at].hash) == trees[at]
        assert stored.rows("SELECT count(*) FROM phantom") == [(0,)]
    assert b" 0 errors" in fossil("test-integrity", str(stored.path), cwd=tmp_path)


def test_a_commit_s_id_is_a_tag_of_its_check_in_alone(tmp_path: Path) -> None:
    files = {b"a%d" % number: Entry("file", name_of(b"a")) for number in range(10)}
    first, tip = root(files)
    delta, _step = tip.extend(
        {b"a1": Entry("exec", name_of(b"a"))},
        slot="s",
        message="m",
        commit_id="1" * 32,
        now_ms=tip.time_ms,
    )
    back, _step = tip.extend(
        {b"a1": files[b"a1"]}, slot="s", message="m", commit_id="", now_ms=tip.time_ms
    )
    full = manifest.checkin(
        files=[(b"a", b"", bytes.fromhex(name_of(b"a")))],
        comment="c",
        date=manifest.date_of(tip.time_ms + 1),
        user="with space",
        parent=back.hash,
        commit_id="id with space",
    )
    assert delta.manifest.startswith(b"B " + first.hash.encode() + b"\n")
    assert b"\nF " not in back.manifest
    stored = store(tmp_path, {b"a"}, [first, delta, back, full])
    ids: list[Row] = [
        ("commit-id", 1, "1" * 32, delta.hash),
        ("commit-id", 1, "id with space", full.hash),
    ]
    ids.sort(key=lambda row: str(row[3]))
    for rebuilt in (False, True):
        if rebuilt:
            fossil("rebuild", str(stored.path), cwd=tmp_path)
        assert [row for row in stored.tags() if row[0] == "commit-id"] == ids
        on_trunk = {row[3] for row in stored.tags() if row[0] == "sym-trunk"}
        assert on_trunk == {first.hash, delta.hash, back.hash, full.hash}
        assert stored.rows("SELECT user FROM event ORDER BY mtime") == [
            ("hub",),
            ("s",),
            ("s",),
            ("with space",),
        ]
    with Repository(str(stored.path)) as repository:
        assert repository.recent_ids(9) == {str(row[2]): row[3] for row in ids}


def test_a_root_can_carry_a_commit_s_id_too(tmp_path: Path) -> None:
    made = manifest.checkin(
        files=[],
        comment="root",
        date=manifest.date_of(NOW_MS),
        user="hub",
        parent=None,
        commit_id="2" * 32,
    )
    stored = store(tmp_path, set(), [made])
    assert stored.tags() == [
        ("branch", 2, "trunk", made.hash),
        ("commit-id", 1, "2" * 32, made.hash),
        ("sym-trunk", 2, None, made.hash),
    ]


def test_the_last_file_of_a_tree_can_go(tmp_path: Path) -> None:
    first, tip = root({b"a": Entry("file", name_of(b"a"))})
    emptied, _step = tip.extend(
        {b"a": None}, slot="s", message="m", commit_id="", now_ms=tip.time_ms
    )
    again, _step = tip.extend(
        {b"a": Entry("file", name_of(b"a"))},
        slot="s",
        message="m",
        commit_id="",
        now_ms=tip.time_ms,
    )
    stored = store(tmp_path, {b"a"}, [first, emptied, again])
    assert [stored.files(one.hash) for one in (first, emptied, again)] == [
        {b"a": Entry("file", name_of(b"a"))},
        {},
        {b"a": Entry("file", name_of(b"a"))},
    ]


def test_a_date_has_milliseconds_and_no_zone() -> None:
    assert manifest.date_of(1_790_000_000_007) == "2026-09-21T14:13:20.007"
    assert manifest.date_of(0) == "1970-01-01T00:00:00.000"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (b"a" * 256, "a name longer"),
        (b"/".join([b"a" * 200] * 20), "longer than"),
        (b"a\0b", "not a simple path"),
        (b"a//b", "not a simple path"),
        (b".git/config", "git's own"),
        (b"src/.git", "git's own"),
        (b".fslckout", "Fossil's own"),
        (b".bones/x", "the hub's own"),
    ],
)
def test_a_path_that_cannot_be_everywhere_is_unfit(path: bytes, reason: str) -> None:
    assert reason in (manifest.unfit_name(path) or "")


def test_stock_s_rule_rebases_after_as_many_paths_as_were_measured() -> None:
    assert [max(n for n in range(500) if keeps_delta(n, files)) for files in (2027, 50_000)] == [
        76,
        386,
    ]
    assert not any(keeps_delta(0, files) for files in range(4))
