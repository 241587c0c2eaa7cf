"""`bin/bench chaos slotgc`: leaves that work and die, passes that clean up, all at once.

Leaves make slots, revive each other's, edit and commit; several passes clean up, killed at random
and at their own steps; killers ask for the end of leaves, agents and strangers; some work in dead
slots by their working directory; some forge records that name strangers. Witnesses: every byte
written stands in a ledger outside of the workspace and must be in the slot, or come back from a
rescue, or have been committed; a live leaf sees at every step that its directory is its own;
strangers wait for signals and must get none; who asks for the end of a live process of ours sees
it end.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.chaos import ledger, plan
from bench.chaos.crew import Crew, Hand
from bench.chaos.ledger import Ledger
from bench.chaos.slothands import (
    ABSENT,
    BORN,
    CHECKIN,
    COMMIT,
    EDIT,
    ENDED,
    FAILED,
    FORGED,
    HELD,
    INSTANCE,
    PASS,
    REMOVED,
    RESCUED,
    REVIVED,
    SIGNALLED,
    SPARED,
    ForgerHand,
    HolderHand,
    KillerHand,
    LeafHand,
    PrunerHand,
    Scene,
    SlotHand,
    StrangerHand,
    put_on_trunk,
)
from bench.chaos.stage import Stage, make_repository
from bench.chaos.verdict import Verdict
from bench.chaos.witness import Witness
from foundation.errors import HubError
from foundation.workspace import Workspace
from slotgc import dead_slots, ending, pruning
from slotgc.rescue import list_rescues
from slotgc.restore import restore

_SMOKE_S = 4.0
_LOOK_EVERY_S = 0.01
_PASSES_AT_THE_END = 5

_OTHERS: list[tuple[type[SlotHand], int]] = [
    (PrunerHand, 4),
    (KillerHand, 2),
    (ForgerHand, 1),
    (HolderHand, 2),
    (StrangerHand, 4),
]
_SPARED = (HolderHand, StrangerHand)
"""Whom the conductor does nothing to."""

JUNK = ["", "0\n", "-1\n", "1\n", "4194305\n", "12 34\n", "0x10\n", "pid\n", "\0\0\0\0", "9" * 100]
"""Contents of leaf.pid that name nobody: such a slot stays for ever."""

_COUNTED = {
    "slots made": BORN,
    "slots revived": REVIVED,
    "edits": EDIT,
    "commits": COMMIT,
    "passes": PASS,
    "passes' failures": FAILED,
    "slots worked in by cwd alone": HELD,
    "slots forged": FORGED,
    "live processes of ours ended": ENDED,
    "strangers refused": SPARED,
    "impossible pids refused": ABSENT,
    "strangers signalled": SIGNALLED,
}
_SUMMED = {"slots removed": REMOVED, "slots rescued": RESCUED}


def rates(processes: int) -> list[plan.Rate]:
    """Return how often what happens, for so many leaves and passes."""
    return [
        plan.Rate("stop", 0.4 * processes, (0.0, 1.0)),
        plan.Rate("kill", 0.3 * processes),
    ]


def main(arguments: list[str]) -> int:
    """Run the campaign; return 1 if a promise was broken."""
    parser = plan.parser("slotgc", __doc__)
    parser.add_argument(
        "--gc",
        choices=["slotgc", "naive"],
        default="slotgc",
        help="what to torment; the naive one shows what the witnesses can see",
    )
    options = plan.options(parser.parse_args(arguments), smoke_s=_SMOKE_S)
    verdict = Verdict("slotgc", options)
    with Stage("slotgc") as stage:
        Campaign(stage, options, verdict).run()
        verdict.look_into(stage)
    return verdict.report()


class Campaign:
    """One run."""

    def __init__(self, stage: Stage, options: plan.Options, verdict: Verdict) -> None:
        """Make the workspace; start nothing."""
        self.stage = stage
        self.options = options
        self.verdict = verdict
        root = make_repository(stage.place / "work", {"README": b"hello\n"})
        self.workspace = Workspace(str(root))
        self.workspace.make_state()
        self.workspace.make_bones()
        _make_trunk(self.workspace.repository)
        self._book = stage.place / "book"
        (self._book / "ledger").mkdir(parents=True)
        self.kinds: list[type[SlotHand]] = [LeafHand] * options.processes
        for kind, count in _OTHERS:
            self.kinds += [kind] * count
        self.tormented = [n for n, kind in enumerate(self.kinds) if kind not in _SPARED]
        self.strangers = [n for n, kind in enumerate(self.kinds) if kind is StrangerHand]
        capacity = int(2000 + 500 * options.seconds)
        self.witnesses = [Witness(capacity) for _ in self.kinds]
        self.scene = Scene(
            workspace=self.workspace,
            place=str(self._book),
            seed=options.seed,
            slots=options.processes,
            strangers=[],
            agents=[Witness(capacity) for _ in range(options.processes)],
            gc=_under_test(options.rest.gc),
        )

    def run(self) -> None:
        """Brawl, see who was touched, clean up in quiet, and count what is left."""
        errors = self.stage.place / "errors"
        with Crew(str(errors)) as crew:
            self._brawl(crew)
            self._end_all_but_strangers(crew)
            self._compare_slots()
            self._clean_up()
            self._see_strangers(crew)
        self._compare_rescues()
        self._read_complaints(errors)
        self._count()

    def _brawl(self, crew: Crew) -> None:
        for number in self.strangers:  # first: everybody is to know their pids
            self.scene.strangers.append(self._recruit(crew, number, 0).pid)
        self._forge_for_ever()
        for number in range(len(self.kinds)):
            if number not in crew.hands:
                self._recruit(crew, number, 0)
        began = time.monotonic()
        options = self.options
        faults = plan.faults(
            options.seed, options.seconds, len(self.tormented), rates(len(self.tormented))
        )
        for fault in faults:
            self._pass_time(crew, began + fault.at_s)
            hand = crew.hands[self.tormented[fault.whom]]
            if fault.what == "stop":
                crew.freezer.stop(hand.pidfd, fault.for_s)
            else:
                crew.kill(hand.number)
                self._recruit(crew, hand.number, hand.turn + 1)
        self._pass_time(crew, began + options.seconds)
        self.verdict.figures["stops"] = crew.freezer.stops
        self.verdict.figures["kills"] = crew.kills

    def _recruit(self, crew: Crew, number: int, turn: int) -> Hand:
        work = self.kinds[number](self.scene, self.witnesses[number], number, turn).work
        return crew.fork(number, turn, work)

    def _pass_time(self, crew: Crew, until_s: float) -> None:
        while (now := time.monotonic()) < until_s:
            crew.freezer.thaw()
            for hand in crew.ended():
                if hand.number in self.strangers:
                    self.verdict.wrong(f"stranger {hand.pid} was killed")
                elif self.kinds[hand.number] is PrunerHand:
                    self.verdict.figures["passes killed at a step of theirs"] += 1
                self._recruit(crew, hand.number, hand.turn + 1)
            soonest = min(until_s, crew.freezer.next_s())
            time.sleep(max(0.0, min(_LOOK_EVERY_S, soonest - now)))

    def _forge_for_ever(self) -> None:
        """Make slots that must stay: of strangers, and of nobody."""
        self._to_stay = []
        contents = [f"{pid}\n" for pid in self.scene.strangers]
        for number, content in enumerate([*contents, *JUNK]):
            directory = Path(self.workspace.swarm) / f"x{number}"
            (directory / "wt").mkdir(parents=True)
            (directory / "wt" / "work.txt").write_text(content)
            (directory / "leaf.pid").write_text(content)
            self._to_stay.append(directory)

    def _end_all_but_strangers(self, crew: Crew) -> None:
        crew.freezer.thaw(everybody=True)
        for number in range(len(self.kinds)):
            if number not in self.strangers and number in crew.hands:
                crew.kill(number)

    def _see_strangers(self, crew: Crew) -> None:
        for number in self.strangers:
            pid = crew.hands[number].pid
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "S":
                self.verdict.wrong(f"stranger {pid} is in state {state}")
        for directory in self._to_stay:
            content = (directory / "leaf.pid").read_text() if directory.exists() else None
            work = directory / "wt" / "work.txt"
            if content is None or not work.exists() or work.read_text() != content:
                self.verdict.wrong(f"{directory} was touched, whose leaf.pid proves no death")

    def _compare_slots(self) -> None:
        """Compare every slot that is there with its ledger, before the last cleaning up."""
        for directory in sorted(Path(self.workspace.swarm).iterdir()):
            model = self._model_of(directory)
            if model is not None and not model.may_be(ledger.scan(str(directory / "wt"))):
                self.verdict.wrong(f"{directory} does not hold what was written")

    def _model_of(self, directory: Path) -> ledger.Model | None:
        try:
            instance = (directory / INSTANCE).read_text()
        except OSError:
            return None
        book = Ledger(str(self._book / "ledger" / instance))
        book.close()
        return book.model

    def _clean_up(self) -> None:
        """Clean up until nothing is left to do: all leaves are dead."""
        failed: dict[str, str] = {}
        for _turn in range(_PASSES_AT_THE_END):
            pruned = self.scene.gc.prune(self.workspace.root)
            self.verdict.figures["slots removed"] += len(pruned.removed)
            self.verdict.figures["slots rescued"] += len(pruned.rescued)
            failed = pruned.failed
            if not failed:
                break
        for name, reason in failed.items():
            self.verdict.wrong(f"in quiet, slot {name} cannot be cleaned up: {reason}")
        if left := dead_slots(self.workspace.root):
            self.verdict.wrong(f"in quiet, dead slots stay: {left}")

    def _compare_rescues(self) -> None:
        """Bring every rescue back, and miss what is nowhere."""
        met = set()
        for found in list_rescues(self.workspace.root):
            instance = self._instance_of(Path(found.path))
            if instance is None:
                self.verdict.wrong(f"rescue {found.name} is of no slot of ours")
                continue
            if instance in met:
                self.verdict.wrong(f"slot {instance} was rescued twice")
            met.add(instance)
            if found.state != "done":
                self.verdict.wrong(f"rescue {found.name} is {found.state}: {found.reason}")
                continue
            model = self._model_of(Path(found.path))
            assert model is not None
            if trouble := self._comes_back(found.name, model):
                self.verdict.wrong(
                    f"rescue {found.name} does not bring back what was written: {trouble}"
                )
        self.verdict.figures["rescues brought back"] = len(met)
        for path in sorted((self._book / "ledger").iterdir()):
            directory = Path(self.workspace.swarm) / path.name.rpartition("-")[0]
            if path.name in met or self._instance_of(directory) == path.name:
                continue
            book = Ledger(str(path))
            book.close()
            if not book.model.may_be_clean:
                self.verdict.wrong(f"the unsaved work of slot {path.name} is nowhere")

    def _instance_of(self, directory: Path) -> str | None:
        try:
            return (directory / INSTANCE).read_text()
        except OSError:
            return None

    def _comes_back(self, name: str, model: ledger.Model) -> str:
        """Put *name* onto what was saved; return why that does not give what was written, or ""."""
        told = []
        for tree in model.bases:
            target = str(self.stage.place / "restored")
            shutil.rmtree(target, ignore_errors=True)
            os.mkdir(target)
            for path, file in tree.items():
                ledger.put(target, path, file)
            try:
                restore(self.workspace.root, name, target)
            except HubError as error:
                told.append(str(error))  # of another base, say
                continue
            found = ledger.scan(target)
            if model.may_be(found):
                return ""
            told.append(f"it gives {found}, which is none of {model.trees}")
        return "; ".join(told)

    def _read_complaints(self, errors: Path) -> None:
        for path in sorted(self._book.glob("wrong-*")):
            for sentence in path.read_text().splitlines():
                self.verdict.wrong(sentence)
        if errors.exists() and (text := errors.read_text(errors="replace")):
            self.verdict.wrong(f"a process failed: {text[-3000:]}")

    def _count(self) -> None:
        said = [entry for witness in self.witnesses for entry in witness]
        for words, kind in _COUNTED.items():
            self.verdict.figures[words] = sum(entry.kind == kind for entry in said)
        for words, kind in _SUMMED.items():
            self.verdict.figures[words] += sum(e.epoch for e in said if e.kind == kind)
        failed = self._book / "failed"
        if failed.exists():
            kinds = Counter(
                " ".join("#" if any(c.isdigit() for c in word) else word for word in line.split())
                for line in failed.read_text().splitlines()
            )
            for words, count in kinds.most_common(5):
                self.verdict.figures[f"  a pass said: {words[:90]}"] = count
        if any(witness.is_full for witness in self.witnesses):
            self.verdict.wrong("a witness was full: the campaign proves nothing")


def _make_trunk(repository: str) -> None:
    """Make what is asked of a trunk: that it has the check-in that the slots begin with."""
    with closing(sqlite3.connect(repository)) as trunk:
        trunk.execute("PRAGMA journal_mode = WAL")
    put_on_trunk(repository, [CHECKIN])


def _under_test(name: str) -> Any:
    if name == "naive":
        return importlib.import_module("bench.chaos.naive_gc")
    return _Ours


class _Ours:
    """The package under test, by its two doors. Loaded before anybody forks: all run one code."""

    prune = staticmethod(pruning.prune)
    kill = staticmethod(ending.kill)
