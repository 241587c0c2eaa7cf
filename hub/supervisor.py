"""The hub itself: holds the lock, runs the servers, answers on the control socket.

One thread, no asyncio, no polling: it sleeps until a descriptor or a timer wakes it. If it is
killed the kernel kills its children, so that "no supervisor" means "nothing runs".
"""

from __future__ import annotations

import os
import time

from foundation import control
from foundation.clock import utc_now
from foundation.errors import HubError, Unavailable, to_wire
from foundation.failpoint import hit
from foundation.process import Identity
from foundation.record import Record
from foundation.spawn import describe_exit
from hub import discovery, ports
from hub.answers import Answers
from hub.child import Child, last_words
from hub.clients import Clients
from hub.discovery import Discovery
from hub.hold import NOTICED_WITHIN_S, Hold
from hub.info import HubInfo
from hub.lifecycle import hub_step
from hub.logs import HubLog, LogFile
from hub.reactor import Reactor
from hub.servers import Servers, repository_corrupt
from hub.signals import StopSignals

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any

    from foundation.workspace import Workspace
    from hub.child import Exit
    from hub.collection import Collection
    from hub.lifecycle import HubEvent, HubPhase
    from hub.outbox import Outbox
    from hub.preparation import Preparation
    from hub.registration import Registration

HEALTH_EVERY_S = NOTICED_WITHIN_S
PORT_ATTEMPTS = 5
"""How often a server that lost its port to another program gets a new one at start."""


class Options(Record):
    """What a start asked for."""

    fossil_port: int | None = None
    nats_port: int | None = None
    detached: bool = False


class Supervisor:
    """One run of a hub, from the lock to the last child reaped.

    What is public beside its methods is for :mod:`hub.answers`, which speaks for it.
    """

    def __init__(
        self,
        workspace: Workspace,
        options: Options,
        *,
        lock: int,
        listener: _socket.socket,
        on_ready: Callable[[HubInfo], None] | None = None,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        cancel: int | None = None,
    ) -> None:
        """Take over *lock* (a held descriptor of hub.lock) and *listener*, both closed at the end.

        *on_ready* is told once, when both servers answer, *on_progress* how a first start gets
        on; *cancel* is a descriptor that ends the hub when it becomes readable.
        """
        self.workspace = workspace
        self.options = options
        self.phase: HubPhase = "starting"
        self.failure: HubError | None = None
        self.info: HubInfo | None = None
        self._hold = Hold(workspace, lock)
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._cancel = cancel
        self._logs = {"hub": LogFile(f"{workspace.logs}/hub.log")}
        self._reactor = Reactor()
        self.log = HubLog(self._logs["hub"])
        self._answers = Answers(self)
        self.clients = Clients(self._reactor, listener, self._answers.serve)
        self.identity = _own_identity()
        self._previous = discovery.read(workspace)
        self._epoch = self._previous.epoch + 1 if self._previous else 1
        self._hub_id = self._previous.hub_id if self._previous else os.urandom(16).hex()
        self.servers = Servers(self._reactor, workspace, self._previous)
        self.children: dict[str, Child] = {}
        self.outbox: Outbox | None = None
        self._errand: Preparation | Collection | None = None
        self._registration: Registration | None = None
        self._port_attempts = 0
        self._stopping_because = ""
        self._began_s = time.monotonic()
        self._last_tick_s = self._began_s

    # --- the run ---------------------------------------------------------------------------

    def run(self) -> None:
        """Be the hub until it is told to stop.

        Raises:
            HubError: it could not start; nothing runs, and every client has been told.
        """
        signals = StopSignals(self._reactor, lambda number: self.stop(f"signal {number}"))
        try:
            if self._cancel is not None:
                self._reactor.watch(self._cancel, lambda _events: self._cancelled())
            self._reactor.call_later(0, self._begin)
            self._reactor.run()
        except BaseException as error:
            self.failure = HubError(f"the hub met a bug and ended: {error!r}", reason="bug")
            self.log.write("error", "bug", error=repr(error))
            raise
        finally:
            signals.mute()
            self._close()
            signals.restore()
        if self.failure is not None:
            raise self.failure

    def _cancelled(self) -> None:
        assert self._cancel is not None
        self._reactor.forget(self._cancel)
        self.stop("cancelled")

    def _step(self, event: HubEvent) -> None:
        self.phase = hub_step(self.phase, event)

    # --- starting --------------------------------------------------------------------------

    def _begin(self) -> None:
        self.log.write(
            "info", "starting", pid=os.getpid(), epoch=self._epoch, root=self.workspace.root
        )
        self._guarded(self._prepare)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step of the start; what it raises is the reason why there is no hub."""
        try:
            step()
        except HubError as error:
            self.fail(error)
        except OSError as error:
            from hub.place import explain  # noqa: PLC0415 - only for a failure

            self.fail(explain(error, self.workspace.state))

    def _prepare(self) -> None:
        self._hold.take_directory()
        hit("start.began")
        if discovery.remove_pids(self.workspace):  # a predecessor that was killed left them
            from hub.orphans import end_orphans  # noqa: PLC0415

            ended = end_orphans(self.workspace)
            self.log.write("warning", "predecessor-killed", ended=ended)
        self.servers.find()
        if self.servers.prepared():
            self._start_servers()
            return
        from hub.preparation import Preparation  # noqa: PLC0415 - a first start only

        self._errand = Preparation(
            self._reactor,
            self.workspace,
            self.servers.fossil,
            on_progress=self._progress,
            on_end=lambda error: self._guarded(lambda: self._prepared(error)),
        )

    def _progress(self, progress: dict[str, Any]) -> None:
        self.clients.progress(progress)
        if self._on_progress is not None:
            self._on_progress(progress)

    def _prepared(self, error: HubError | None) -> None:
        self._errand = None
        if self.phase == "draining":
            self._finish_if_drained()
            return
        if error is not None:
            raise error
        self._start_servers()

    def _start_servers(self) -> None:
        for pinned in (self.options.nats_port, self.options.fossil_port):
            if pinned is not None:
                self.servers.avoid(pinned)  # the other server's habit may be this very port
        for name in discovery.SERVERS:
            self._start_server(name)
        _load_rest()

    def _start_server(self, name: str) -> None:
        pinned = self.options.fossil_port if name == "fossil" else self.options.nats_port
        spec = self.servers.spec(name, pinned=pinned)
        if name not in self._logs:
            self._logs[name] = LogFile(f"{self.workspace.logs}/{name}.log")
        child = Child(self._reactor, spec, self._logs[name], self)
        self.children[name] = child
        child.spawn()
        discovery.write_pid(self.workspace, name, child.pid)
        hit(f"start.{name}-spawned")

    def child_ready(self, child: Child) -> None:
        """Take note that *child* serves; the last one to do so makes the hub ready."""
        name = child.spec.name
        self.log.write("info", "child-ready", child=name, pid=child.pid)
        if self.phase == "starting":
            if all(self.children[server].phase == "ready" for server in discovery.SERVERS):
                self._guarded(self._all_ready)
            return
        try:
            discovery.write_pid(self.workspace, name, child.pid)
        except OSError as error:  # a full disk, a removed directory: no reason to end
            self.log.write("error", "pid-not-written", child=name, error=str(error))
        if name in discovery.SERVERS:
            self._write_discovery()
        if child.restarts:
            down_ms = round((time.monotonic() - child.down_since_s) * 1000)
            self._event(
                "child-restarted",
                child=name,
                pid=child.pid,
                restarts=child.restarts,
                down_ms=down_ms,
            )
        self._answers.release_waiting()

    def _all_ready(self) -> None:
        hit("start.servers-ready")
        discovery.write_urls(self.workspace, self.servers.fossil_url, self.servers.nats_url)
        hit("start.urls-written")
        discovery.write_pid(self.workspace, "hub", os.getpid())
        started_at = utc_now()
        self.info = HubInfo(
            root=self.workspace.root,
            hub_id=self._hub_id,
            epoch=self._epoch,
            pid=os.getpid(),
            fossil_pid=self.children["fossil"].pid,
            nats_pid=self.children["nats"].pid,
            fossil_url=self.servers.fossil_url,
            nats_url=self.servers.nats_url,
            started_at=started_at,
        )
        self._write_discovery()
        hit("start.discovery-written")
        self._step("all-ready")
        hit("start.ready")
        took_ms = round((time.monotonic() - self._began_s) * 1000)
        self._answers.release_waiting()
        urls = f"fossil at {self.info.fossil_url}, nats at {self.info.nats_url}"
        self._notify(f"READY=1\nSTATUS={urls}")
        self.log.write(
            "info",
            "ready",
            took_ms=took_ms,
            fossil_url=self.info.fossil_url,
            nats_url=self.info.nats_url,
        )
        # What nobody waits for comes after readiness.
        self._reactor.call_later(0, lambda: self._after_ready(took_ms))

    def _after_ready(self, took_ms: int) -> None:
        if self.phase != "ready":
            return
        assert self.info is not None
        if self._on_ready is not None:
            self._on_ready(self.info)
        from hub.outbox import Outbox  # noqa: PLC0415 - loaded by _load_rest

        try:
            self.outbox = Outbox(self.workspace.outbox, epoch=self._epoch)
        except OSError as error:
            self.log.write("error", "outbox-unusable", error=str(error))
        self._event(
            "ready",
            fossil_url=self.info.fossil_url,
            nats_url=self.info.nats_url,
            pid=self.info.pid,
            took_ms=took_ms,
        )
        self._start_trunk()
        self._collect()
        self._register()
        self._last_tick_s = time.monotonic()
        self._reactor.call_later(HEALTH_EVERY_S, self._tick)

    def _start_trunk(self) -> None:
        """Start trunk; one that cannot be executed is retried and given up like any child."""
        try:
            log = self._logs["trunk"] = LogFile(f"{self.workspace.logs}/trunk.log")
        except OSError as error:
            self.log.write("error", "trunk-not-started", error=str(error))
            return  # the next tick tries again
        trunk = Child(self._reactor, self.servers.spec("trunk", pinned=None), log, self)
        self.children["trunk"] = trunk
        trunk.begin()

    def _register(self) -> None:
        """Stand in the machine-wide registry, again if somebody removed the entry."""
        if self._registration is None:
            from hub.registration import Registration  # noqa: PLC0415 - loaded by _load_rest

            assert self.info is not None
            self._registration = Registration(
                self.info, directory=self._hold.directory, identity=self.identity
            )
        wrong = self._registration.keep()
        if wrong:
            self.log.write("warning", "not-registered", error=wrong)

    def _collect(self) -> None:
        """Have clean dead slots removed; whatever becomes of it, the hub runs."""
        from hub import collection  # noqa: PLC0415 - loaded by _load_rest

        if not collection.is_needed(self.workspace):
            return
        try:
            self._errand = collection.Collection(
                self._reactor, self.workspace, on_end=self._collected
            )
        except OSError as error:
            self.log.write("error", "slots-not-collected", error=str(error))

    def _collected(self, report: dict[str, Any], wrong: str) -> None:
        self._errand = None
        if self.phase == "draining":
            self._finish_if_drained()
            return
        if wrong:
            self.log.write("error", "slots-not-collected", error=wrong)
        for slot, reason in report.get("failed", {}).items():
            self.log.write("error", "slot-not-removed", slot=slot, reason=reason)
        removed = report.get("removed", [])
        if removed:
            self.log.write("info", "slots-removed", slots=removed)
            self._event("slots-removed", slots=removed)

    def _write_discovery(self) -> None:
        assert self.info is not None
        children = {
            name: child.identity
            for name, child in self.children.items()
            if child.identity is not None
        }
        self.info = self.info.replace(
            fossil_pid=self.children["fossil"].pid, nats_pid=self.children["nats"].pid
        )
        record = Discovery(
            schema=discovery.SCHEMA,
            protocol=control.VERSION,
            hub_id=self._hub_id,
            epoch=self._epoch,
            root=self.workspace.root,
            directory=list(self._hold.directory),
            identity=self.identity,
            children=children,
            fossil_url=self.info.fossil_url,
            nats_url=self.info.nats_url,
            started_at=self.info.started_at,
            versions=self.servers.versions,
            tools=self.servers.tools,
        )
        try:
            record.write(self.workspace)
        except OSError as error:
            if self.phase == "starting":
                raise
            self.log.write("error", "discovery-not-written", error=str(error))

    # --- trouble ---------------------------------------------------------------------------

    def child_exited(self, child: Child, exit_: Exit) -> None:
        """Decide what the end of *child* means: a failed start, a restart, or the drain's end."""
        name = child.spec.name
        if exit_.phase == "draining":
            self._finish_if_drained()
            return
        if self.phase == "draining":
            self._finish_if_drained()
            return
        self.log.write(
            "warning",
            "child-exited",
            child=name,
            pid=exit_.pid,
            status=exit_.status,
            uptime_s=exit_.uptime_s,
        )
        if self.phase == "starting":
            self._guarded(lambda: self._start_failed(child, exit_))
            return
        if not self.still_here():  # a new process would write where another workspace may be now
            return
        self._event(
            "child-exited", child=name, pid=exit_.pid, status=exit_.status, uptime_s=exit_.uptime_s
        )
        if not child.retry():
            said = last_words(exit_)
            self.log.write("error", "failed", child=name, reason=said)
            self._event("failed", child=name, reason=said)
            self._answers.release_waiting()

    def _start_failed(self, child: Child, exit_: Exit) -> None:
        """A server died before the hub was ready: try another port, or give the reason."""
        name = child.spec.name
        port = self.servers.port(name)
        pinned = self.options.fossil_port if name == "fossil" else self.options.nats_port
        if self.servers.lost_port(name, exit_.output):
            if pinned is not None:
                raise ports.taken(name, port)
            self._port_attempts += 1
            if self._port_attempts < PORT_ATTEMPTS:
                self.servers.avoid(port)
                self._start_server(name)
                return
        if name == "fossil" and any(b"not a valid repository" in line for line in exit_.output):
            raise repository_corrupt(self.workspace.repository)
        raise HubError(
            f"{name} {describe_exit(exit_.status)} before it was ready: {last_words(exit_)}",
            reason=f"{name}-failed",
        )

    def _event(self, kind: str, **data: Any) -> None:
        if self.outbox is None:
            return
        if self.outbox.append(kind, data) == 0:
            self.log.write("error", "event-lost", kind=kind, error=self.outbox.error)
        trunk = self.children.get("trunk")
        if trunk is not None:
            trunk.wake()

    def _tick(self) -> None:
        """Look at what does not announce itself: a hung server, a workspace that is gone."""
        now_s = time.monotonic()
        late = now_s - self._last_tick_s > 2 * HEALTH_EVERY_S
        self._last_tick_s = now_s
        if self.phase != "ready":
            return
        self._reactor.call_later(HEALTH_EVERY_S, self._tick)
        if not self.still_here():
            return
        if "trunk" not in self.children:
            self._start_trunk()
        self._register()
        if not late:  # after SIGSTOP or a suspend everybody was asleep: no verdict
            for child in self.children.values():
                child.check_health()

    def still_here(self) -> bool:
        """Stop if the workspace was moved or deleted, or the lock file replaced."""
        gone = self._hold.lost()
        if gone:
            self.stop(gone)
            return False
        self.clients.listen_again(self.workspace.socket)
        return True

    # --- stopping --------------------------------------------------------------------------

    def fail(self, error: HubError) -> None:
        """Give up the start: drain, tell every waiting client why."""
        self.failure = error
        self.log.write("error", "start-failed", reason=error.reason, message=str(error))
        self.clients.release({"error": to_wire(error)})
        self.stop(str(error))

    def stop(self, reason: str) -> None:
        """Drain: end every child, then the loop. Once."""
        if self.phase == "draining":
            return
        self._step("stop")
        self._stopping_because = reason
        # The servers first: they take a millisecond to end, which the rest can use.
        for child in self.children.values():
            child.stop()
        if self._errand is not None:
            self._errand.cancel()
        self.log.write("info", "stopping", reason=reason)
        self._event("stopping", reason=reason)
        self._notify("STOPPING=1")
        hit("stop.draining")
        self.clients.release({"error": to_wire(self.stopping())})
        self._finish_if_drained()

    def _notify(self, state: str) -> None:
        """Tell the service manager, if this is its process: a detached hub is not."""
        if "NOTIFY_SOCKET" in os.environ and not self.options.detached:
            from hub import systemd  # noqa: PLC0415 - loaded by _load_rest

            systemd.notify(state)

    def stopping(self) -> Unavailable:
        """Return what whoever asks a hub that stops is told."""
        return Unavailable(f"the hub is stopping ({self._stopping_because})", reason="stopping")

    def _finish_if_drained(self) -> None:
        idle = all(child.pid == 0 for child in self.children.values())
        if self.phase == "draining" and idle and self._errand is None:
            self.log.write("info", "stopped")
            self._reactor.stop()

    def _close(self) -> None:
        for child in self.children.values():
            child.abandon()
        if self._errand is not None:
            self._errand.abandon()
        if self._hold.owns_files():
            try:
                discovery.remove_pids(self.workspace)
            except OSError as error:
                self.log.write("error", "pids-not-removed", error=str(error))
        hit("stop.pids-removed")
        if self._registration is not None:
            wrong = self._registration.withdraw()
            if wrong:
                self.log.write("warning", "not-withdrawn", error=wrong)
        hit("stop.unlocking")
        self._hold.release()  # before the clients see the end and try to start anew
        last_words = self.failure or self.stopping()
        self.clients.close({"error": to_wire(last_words)})
        if self.outbox is not None:
            self.outbox.close()
        for log in self._logs.values():
            log.close()
        self._reactor.close()


def _load_rest() -> None:
    """Import what is needed only later, in the time that the servers take to start.

    Before readiness nevertheless: an upgrade must not load new modules into a running hub.
    """
    from hub import collection, outbox, place, registration, showing, systemd  # noqa: F401, PLC0415
    from slotgc import slots  # noqa: F401, PLC0415


def _own_identity() -> Identity:
    identity = Identity.of(os.getpid())
    assert identity is not None
    return identity
