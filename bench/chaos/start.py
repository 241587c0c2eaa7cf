"""`bin/bench chaos start`: many hands on one hub.

Every hand starts, stops and asks at random, and sends junk to the socket; the conductor kills and
stops the hub, its children and the clients. Witnesses: a census of processes, which must never
show two hubs or two servers of a kind for longer than a death takes; and the answers, whose epochs
must never go back: no start or status may be answered by a hub after a later one has answered.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from bench.chaos import detect, plan
from bench.chaos.crew import Crew
from bench.chaos.stage import Stage, make_repository
from bench.chaos.verdict import Verdict
from bench.chaos.witness import Entry, Witness, now_ns
from foundation import procfs
from foundation.process import children_of, send_signal, wait_exit
from foundation.spawn import spawn_child
from foundation.workspace import Workspace
from hub import ports
from hub.stop import stop

ROOT = Path(__file__).resolve().parents[2]
HUB = str(ROOT / "bin" / "hub")
SERVERS = ("nats", "fossil", "trunk")

_SMOKE_S = 5.0
_LOOK_EVERY_S = 0.025
_DEATH_TAKES_S = 1.0
"""On a machine with far more to do than processors."""
_VERB_TAKES_S = 45.0
"""Longer than any deadline of a verb's own: one that is still there hangs."""

ANSWER, CALL, JUNK = range(3)

RATES = [
    plan.Rate("kill-hub", 0.5),
    plan.Rate("kill-server", 0.7),
    plan.Rate("kill-verb", 2.0),
    plan.Rate("stop-hub", 0.4, (0.05, 1.5)),
    plan.Rate("stop-server", 0.7, (0.05, 1.5)),
    plan.Rate("stop-verb", 1.5, (0.05, 1.0)),
]

ALLOWED = {"start": {0, 1, 75}, "stop": {0, 75}, "status": {0, 3, 4, 5}}
"""A start that another's stop or kill overtakes may fail, in words; a stop may meet a hub that is
stopped before it has said who it is."""


def main(arguments: list[str]) -> int:
    """Run the campaign; return 1 if a promise was broken."""
    options = plan.options(plan.parser("start", __doc__).parse_args(arguments), smoke_s=_SMOKE_S)
    verdict = Verdict("start", options)
    with Stage("start", _clear) as stage:
        Campaign(stage, options, verdict).run()
        verdict.look_into(stage)
    return verdict.report()


def _clear(place: Path) -> None:
    if (place / "work" / ".git").exists():
        stop(str(place / "work"), force=True)


class Resident(NamedTuple):
    """A process of the hub."""

    role: str
    pid: int
    pidfd: int


class Campaign:
    """One run."""

    def __init__(self, stage: Stage, options: plan.Options, verdict: Verdict) -> None:
        """Make the repository; start nothing."""
        files = {f"file{number}.txt": b"text\n" * 50 for number in range(20)}
        root = make_repository(stage.place / "work", files)
        self.stage = stage
        self.options = options
        self.verdict = verdict
        self.workspace = Workspace(str(root))
        self.witnesses = [
            Witness(int(1000 + options.seconds * 200)) for _ in range(options.processes)
        ]
        self.ports: set[int] = set()
        self._pairs: dict[tuple[Resident, Resident], float] = {}

    def run(self) -> None:
        """Begin, brawl, and look at what is left."""
        self._take_ports()
        first = Client(self, 0, 0)
        if first.start() is None:
            self.verdict.wrong("the first start failed, with nobody in its way")
            return
        with Crew(str(self.stage.place / "errors")) as crew:
            began = time.monotonic()
            until_s = began + self.options.seconds
            for number in range(self.options.processes):
                client = Client(self, number, until_s)
                crew.fork(number, 0, client.work)
            faults = plan.faults(
                self.options.seed, self.options.seconds, self.options.processes, RATES
            )
            for fault in faults:
                self._watch(crew, began + fault.at_s)
                self.verdict.figures[fault.what] += self._do(fault, crew)
            self._watch(crew, until_s)
            crew.freezer.thaw(everybody=True)
            while crew.hands and time.monotonic() < until_s + _VERB_TAKES_S:
                self._look()
                crew.ended()
                time.sleep(_LOOK_EVERY_S)
            if crew.hands:
                self.verdict.wrong(f"{len(crew.hands)} clients still wait for a verb's end")
        self._judge()
        self._end(first)

    def _take_ports(self) -> None:
        """Record free ports as if a hub had had them: no campaign meets another's defaults."""
        self.workspace.make_state()
        fossil, nats = ports.any_free(), ports.any_free()
        Path(self.workspace.fossil_url).write_text(f"http://127.0.0.1:{fossil}\n")
        Path(self.workspace.nats_url).write_text(f"nats://127.0.0.1:{nats}\n")

    def _watch(self, crew: Crew, until_s: float) -> None:
        """Look at the processes until *until_s* (monotonic)."""
        while (now := time.monotonic()) < until_s:
            self._look()
            crew.freezer.thaw()
            soonest = min(until_s, crew.freezer.next_s())
            time.sleep(max(0.0, min(_LOOK_EVERY_S, soonest - now)))

    def _look(self) -> None:
        """Note two of a kind that live side by side for longer than a death takes."""
        residents = self.residents()
        now = time.monotonic()
        living = {(r.role, r.pid): r for r in residents}
        pairs = {}
        for one, other in combinations(sorted(living), 2):
            if one[0] != other[0] or _is_fork(one[1], other[1]):
                continue
            pair = (Resident(*one, 0), Resident(*other, 0))
            pairs[pair] = since = self._pairs.get(pair, now)
            if now - since > _DEATH_TAKES_S:
                self.verdict.wrong(
                    f"two {one[0]} of one workspace for {now - since:.1f} s: "
                    f"pids {one[1]} and {other[1]}"
                )
        self._pairs = pairs
        self.verdict.figures["looks at the processes"] += 1
        for resident in residents:
            os.close(resident.pidfd)

    def residents(self) -> list[Resident]:
        """Return the hub's processes with open descriptors, which the caller closes."""
        found = []
        for pid, pidfd in self.stage.residents():
            role = self._role(pid)
            if role:
                found.append(Resident(role, pid, pidfd))
            else:
                os.close(pidfd)
        return found

    def _role(self, pid: int) -> str:
        """Return what *pid* is, by its command line and by what it has open."""
        words = procfs.command_line(pid) or []
        last = os.fsdecode(words[-1]) if words else ""
        try:
            leads = os.getpgid(pid) == pid  # fossil forks for every request
        except ProcessLookupError:
            return ""
        if leads and last == self.workspace.repository:
            return "fossil"
        if leads and last == f"{self.workspace.nats}/nats.conf":
            return "nats"
        if any(b"hub.trunk" in word for word in words):
            return "trunk"
        try:  # a client holds the lock, too, until it hands it on; only the hub leads a session
            if os.getsid(pid) != pid:
                return ""
        except ProcessLookupError:
            return ""
        return "hub" if self.workspace.lock in procfs.open_files(pid) else ""

    def _do(self, fault: plan.Fault, crew: Crew) -> bool:
        """Do *fault*; return whether there was anybody to do it to."""
        what, _dash, whom = fault.what.partition("-")
        if whom == "verb":
            hand = crew.hands.get(fault.whom)
            targets = {} if hand is None else children_of(hand.pid)
            open_fds = list(targets.values())
        else:
            role = "hub" if whom == "hub" else SERVERS[fault.whom % len(SERVERS)]
            residents = self.residents()
            open_fds = [resident.pidfd for resident in residents if resident.role == role]
            for resident in residents:
                if resident.role != role:
                    os.close(resident.pidfd)
        done = False
        for pidfd in open_fds:
            if what == "kill":
                done |= send_signal(pidfd, signal.SIGKILL)
            else:
                done |= crew.freezer.stop(pidfd, fault.for_s)
            os.close(pidfd)
        return done

    def _judge(self) -> None:
        """Read what the hands have said."""
        said = [entry for witness in self.witnesses for entry in witness]
        answers = [entry for entry in said if entry.kind == ANSWER]
        for sentence in (*detect.superseded(answers, answers), *detect.shared(answers, answers)):
            self.verdict.wrong(f"answers of hubs: {sentence}")
        figures = self.verdict.figures
        figures["verbs"] = sum(entry.kind == CALL for entry in said)
        figures["junk sent"] = sum(entry.kind == JUNK for entry in said)
        figures["answers"] = len(answers)
        figures["hubs that answered"] = len({entry.epoch for entry in answers})
        if any(witness.is_full for witness in self.witnesses):
            self.verdict.wrong("a witness was full: the campaign proves nothing")
        for path in sorted(self.stage.place.glob("wrong-*")):
            for sentence in path.read_text().splitlines():
                self.verdict.wrong(sentence)
        errors = self.stage.place / "errors"
        if errors.exists() and (text := errors.read_text()):
            self.verdict.wrong(f"a client failed: {text[-1500:]}")

    def _end(self, client: Client) -> None:
        """After the brawl a start works, and a stop leaves nothing."""
        pid = client.start()
        if pid is None:
            self.verdict.wrong("no start after the end of all faults")
        status, _out, err = client.call("stop", "--force", "--json")
        if status != 0:
            self.verdict.wrong(f"the last stop exited with {status}: {err.strip()}")
        deadline_s = time.monotonic() + _DEATH_TAKES_S
        while left := self.stage.residents():
            names = [b" ".join(procfs.command_line(pid) or []).decode() for pid, _fd in left]
            for _pid, pidfd in left:
                os.close(pidfd)
            if time.monotonic() > deadline_s:
                self.verdict.wrong(f"left behind by the last stop: {'; '.join(names)}")
                break
            time.sleep(_LOOK_EVERY_S)
        for path in (self.workspace.fossil_url, self.workspace.nats_url):
            port = int(Path(path).read_text().strip().rpartition(":")[2])
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    self.verdict.wrong(f"port {port} is still held after the last stop")
        if left_pids := os.listdir(self.workspace.pids):
            self.verdict.wrong(f"pid files after the last stop: {left_pids}")
        log = (Path(self.workspace.logs) / "hub.log").read_text(errors="replace")
        if "Traceback" in log:
            self.verdict.wrong(f"a traceback in hub.log: {log.partition('Traceback')[2][:1500]}")


def _is_fork(one: int, other: int) -> bool:
    """Tell whether one was forked by the other: it has its command line until it names itself."""
    return one in procfs.ancestors_of(other) or other in procfs.ancestors_of(one)


class Client:
    """One hand on the hub: a fork that runs verbs."""

    def __init__(self, campaign: Campaign, number: int, until_s: float) -> None:
        """Be hand *number* until *until_s* (monotonic)."""
        self._workspace = campaign.workspace
        self._place = campaign.stage.place
        self._witness = campaign.witnesses[number]
        self._number = number
        self._until_s = until_s
        self._draw = plan.stream(campaign.options.seed, "client", number)

    def work(self) -> None:
        """Do this and that until the end."""
        while time.monotonic() < self._until_s:
            what = self._draw.choices(["start", "stop", "status", "junk"], [8, 1, 6, 2])[0]
            if what == "start":
                self.start()
            elif what == "stop":
                self._checked("stop", "--json")
            elif what == "status":
                self._status()
            else:
                self._send_junk()
            time.sleep(self._draw.random() * 0.2)

    def start(self) -> int | None:
        """Start a hub, or attach; return its pid if there is one now."""
        before = now_ns()
        answer = self._checked("start", "--detach", "--json")
        if answer is None:
            return None
        self._witness.write(Entry(ANSWER, answer["pid"], answer["epoch"], before, now_ns()))
        return int(answer["pid"])

    def _status(self) -> None:
        before = now_ns()
        answer = self._checked("status", "--json")
        info = None if answer is None else answer["info"]
        if info is not None:
            self._witness.write(Entry(ANSWER, info["pid"], info["epoch"], before, now_ns()))

    def _checked(self, verb: str, *arguments: str) -> dict[str, Any] | None:
        """Run *verb*; return its data, None if it refused, in words, or was killed."""
        status, out, err = self.call(verb, *arguments)
        if status < 0:
            return None  # the conductor's doing
        if status not in ALLOWED[verb] or "Traceback" in err:
            self._wrong(f"hub {verb} exited with {status}: {out.strip()} {err.strip()}")
        try:
            answer: dict[str, Any] = json.loads(out)
        except ValueError:
            self._wrong(f"hub {verb} exited with {status} and said {out!r} {err!r}")
            return None
        data: dict[str, Any] | None = answer.get("data")
        if (data is None) != (status != 0) and verb != "status":
            self._wrong(f"hub {verb} exited with {status} and said {answer}")
        return data

    def call(self, verb: str, *arguments: str) -> tuple[int, str, str]:
        """Run *verb* to its end; return its exit status, stdout and stderr."""
        paths = [self._place / f"{stream}-{self._number}" for stream in ("out", "err")]
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        files = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, flags) for path in paths)]
        child = spawn_child(
            [HUB, verb, *arguments],
            env=os.environ,
            cwd=self._workspace.root,
            files=dict(enumerate(files)),
        )
        self._witness.write(Entry(CALL, child.pid, 0, 0, 0))
        if not wait_exit(child.pidfd, _VERB_TAKES_S):
            self._wrong(f"hub {verb} still runs after {_VERB_TAKES_S:g} s")
            send_signal(child.pidfd, signal.SIGKILL)
        _pid, status = os.waitpid(child.pid, 0)
        for fd in (*files, child.pidfd):
            os.close(fd)
        out, err = (path.read_text(errors="replace") for path in paths)
        return os.waitstatus_to_exitcode(status), out, err

    def _send_junk(self) -> None:
        content = self._draw.randbytes(self._draw.randrange(1, 5000))
        directory = os.open(self._workspace.state, os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(2)
                sock.connect(f"/proc/self/fd/{directory}/hub.sock")
                sock.sendall(content)
                self._witness.write(Entry(JUNK, 0, 0, 0, 0))
        except OSError:
            pass  # nobody listens just now, or it has hung up
        finally:
            os.close(directory)

    def _wrong(self, sentence: str) -> None:
        with (self._place / f"wrong-{self._number}").open("a") as file:
            file.write(sentence.replace("\n", " | ") + "\n")
