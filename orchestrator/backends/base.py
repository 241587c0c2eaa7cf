"""What a holder asks of whatever runs its VMs; it imports no backend.

A backend lives in the holder's process and on its event loop. Its children are spawned from the
main thread (PR_SET_PDEATHSIG goes by thread), so that they die with the holder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from foundation.record import Record

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Mapping

    Progress = Callable[[str], None]
    """Told what is under way that takes long, in words: "downloading the kernel"."""
    Neighbours = tuple[tuple[str, str], ...]
    """(name, address) of members."""


class Spec(Record):
    """One VM to be started."""

    name: str
    """Of the member; the guest's host name too."""
    directory: str
    """The member's own, absolute, exists: its disk and its console's log are kept there."""
    cpus: int
    memory_mb: int
    disk_mb: int
    """0: no disk."""
    mac: str
    ip: str
    """Of the guest, with the network's prefix length: ``10.77.0.11/24``."""
    gateway: str
    """The address of the gateway, "" if there is none."""
    name_server: str = ""
    """Of the name server; "": the gateway is one."""
    neighbours: Neighbours = ()
    """The other members that there are by now: the guest knows them by name."""


class Execution(Record):
    """A command that has run in a guest."""

    status: int
    """0 to 255, as a shell tells it."""
    stdout: bytes
    stderr: bytes


class Window(NamedTuple):
    """How large a terminal is, in characters."""

    rows: int
    columns: int


class Exit(Record):
    """How a VM ended."""

    status: int
    """The exit status of its process; negative: a signal."""
    reason: str
    """In words, with the last lines of its console where it ended by itself."""


class Machine(Protocol):
    """A VM that has been started. Its process is there until :meth:`wait` returns."""

    pid: int

    @property
    def trouble(self) -> str:
        """Why it does not run on for now, in words; "" if it does."""

    @property
    def is_busy(self) -> bool:
        """Whether it runs as many commands as it can: one more waits for one of them to end."""

    async def ready(self) -> None:
        """Return when the agent answers and the guest is who its :class:`Spec` says.

        Raises:
            HubError: it ended instead (``vm-ended``).
        """

    async def execute(
        self,
        argv: list[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        output: Callable[[int, bytes], None] | None = None,
    ) -> Execution:
        """Run *argv* in the guest; several may run at once.

        *output* gets (1 or 2, bytes) as they come, and the result has none then. Cancelled: what
        runs is killed.

        Raises:
            HubError: the guest ended, or does not answer (``vm-ended``, ``agent``).
        """

    async def terminal(
        self,
        argv: list[str],
        *,
        window: Window,
        keys: AsyncIterator[bytes | Window],
        output: Callable[[bytes], None],
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run *argv* on a terminal of the guest's to its end; return its exit status.

        *keys*: what is typed, and the window's new sizes. Cancelled: what runs is killed.

        Raises:
            Refused: all its terminals are in use (``no-terminal``).
            HubError: as :meth:`execute`.
        """

    async def introduce(self, neighbours: Neighbours) -> None:
        """Have the guest know *neighbours*, all other members, by name; nobody else any more.

        Raises:
            HubError: it could not be told.
        """

    async def put(self, tar: bytes, path: str) -> None:
        """Make *path* in the guest of the one file or directory in *tar*, whatever its name there.

        By the rules of :mod:`orchestrator.copying`: whole or not at all.

        Raises:
            Refused: something else is in its place (``in-the-way``).
            HubError: there is no room for it (``no-room``); as :meth:`execute`.
        """

    async def get(self, path: str) -> bytes:
        """Return a tar archive of the guest's *path*, or of where that leads if it is a link.

        Raises:
            Refused: there is none (``no-such-path``); it is too large (``too-large``).
        """

    async def stop(self, timeout_s: float) -> str:
        """End it, gently at first; return how it went: ``agent``, ``quit`` or ``killed``."""

    def kill(self) -> None:
        """End it at once; nothing is waited for."""

    async def wait(self) -> Exit:
        """Return when its process has ended and been reaped. Any number may wait."""


class Backend(Protocol):
    """A way to run VMs."""

    name: str

    async def prepare(self, spec: Spec, progress: Progress) -> None:
        """Have what *spec* needs, once per machine: downloads, images, templates.

        Raises:
            HubError: it cannot be had; the message says what to install.
        """

    async def start(self, spec: Spec, port: socket.socket | None) -> Machine:
        """Start a VM; *port*: its network, an AF_UNIX datagram socket, a frame a datagram.

        The backend owns *port* from here on, and closes its copy. The disk is made if there is
        none, and never removed, whatever fails.

        Raises:
            HubError: it cannot be started.
        """

    async def close(self) -> None:
        """Let go of what all VMs shared."""
