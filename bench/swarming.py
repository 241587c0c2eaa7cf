"""What the swarm's benchmarks share: a workspace with a hub, agents as processes, what others do.

An agent is a process of its own that talks to its slot's leaf. All begin at one moment, and what
they report is in the machine's monotonic clock, so that their figures can be put together.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.seed import SIZES, Size, generate
from foundation.workspace import Workspace
from hub import fossil as fossil_binary
from hub.stop import stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
AGENTS = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from bench.agents import main; "
    "main(sys.argv[1:])"
)


class Place:
    """A workspace of generated files, in which a hub runs."""

    def __init__(self, directory: Path, files: int) -> None:
        """Make it below *directory*; nothing runs yet."""
        self.directory = directory
        self.root = directory / "work"
        self.workspace = Workspace(str(self.root))
        self.env = {
            "HOME": str(directory / "home"),
            "USER": "bench",
            "FOSSIL_HOME": str(directory / "home"),
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@b",
            "XDG_STATE_HOME": str(directory / "home/state"),
        }
        (directory / "home").mkdir(parents=True)
        self.run("git", "init", "--quiet", "--initial-branch=main", str(self.root), cwd=directory)
        size = SIZES.get(files) or Size(files=files, megabytes=files * 0.012, limit=None)
        generate(self.root, size, self.env)
        self.run("git", "reset", "--quiet", "--hard")

    def run(self, *argv: str, cwd: Path | None = None, check: bool = True) -> str:
        """Run a program in the workspace; return what it printed."""
        done = subprocess.run(
            argv, cwd=cwd or self.root, env=self.env, check=check, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=None if check else subprocess.DEVNULL, text=True,
            errors="surrogateescape",
        )  # fmt: skip
        return done.stdout

    def bones(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run ``bones``; return what it printed."""
        return self.run(str(ROOT / "bin/bones"), *arguments, cwd=cwd)

    def join(self, slots: Sequence[str]) -> list[Path]:
        """Join *slots*, a few at a time; return their worktrees."""
        worktrees = []
        for at in range(0, len(slots), 8):
            joining = [
                subprocess.Popen(
                    [str(ROOT / "bin/bones"), "swarm", "join", "--slot", slot],
                    cwd=self.root, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    text=True,
                )
                for slot in slots[at : at + 8]
            ]  # fmt: skip
            for process in joining:
                out, err = process.communicate()
                if process.returncode != 0:
                    raise RuntimeError(f"a join exited with {process.returncode}: {err}")
                worktrees.append(Path(out.strip()))
        return worktrees

    def checkins(self) -> tuple[int, int, int]:
        """Return how many check-ins trunk has, how many leaves, how many forks."""
        with closing(sqlite3.connect(self.workspace.repository)) as database:
            count = database.execute("SELECT count(*) FROM event WHERE type='ci'").fetchone()[0]
            leaves = database.execute("SELECT count(*) FROM leaf").fetchone()[0]
            forks = database.execute(
                "SELECT count(*) FROM (SELECT pid FROM plink WHERE isprim GROUP BY pid "
                "HAVING count(*)>1)"
            ).fetchone()[0]
        return count, leaves, forks

    def authors(self) -> dict[str, int]:
        """Return how many check-ins each user has."""
        with closing(sqlite3.connect(self.workspace.repository)) as database:
            rows = database.execute(
                "SELECT user, count(*) FROM event WHERE type='ci' GROUP BY user"
            ).fetchall()
        return dict(rows)

    def is_whole(self) -> bool:
        """Tell whether Fossil finds the repository sound."""
        said = self.run(
            fossil_binary.find(), "test-integrity", "-R", self.workspace.repository, check=False
        )
        return "0 errors" in said or "low-level database integrity-check: ok" in said


@contextmanager
def running(directory: Path, files: int) -> Iterator[Place]:
    """Yield a place in which a hub runs; end all that runs in it."""
    place = Place(directory, files)
    try:
        place.bones("up")
        yield place
    finally:
        subprocess.run(
            [str(ROOT / "bin/bones"), "down", "--yes"],
            cwd=place.root, env=place.env, check=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stop(str(place.root), force=True)


class Crew:
    """Agents: processes that begin together and report when they are done."""

    def __init__(
        self, place: Place, kind: str, names: Sequence[str], common: dict[str, Any], per: int = 1
    ) -> None:
        """Start an agent of *kind* for each of *names*, *per* to a process; none begins yet."""
        self._names = [list(names[at : at + per]) for at in range(0, len(names), per)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-I", "-c", AGENTS, str(ROOT), kind, str(place.root),
                 json.dumps({**common, "names": some})],
                env=place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for some in self._names
        ]  # fmt: skip
        for process in self.processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError(f"an agent of kind {kind} did not get ready")

    def play(self) -> list[dict[str, Any]]:
        """Let all begin; return what each reported."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        reports = []
        for process, some in zip(self.processes, self._names, strict=True):
            assert process.stdout is not None
            reports += [json.loads(process.stdout.readline() or "null") for _name in some]
        for process in self.processes:
            process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"an agent exited with status {process.returncode}")
        return reports


def git_remote(place: Place, names: Sequence[str]) -> list[Path]:
    """Return a clone for each of *names* of one bare repository, as people work with git."""
    base = place.directory / "git"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    place.run("git", "clone", "--quiet", "--bare", str(place.root), str(base / "origin.git"))
    clones = []
    for name in names:
        place.run("git", "clone", "--quiet", str(base / "origin.git"), str(base / name))
        clones.append(base / name)
    return clones


def stock_checkouts(place: Place, names: Sequence[str]) -> list[Path]:
    """Return a stock check-out for each of *names*, opened on one repository of its own."""
    base = place.directory / "stock"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    fossil = fossil_binary.find()
    with (
        closing(sqlite3.connect(place.workspace.repository)) as database,
        closing(sqlite3.connect(base / "stock.fossil")) as copy,
    ):
        database.backup(copy)
        copy.execute("INSERT OR IGNORE INTO user(login, pw, cap) VALUES('bench', 'x', 's')")
        ours = "SELECT name FROM sqlite_master WHERE type='trigger'"
        for (trigger,) in copy.execute(ours).fetchall():
            copy.execute(f'DROP TRIGGER "{trigger}"')
        copy.commit()
    checkouts = []
    for name in names:
        (base / name).mkdir()
        place.run(fossil, "open", "--nested", str(base / "stock.fossil"), cwd=base / name)
        checkouts.append(base / name)
    return checkouts
