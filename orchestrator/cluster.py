"""VMs for Python: a cluster on one network, which ends with its owner unless it is detached.

with Cluster(["web-1", "web-2"], store="vms") as cluster:
    web = cluster.vm("web-1")
    print(web.execute(["uname", "-a"]).stdout)
"""

from __future__ import annotations

import os
import tempfile

from foundation.errors import HubError, Refused
from orchestrator import control, copying, protocol, requests
from orchestrator.store import Options, Store, cluster_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, Self

    from orchestrator.control import Announce, Session
    from orchestrator.protocol import Status, Stopped
    from orchestrator.requests import Ran


class VM:
    """A member of a cluster. Holds nothing open: any number may be of one VM."""

    def __init__(self, store: Store, name: str) -> None:
        """Name the member *name* of *store*, which need not exist."""
        self.store = store
        self.name = name

    def __repr__(self) -> str:
        return f"VM({self.name!r})"

    def status(self) -> Status:
        """Return its state as its holder tells it, else as the disk does.

        Raises:
            Refused: there is no such VM (``no-such-vm``).
        """
        return control.get_status(self.store, self.name)

    @property
    def ip(self) -> str:
        """Its address on the cluster's network, "" while it has none."""
        return self.status().ip

    @property
    def state(self) -> str:
        """Its state: one of :data:`orchestrator.protocol.STATES`."""
        return self.status().state

    def execute(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Iterable[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        output: Callable[[int, bytes], None] | None = None,
        timeout_s: float | None = None,
    ) -> Ran:
        """Run *argv* in it to its end; return its exit status, and what it wrote, in bytes.

        *stdin* is read to its end first. *env* is beside what the guest has, *cwd* a directory of
        it. With *output* that is called with 1 or 2, for stdout or stderr, and what was written, as
        it comes; nothing is returned of it then. ``exec`` is another name.

        Raises:
            Refused: there is no such VM (``no-such-vm``).
            Unavailable: it is not running (``not-running``); it was not over after *timeout_s*,
                and was killed (``timed-out``).
            HubError: it wrote more than is collected (``too-much-output``); the guest ended, or its
                holder (``vm-ended``, ``gone``).
        """
        if isinstance(argv, (str, bytes)):
            raise TypeError(f"argv={argv!r}: a list of words, or ['sh', '-c', ...], is needed")
        pieces = [stdin] if isinstance(stdin, bytes) else stdin
        return requests.execute(
            self.store,
            self.name,
            argv,
            stdin=pieces,
            env=env,
            cwd=cwd,
            output=output,
            timeout_s=timeout_s,
        )

    exec = execute

    def put(self, local: str | os.PathLike[str], remote: str) -> list[str]:
        """Copy the file or directory *local* to *remote*, exactly there: whole, or not at all.

        A file replaces a file or a link, a directory goes into one that is there, file by file;
        missing parents are made. Permissions and links are kept, but *local* itself is followed if
        it is one; owners, times and set-user-ID bits are not. A *remote* without a slash at its
        beginning is below ``/root``. Returns the paths of what was left out: sockets, pipes,
        devices.

        Raises:
            OSError: *local* cannot be read.
            Refused: there is a directory in the place of something else (``in-the-way``); *local*
                is larger than UPLOAD_LIMIT (``too-large``), or a socket or the like (``no-file``).
            HubError: the guest has no room for it (``no-room``); see
                :func:`orchestrator.requests.execute`.
        """
        with tempfile.TemporaryFile() as archive:
            left_out = copying.pack(os.fspath(local), archive, limit=protocol.UPLOAD_LIMIT)
            archive.seek(0)
            pieces = iter(lambda: archive.read(protocol.CHUNK), b"")
            requests.put(self.store, self.name, pieces, remote)
        return left_out

    def get(self, remote: str, local: str | os.PathLike[str]) -> list[str]:
        """Copy the file or directory *remote* to *local*, by the rules of :meth:`put`.

        The guest is not trusted: what might lead out of *local* is refused as a whole, absolute
        links too. Returns the guest's names for pipes and devices, which are left out; sockets are
        as well.

        Raises:
            OSError: *local* cannot be written.
            Refused: there is no *remote* (``no-such-path``); it holds links that lead out of it, or
                what came is not its archive (``unsafe-archive``); it is too large (``too-large``);
                as :meth:`put` (``in-the-way``, ``no-file``).
            HubError: see :func:`orchestrator.requests.execute`.
        """
        with tempfile.TemporaryFile() as archive:
            requests.get(self.store, self.name, remote, archive.write)
            archive.seek(0)
            return copying.unpack(archive, os.fspath(local))

    def forward(self, guest_port: int, host_port: int = 0) -> int:
        """Have a port of 127.0.0.1 lead to *guest_port*; return it: again, the same.

        See :func:`orchestrator.requests.forward`.
        """
        return requests.forward(self.store, self.name, guest_port, host_port)

    def forwards(self) -> dict[int, int]:
        """Return which ports of 127.0.0.1 lead to it, and to which of its ports each."""
        return requests.forwards(self.store, self.name)

    def unforward(self, host_port: int) -> bool:
        """Have *host_port* lead to it no longer; return False if it did not."""
        return requests.unforward(self.store, self.name, host_port)

    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what its console says; see :func:`orchestrator.requests.logs`."""
        return requests.logs(self.store, self.name, follow=follow)

    def stop(self, timeout_s: float = protocol.STOP_WITHIN_S) -> Stopped:
        """Stop it, gently at first; return how. One that is not running is no error."""
        return control.stop(self.store, self.name, timeout_s=timeout_s)

    def destroy(self) -> bool:
        """Stop it and delete it with its disk; return False if there was none."""
        if self.store.exists(self.name):
            self.stop()
        return self.store.destroy(self.name)


class Cluster:
    """VMs on one network of their own."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        store: Store | str | os.PathLike[str],
        bound: bool = True,
        cpus: int = 1,
        memory_mb: int = 128,
        disk_mb: int = 1024,
        egress: bool = True,
        announce: Announce | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Plan a cluster of *names* below *store*; nothing is started.

        *bound*: its VMs end with :meth:`close`, or with this process however that ends; else
        they go on. *cpus*, *memory_mb* and *disk_mb* are of those that do not exist yet. Without
        *egress*, of a cluster that does not exist yet, its members reach each other and the hub,
        but no internet and no name server outside; :attr:`egress` tells what it has. *announce* is
        told, in words, what is downloaded once. *settings* ``{"workspace": ROOT}`` has it on the
        bus of that workspace, whose hub its guests reach; ``bones down`` there ends it.

        Raises:
            Refused: the names are not of one cluster, or one is none (``bad-name``), or an option
                is none (``bad-option``).
        """
        self.store = store if isinstance(store, Store) else Store(store)
        self.bound = bound
        self.options = Options(
            cpus=cpus, memory_mb=memory_mb, disk_mb=disk_mb, egress=egress
        ).check()
        self._announce = announce
        self._settings = dict(settings or {})
        self._session: Session | None = None
        self._names: list[str] = []
        for name in names:
            self._take(name)
        if not names:
            raise Refused("a cluster needs a member's name", reason="bad-name")

    def _take(self, name: str) -> None:
        self.store.place(name)
        if self._names and cluster_of(name) != self.name:
            raise Refused(
                f"{name} is not of cluster {self.name}: members are called {self.name} or "
                f"{self.name}-NUMBER",
                reason="bad-name",
            )
        if name not in self._names:
            self._names.append(name)

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close it."""
        self.close()

    @property
    def name(self) -> str:
        """The cluster's name: that of its members, less their numbers."""
        return cluster_of(self._names[0])

    @property
    def egress(self) -> bool:
        """Whether its members reach the internet: what it was created with, or is to be."""
        return self.store.egress_of(self.name, self.options)

    @property
    def vms(self) -> list[VM]:
        """Its members, in the order in which they were named."""
        return [VM(self.store, name) for name in self._names]

    def vm(self, name: str) -> VM:
        """Return member *name*.

        Raises:
            Refused: it is none of this cluster's (``no-such-vm``).
        """
        if name not in self._names:
            raise Refused(f"{name} is no member of cluster {self.name}", reason="no-such-vm")
        return VM(self.store, name)

    def start(self, timeout_s: float = protocol.BOOT_WITHIN_S) -> list[VM]:
        """Have all members up; return them. Those that run already are left alone.

        If one does not come up, a bound cluster that this call has started is stopped, and those
        of its members that did not exist before are deleted; what ran before is not touched. Of a
        detached one that is late, the others and the late one go on.

        Raises:
            OwnedByAnother: another holder has one of them (``taken``, ``running-elsewhere``): its
                VMs would not end with this process.
            HubError: one will not be up; the message names it and says why.
            Unavailable: not in time (``boot-timeout``).
        """
        config = control.SpawnConfig(
            names=tuple(self._names),
            bound=self.bound,
            options=self.options,
            settings=self._settings,
        )
        session, _statuses = control.bring_up(
            self.store,
            config,
            timeout_s=timeout_s,
            announce=self._announce,
            own=0 if self._session is None else self._session.pid,
        )
        if session is not None:
            self.close()  # of one whose members have all ended
            self._session = session
        return self.vms

    def add(self, name: str, timeout_s: float = protocol.BOOT_WITHIN_S) -> VM:
        """Have *name* join the running cluster's network; return it when it is up.

        Raises: as :meth:`start`; Unavailable too if no member is running (``not-running``).
        """
        known = name in self._names
        self._take(name)
        running = control.running_members(self.store, self.name)
        try:
            control.add_member(
                self.store,
                running[0] if running else self._names[0],
                name,
                options=self.options,
                timeout_s=timeout_s,
                announce=self._announce,
            )
        except HubError:
            if not known and not self.store.exists(name):
                self._names.remove(name)
            raise
        return VM(self.store, name)

    def stop(self) -> None:
        """Stop every member, side by side; their disks stay."""
        control.stop_all(self.store, [vm.name for vm in self.vms if self.store.exists(vm.name)])
        self.close()

    def destroy(self) -> None:
        """Stop every member and delete them with their disks."""
        self.stop()
        for name in self._names:
            self.store.destroy(name)

    def close(self) -> None:
        """Stop a bound cluster, and let go of a detached one; again is no error."""
        if self._session is not None:
            self._session.close()
            self._session = None
