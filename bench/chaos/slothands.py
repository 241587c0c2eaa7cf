"""Who does what in the campaign of the slots. Each is a process of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import closing
from typing import Any, NamedTuple

from bench.chaos import ledger, plan
from bench.chaos.ledger import EXEC, FILE, LINK, Ledger, Tree
from bench.chaos.witness import Entry, Witness, now_ns
from foundation import procfs
from foundation.errors import HubError
from foundation.process import Identity, has_exited, open_pidfd
from foundation.spawn import find_program, spawn_child
from foundation.workspace import MARK, SLOT_MARK, Workspace
from slotgc import base
from slotgc.hold import Claim, make_leaf_lock, swarm_lock
from slotgc.leaf import DEAD, LIVE, look, look_all, write_record

CHECKIN = "c" * 64
_TRUNK_WITHIN_S = 20.0
"""More than a writer is ever stopped."""
INSTANCE = "leaf.log"
"""In a slot's directory: which ledger tells of it."""
KEEP = "keep.txt"
"""A file that no leaf ever touches."""

TEMPLATE: Tree = {
    KEEP: (FILE, "never touched\n"),
    "a.txt": (FILE, "a\n"),
    "run.sh": (EXEC, "#!/bin/sh\n"),
    "link": (LINK, "a.txt"),
    "deep/er/b.txt": (FILE, "b\n"),
}
_PATHS = ["a.txt", "run.sh", "link", "deep/er/b.txt", "new.txt", "notes/n.md", "bin/tool"]

BORN, REVIVED, EDIT, COMMIT, PASS, REMOVED, RESCUED, FAILED, ENDED, SPARED, ABSENT, HELD = range(12)
SIGNALLED, FORGED, AGENT = range(12, 15)

FAILPOINTS = [
    "gc.judged",
    "gc.locked",
    "gc.renamed",
    "gc.taken",
    "gc.judged-again",
    "gc.recorded",
    "gc.thinning",
    "gc.thinned",
    "gc.removed",
    "gc.rescued",
]


class Scene(NamedTuple):
    """What all of them share."""

    workspace: Workspace
    place: str
    """Outside of the workspace: ledgers, complaints."""
    seed: int
    slots: int
    strangers: list[int]
    """Pids."""
    agents: list[Witness]
    gc: Any
    """The package under test: ``prune``, ``kill``."""


def put_on_trunk(repository: str, names: list[str]) -> None:
    """Have *repository* know the artifacts *names*, as a trunk does; made if there is none."""
    with closing(sqlite3.connect(repository, timeout=_TRUNK_WITHIN_S)) as trunk, trunk:
        trunk.execute("PRAGMA synchronous = OFF")
        trunk.execute("CREATE TABLE IF NOT EXISTS blob (uuid TEXT UNIQUE, size INTEGER)")
        trunk.executemany("INSERT OR IGNORE INTO blob VALUES (?, 1)", [(name,) for name in names])


class SlotHand(ABC):
    """One process of the campaign."""

    def __init__(self, scene: Scene, witness: Witness, number: int, turn: int) -> None:
        """Be number *number*, the *turn*-th to be it."""
        self.scene = scene
        self.workspace = scene.workspace
        self.number = number
        self.draw: random.Random = plan.stream(scene.seed, type(self).__name__, number, turn)
        self._witness = witness

    @abstractmethod
    def work(self) -> None:
        """Do what this kind of hand does."""

    def say(self, kind: int, value: int = 0) -> None:
        """Note that something happened, so many times."""
        self._witness.write(Entry(kind, os.getpid(), value, now_ns(), 0))

    def wrong(self, sentence: str) -> None:
        """Complain."""
        with open(f"{self.scene.place}/wrong-{self.number}", "a") as file:
            file.write(f"{type(self).__name__} {os.getpid()}: {sentence}\n")

    def pause(self, to_s: float) -> None:
        """Wait for a while."""
        time.sleep(self.draw.uniform(0, to_s))


class LeafHand(SlotHand):
    """Makes or revives a slot, works in it, and ends, if nobody ends it before."""

    def work(self) -> None:
        """Live once."""
        if self.draw.random() < 0.1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _try in range(10):
            name = f"s{self.draw.randrange(self.scene.slots)}"
            try:
                lock = self._enter(name)
            except (HubError, OSError):
                lock = None  # another was faster, or somebody is stopped with swarm.lock
            if lock is not None:
                self._live(name, lock)
                return
            self.pause(0.05)

    def _enter(self, name: str) -> int | None:
        """Return the leaf.lock of slot *name*, new or revived; None if its leaf is not dead."""
        self._directory = f"{self.workspace.swarm}/{name}"
        swarm = swarm_lock(self.workspace)
        try:
            if not os.path.lexists(self._directory):
                os.mkdir(self._directory, 0o700)
                return make_leaf_lock(self.workspace, name)
        finally:
            os.close(swarm)
        with Claim(self.workspace, name) as claim:
            if claim.leaf.state == DEAD or claim.leaf.abandoned:
                return claim.take()
        return None

    def _live(self, name: str, lock: int) -> None:
        self._lock = lock
        self._inode = os.stat(self._directory).st_ino
        self._ledger = self._open_ledger()
        self._worktree = f"{self._directory}/wt"
        if os.path.lexists(self._worktree):
            self._check_worktree()
            self.say(REVIVED)
        else:
            self._make_worktree()
            self.say(BORN)
        identity = Identity.of(os.getpid())
        assert identity is not None
        self._still_there()
        write_record(self._directory, identity)
        if self.draw.random() < 0.3:
            self._start_agent(name)
        for _step in range(self.draw.randrange(1, 80)):
            self._still_there()
            if self.draw.random() < 0.1:
                self._commit()
            else:
                self._edit()
            self.pause(0.03)
        if self.draw.random() < 0.5:
            self._commit()
        self._still_there()

    def _open_ledger(self) -> Ledger:
        path = f"{self._directory}/{INSTANCE}"
        try:
            with open(path) as file:
                instance = file.read()
        except FileNotFoundError:
            instance = ""
        if not instance:
            instance = f"{os.path.basename(self._directory)}-{uuid.uuid4().hex}"
            with open(f"{path}.new", "w") as file:
                file.write(instance)
            os.rename(f"{path}.new", path)
        return Ledger(f"{self.scene.place}/ledger/{instance}")

    def _still_there(self) -> None:
        """See that the directory is the one that was entered: nobody may take a live leaf's."""
        try:
            named = os.stat(f"{self._directory}/leaf.lock")
            there = os.path.samestat(named, os.fstat(self._lock))
            there = there and os.stat(self._directory).st_ino == self._inode
        except FileNotFoundError:
            there = False
        if not there:
            self.wrong(f"{self._directory} was taken away while its leaf lived")
            os._exit(0)

    def _check_worktree(self) -> None:
        found = ledger.scan(self._worktree)
        assert found is not None
        if not self._ledger.model.may_be(found):
            self.wrong(f"{self._worktree} is revived and has {found}, not what was written")
        self._ledger.found(found)

    def _make_worktree(self) -> None:
        if not self._ledger.model.may_lack:
            self.wrong(f"{self._worktree} is revived and has lost its worktree")
        new = f"{self._worktree}.new"
        shutil.rmtree(new, ignore_errors=True)
        for path, file in TEMPLATE.items():
            ledger.put(new, path, file)
        self._save(new)
        self._ledger.announce("make", tree=TEMPLATE)
        os.rename(new, self._worktree)
        self._ledger.confirm()

    def _edit(self) -> None:
        path = self.draw.choice(_PATHS)
        text = f"{os.getpid()} {now_ns()}\n" * self.draw.randrange(60)
        new = self.draw.choice([(FILE, text), (FILE, text), (EXEC, text), (LINK, "a.txt"), None])
        self._ledger.announce("put", path=path, file=new)
        ledger.put(self._worktree, path, new)
        self._ledger.confirm()
        self.say(EDIT)

    def _commit(self) -> None:
        """Save all: the campaign's trunk has it, by the word of the ledger."""
        self._ledger.announce("commit")
        self._save(self._worktree)
        self._ledger.confirm()
        self.say(COMMIT)

    def _save(self, worktree: str) -> None:
        """Put what *worktree* holds on trunk, which is told the names, and then into its base."""
        saved = base.index(worktree, checkin=CHECKIN)
        put_on_trunk(self.workspace.repository, [row[2] for row in saved.files.values()])
        base.write(f"{self._directory}/base.json", saved)

    def _start_agent(self, slot: str) -> None:
        """Run a process that carries our marks; it dies with its leaf."""
        null = os.open(os.devnull, os.O_RDWR)
        child = spawn_child(
            [find_program("sleep") or "sleep", "1000"],
            env={MARK: self.workspace.root, SLOT_MARK: slot},
            cwd="/",
            files={0: null, 1: null, 2: null},
        )
        os.close(null)
        self.scene.agents[self.number].write(Entry(AGENT, child.pid, 0, 0, 0))


class PrunerHand(SlotHand):
    """Cleans up, again and again; now and then it is killed at a step of its own choice."""

    def work(self) -> None:
        """Clean up until killed."""
        if self.draw.random() < 0.5:
            os.environ["HUB_FAILPOINT"] = (
                f"{self.draw.choice(FAILPOINTS)}@{self.draw.randrange(1, 4)}"
            )
        while True:
            try:
                pruned = self.scene.gc.prune(
                    self.workspace.root, clean_only=self.draw.random() < 0.2
                )
            except HubError as error:
                self._note(str(error))
            else:
                self.say(PASS)
                self.say(REMOVED, len(pruned.removed))
                self.say(RESCUED, len(pruned.rescued))
                for reason in pruned.failed.values():
                    self._note(reason)
            self.pause(0.05)

    def _note(self, reason: str) -> None:
        self.say(FAILED)
        with open(f"{self.scene.place}/failed", "a") as file:
            file.write(reason.replace("\n", " ") + "\n")


class KillerHand(SlotHand):
    """Asks for processes to be ended: leaves, agents, strangers, nobody."""

    def work(self) -> None:
        """Kill until killed."""
        while True:
            self.draw.choices(
                [self._leaf, self._agent, self._stranger, self._nobody], [6, 2, 4, 1]
            )[0]()
            self.pause(0.2)

    def _leaf(self) -> None:
        leaves = [leaf for leaf in look_all(self.workspace) if leaf.pid]
        if not leaves:
            return
        leaf = self.draw.choice(leaves)
        pidfd = open_pidfd(leaf.pid)
        if pidfd is None:
            return
        proved = leaf.state == LIVE and self._is_recorded(leaf.name, leaf.pid, pidfd)
        self._end(leaf.pid, pidfd, proved=proved)

    def _is_recorded(self, name: str, pid: int, pidfd: int) -> bool:
        """Tell by our own reading whether leaf.json names this very process, which lives."""
        try:
            with open(f"{self.workspace.swarm}/{name}/leaf.json") as file:
                identity = json.load(file)["identity"]
        except (OSError, ValueError):
            return False
        same = (identity["pid"], identity["start"]) == (pid, procfs.start_ticks(pid))
        same = same and identity["inode"] in (0, os.fstat(pidfd).st_ino)
        return same and not has_exited(pidfd)

    def _agent(self) -> None:
        last = self.draw.choice(self.scene.agents).last()
        pidfd = None if last is None else open_pidfd(last.pid)
        if last is None or pidfd is None:
            return
        environment = procfs.environment(last.pid) or []
        marked = f"{MARK}={self.workspace.root}".encode() in environment
        self._end(last.pid, pidfd, proved=marked and not has_exited(pidfd))

    def _end(self, pid: int, pidfd: int, *, proved: bool) -> None:
        try:
            if pid in self.scene.strangers:
                self._spare(pid)
                return
            if not proved and not has_exited(pidfd):
                return  # whoever has that number now: nothing is known, so nothing is asked
            gone = self.scene.gc.kill(pid, workspace_dir=self.workspace.root, grace_s=0.3)
            if proved and not (gone and has_exited(pidfd)):
                self.wrong(f"kill({pid}) of a live process of ours gave {gone} and left it alive")
            elif gone:
                self.say(ENDED)
        finally:
            os.close(pidfd)

    def _stranger(self) -> None:
        self._spare(self.draw.choice(self.scene.strangers))

    def _spare(self, pid: int) -> None:
        if self.scene.gc.kill(pid, workspace_dir=self.workspace.root, grace_s=0.3):
            self.wrong(f"kill({pid}) of a stranger says that it is gone")
        else:
            self.say(SPARED)

    def _nobody(self) -> None:
        for pid in (0, 1, -1, -os.getpid(), os.getpid(), os.getppid()):
            if self.scene.gc.kill(pid, workspace_dir=self.workspace.root, grace_s=0.3):
                self.wrong(f"kill({pid}) says that it is gone")
        self.say(ABSENT)


class HolderHand(SlotHand):
    """Works in dead slots by its working directory alone, as a person's shell does."""

    def work(self) -> None:
        """Go from slot to slot until killed."""
        while True:
            os.chdir("/")
            dead = [leaf.name for leaf in look_all(self.workspace) if leaf.state == DEAD]
            if dead:
                self._stay(f"{self.workspace.swarm}/{self.draw.choice(dead)}/wt")
            self.pause(0.05)

    def _stay(self, worktree: str) -> None:
        try:
            os.chdir(worktree)
        except OSError:
            return  # it has just gone
        self.say(HELD)
        until_s = time.monotonic() + self.draw.uniform(0.02, 1.0)
        while time.monotonic() < until_s:
            try:
                with open(KEEP) as file:
                    kept = file.read() == TEMPLATE[KEEP][1]
            except FileNotFoundError:
                kept = False
            if not kept:
                self.wrong(f"{worktree} was emptied under a process that works in it")
                return
            time.sleep(0.005)


class StrangerHand(SlotHand):
    """A process that nothing may touch: it waits for signals and complains of each."""

    def work(self) -> None:
        """Wait for ever."""
        everything = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        signal.pthread_sigmask(signal.SIG_BLOCK, everything)
        while True:
            received = signal.sigwaitinfo(everything)
            self.say(SIGNALLED, received.si_signo)
            self.wrong(f"a stranger got signal {received.si_signo} from pid {received.si_pid}")


class ForgerHand(SlotHand):
    """Leaves slots behind whose records name strangers, and some that name nobody."""

    def work(self) -> None:
        """Forge until killed."""
        made = 0
        while True:
            made += 1
            name = f"f{self.number}-{os.getpid()}-{made}"
            try:
                swarm = swarm_lock(self.workspace)
            except HubError:
                continue
            try:
                self._forge(f"{self.workspace.swarm}/{name}")
            finally:
                os.close(swarm)
            if look(self.workspace, name).state == LIVE:
                self.wrong(f"a forged slot {name} is taken for live")
            self.say(FORGED)
            self.pause(1.0)

    def _forge(self, directory: str) -> None:
        """Make a slot with unsaved work whose leaf is dead, its pid a stranger's by now."""
        stranger = self.draw.choice(self.scene.strangers)
        identity = Identity.of(stranger)
        if identity is None:
            return
        os.mkdir(directory, 0o700)
        instance = f"{os.path.basename(directory)}-{uuid.uuid4().hex}"
        with open(f"{directory}/{INSTANCE}", "w") as file:
            file.write(instance)
        empty = base.Base(checkin=CHECKIN, indexed_ns=time.time_ns(), files={})
        base.write(f"{directory}/base.json", empty)
        book = Ledger(f"{self.scene.place}/ledger/{instance}")
        book.announce("make", tree={})
        os.mkdir(f"{directory}/wt")
        book.confirm()
        for path in (KEEP, "a.txt"):
            book.announce("put", path=path, file=TEMPLATE[path])
            ledger.put(f"{directory}/wt", path, TEMPLATE[path])
            book.confirm()
        book.close()
        recycled = identity.replace(inode=identity.inode + 1, start=identity.start - 1)
        write_record(directory, recycled)
