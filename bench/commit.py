"""`bin/bench commit`: how fast commits land, and what one costs at the shell.

Slots in a tight loop through their leaves, one file of 50 to 2,000 bytes a commit; ``bones swarm
commit`` of one file from the shell. Beside them in the same run: git as people use it (commit,
pull --rebase, push until it lands), stock ``fossil commit``, a bare interpreter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.herd import shown, summary
from bench.measure import INTERPRETER, Quiet, Row, paired, report, run_ms
from bench.swarming import ROOT, Crew, Place, git_remote, running, stock_checkouts
from hub import fossil as fossil_binary

LEAST_PER_S = {(2_000, 1): 60, (2_000, 16): 300, (2_000, 100): 500, (50_000, 100): 200}
SHELL_LIMIT_MS = 40.0


def main(arguments: list[str]) -> int:
    """Measure; print a table; return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(prog="bin/bench commit", description=__doc__)
    parser.add_argument("--slots", type=int, action="append", help="1, 16 and 100")
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--no-others", action="store_true", help="neither git nor stock fossil")
    parser.add_argument("--no-shell", action="store_true", help="only the loops")
    parser.add_argument("--smoke", action="store_true", help="a small tree, no verdict")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.slots, options.files, options.seconds = [2], 50, 0.5
    rows: list[dict[str, Any]] = []
    figures: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-commit-") as directory,
        running(Path(directory), options.files) as place,
    ):
        if not options.no_shell:
            figures = shell(place, 1 if options.smoke else 25)
        for slots in options.slots or [1, 16, 100]:
            rows.append(loop(place, slots, options.files, options.seconds))
            if not options.no_others and slots <= 16:
                rows += others(
                    place, slots, options.seconds if options.smoke else max(options.seconds, 2.0)
                )
        _count, leaves, forks = place.checkins()
        faults = [] if (leaves, forks) == (1, 0) else [f"{leaves} leaves, {forks} forks"]
        faults += [] if place.is_whole() else ["fossil test-integrity"]
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n" if options.json else shown(row))
    for words in faults:
        sys.stdout.write(f"FAULT {words}\n")
    status = report(figures, as_json=options.json) if figures else 0
    missed = any(row["faults"] or row["missed"] for row in rows) or bool(faults)
    return 0 if options.smoke and not faults else int(bool(status) or missed)


def loop(place: Place, slots: int, files: int, seconds: float) -> dict[str, Any]:
    """Let *slots* commit for *seconds*."""
    names = [f"loop{slots}-{number}" for number in range(slots)]
    place.join(names)
    before = place.checkins()[0]
    reports = Crew(place, "loop", names, {"seconds": seconds}, per=5 if slots > 20 else 1).play()
    row = summary(f"loop, {slots} slots", reports, 0)
    faults = [words for one in reports for words in one["failed"]][:3]
    if place.checkins()[0] - before != row["landed"]:
        faults.append(f"{place.checkins()[0] - before} rows in event for {row['landed']} commits")
    least = LEAST_PER_S.get((files, slots))
    missed = [f"the limit is {least}/s"] if least and row["per_s"] < least else []
    for name in names:
        place.bones("swarm", "close", "--slot", name)
    return {**row, "wanted": row["landed"], "faults": faults, "missed": missed}


def others(place: Place, slots: int, seconds: float) -> list[dict[str, Any]]:
    """Return what git and stock fossil do in the same time."""
    names = [f"other-{number}" for number in range(slots)]
    rows = []
    for kind, places in (
        ("git", git_remote(place, names)),
        ("stock", stock_checkouts(place, names)),
    ):
        common = {
            "seconds": seconds,
            "fossil": fossil_binary.find(),
            "places": {name: str(where) for name, where in zip(names, places, strict=True)},
        }
        reports = Crew(place, kind, names, common).play()
        row = summary(f"{kind}, {slots} agents", reports, 0)
        rows.append({**row, "wanted": row["landed"], "faults": [], "missed": []})
    return rows


def shell(place: Place, rounds: int) -> list[Row]:
    """Return what a commit of one file takes at the shell, ours and others'."""
    (worktree,) = place.join(["shell"])
    (clone,) = git_remote(place, ["one"])
    (checkout,) = stock_checkouts(place, ["one"])
    turn = iter(range(1_000_000))
    fossil = fossil_binary.find()

    def ours() -> float:
        (worktree / "shell.txt").write_text(f"{next(turn)}\n")
        argv = [str(ROOT / "bin/bones"), "swarm", "commit", "-m", "x", "shell.txt"]
        return run_ms(argv, cwd=str(worktree), env=place.env)

    def bare() -> float:
        return run_ms(INTERPRETER)

    def git() -> float:
        (clone / "shell.txt").write_text(f"{next(turn)}\n")
        script = "git add -A && git commit -q -m x && git push -q"
        return run_ms(["/bin/sh", "-c", script], cwd=str(clone), env=place.env)

    def stock() -> float:
        # Of another length each time: stock Fossil looks at whole seconds and sizes.
        (checkout / "README.bench").write_text("x" * next(turn))
        commit = f"{fossil} commit --no-warnings --user-override bench -m x"
        script = f"{fossil} add README.bench; {commit}"
        return run_ms(["/bin/sh", "-c", script], cwd=str(checkout), env=place.env)

    ours()
    quiet = Quiet()
    took = statistics.median(ours() for _ in range(rounds))
    name = "commit at the shell"
    few = max(1, rounds // 5)
    return [
        paired(f"{name}; a bare interpreter", rounds, bare, ours, quiet=quiet, limit=None),
        paired(f"{name}; git commit and push", rounds, git, ours, quiet=quiet, limit=1.0),
        paired(f"{name}; stock fossil", few, stock, ours, quiet=quiet, limit=1.0),
        Row(name=f"{name}, beside its limit", ours=took, floor=SHELL_LIMIT_MS, unit="ms",
            limit=1.0, rounds=rounds),
    ]  # fmt: skip
