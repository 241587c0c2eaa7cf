"""One supervised server: started, proved ready, watched, restarted, drained."""

from __future__ import annotations

import os
import time

from foundation.process import Identity, signal_group
from foundation.record import Record
from foundation.spawn import spawn_child
from hub import restart
from hub.lifecycle import child_step
from hub.logs import Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    from hub.lifecycle import ChildEvent, ChildPhase
    from hub.logs import LogFile
    from hub.probe import Probe
    from hub.reactor import Reactor, Timer

    class Owner(Protocol):
        """Who is told of a child's life."""

        def child_ready(self, child: Child) -> None:
            """It answers for this workspace."""

        def child_exited(self, child: Child, exit_: Exit) -> None:
            """It is gone, reaped, and its process group with it."""


READY_WITHIN_S = 10.0
DRAIN_WITHIN_S = 5.0
HEALTH_TIMEOUT_S = 2.0
HEALTH_MISSES = 3
_TAIL_LINES = 20


class ChildSpec(Record):
    """How to run one server and how to tell that it serves."""

    name: str
    argv: list[str]
    env: Mapping[str, str]
    cwd: str
    ready_line: bytes
    """A line with this, on the child's own pipe, says that it is worth asking. Nobody else
    can write to that pipe, so the answer is our child's."""
    probe: Callable[[float, Callable[[str], None]], Probe] | None
    """``probe(timeout_s, done)`` asks it; ``done("")`` = it serves, else what is wrong.
    None: the line alone is readiness."""
    woken: bool = False
    """It is given a pipe as standard input, for :meth:`Child.wake`."""


class Exit(Record):
    """How a child ended."""

    pid: int
    status: int
    """Exit status; negative: a signal."""
    phase: str
    """What it was doing."""
    uptime_s: float
    ready_for_s: float | None
    output: list[bytes]
    """Its last lines."""


def last_words(exit_: Exit | None) -> str:
    """Return what it said before it ended, in a line."""
    lines = (
        [] if exit_ is None else [line.decode(errors="replace") for line in exit_.output if line]
    )
    return " | ".join(lines[-3:]) or "it said nothing"


class Child:
    """The life of one server over all its processes; the table is :data:`lifecycle.CHILD`."""

    def __init__(self, reactor: Reactor, spec: ChildSpec, log: LogFile, owner: Owner) -> None:
        """Start nothing yet."""
        self.spec = spec
        self.phase: ChildPhase = "down"
        self.identity: Identity | None = None
        self.restarts = 0
        self.last_exit: Exit | None = None
        self.ready_at_s = 0.0
        self.down_since_s = 0.0
        self._reactor = reactor
        self._log = log
        self._owner = owner
        self._history = restart.History()
        self._pid = 0
        self._pidfd = -1
        self._spawned_at_s = 0.0
        self._output: list[bytes] = []
        self._pump: Pump | None = None
        self._stdin = -1
        self._probe: Probe | None = None
        self._timer: Timer | None = None
        self._misses = 0

    @property
    def pid(self) -> int:
        """The pid of the running process, 0 if there is none."""
        return self._pid

    def _step(self, event: ChildEvent) -> None:
        self.phase = child_step(self.phase, event)

    def spawn(self) -> None:
        """Run a new process for it.

        Raises:
            OSError: the program cannot be executed.
        """
        self._reactor.cancel(self._timer)
        out_read, out_write = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        in_read, self._stdin = os.pipe() if self.spec.woken else (null, -1)
        try:
            started = spawn_child(
                self.spec.argv,
                env=self.spec.env,
                cwd=self.spec.cwd,
                files={0: in_read, 1: out_write, 2: out_write},
            )
        except BaseException:
            os.close(out_read)
            self._close_stdin()
            raise
        finally:
            for fd in {null, in_read, out_write}:
                os.close(fd)
        self._pid, self._pidfd = started.pid, started.pidfd
        try:
            if self._stdin >= 0:
                os.set_blocking(self._stdin, False)
            self.identity = Identity.of_pidfd(self._pid, self._pidfd)
            self._pump = Pump(self._reactor, out_read, self._log, self._line)
            self._reactor.watch(self._pidfd, lambda _events: self._exited())
        except OSError:  # out of descriptors or memory: not half a child
            if self._pump is None:
                os.close(out_read)
            self.abandon()
            raise
        self._step("spawned")
        self._spawned_at_s = time.monotonic()
        self._output = []
        self._misses = 0
        self._timer = self._reactor.call_later(READY_WITHIN_S, self._not_ready)

    def _line(self, line: bytes) -> None:
        self._output = [*self._output[1 - _TAIL_LINES :], line]
        if self.phase == "starting" and self._probe is None and self.spec.ready_line in line:
            if self.spec.probe is None:
                self._ready()
            else:
                self._ask(READY_WITHIN_S, self._first_answer)

    def _ask(self, timeout_s: float, done: Callable[[str], None]) -> None:
        assert self.spec.probe is not None
        try:
            self._probe = self.spec.probe(timeout_s, done)
        except OSError as error:  # out of descriptors or memory
            done(str(error))

    def _first_answer(self, error: str) -> None:
        self._probe = None
        if not error:
            self._ready()
        else:
            self._output.append(b"readiness probe: " + error.encode())
            self._kill(9)

    def _ready(self) -> None:
        self._reactor.cancel(self._timer)
        self._step("probed")
        self.ready_at_s = time.monotonic()
        self._owner.child_ready(self)

    def _not_ready(self) -> None:
        self._output.append(f"not ready after {READY_WITHIN_S:g} s".encode())
        self._kill(9)

    def _kill(self, number: int) -> None:
        """Signal the whole group: fossil forks a process per request."""
        if self._pid:  # 0 would be our own group
            signal_group(self._pid, number)

    def _exited(self) -> None:
        """Reap the process; the exit's own news."""
        # Before the reaping: until then nobody else can have this group's number.
        self._kill(9)
        _pid, wait_status = os.waitpid(self._pid, 0)
        self._reactor.forget(self._pidfd)
        os.close(self._pidfd)
        self._reactor.cancel(self._timer)
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        phase = self.phase
        self._step("exited")  # first: a ready line left in the pipe must mean nothing
        assert self._pump is not None
        self._pump.finish()
        self._pump = None
        self._close_stdin()
        now_s = time.monotonic()
        exit_ = Exit(
            pid=self._pid,
            status=os.waitstatus_to_exitcode(wait_status),
            phase=phase,
            uptime_s=round(now_s - self._spawned_at_s, 3),
            ready_for_s=now_s - self.ready_at_s if phase == "ready" else None,
            output=self._output,
        )
        self._pid, self._pidfd, self.identity = 0, -1, None
        self.down_since_s = now_s
        self.last_exit = exit_
        self._owner.child_exited(self, exit_)

    def begin(self) -> None:
        """Start it; if it cannot even be executed, that is an exit like any other."""
        self._respawn()

    def retry(self) -> bool:
        """Start it again, now or after a delay; return False if it is a crash loop."""
        assert self.last_exit is not None
        spread = int.from_bytes(os.urandom(2), "big") / 32767.5 - 1
        self._history, delay_s = restart.after_exit(
            self._history,
            now_s=time.monotonic(),
            ready_for_s=self.last_exit.ready_for_s,
            spread=spread,
        )
        if delay_s is None:
            self._step("gave-up")
            return False
        self.restarts += 1
        if delay_s == 0.0:
            self._respawn()
            return True
        self._step("delayed")
        self._timer = self._reactor.call_later(delay_s, self._respawn)
        return True

    def _respawn(self) -> None:
        try:
            self.spawn()
        except OSError as error:
            # The binary went away: as an exit that counts, or the loop would never end.
            if self.phase == "waiting":
                self._step("exited")
            self.last_exit = Exit(
                pid=0,
                status=127,
                phase="starting",
                uptime_s=0.0,
                ready_for_s=None,
                output=[str(error).encode()],
            )
            self._owner.child_exited(self, self.last_exit)

    def revive(self) -> None:
        """Start a failed child again, with a clean history, because a person asked."""
        self._history = restart.History()
        self.spawn()

    def check_health(self) -> None:
        """Ask it; HEALTH_MISSES missed answers in a row and it is ended, to be restarted."""
        if self.phase != "ready" or self.spec.probe is None or self._probe is not None:
            return
        self._ask(HEALTH_TIMEOUT_S, self._health_answer)

    def _health_answer(self, error: str) -> None:
        self._probe = None
        self._misses = self._misses + 1 if error else 0
        if self._misses >= HEALTH_MISSES:
            self._output.append(f"unhealthy: {error}".encode())
            self._kill(15)
            self._timer = self._reactor.call_later(HEALTH_TIMEOUT_S, lambda: self._kill(9))

    def stop(self) -> None:
        """Drain it: SIGTERM, SIGKILL after DRAIN_WITHIN_S; the exit comes as any other."""
        if self.phase == "draining":
            return
        had_process = self._pid != 0
        self._step("stop")
        self._reactor.cancel(self._timer)
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        if had_process:
            self._kill(15)
            self._timer = self._reactor.call_later(DRAIN_WITHIN_S, lambda: self._kill(9))

    def abandon(self) -> None:
        """Kill and reap what still runs, with no word to the owner: the loop has ended.

        Nothing runs then but after a bug, and even a bug must leave no process behind.
        """
        if not self._pid:
            return
        self._kill(9)
        os.waitpid(self._pid, 0)
        self._reactor.forget(self._pidfd)
        os.close(self._pidfd)
        self._reactor.cancel(self._timer)
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        if self._pump is not None:
            self._pump.finish()
            self._pump = None
        self._close_stdin()
        self._pid, self._pidfd, self.identity = 0, -1, None

    def wake(self) -> None:
        """Write a newline to its standard input; a child that does not read is not waited for."""
        if self._stdin >= 0:
            try:
                os.write(self._stdin, b"\n")
            except OSError:
                pass  # full: it has been woken; broken: its exit is on the way

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def as_dict(self) -> dict[str, Any]:
        """Return what `hub status` shows of it."""
        now_s = time.monotonic()
        return {
            "name": self.spec.name,
            "phase": self.phase,
            "pid": self._pid,
            "restarts": self.restarts,
            "uptime_s": round(now_s - self._spawned_at_s, 3) if self._pid else 0.0,
            "last_exit": None if self.last_exit is None else self.last_exit.status,
        }
