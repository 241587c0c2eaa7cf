"""`bin/bench chaos trunk`: sixteen committers while everything under them is killed.

Every round something is killed with SIGKILL: trunk, the Fossil server, nats-server, the hub itself
or a leaf; then the committers must come to land more by themselves (a leaf that was killed is
joined again, a hub that was killed started again, as the next verb would do). Two people commit
with stock ``fossil commit`` meanwhile. Witnesses: each committer's own file of what was
acknowledged to it, against the repository, read by SQLite and by stock Fossil: every acknowledged
check-in is on trunk, no work is there twice, trunk is one line, and Fossil finds it whole.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import swarm
from bench.chaos import plan
from bench.chaos.crew import Crew
from bench.chaos.stage import Stage, make_repository
from bench.chaos.verdict import Verdict
from foundation.errors import HubError
from foundation.process import send_signal
from foundation.workspace import Workspace
from hub import fossil as fossil_binary
from hub import ports
from hub.census import census
from hub.commits import Conflicted
from hub.start import start
from hub.stop import stop

_SMOKE_ROUNDS = 10
_CARRY_ON_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.02
_VERB_S = 60.0
STOCK = 2
VICTIMS = ("trunk", "fossil", "nats", "hub", "leaf")


def main(arguments: list[str]) -> int:
    """Run the campaign; return 1 if a promise was broken."""
    parser = plan.parser("trunk", __doc__)
    parser.add_argument("--rounds", type=int, metavar="N", help="how many kills [default: 200]")
    options = plan.options(parser.parse_args(arguments), smoke_s=1.0)
    rounds = options.rest.rounds or (_SMOKE_ROUNDS if options.smoke else 200)
    verdict = Verdict("trunk", options)
    with Stage("trunk", _clear) as stage:
        Campaign(stage, options, verdict, rounds).run()
        verdict.look_into(stage)
    return verdict.report()


def _clear(place: Path) -> None:
    if (place / "work" / ".git").exists():
        stop(str(place / "work"), force=True)


class Campaign:
    """One run."""

    def __init__(self, stage: Stage, options: plan.Options, verdict: Verdict, rounds: int) -> None:
        """Make the repository; start nothing."""
        files = {f"dir{n % 7}/file{n}.txt": b"line\n" * 50 for n in range(100)}
        self.root = str(make_repository(stage.place / "work", files))
        self.stage, self.options, self.verdict, self.rounds = stage, options, verdict, rounds
        self.workspace = Workspace(self.root)
        self.workspace.make_state()
        for path, port in (
            (self.workspace.fossil_url, f"http://127.0.0.1:{ports.any_free()}"),
            (self.workspace.nats_url, f"nats://127.0.0.1:{ports.any_free()}"),
        ):
            Path(path).write_text(f"{port}\n")

    def run(self) -> None:
        """Begin, kill, let them finish, and judge."""
        start(self.root, detach=True)
        draw = plan.stream(self.options.seed, "victims")
        with Crew(str(self.stage.place / "errors")) as crew:
            for number in range(self.options.processes):
                crew.fork(number, 0, Committer(self, number).work)
            for number in range(STOCK):
                crew.fork(self.options.processes + number, 0, Stock(self, number).work)
            self._until_more("the beginning", crew)
            for turn in range(self.rounds):
                victim = draw.choice(VICTIMS)
                time.sleep(draw.random() * 0.2)
                self.verdict.figures[f"kills of {victim}"] += self._kill(victim, draw.random())
                self._until_more(f"round {turn}, a kill of {victim}", crew)
                if self.verdict.violations:
                    break
            (self.stage.place / "enough").touch()
            deadline_s = time.monotonic() + 2 * _VERB_S
            while crew.hands and time.monotonic() < deadline_s:
                self._revive()
                crew.ended()
                time.sleep(_LOOK_EVERY_S)
            if crew.hands:
                self.verdict.wrong(f"{len(crew.hands)} committers do not come to an end")
        errors = self.stage.place / "errors"
        if errors.exists() and (text := errors.read_text()):
            self.verdict.wrong(f"a committer failed: {text[-1500:]}")
        self._revive()
        self.judge()

    def _kill(self, victim: str, where: float) -> bool:
        """Kill a process of that role; return whether there was one."""
        with census(self.root) as found:
            members = [member for member in found.of(self.root) if member.role == victim]
            members.sort(key=lambda member: member.pid)
            if not members:
                return False
            chosen = members[int(where * len(members))]
            return send_signal(chosen.pidfd, signal.SIGKILL)

    def _revive(self) -> None:
        """Start the hub if it was killed: what the next verb of anybody does."""
        try:
            start(self.root, detach=True)
        except HubError as error:
            self.verdict.figures[f"starts refused: {error.reason}"] += 1

    def _until_more(self, when: str, crew: Crew) -> None:
        """Wait until every second committer has landed something since now."""
        before = self._acknowledged()
        deadline_s = time.monotonic() + _CARRY_ON_WITHIN_S
        began_s = time.monotonic()
        while True:
            self._revive()
            now = self._acknowledged()
            moved = sum(now[number] > before[number] for number in range(self.options.processes))
            if 2 * moved >= self.options.processes:
                break
            if len(crew.hands) < self.options.processes + STOCK and not self._enough():
                self.verdict.wrong(f"{when}: a committer has ended")
                crew.ended()
                return
            if time.monotonic() > deadline_s:
                self.verdict.wrong(
                    f"{when}: after {_CARRY_ON_WITHIN_S:g} s only {moved} committers carry on"
                )
                return
            time.sleep(_LOOK_EVERY_S)
        took_ms = int((time.monotonic() - began_s) * 1000)
        figures = self.verdict.figures
        figures["longest until half carry on, ms"] = max(
            figures["longest until half carry on, ms"], took_ms
        )

    def _enough(self) -> bool:
        return (self.stage.place / "enough").exists()

    def _acknowledged(self) -> Counter[int]:
        counts: Counter[int] = Counter()
        for number in range(self.options.processes):
            try:
                counts[number] = os.path.getsize(self.book(number))
            except FileNotFoundError:
                pass
        return counts

    def book(self, number: int) -> str:
        """Return where committer *number* notes what was acknowledged."""
        return str(self.stage.place / f"book-{number}")

    def judge(self) -> None:
        """Compare what was acknowledged with what is on trunk."""
        figures = self.verdict.figures
        with closing(sqlite3.connect(self.workspace.repository)) as database:
            rows = database.execute(
                "SELECT blob.uuid, coalesce(ecomment, comment), coalesce(euser, user) "
                "FROM event JOIN blob ON rid = objid WHERE type = 'ci'"
            ).fetchall()
            leaves = database.execute("SELECT count(*) FROM leaf").fetchone()[0]
            forks = database.execute(
                "SELECT count(*) FROM (SELECT pid FROM plink WHERE isprim GROUP BY pid "
                "HAVING count(*) > 1)"
            ).fetchone()[0]
            phantoms = database.execute("SELECT count(*) FROM phantom").fetchone()[0]
        if (leaves, forks, phantoms) != (1, 0, 0):
            self.verdict.wrong(f"trunk has {leaves} leaves, {forks} forks, {phantoms} phantoms")
        on_trunk = {uuid: (comment, user) for uuid, comment, user in rows}
        comments = Counter(comment for _uuid, comment, _user in rows)
        figures["check-ins"] = len(rows)
        figures["of stock fossil"] = sum(text.startswith("stock ") for text in comments)
        for number in range(self.options.processes):
            for line in Path(self.book(number)).read_text().splitlines():
                uuid, message = line.split(" ", 1)
                figures["acknowledged"] += 1
                if on_trunk.get(uuid) != (message, f"slot-{number}"):
                    self.verdict.wrong(f"acknowledged, but trunk has {on_trunk.get(uuid)}: {line}")
        for comment, times in comments.items():
            if times > 1:
                self.verdict.wrong(f"{times} check-ins of one commit: {comment}")
        self._compare_files()
        said = _fossil("test-integrity", "-R", self.workspace.repository, cwd=self.root)
        if "0 errors" not in said and "ok" not in said:
            self.verdict.wrong(f"fossil test-integrity: {said[-300:]}")

    def _compare_files(self) -> None:
        """Check stock Fossil's idea of the tip against the last thing each committer landed."""
        for number in range(self.options.processes):
            lines = Path(self.book(number)).read_text().splitlines()
            if not lines:
                continue
            last = int(lines[-1].rsplit(" ", 1)[1])
            shown = _fossil(
                "cat", "-R", self.workspace.repository, "-r", "tip", f"slot-{number}.txt",
                cwd=self.root,
            )  # fmt: skip
            there = int(shown.split()[0]) if shown.split() else -1
            if there < last:
                self.verdict.wrong(f"slot-{number}.txt is {there} at the tip, {last} was landed")


def _fossil(*arguments: str, cwd: str) -> str:
    done = subprocess.run(
        [fossil_binary.find(), *arguments], cwd=cwd, check=False, capture_output=True, text=True,
        env={**os.environ, **fossil_binary.environment(cwd)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout + done.stderr


class Committer:
    """One agent: a counter in a file of its own, and a line in a file that all of them edit."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        """Be committer *number*."""
        self._campaign = campaign
        self._number = number
        self._book = -1

    def work(self) -> None:
        """Commit until it is enough, whatever happens below."""
        self._book = os.open(
            self._campaign.book(self._number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        slot = self._persist(self._join)
        turn = 0
        while not (self._campaign.stage.place / "enough").exists():
            turn += 1
            top = Path(slot.worktree)
            message = f"slot-{self._number} turn {turn}"
            own = top / f"slot-{self._number}.txt"
            own.write_text(f"{turn} {os.urandom(20).hex()}\n")
            while True:
                try:
                    landed = slot.commit(message, [own.name.encode()], timeout_s=_VERB_S)
                    break
                except Conflicted:
                    raise
                except (HubError, OSError) as error:
                    if isinstance(error, HubError) and error.reason == "nothing-to-commit":
                        landed = None  # the one before the kill landed, and the leaf knows it
                        break
                    slot = self._persist(self._join)
            if landed is not None and landed.new and landed.message == message:
                os.write(self._book, f"{landed.checkin} {message}\n".encode())

    def _join(self) -> swarm.Slot:
        return swarm.join(self._campaign.root, f"slot-{self._number}", timeout_s=_VERB_S)

    def _persist(self, act: Callable[[], swarm.Slot]) -> swarm.Slot:
        """Do *act* until it works: the hub may just be dead."""
        deadline_s = time.monotonic() + _VERB_S
        while True:
            try:
                return act()
            except (HubError, OSError):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_LOOK_EVERY_S)


class Stock:
    """Somebody with stock Fossil in a check-out of their own, opened on the trunk itself."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        """Be person *number*."""
        self._campaign = campaign
        self._number = number

    def work(self) -> None:
        """Update and commit until it is enough; a refusal is tried again."""
        place = self._campaign.stage.place / f"stock-{self._number}"
        place.mkdir()
        cwd = str(place)
        _fossil("open", "--nested", self._campaign.workspace.repository, cwd=cwd)
        turn = 0
        while not (self._campaign.stage.place / "enough").exists():
            turn += 1
            (place / f"stock-{self._number}.txt").write_text(f"{turn}\n")
            _fossil("add", f"stock-{self._number}.txt", cwd=cwd)
            _fossil("update", cwd=cwd)
            message = f"stock {self._number} turn {turn}"
            _fossil(
                "commit", "--no-warnings", "--user-override", "operator", "-m", message, cwd=cwd
            )
            time.sleep(0.3)
