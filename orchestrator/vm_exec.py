"""The verbs ``bones vm exec`` and ``bones vm ssh``: a command in a VM, as if it ran here."""

from __future__ import annotations

import os

from foundation.errors import Usage
from hub import output
from orchestrator import requests, targets
from orchestrator.vm_shared import PROGRAM, UNREAD, running, store_of
from slotgc.treepath import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK = 1 << 16
_SHELL = ("sh", "-l")
_NOT_RUN, _NOT_FOUND = 126, 127
"""What the guest's agent returns, as a shell does; no such directory is the first."""
_OF_AGENT = (b"/etc/agent: ", b"setsid: can't execute ")


class Complaints:
    """What a command writes to its stderr; what is the agent's own there is told in our words."""

    def __init__(self, name: str, program: str, cwd: str) -> None:
        """Name the VM, and what was asked of it."""
        self._name, self._program, self._cwd = name, program, cwd
        self._held: bytes | None = None
        self._began = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what of *chunk*, and of what was held back, can be passed on."""
        if self._began and self._held is None:
            return chunk
        self._began = True
        held = (self._held or b"") + chunk
        line, _end, more = held.partition(b"\n")
        if line.startswith(_OF_AGENT) and not more:
            self._held = held
            return b""
        self._held = None
        return held

    def end(self, status: int) -> bytes:
        """Return what is still to be passed on: what was held back, or what it means."""
        if self._held is None:
            return b""
        agent, program = _OF_AGENT
        if self._held.startswith(agent) and status == _NOT_RUN:
            return self._said(f"has no directory {self._cwd}")
        if self._held.startswith(program) and status == _NOT_FOUND:
            return self._said(f"has no program {self._program}")
        if self._held.startswith(program) and status == _NOT_RUN:
            why = self._held.decode(errors="replace").rpartition(": ")[2].strip()
            return self._said(f"cannot run {self._program}: {why}")
        return self._held

    def _said(self, words: str) -> bytes:
        return output.talk(f"{self._name} {words}", program=PROGRAM).encode(errors="replace")


@output.verb("bones.vm.exec")
def execute(
    name: str,
    words: Sequence[str],
    *,
    stdin: bool = False,
    cwd: str = "",
    root: str | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    """Run a command in a VM; its output is ours, and so is its exit code."""
    argv = targets.command("exec", name, words)
    if not argv:
        raise Usage(f"which command? `bones vm exec {name} -- COMMAND`", reason="usage")
    return _ran(name, argv, stdin=stdin, cwd=cwd, root=root, timeout_s=timeout_s, as_json=as_json)


@output.verb("bones.vm.ssh")
def ssh(name: str, words: Sequence[str] = (), *, root: str | None = None) -> int:
    """Run a shell, or a command, in a VM: on our terminal if we have one; its exit code is ours."""
    argv = targets.command("ssh", name, words)
    if os.isatty(0) and os.isatty(1):
        from orchestrator import terminal  # noqa: PLC0415 - a quarter of a start, for this verb alone

        store = store_of(root)
        return terminal.attach(store, running(store, name), argv or list(_SHELL))
    return _ran(name, argv or _SHELL, stdin=not argv, root=root)


def _ran(
    name: str,
    argv: Sequence[str],
    *,
    stdin: bool = False,
    cwd: str = "",
    root: str | None = None,
    timeout_s: float | None = None,
    as_json: bool = False,
) -> int:
    store = store_of(root)
    complaints = Complaints(name, argv[0], cwd)

    def show(stream: int, chunk: bytes) -> None:
        pass_on(stream, chunk if stream == 1 else complaints.feed(chunk))

    def note(words: str) -> None:
        try:
            pass_on(2, output.talk(words, program=PROGRAM).encode())
        except BrokenPipeError:
            pass  # the command is run all the same

    try:
        done = requests.execute(
            store,
            running(store, name),
            argv,
            stdin=iter(lambda: os.read(0, _BLOCK), b"") if stdin else None,
            cwd=cwd,
            output=None if as_json else show,
            note=note,
            timeout_s=timeout_s,
        )
        pass_on(2, complaints.end(done.status))
    except BrokenPipeError:
        return UNREAD
    if as_json:
        said = {"stdout": to_json(done.stdout), "stderr": to_json(done.stderr)}
        output.print_data("bones.vm.exec", {"name": name, "status": done.status, **said})
    return done.status


def pass_on(stream: int, chunk: bytes) -> None:
    """Write *chunk* to our stdout or stderr.

    Raises:
        BrokenPipeError: nobody reads it.
    """
    view = memoryview(chunk)
    while view:
        view = view[os.write(stream, view) :]
