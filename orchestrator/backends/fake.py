"""VMs that are ordinary processes, with faults on order. For tests alone: no variable selects it.

Each VM is a real child, so that a kill -9 proves what it seems to prove. What is to go wrong with
one is said by ``faults.json`` in its member's directory, read at each boot:

``{"downloads": TEXT}``
    it says so, as what takes long.
``{"gate": PATH}``
    its preparation waits until there is such a file; ``start_gate`` its start, ``ready_gate``
    its readiness.
``{"fail": "prepare" | "start" | "ready"}``
    that fails.
``{"unsociable": PATH}``
    it cannot be told who the others are until there is such a file.
``{"stays": true}``
    it goes by SIGKILL alone.
``{"trouble": TEXT}``
    it is up, and does not run on for that reason.
``{"busy": true}``
    it says that it runs as many commands as it can.
"""

from __future__ import annotations

import asyncio
import io
import os
from typing import TYPE_CHECKING, Any

from foundation import codec
from foundation.errors import HubError, Refused
from foundation.process import has_exited, send_signal
from foundation.record import Record
from foundation.spawn import describe_exit, find_program, spawn_child
from orchestrator import copying
from orchestrator.backends.base import Execution, Exit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from io import FileIO

    from foundation.spawn import SpawnedChild
    from orchestrator.backends.base import Neighbours, Progress, Spec

_GATE_EVERY_S = 0.002
_BLOCK = 1 << 16


class Faults(Record):
    """A faults.json."""

    downloads: str = ""
    gate: str = ""
    start_gate: str = ""
    ready_gate: str = ""
    fail: str = ""
    unsociable: str = ""
    stays: bool = False
    trouble: str = ""
    busy: bool = False


def faults_of(directory: str) -> Faults:
    """Return what is to go wrong with the member in *directory*."""
    try:
        with open(f"{directory}/faults.json", encoding="ascii") as file:
            return Faults(**codec.loads_object(file.read()))
    except FileNotFoundError:
        return Faults()


def _is_shut(gate: str) -> bool:
    return bool(gate) and not os.path.exists(gate)


async def _reached(faults: Faults, step: str, gate: str) -> None:
    while _is_shut(gate):  # noqa: ASYNC110 - a test opens it, from another process
        await asyncio.sleep(_GATE_EVERY_S)
    if faults.fail == step:
        raise HubError(f"the fake was told to fail at {step}", reason=f"fake-{step}")


def _begin_files(spec: Spec) -> None:
    with open(f"{spec.directory}/console.log", "a", encoding="ascii") as console:
        console.write(f"{spec.name} boots\n")
    if spec.disk_mb and not os.path.exists(f"{spec.directory}/disk.raw"):
        with open(f"{spec.directory}/disk.raw", "wb") as disk:
            disk.truncate(spec.disk_mb << 20)


class FakeBackend:
    """A way to run no VMs."""

    name = "fake"

    async def prepare(self, spec: Spec, progress: Progress) -> None:
        """As the faults have it."""
        faults = faults_of(spec.directory)
        if faults.downloads:
            progress(faults.downloads)
        await _reached(faults, "prepare", faults.gate)

    async def start(self, spec: Spec, port: socket.socket | None) -> FakeMachine:
        """Start a process that sleeps."""
        if port is not None:
            port.close()
        faults = faults_of(spec.directory)
        await _reached(faults, "start", faults.start_gate)
        _begin_files(spec)
        return FakeMachine(spec, faults)

    async def close(self) -> None:
        """Nothing is shared."""


class FakeMachine:
    """A process that sleeps."""

    def __init__(self, spec: Spec, faults: Faults) -> None:
        """Start it."""
        self._guest = f"{spec.directory}/guest"
        os.makedirs(self._guest, exist_ok=True)
        self._faults = faults
        self.trouble = faults.trouble
        self.is_busy = faults.busy
        self._note(spec.neighbours)
        sleep = "trap '' TERM; exec sleep 10000" if faults.stays else "exec sleep 10000"
        self._child = _spawn(["/bin/sh", "-c", sleep], self._guest, {}, {})
        self.pid = self._child.pid
        self._exited = _exit_of(self._child)

    async def ready(self) -> None:
        """As the faults have it, unless it ends first."""
        while not self._exited.done() and not self._sleeps():  # noqa: ASYNC110 - another process
            await asyncio.sleep(_GATE_EVERY_S)
        answering = asyncio.ensure_future(_reached(self._faults, "ready", self._faults.ready_gate))
        both: set[asyncio.Future[Any]] = {answering, self._exited}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            answering.cancel()
            raise HubError(
                f"the VM {describe_exit(self._exited.result())} before it answered",
                reason="vm-ended",
            )
        answering.result()

    def _sleeps(self) -> bool:
        """Tell whether the shell has become what it is to be: before, a signal means another."""
        with open(f"/proc/{self.pid}/comm", encoding="ascii") as file:
            return file.read() == "sleep\n"

    async def execute(
        self,
        argv: list[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        output: Callable[[int, bytes], None] | None = None,
    ) -> Execution:
        """Run *argv* on the host, in a directory of the fake's own."""
        program = find_program(argv[0])
        if program is None:
            return Execution(status=127, stdout=b"", stderr=b"")
        collected: dict[int, bytes] = {1: b"", 2: b""}

        def take(which: int, chunk: bytes) -> None:
            if output is not None:
                output(which, chunk)
            else:
                collected[which] += chunk

        source, feed = os.pipe()
        pipes = {which: os.pipe() for which in collected}
        try:
            files = {0: source, **{which: write for which, (_read, write) in pipes.items()}}
            child = _spawn([program, *argv[1:]], cwd or self._guest, env or {}, files)
        finally:
            for fd in (source, *(write for _read, write in pipes.values())):
                os.close(fd)
        exited = _exit_of(child)
        feeding = asyncio.get_running_loop().run_in_executor(None, _feed, feed, stdin)
        files_of = {w: os.fdopen(read, "rb", buffering=0) for w, (read, _write) in pipes.items()}
        try:
            await asyncio.gather(*(_pump(file, which, take) for which, file in files_of.items()))
            await feeding
            status = await asyncio.shield(exited)
        except asyncio.CancelledError:
            if not exited.done():
                send_signal(child.pidfd, 9)
            await asyncio.wait({exited})
            raise
        finally:
            for file in files_of.values():  # a pump that had not begun has not
                file.close()
        return Execution(
            status=status if status >= 0 else 128 - status,
            stdout=collected[1],
            stderr=collected[2],
        )

    async def terminal(self, argv: list[str], **_wanted: object) -> int:
        """Refuse: it has none."""
        raise Refused(f"a fake has no terminal for {argv[0]}", reason="no-terminal")

    async def introduce(self, neighbours: Neighbours) -> None:
        """Note them in ``neighbours``, a line each, as the faults have it."""
        if _is_shut(self._faults.unsociable):
            raise HubError("the fake was told to know nobody", reason="fake-introduce")
        self._note(neighbours)

    def _note(self, neighbours: Neighbours) -> None:
        with open(f"{self._guest}/neighbours", "w", encoding="ascii") as file:
            file.writelines(f"{address} {name}\n" for name, address in neighbours)

    async def put(self, tar: bytes, path: str) -> None:
        """Unpack *tar* below the fake's own directory."""
        copying.unpack(io.BytesIO(tar), f"{self._guest}/{path}")

    async def get(self, path: str) -> bytes:
        """Return *path* of the fake's own directory."""
        buffer = io.BytesIO()
        try:
            copying.pack(f"{self._guest}/{path}", buffer)
        except FileNotFoundError:
            raise Refused(f"{path}: no such file", reason="no-such-path") from None
        return buffer.getvalue()

    async def stop(self, timeout_s: float) -> str:
        """SIGTERM, then SIGKILL."""
        if not self._exited.done():
            send_signal(self._child.pidfd, 15)
        await asyncio.wait({self._exited}, timeout=timeout_s)
        if self._exited.done():
            return "agent"
        self.kill()
        await asyncio.wait({self._exited})
        return "killed"

    def kill(self) -> None:
        """SIGKILL."""
        if not self._exited.done():
            send_signal(self._child.pidfd, 9)

    async def wait(self) -> Exit:
        """Return when the process has been reaped."""
        status = await asyncio.shield(self._exited)
        return Exit(status=status, reason=f"the fake {describe_exit(status)}")


def _spawn(
    argv: list[str], cwd: str, env: Mapping[str, str], files: dict[int, int]
) -> SpawnedChild:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return spawn_child(
            argv, env={**os.environ, **env}, cwd=cwd, files={0: null, 1: null, 2: null, **files}
        )
    finally:
        os.close(null)


def _exit_of(child: SpawnedChild) -> asyncio.Future[int]:
    """Return a future of the exit status of *child*, which is reaped then."""
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[int] = loop.create_future()

    def reap() -> None:
        if not has_exited(child.pidfd):
            return
        loop.remove_reader(child.pidfd)
        _pid, status = os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        if not exited.done():
            exited.set_result(os.waitstatus_to_exitcode(status))

    loop.add_reader(child.pidfd, reap)
    return exited


def _feed(fd: int, content: bytes) -> None:
    with os.fdopen(fd, "wb", buffering=0) as file:
        try:
            view: Any = memoryview(content)
            while view:
                view = view[file.write(view) :]
        except BrokenPipeError:
            pass


async def _pump(file: FileIO, which: int, take: Callable[[int, bytes], None]) -> None:
    """Hand on what comes through *file*, to its end."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _protocol = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), file
    )
    try:
        while chunk := await reader.read(_BLOCK):
            take(which, chunk)
    finally:
        transport.close()
