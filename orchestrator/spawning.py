"""Launching a holder.

Whoever launches takes the locks and opens the sockets, and hands both over: so a member that is
being launched is taken, can be asked, and the holder's death at any moment is news at once.
"""

from __future__ import annotations

import os
import signal
import sys

from foundation import codec, control
from foundation.atomic import remove
from foundation.errors import HubError, OwnedByAnother, Refused, Unavailable
from foundation.failpoint import hit
from foundation.record import Record
from foundation.spawn import spawn_daemon, spawn_filter
from foundation.workspace import MARK, SLOT_MARK
from orchestrator import protocol
from orchestrator.session import Session, reap
from orchestrator.store import Options, cluster_of
from orchestrator.wire import Wire
from owner import private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from orchestrator.store import Store

_PROGRAM = (
    "import os, sys; sys.path[:0] = [sys.argv.pop(1)]; "
    "from orchestrator.holder import run; os._exit(run())"  # no teardown: a stop waits for it
)
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LOG_BYTES = 1 << 20
_LAST_WORDS = 2000


class SpawnConfig(Record):
    """A holder to be launched."""

    names: tuple[str, ...]
    """Its members."""
    bound: bool = True
    """It ends with this process, or with its session; else it outlives both."""
    options: Options = Options()
    """Of those members that do not exist yet."""
    settings: dict[str, Any] = {}  # noqa: RUF012 - a record's default, never changed
    """What the holder is told besides, as JSON: ``boot_within_s``, ``stop_within_s``,
    ``request_within_s``, ``allow_ports`` (of this host's loopback, for the guests), …"""
    program: tuple[str, ...] = ()
    """Another program than ours to be the holder, with its first arguments."""


def spawn(store: Store, config: SpawnConfig) -> Session:
    """Launch a holder for ``config.names``; they are created if need be. Boots are not waited for.

    What is waited for is the holder's beginning: by then it is known to be of our version.

    Raises:
        Refused: a name or an option is wrong; there are too many (``network-full``).
        OwnedByAnother: a holder has one of them (``taken``), or its cluster's network
            (``cluster-running``), which more members join by :func:`control.add_member`.
        HubError: the holder did not begin; the message has its last words (``holder-died``), or
            its files cannot be written (``store``).
    """
    reap()
    if not config.names or len(set(config.names)) != len(config.names):
        raise Refused(f"{config.names!r}: names are needed, each once", reason="bad-name")
    for name in config.names:
        store.place(name)
    check_room(len(config.names), config.names[-1])
    config.options.check()
    launch = _Launch(store, config)
    try:
        try:
            launch.take()
            launch.open()
            session = launch.start()
        except OSError as error:
            raise HubError(f"no holder can be started: {error}", reason="store") from None
        _greet(session, launch)
    except BaseException:
        launch.close()
        if config.bound:  # else what it has said is kept
            take_back(store, launch.created)
        raise
    finally:
        launch.close()
    return session


def take_back(store: Store, created: Sequence[str]) -> None:
    """Delete what was created for a start that has failed, unless another has it by now."""
    for name in created:
        try:
            store.destroy(name)
        except (HubError, OSError):
            continue  # what is told is why it did not start


class _Launch:
    """The locks and sockets of a holder until it has them."""

    def __init__(self, store: Store, config: SpawnConfig) -> None:
        self._store = store
        self._config = config
        self._entered: dict[str, int] = {}
        self._clusters: dict[str, int] = {}
        self._locks: dict[str, int] = {}
        self._listeners: dict[str, int] = {}
        self.created: list[str] = []
        """Those that did not exist before."""
        self.wire: Wire | None = None
        self.log = store.place(config.names[0]).log
        self.log_start = 0

    def take(self) -> None:
        """Take every lock, in an order that all launchers keep to."""
        entered = self._store.enter()
        if entered is None:
            raise Unavailable(f"{self._store.directory} is being purged", reason="purged")
        self._entered[""] = entered
        for cluster in sorted({cluster_of(name) for name in self._config.names}):
            self._store.sweep(cluster)
            lock = self._store.take_cluster(cluster)
            if lock is None:
                raise self._taken(cluster)
            self._clusters[cluster] = lock
        for name in sorted(self._config.names):
            lock = self._store.take(name)
            if lock is None:
                raise taken(self._store, name)
            self._locks[name] = lock
        hit("spawn.locked")

    def _taken(self, cluster: str) -> OwnedByAnother:
        for name in self._config.names:
            wire = Wire.open(self._store.place(name).socket, name)
            if wire is not None:
                wire.close()
                return taken(self._store, name)
        return OwnedByAnother(
            f"cluster {cluster} has a holder: its other members can be added to that one",
            reason="cluster-running",
        )

    def open(self) -> None:
        """Create what does not exist, and listen.

        Raises:
            Refused: of several clusters, for one network, some have egress (``egress``).
        """
        options = self._config.options
        if len({self._store.egress_of(cluster, options) for cluster in self._clusters}) > 1:
            raise Refused(
                f"{', '.join(self._clusters)}: one network cannot both reach the internet and not",
                reason="egress",
            )
        for name in self._config.names:
            if not self._store.exists(name):
                self.created.append(name)
            self._store.create(name, self._config.options)
            hit("spawn.created")
            self._store.forget_end(name)
            remove(self._store.place(name).pidfile)  # of a holder that was killed
        for name in self._config.names:
            listener = control.listen(self._store.place(name).socket)
            self._listeners[name] = private.opened(listener.detach)
        hit("spawn.listening")
        first = self._config.names[0]
        self.wire = Wire.open(self._store.place(first).socket, first)

    def start(self) -> Session:
        """Start the process."""
        config = self._config
        program = config.program or (sys.executable, "-I", "-c", _PROGRAM, _HERE)
        files: dict[int, int] = {}
        opened = [os.open(os.devnull, os.O_RDONLY)]
        try:
            opened.append(_open_log(self.log))
            self.log_start = _size(self.log)
            files.update({0: opened[0], 1: opened[1], 2: opened[1]})
            environment = self._environment(files)
            argv = [*program, protocol.RUNNER_FLAG, ",".join(config.names)]
            if config.bound:
                child = spawn_filter(argv, env=environment, files=files)
                pid, pidfd = child.pid, private.opened(lambda: child.pidfd)
            else:
                pid = spawn_daemon(argv, env=environment, files=files)
                try:
                    pidfd = private.opened(lambda: os.pidfd_open(pid))
                except OSError:  # or it would run, and be told as one that does not
                    os.kill(pid, signal.SIGKILL)  # noqa: TID251 - our child, which nobody has reaped
                    raise
        finally:
            for fd in opened:
                os.close(fd)
        hit("spawn.launched")
        session = Session(config.names, pid, pidfd, bound=config.bound)
        session.created = tuple(self.created)
        return session

    def _environment(self, files: dict[int, int]) -> dict[str, str]:
        """Return the holder's environment; the descriptors it names are added to *files*."""

        def handed(fd: int) -> int:
            files[len(files)] = fd  # ascending, so that none is overwritten before it is moved
            return len(files) - 1

        options = {
            "v": protocol.PROTOCOL_VERSION,
            "store": self._store.directory,
            "clusters": {cluster: handed(fd) for cluster, fd in self._clusters.items()},
            "members": {
                name: [handed(self._locks[name]), handed(self._listeners[name])]
                for name in self._config.names
            },
            "settings": self._config.settings,
        }
        environment = {**os.environ, protocol.OPTIONS_VARIABLE: codec.dumps(options)}
        environment.pop(protocol.PARENT_VARIABLE, None)
        if not self._config.bound:
            environment.pop(SLOT_MARK, None)  # it outlives the slot from which it was started
        if workspace := self._config.settings.get("workspace"):
            environment[MARK] = str(workspace)
        if self._config.bound:
            environment[protocol.PARENT_VARIABLE] = str(os.getpid())
        return environment

    def has_ended_in_order(self) -> bool:
        """Tell whether the holder has begun, and has ended because no boot succeeded."""
        return all(self._store.ended(name) for name in self._config.names)

    def close(self) -> None:
        """Let go of what the holder has by now, or nobody."""
        for held in (self._listeners, self._locks, self._clusters, self._entered):
            while held:
                private.close(held.popitem()[1])


def _greet(session: Session, launch: _Launch) -> None:
    """Hear from the holder that it has begun, or why it has not."""
    launch.close()  # or the holder's death would not be the end of its sockets
    wire = launch.wire
    assert wire is not None
    try:
        session.greet(wire)
    except Unavailable as error:
        wire.close()
        if error.reason == "gone" and launch.has_ended_in_order():
            return
        session.kill()
        if error.reason != "gone":
            raise
        raise HubError(
            f"the holder of {', '.join(session.names)} ended before it began"
            f"{_last_words(launch.log, launch.log_start)}",
            reason="holder-died",
        ) from None
    except BaseException:
        wire.close()
        session.kill()
        raise
    hit("spawn.greeted")


def check_room(members: int, last: str) -> None:
    """Refuse a network of so many *members*, *last* among them, before anything is made for it.

    Raises:
        Refused: it has not so many addresses (``network-full``).
    """
    if members > protocol.MEMBERS:
        raise Refused(
            f"{last} would be member {members} of its network, which has {protocol.MEMBERS} "
            "addresses: begin another cluster",
            reason="network-full",
        )


def taken(store: Store, name: str) -> OwnedByAnother:
    """Return the error of a member that another has."""
    holder = store.holder_of(name)
    who = f"process {holder.pid}" if holder is not None else "another process"
    return OwnedByAnother(
        f"VM {name} is taken: {who} has it; attach to that one, or stop it", reason="taken"
    )


def _open_log(path: str) -> int:
    if _size(path) > _LOG_BYTES:
        os.rename(path, f"{path}.1")
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _last_words(path: str, start: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(start, _size(path) - _LAST_WORDS))
            said = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f"; its log:\n{said}" if said else f"; {path} is empty"
