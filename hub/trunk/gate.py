"""The gate: a command of the project that a commit's tree must pass before it lands.

``[trunk] verify`` in bones.toml (:mod:`hub.project`). Commits land one by one while there is one:
each is tried on the tree that trunk would have with it.
"""

from __future__ import annotations

import os
import re
import select
import time
from typing import NamedTuple

from foundation.errors import HubError, Refused, Unavailable
from foundation.process import signal_group
from foundation.spawn import describe_exit, spawn_child
from foundation.workspace import MARK
from hub.project import ProjectFile
from hub.trunk.gate_tree import GateTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from foundation.workspace import Workspace
    from hub.trees import Entry
    from hub.trunk.planning import Plan, Planned

OUTPUT_BYTES = 65_536
"""As much of a command's output is kept, of its end."""
CHECKIN = "BONES_CHECKIN"
"""In the command's environment: the check-in that the tree is to become."""

_INHERITED = frozenset(
    ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
)
_INHERITED_PREFIXES = ("LC_", "XDG_")

_SHELL = "/bin/sh"
# The kernel ends the shell when we die, but not what it has started. Descriptor 3 ends with us
# however we die; whoever reads its end kills the whole group, itself included.
_SCRIPT = """
{ read -r _ <&3; kill -9 0; } >/dev/null 2>&1 &
/bin/sh -c "$1" 3<&-
status=$?
exec >/dev/null 2>&1
kill -9 $!
wait $!
exit $status
"""
_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
_SHOWN_COMMAND = 200
_LAST_READS = 16  # 1 MiB, the most that a pipe holds


class Run(NamedTuple):
    """How a command ended."""

    status: int | None
    """Its exit status; None: it was ended, because it took too long or because we stop."""
    output: bytes
    """The end of what it wrote."""
    cut_bytes: int
    """How much there was before that."""


class Gate:
    """The gate of one workspace. But for :meth:`stop` it is one thread's, which must stay."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        directory: str = "",
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Guard the trunk of *workspace*; the tree is kept in *directory* (``templates/gate``).

        Of *environment* the command gets what says who and where the user is, and nothing else:
        what a program needs besides, the command can set.
        """
        self._root = workspace.root
        self._project = ProjectFile(workspace.root)
        self._tree = GateTree(directory or f"{workspace.templates}/gate")
        self._environment = {
            name: value
            for name, value in environment.items()
            if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
        } | {MARK: workspace.root, "GIT_CEILING_DIRECTORIES": os.path.dirname(self._tree.path)}
        self._stopping = os.eventfd(0)

    def close(self) -> None:
        """Let go of it. The tree stays."""
        os.close(self._stopping)

    def stop(self) -> None:
        """End the command that runs, and every later one; from any thread."""
        os.eventfd_write(self._stopping, 1)

    def is_closed(self) -> bool:
        """Tell whether commits must pass: there is a command, or bones.toml makes no sense."""
        try:
            return bool(self._project.read().verify)
        except Refused:
            return True

    def judge(self, plan: Plan, planned: Planned) -> HubError | None:
        """Return why *planned*, the latest of *plan*, may not land; None if it may."""
        return self.check(plan.tip.files, plan.content, planned.checkin.hash)

    def check(
        self, files: Mapping[bytes, Entry], content: Callable[[str], bytes], checkin: str
    ) -> HubError | None:
        """Return why *checkin* with the tree *files* may not land; None if it may.

        *content* returns a content by its hash.
        """
        try:
            project = self._project.read()
            if not project.verify:
                return None
            self._place(files, content)
            run = self._run(project.verify, project.verify_timeout_s, checkin)
        except HubError as error:
            return error
        except (OSError, KeyError) as error:
            return Unavailable(
                f"the tree for `verify` of bones.toml cannot be made in {self._tree.path}: {error}",
                reason="verify-tree",
            )
        if run is None:
            return Unavailable("trunk is stopping: try again", reason="stopping")
        if run.status == 0:
            return None
        return _failure(project.verify, run, project.verify_timeout_s)

    def _place(self, files: Mapping[bytes, Entry], content: Callable[[str], bytes]) -> None:
        try:
            self._tree.move(files, content)
        except OSError:  # the command may have left anything: begin again without it
            self._tree.wipe()
            self._tree.move(files, content)

    def _run(self, command: str, timeout_s: float, checkin: str) -> Run | None:
        """Run *command* in the tree; None if we stop."""
        life_read, life = os.pipe()
        output, output_write = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            try:
                child = spawn_child(
                    [_SHELL, "-c", _SCRIPT, "verify", command],
                    env={**self._environment, CHECKIN: checkin},
                    cwd=self._tree.path,
                    files={0: null, 1: output_write, 2: output_write, 3: life_read},
                )
            finally:
                for fd in (null, output_write, life_read):
                    os.close(fd)
            try:
                return self._follow(child.pid, child.pidfd, output, time.monotonic() + timeout_s)
            finally:
                os.close(child.pidfd)
        finally:
            os.close(output)
            os.close(life)

    def _follow(self, pid: int, pidfd: int, output: int, deadline_s: float) -> Run | None:
        """Read *output* until the process ends or must; then nothing of its group is left."""
        os.set_blocking(output, False)
        tail = _Tail(output)
        poll = select.poll()
        for fd in (pidfd, output, self._stopping):
            poll.register(fd, select.POLLIN)
        ready: dict[int, int] = {}
        stopping = False
        try:
            while pidfd not in ready and not stopping:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                ready = dict(poll.poll(left_s * 1000))
                stopping = self._stopping in ready
                if output in ready and not tail.read():
                    poll.unregister(output)
        finally:
            signal_group(pid, 9)
            _pid, status = os.waitpid(pid, 0)
        if stopping:
            return None
        for _ in range(_LAST_READS):  # bounded: who left the group may write for ever
            if not tail.read():
                break
        ended = pidfd in ready
        return Run(os.waitstatus_to_exitcode(status) if ended else None, *tail.kept())


class _Tail:
    """The end of what comes out of a pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._kept = bytearray()
        self._cut = 0

    def read(self) -> bool:
        """Read what is there; return whether there was something."""
        try:
            chunk = os.read(self._pipe, OUTPUT_BYTES)
        except BlockingIOError:
            return False
        self._kept += chunk
        excess = len(self._kept) - OUTPUT_BYTES
        if excess > 0:
            del self._kept[:excess]
            self._cut += excess
        return bool(chunk)

    def kept(self) -> tuple[bytes, int]:
        return bytes(self._kept), self._cut


def _failure(command: str, run: Run, timeout_s: float) -> Refused:
    shown = command if len(command) <= _SHOWN_COMMAND else command[:_SHOWN_COMMAND] + "…"
    if run.status is None:
        how, reason = f"was ended after {timeout_s:g} s", "verify-timeout"
    else:
        how, reason = describe_exit(run.status), "verify-failed"
    output = _readable(run.output)
    said = f"It said:\n{output}" if output else "It said nothing."
    if run.cut_bytes:
        said = f"The last {len(run.output) >> 10} KiB of what it said:\n{output}"
    return Refused(
        f"`{shown}` ([trunk] verify in bones.toml) {how} on this commit's tree: nothing was "
        f"committed. {said}",
        reason=reason,
    )


def _readable(output: bytes) -> str:
    """Return *output* as text that harms no terminal."""
    text = _COLOURS.sub("", output.decode("utf-8", "replace")).rstrip()
    return "".join(one for one in text if one.isprintable() or one in "\n\t")
