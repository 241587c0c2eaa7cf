"""What is on disk of VMs, and who may touch it.

``<directory>/<cluster>/<member>/`` holds ``config.json`` (the options, frozen), ``disk.raw``,
``console.log``, ``ended.json`` (why it is not up, if that is an error), ``holder.log`` (of the
holder that was launched for it) and, while a holder has it, ``holder.pid`` and ``holder.sock``.
Who holds ``holder.lock`` (flock) has the member; who holds the cluster's directory (flock too) has
the cluster's network. A holder keeps both for its life, and the kernel frees them at its end.

A member exists when it has a config.json. Nothing but :meth:`Store.destroy` deletes a disk.
"""

from __future__ import annotations

import fcntl
import os
import time

from foundation import codec
from foundation.atomic import read_bounded, remove, write_file
from foundation.clock import utc_now
from foundation.errors import Corrupt, HubError, OwnedByAnother, Refused
from foundation.failpoint import hit
from foundation.process import Identity
from foundation.record import Record
from orchestrator.config import Config, Options, check_name, cluster_of, has_form, in_order
from owner import private
from slotgc.removal import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from foundation.workspace import Workspace

__all__ = ["Config", "Options", "Place", "Store", "check_name", "cluster_of", "in_order", "no_such"]

_SCHEMA = 1
_RECORD_BYTES = 64 * 1024
_GONE = ".gone-"
MOMENTARY_S = 0.2
"""Who makes or destroys a member has its lock for a moment; longer is a holder."""
RETRY_S = 0.005


class Place(Record):
    """Where a member's files are."""

    directory: str
    config: str
    disk: str
    console: str
    ended: str
    log: str
    pidfile: str
    lock: str
    socket: str


class Store:
    """The VMs below one directory. Holds no open file."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Name the directory; :meth:`make` makes it."""
        self.directory = os.path.abspath(os.fspath(directory))

    @classmethod
    def of_workspace(cls, workspace: Workspace) -> Store:
        """Return the store of *workspace*, whose state has been made."""
        return cls(f"{workspace.state}/vms")

    def make(self) -> None:
        """Make the directory, private; what is above it is made too.

        Raises:
            OSError: it cannot be made.
        """
        os.makedirs(self.directory, mode=0o700, exist_ok=True)

    def place(self, name: str) -> Place:
        """Return where member *name* is, or would be.

        Raises:
            Refused: no member can be called so (``bad-name``).
        """
        directory = f"{self._cluster(cluster_of(check_name(name)))}/{name}"
        return Place(
            directory=directory,
            config=f"{directory}/config.json",
            disk=f"{directory}/disk.raw",
            console=f"{directory}/console.log",
            ended=f"{directory}/ended.json",
            log=f"{directory}/holder.log",
            pidfile=f"{directory}/holder.pid",
            lock=f"{directory}/holder.lock",
            socket=f"{directory}/holder.sock",
        )

    def _cluster(self, cluster: str) -> str:
        return f"{self.directory}/{cluster}"

    # --- what is there ---------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Tell whether there is a member *name*."""
        return os.path.exists(self.place(name).config)

    def clusters(self) -> list[str]:
        """Return the clusters that have members."""
        return in_order({cluster_of(name) for name in self.members()})

    def members(self, cluster: str = "") -> list[str]:
        """Return the members, all or those of *cluster*, as people count."""
        found = set()
        for each in [cluster] if cluster else _names_in(self.directory):
            for name in _names_in(self._cluster(each)):
                if has_form(name) and cluster_of(name) == each and self.exists(name):
                    found.add(name)
        return in_order(found)

    def config(self, name: str) -> Config:
        """Return what member *name* was created with.

        Raises:
            Refused: there is no such member (``no-such-vm``).
            Corrupt: its config.json is not what was written (``config``).
        """
        path = self.place(name).config
        try:
            value = codec.loads_object(read_bounded(path, _RECORD_BYTES))
            if value.pop("schema") != _SCHEMA or value.pop("name") != name:
                raise ValueError("of another version, or of another VM")
            created_at = str(value.pop("created_at"))
            return Config(name=name, options=Options.from_json(value), created_at=created_at)
        except FileNotFoundError:
            raise no_such(name) from None
        except (OSError, ValueError, KeyError, Refused) as error:
            raise Corrupt(
                f"{path} is not what was written there: {error!r}; the disk beside it is untouched",
                reason="config",
            ) from None

    def egress(self, cluster: str) -> bool | None:
        """Return whether *cluster* was created to reach the internet; None: it has no members.

        If none of them can say it any more, it was not.
        """
        found, is_damaged = [], False
        for name in self.members(cluster):
            try:
                found.append(self.config(name).options.egress)
            except Refused:  # destroyed meanwhile
                continue
            except Corrupt:
                is_damaged = True
        if found:
            return all(found)
        return False if is_damaged else None

    def egress_of(self, cluster: str, options: Options) -> bool:
        """Return whether a new member of *cluster*, asked for with *options*, has egress."""
        created = self.egress(cluster)
        return options.egress if created is None else created

    def holder_of(self, name: str) -> Identity | None:
        """Return who holder.pid of *name* names, None if there is none."""
        try:
            text = read_bounded(self.place(name).pidfile, _RECORD_BYTES)
            return Identity.from_json(codec.loads(text), init=True)
        except (OSError, ValueError):
            return None

    def ended(self, name: str) -> dict[str, Any]:
        """Return ``{"error", "reason"}`` of a member that is not up by an error, else ``{}``."""
        try:
            return codec.loads_object(read_bounded(self.place(name).ended, _RECORD_BYTES))
        except (OSError, ValueError):
            return {}

    # --- making ----------------------------------------------------------------------------

    def enter(self) -> int | None:
        """Return a descriptor with which holders may be launched, None during a purge.

        It is kept until the holder has its locks. As :meth:`take`.
        """
        return self._enter(fcntl.LOCK_SH)

    def close_off(self) -> int | None:
        """Return a descriptor while which is open no holder is launched, None if one just is."""
        return self._enter(fcntl.LOCK_EX)

    def _enter(self, operation: int) -> int | None:
        def opened() -> int:
            self.make()
            return os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)

        return _hold(opened, self.directory, operation)

    def take(self, name: str, *, patience_s: float = MOMENTARY_S) -> int | None:
        """Return a descriptor that holds member *name*, None if another has it for *patience_s*.

        The member's directory is made if need be. A child forked from now on closes the
        descriptor; :func:`owner.private.close` lets go.

        Raises:
            OSError: it cannot be made.
        """
        place = self.place(name)
        return _hold(lambda: self._open_lock(place), place.lock, patience_s=patience_s)

    def _open_lock(self, place: Place) -> int:
        while True:
            try:
                os.makedirs(place.directory, mode=0o700, exist_ok=True)
                return os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:  # a destroy removed it in between
                continue

    def take_cluster(self, cluster: str, *, patience_s: float = MOMENTARY_S) -> int | None:
        """Return a descriptor that holds the network of *cluster*, None if a holder has it.

        As :meth:`take`.
        """
        path = self._cluster(cluster)

        def opened() -> int:
            while True:
                try:
                    os.makedirs(path, mode=0o700, exist_ok=True)
                    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue

        return _hold(opened, path, patience_s=patience_s)

    def create(self, name: str, options: Options) -> Config:
        """Create member *name*, durably; one that exists keeps what it has. Its lock is held.

        So is its cluster's, whose ``egress`` a new member has too, whatever *options* say.

        Raises:
            Refused: a VM cannot have *options* (``bad-option``).
            OSError: it cannot be written.
        """
        options.check()
        if self.exists(name):
            return self.config(name)
        options = options.replace(egress=self.egress_of(cluster_of(name), options))
        place = self.place(name)
        config = Config(name=name, options=options, created_at=utc_now())
        record = {"schema": _SCHEMA, "name": name, **options.as_dict()}
        record["created_at"] = config.created_at
        write_file(place.config, codec.dumps(record).encode() + b"\n")
        return config

    def note_end(self, name: str, error: HubError) -> None:
        """Note why member *name* is not up. Its lock is held.

        Raises:
            OSError: it cannot be written.
        """
        record = {"error": str(error), "reason": error.reason}
        write_file(self.place(name).ended, codec.dumps(record).encode(), durable=False)

    def forget_end(self, name: str) -> None:
        """Forget what :meth:`note_end` noted: it boots again. Its lock is held."""
        remove(self.place(name).ended)

    # --- destroying ------------------------------------------------------------------------

    def destroy(self, name: str) -> bool:
        """Delete member *name* with its disk; return False if there was none.

        One rename takes it away; killed after that, :meth:`half_removed` names it until the next
        destroy or boot in its cluster removes the rest. The cluster's directory goes if nothing
        is left in it.

        Raises:
            OwnedByAnother: a holder has it (``running``).
            Refused: its directory is a link to somewhere else (``is-a-link``).
            OSError: it cannot be removed.
        """
        place = self.place(name)
        cluster = os.path.dirname(place.directory)
        self.sweep(cluster_of(name))
        if not os.path.isdir(place.directory):
            return False
        if os.path.islink(place.directory):
            raise Refused(
                f"{place.directory} is a link: `bones vm rm` removes what is in its own place, so "
                "remove the link, and what it leads to, by hand",
                reason="is-a-link",
            )
        existed = self.exists(name)
        lock = self.take(name)
        if lock is None:
            raise OwnedByAnother(
                f"VM {name} has a holder: stop it before it is removed", reason="running"
            )
        hit("destroy.locked")
        try:
            gone = f"{cluster}/{_GONE}{name}.{os.getpid()}.{time.monotonic_ns()}"
            os.rename(place.directory, gone)
            hit("destroy.renamed")
            fd = os.open(cluster, os.O_RDONLY | os.O_DIRECTORY)
            try:  # or a power cut could bring it back without its disk
                os.fsync(fd)
            finally:
                os.close(fd)
            hit("destroy.synced")
            remove_tree(gone)
            hit("destroy.removed")
        finally:
            private.close(lock)
        hit("destroy.unlocked")
        _remove_if_empty(cluster)
        return existed

    def half_removed(self) -> list[str]:
        """Return whom destroys have taken away but not removed; they were killed, or go on."""
        found = set()
        for cluster in _names_in(self.directory):
            for name in _names_in(self._cluster(cluster), hidden=True):
                if name.startswith(_GONE):
                    found.add(name.removeprefix(_GONE).partition(".")[0])
        return in_order(found)

    def sweep(self, cluster: str = "") -> None:
        """Remove what destroys that were killed have left, of *cluster* or of all.

        Raises:
            OSError: it cannot be removed.
        """
        for each in [cluster] if cluster else _names_in(self.directory):
            path = self._cluster(each)
            for name in _names_in(path, hidden=True):
                if name.startswith(_GONE):
                    remove_tree(f"{path}/{name}")
                    hit("sweep.removed")
            _remove_if_empty(path)


def no_such(name: str) -> Refused:
    """Return the error of a member that does not exist."""
    return Refused(f"there is no VM {name}: `bones vm up {name}` makes one", reason="no-such-vm")


def _hold(
    make: Callable[[], int],
    path: str,
    operation: int = fcntl.LOCK_EX,
    *,
    patience_s: float = MOMENTARY_S,
) -> int | None:
    """Return a descriptor that *make* opened and that holds *path*, None if another does."""
    deadline_s = time.monotonic() + patience_s
    while True:
        fd = private.opened(make)
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
            private.close(fd)  # of one that was destroyed meanwhile
            continue
        except BlockingIOError:
            private.close(fd)
        except FileNotFoundError:
            private.close(fd)
            continue
        except BaseException:
            private.close(fd)
            raise
        if time.monotonic() >= deadline_s:
            return None
        time.sleep(RETRY_S)


def _names_in(path: str, *, hidden: bool = False) -> list[str]:
    try:
        return [name for name in os.listdir(path) if hidden or not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_empty(path: str) -> None:
    """Remove a cluster's directory if nothing is in it and nobody holds it.

    Under its lock: whoever has that may just be about to put its first member there, or is another
    who removes the last of it but one.
    """
    deadline_s = time.monotonic() + MOMENTARY_S
    while not _names_in(path, hidden=True):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rmdir(path)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return
            time.sleep(RETRY_S)
        except OSError:
            return  # not empty any more, or gone
        finally:
            os.close(fd)
