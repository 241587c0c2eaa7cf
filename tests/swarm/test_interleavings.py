"""Any interleaving of slots' edits, commits and updates gives the tree of a model; nothing is lost.

Real slots with real leaves on a real trunk. In one text every slot has a section of its own, so
that their edits always go together; over another they fight; and each has files of its own. The
model says what every worktree and trunk hold after every step, which commits conflict, and that a
commit or update which is refused changes nothing at all.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swarm
from foundation.errors import Refused
from hub.commits import Conflicted
from hub.repository import Repository
from slotgc import artifact

if TYPE_CHECKING:
    from swarm.slot import Slot
    from tests.support import Hub

pytestmark = pytest.mark.real

SLOTS = ("ann", "bob", "cy")
TEXTS = ("text-1", "text-2")
FOUGHT = ("fought-1", "fought-2")


class File(NamedTuple):
    """What a file is: the number of its version, one for each section of a text; its exec bit."""

    versions: tuple[int, ...]
    executable: bool = False

    def content(self) -> bytes:
        kept = b"".join(b"a line that stays %d\n" % n for n in range(8))
        return kept.join(b"section %d\n" % version for version in self.versions)


Tree = dict[str, File]


class Step(NamedTuple):
    slot: int
    act: str
    which: int


ACTS = (
    *("text", "text", "fight", "drop", "own", "own", "move", "mode", "remove"),
    *("commit", "commit", "commit", "commit-one", "update", "update"),
)
STEPS = st.lists(
    st.builds(Step, st.integers(0, len(SLOTS) - 1), st.sampled_from(ACTS), st.integers(0, 1)),
    min_size=8,
    max_size=40,
)


class Model:
    """What trunk and each slot's base and worktree hold."""

    def __init__(self, tree: Tree) -> None:
        self.trunk = dict(tree)
        self.bases = [dict(tree) for _slot in SLOTS]
        self.works = [dict(tree) for _slot in SLOTS]
        self.numbers = itertools.count(1)

    def edit(self, step: Step) -> None:
        """Change the worktree of a slot."""
        work, number = self.works[step.slot], next(self.numbers)
        mine = [f"{SLOTS[step.slot]}-{name}" for name in ("x", "y")]
        text, own, other = TEXTS[step.which], mine[step.which], mine[1 - step.which]
        if step.act == "text":
            versions = list(work[text].versions)
            versions[step.slot] = number
            work[text] = File(tuple(versions))
        elif step.act == "fight":
            work[FOUGHT[step.which]] = File((number,))
        elif step.act == "drop":
            work.pop(FOUGHT[step.which], None)
        elif step.act == "own":
            work[own] = File((number,), own in work and work[own].executable)
        elif step.act == "mode" and own in work:
            work[own] = work[own]._replace(executable=not work[own].executable)
        elif step.act == "move" and own in work:
            work[other] = work.pop(own)
        elif step.act == "remove":
            work.pop(own, None)

    def changed(self, slot: int) -> set[str]:
        base, work = self.bases[slot], self.works[slot]
        return {name for name in {*base, *work} if base.get(name) != work.get(name)}

    def merged(self, slot: int, name: str) -> File | None:
        """Return what becomes of a changed file over trunk's.

        Raises:
            LookupError: they do not go together.
        """
        base, mine = self.bases[slot].get(name), self.works[slot].get(name)
        theirs = self.trunk.get(name)
        if theirs in (base, mine):
            return mine
        if mine is None or theirs is None or name not in TEXTS:
            raise LookupError(name)
        versions = list(theirs.versions)
        versions[slot] = mine.versions[slot]
        return File(tuple(versions))

    def commit(self, slot: int, names: set[str]) -> None:
        """Land *names* of a slot, all or none."""
        for name, file in {name: self.merged(slot, name) for name in names}.items():
            for tree in (self.trunk, self.bases[slot], self.works[slot]):
                put(tree, name, file)

    def update(self, slot: int) -> None:
        """Bring a slot to the tip, wholly or not at all."""
        base, work = self.bases[slot], self.works[slot]
        names = {*self.trunk, *base, *work}
        mine = self.changed(slot)
        after = {
            name: self.merged(slot, name) if name in mine else self.trunk.get(name)
            for name in names
        }
        for name, file in after.items():
            put(work, name, file)
        self.bases[slot] = dict(self.trunk)


def put(tree: Tree, name: str, file: File | None) -> None:
    if file is None:
        tree.pop(name, None)
    else:
        tree[name] = file


def write(top: Path, before: Tree, after: Tree) -> None:
    for name in {*before, *after}:
        if name not in after:
            (top / name).unlink()
        elif before.get(name) != after[name]:
            (top / name).write_bytes(after[name].content())
            (top / name).chmod(0o755 if after[name].executable else 0o644)


def found(top: Path) -> dict[str, tuple[bytes, bool]]:
    return {one.name: (one.read_bytes(), bool(one.stat().st_mode & 0o100)) for one in top.iterdir()}


def wanted(tree: Tree) -> dict[str, tuple[bytes, bool]]:
    return {name: (file.content(), file.executable) for name, file in tree.items()}


def on_trunk(root: str, directory: str) -> dict[str, tuple[str, bool]]:
    with Repository(f"{root}/.orchestrator/hub.fossil") as repository:
        files = repository.files(repository.tip().hash)
    prefix = f"{directory}/"
    return {
        path.decode().removeprefix(prefix): (entry.hash, entry.kind == "exec")
        for path, entry in files.items()
        if path.decode().startswith(prefix)
    }


def take(slot: Slot, model: Model, step: Step, directory: str) -> int:
    """Do *step* in the real slot and in the model; return how many check-ins it makes."""
    number = step.slot
    if step.act == "update":
        try:
            model.update(number)
        except LookupError:
            with pytest.raises(Conflicted):
                slot.update()
        else:
            slot.update()
        return 0
    if not step.act.startswith("commit"):
        before = dict(model.works[number])
        model.edit(step)
        write(Path(slot.worktree) / directory, before, model.works[number])
        return 0
    names = model.changed(number)
    paths = None
    if step.act == "commit-one" and names:
        names = {min(names)}
        paths = [f"{directory}/{name}" for name in names]
    if not names:
        with pytest.raises(Refused, match="nothing"):
            slot.commit("nothing")
        return 0
    before_trunk = dict(model.trunk)
    try:
        model.commit(number, names)
    except LookupError:
        with pytest.raises(Conflicted):
            slot.commit("a conflict", paths)
        return 0
    landed = slot.commit("a commit", paths)
    assert landed.slot == slot.name
    assert landed.new == (model.trunk != before_trunk)
    return int(landed.new)


def test_any_interleaving_of_slots_gives_the_trees_of_a_model(swarm_hub: Hub) -> None:
    slots = [swarm.join(swarm_hub.root, name) for name in SLOTS]
    repository = f"{swarm_hub.root}/.orchestrator/hub.fossil"
    runs = itertools.count()

    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(STEPS)
    def interleave(steps: list[Step]) -> None:
        directory = f"run-{next(runs)}"
        tree: Tree = {name: File((0, 0, 0)) for name in TEXTS}
        tree |= {name: File((0,)) for name in FOUGHT}
        top = Path(slots[0].worktree) / directory
        top.mkdir()
        write(top, {}, tree)
        slots[0].commit("a beginning")
        for slot in slots:
            slot.update()
        model = Model(tree)
        with Repository(repository) as opened:
            expected = len(opened.line())
        for step in steps:
            expected += take(slots[step.slot], model, step, directory)
            for slot, work in zip(slots, model.works, strict=True):
                assert found(Path(slot.worktree) / directory) == wanted(work)
            assert on_trunk(str(swarm_hub.root), directory) == {
                name: (artifact.of_bytes(file.content()), file.executable)
                for name, file in model.trunk.items()
            }
        with Repository(repository) as opened:
            assert len(opened.line()) == expected
            assert opened.forks() == 0
        for number, slot in enumerate(slots):  # leave nothing for the next run
            write(Path(slot.worktree) / directory, model.works[number], model.bases[number])
            slot.update()

    interleave()
