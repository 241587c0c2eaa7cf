"""Dead slots with worktrees, for tests of judging, rescuing and restoring."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import time
from pathlib import Path
from typing import NamedTuple

from foundation.process import PID_MAX
from foundation.workspace import Workspace
from slotgc import base, planted

CHECKIN = "c" * 64
DEAD_PID = PID_MAX
"""The kernel gives out smaller ones only."""


class Node(NamedTuple):
    """What stands at a path: a file's content, or a link's target; a link has mode 0."""

    content: bytes
    mode: int = 0o644


Tree = dict[bytes, Node]


def plant(top: Path, tree: Tree) -> None:
    """Make *top* hold exactly the files of *tree*."""
    if top.exists():
        shutil.rmtree(top)
    top.mkdir(parents=True)
    for path, node in tree.items():
        target = os.fsencode(top) + b"/" + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if node.mode == 0:
            os.symlink(node.content, target)
        else:
            Path(os.fsdecode(target)).write_bytes(node.content)
            os.chmod(target, node.mode)


def tree_of(top: Path) -> Tree:
    """Return the files and links below *top*; git's and Fossil's own are not looked at."""
    found: Tree = {}
    start = os.fsencode(top)
    for where, directories, files in os.walk(start):
        if where == start:
            directories[:] = [name for name in directories if name != b".git"]
        for name in [*directories, *files]:
            path = where + b"/" + name
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[path[len(start) + 1 :]] = Node(os.readlink(path), 0)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
                found[path[len(start) + 1 :]] = Node(content, stat.S_IMODE(status.st_mode))
    return found


def make_trunk(root: Path, *checkins: str) -> None:
    """Make a repository file that holds *checkins*, as far as anybody here looks."""
    (root / ".orchestrator").mkdir(exist_ok=True)
    database = sqlite3.connect(root / ".orchestrator/hub.fossil")
    database.execute("CREATE TABLE IF NOT EXISTS blob(rid INTEGER PRIMARY KEY, size, uuid UNIQUE)")
    for checkin in checkins or (CHECKIN,):
        database.execute("INSERT INTO blob(size, uuid) VALUES (1, ?)", (checkin,))
    database.commit()
    database.close()


def put_on_trunk(root: Path, names: set[str]) -> None:
    """Have the repository file hold the artifacts *names*, as far as anybody here looks."""
    database = sqlite3.connect(root / ".orchestrator/hub.fossil")
    database.executemany(
        "INSERT OR IGNORE INTO blob(size, uuid) VALUES (1, ?)", [(name,) for name in names]
    )
    database.commit()
    database.close()


def make_slot(root: Path, name: str, tree: Tree, *, checkin: str = CHECKIN) -> Path:
    """Make a slot whose leaf is dead and whose worktree is as its base; return the worktree.

    Its contents are put on trunk, if there is one.
    """
    slot = Path(Workspace(str(root)).swarm) / name
    plant(slot / "wt", tree)
    made = base.index(f"{slot}/wt", checkin=checkin)
    base.write(f"{slot}/base.json", made)
    if os.path.exists(Workspace(str(root)).repository):
        put_on_trunk(root, {row[2] for row in made.files.values()})
    (slot / "leaf.lock").touch(0o600)
    (slot / "leaf.pid").write_text(f"{DEAD_PID}\n")
    for directory in (root / ".bones", root / ".bones/swarm", slot):
        directory.chmod(0o700)
    return slot / "wt"


def age(slot: Path) -> None:
    """Have the base believe that it was made a second after its files."""
    known = base.read(f"{slot}/base.json")
    assert known is not None
    base.write(f"{slot}/base.json", known.replace(indexed_ns=known.indexed_ns + 10**9))


def make_planted_slot(root: Path, name: str, tree: Tree) -> Path:
    """Make a slot as :func:`make_slot` does, planted a second before it was handed over."""
    slot = make_slot(root, name, tree).parent
    age(slot)
    planted.note(str(slot), f"{slot}/wt")
    retell(slot, until_ns=time.time_ns() + 10**9)
    return slot


def retell(slot: Path, **values: object) -> None:
    """Have planted.json of *slot* say something else."""
    path = slot / planted.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def newest_checkin(root: Path) -> str:
    """Return the newest check-in on the trunk of a workspace that was seeded."""
    database = sqlite3.connect(f"file:{root}/.orchestrator/hub.fossil?mode=ro", uri=True)
    try:
        query = "SELECT uuid FROM blob JOIN event ON rid = objid ORDER BY mtime DESC LIMIT 1"
        return str(database.execute(query).fetchone()[0])
    finally:
        database.close()
