"""A slot as its agent has it: join, commit, update, status, close; each is one question to a leaf.

The wire is :mod:`foundation.control` (``VERSION``, ``LINE_LIMIT``, progress lines, then one of data
and error). At ``.orchestrator/leaves.sock`` the nursery answers one verb:

``join {"slot", "task", "timeout_s"}``
    → INFO. Progress: ``{"phase": TEXT, "done": N, "total": N}``, ``{"note": TEXT}``.

At ``.bones/swarm/SLOT/leaf.sock`` the leaf answers these; any number of requests on a connection,
answered in their order. PATHS are of :func:`slotgc.treepath.to_json`, from the top of the worktree:

``join {}``
    → INFO with ``joined`` false: the slot was joined before.
``status {"changes": BOOL}``
    → STATUS; ``changes`` asks for the list of them too, which looks at the whole worktree.
``commit {"message", "paths": [PATH, …] | null, "timeout_s"}``
    → ``{"checkin", "parent", "time", "message", "files", "merged": [PATH, …], "left_out":
    [[PATH, REASON], …], "new"}``. No paths: all that has changed. The answer may take
    *timeout_s*; unknown at that time: error Unavailable, and the next verb settles it. Of many
    paths it takes 4 ms each longer; progress then says ``{"patience_s": S}``, how long there may
    be nothing.
``update {"markers": BOOL, "timeout_s"}``
    → ``{"checkin", "previous", "files", "merged": [PATH, …], "conflicted": [PATH, …]}``
``changes {"after": PATH | null}``
    → ``{"checkin", "changes": [[PATH, KIND, HASH, BASE_KIND, BASE_HASH], …], "more": N}``, rows as
    in :mod:`hub.commits`; ``more`` counts those that did not fit into the answer: they come after
    the last of it.
``close {"result": "success" | "fail", "artifact": BOOL, "summary", "timeout_s"}``
    → ``{"slot", "result", "checkin", "commits", "changes": N}``; the leaf ends when it has
    answered (the connection's end), and its slot may be cleaned up.
``run {"argv": [TEXT, …], "env": {…}, "umask", "directory": PATH | "", "commit_on_exit": BOOL,
"message", "detach": BOOL}``
    → ``{"status", "checkin"}``; progress ``{"pid": N}``, then ``{"lines": [TEXT, …],
    "first": N}``: whole lines of output. Ends with the agent; the end of the connection ends the
    agent, unless *detach* (then the answer comes at once, ``{"pid"}``).

INFO is ``{"slot", "root", "worktree", "checkin", "epoch", "pid", "task", "joined", "revived"}``.
STATUS is INFO and ``{"phase", "hub", "since", "commits", "landed", "pending", "changes"}``:
``phase`` as in :mod:`swarm.leaf.life`, ``hub`` ``ready`` or why it is away, ``landed`` this slot's
last check-in since the join, ``pending`` the id of a commit whose fate is not known yet.

An error is :func:`foundation.errors.to_wire`; of reason ``conflict`` it has ``conflicts`` as well
(:func:`hub.commits.conflict_json`). Of a list that does not fit into a line the first are told.
"""

from __future__ import annotations

import _socket
import os
import stat
import time

from foundation.control import LINE_LIMIT, Connection, encode
from foundation.errors import HubError, LeaseLost, NotRunning, Refused, Unavailable, from_wire
from foundation.process import open_pidfd, wait_exit
from foundation.record import Record
from foundation.workspace import SLOTS, Workspace
from hub import slotname
from hub.commits import Conflicted, conflict_from_json
from hub.contact import connect as contact
from slotgc import treepath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, ClassVar, Literal, Self

    Progress = Callable[[dict[str, Any]], None]
    Result = Literal["success", "fail"]

JOIN_WITHIN_S = 60.0
COMMIT_WITHIN_S = 30.0
TOP = b"."
_ANSWER_WITHIN_S = 5.0
"""For what a leaf answers from memory; added to a deadline that the leaf itself keeps."""
_ATTACH_WITHIN_S = 1.0
_TRUNK_WITHIN_S = 10.0
"""How long a trunk may take to serve: it begins after the hub is ready, in 0.2 s."""
_RETRY_S = 0.02


class CheckIn(Record):
    """A commit that is on trunk."""

    checkin: str
    """The check-in's hash; with ``new`` false that of trunk's tip, which had it all."""
    parent: str
    time: str
    """ISO 8601, UTC, milliseconds."""
    slot: str
    message: str
    """That of an earlier commit, if it turned out to have landed and there was nothing else."""
    files: int
    """How many paths were asked for."""
    merged: tuple[bytes, ...] = ()
    """The paths that landed as a merge with what others had changed; of thousands the first."""
    left_out: tuple[tuple[bytes, str], ...] = ()
    """What a commit of everything could not take, and why in words; "" is the worktree itself."""
    new: bool = True


class Update(Record):
    """What an update brought into the worktree."""

    checkin: str
    previous: str
    files: int
    """How many files were replaced, added or deleted, beside those that were merged."""
    merged: tuple[bytes, ...] = ()
    conflicted: tuple[bytes, ...] = ()
    """The paths that have conflict markers now."""


class Change(Record):
    """A path that differs from the base; kinds and hashes as in :class:`hub.commits.Change`."""

    path: bytes
    kind: str
    hash: str
    base_kind: str
    base_hash: str


class Closed(Record):
    """What a close did."""

    slot: str
    result: str
    checkin: str = ""
    commits: int = 0
    changes: int = 0
    """How many paths were left uncommitted, by one that failed."""
    outcome: str = "gone"
    """``removed``, ``rescued``, ``kept``, ``failed``; ``gone``: there was no such slot any more."""
    rescue: str = ""
    """The name of its rescue: unsaved work that it held."""
    history: bool = False
    """Nothing was left but commits of its own git: gone with what was removed, as trunk has their
    contents; all that there is in the rescue."""
    reason: str = ""
    """Why it was kept or failed."""
    before: bool = False
    """It was closed before, and only its directory was still there."""


class Ran(Record):
    """How an agent ended: its exit status (negative: a signal), and what was committed for it."""

    status: int
    checkin: str = ""
    pid: int = 0
    """Of one that goes on by itself (*detach*)."""


class LeafConnection(Connection):
    """A connection to a leaf or to the nursery."""

    whom = "the leaf"
    place = (0, 0)
    """Device and inode of the slot's directory when it was opened."""
    answered = False
    """Whether the last question was answered, so that another may follow."""

    def converse(
        self,
        verb: str,
        *,
        patience_s: float,
        progress: Progress | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Ask as :meth:`foundation.control.Connection.ask` does; *patience_s* from the last line.

        Raises:
            Conflicted: of reason ``conflict``.
            Refused: the request is too long for a line (``too-long``).
            Unavailable: no answer in time (``no-answer``), or the leaf ended (``gone``).
            HubError: what was answered.
        """
        line = encode({"verb": verb, **arguments})
        if len(line) > LINE_LIMIT:
            raise Refused(
                f"a request of {len(line)} bytes is too long, {LINE_LIMIT} are allowed: name "
                "directories instead of their files, or commit in parts",
                reason="too-long",
            )
        self.answered = False
        self._sock.settimeout(patience_s)
        try:
            self._sock.sendall(line)
        except TimeoutError:
            raise self._silent(patience_s) from None
        except OSError:
            pass  # it has closed already; its last words are still there to be read
        while True:
            try:
                message = self._receive(patience_s)
            except Unavailable as error:
                if error.reason == "gone":
                    text = f"{self.whom} ended before it answered"
                    raise Unavailable(text, reason="gone") from None
                if error.reason == "no-answer":
                    raise self._silent(patience_s) from None
                raise
            if "data" in message:
                self.answered = True
                return dict(message["data"])
            if "error" in message:
                self.answered = True
                raise _error(message["error"])
            told = message.get("progress")
            if isinstance(told, dict):
                patience_s = max(patience_s, float(told.get("patience_s", 0)))
                self._sock.settimeout(patience_s)
                if progress is not None:
                    progress(told)

    def peer_pid(self) -> int:
        """Return the pid of the process that listens. Source: unix(7), SO_PEERCRED."""
        credentials = self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")

    def _silent(self, patience_s: float) -> Unavailable:
        return Unavailable(
            f"{self.whom} did not answer within {patience_s:g} s", reason="no-answer"
        )


class Slot:
    """A slot that was joined; any thread may use it.

    A connection to the leaf is kept from one question to the next, and closed with the object. It
    keeps no leaf from ending: a leaf that came after it is found by the next question, which is
    never sent twice. A forked child has none of its parent's.
    """

    _idle: ClassVar[set[LeafConnection]] = set()
    """Of every slot of this process."""

    def __init__(self, workspace: Workspace, name: str, info: Mapping[str, Any]) -> None:
        """Stand for slot *name*, of which its leaf said *info*; made by :func:`join`."""
        self._kept: list[LeafConnection] = []
        self.name = name
        self.root = workspace.root
        self.directory = f"{workspace.swarm}/{name}"
        self.worktree = f"{self.directory}/wt"
        self.info = dict(info)
        """INFO as above; empty for one that was only opened."""
        self._workspace = workspace

    def __del__(self) -> None:
        """Close what was kept."""
        self._let_go()

    def __repr__(self) -> str:
        """Name it."""
        return f"<Slot {self.name} of {self.root}>"

    @classmethod
    def open(cls, root: str | os.PathLike[str] | None, slot: str) -> Self:
        """Return *slot* of the workspace around *root*, which somebody has joined.

        Raises:
            Refused: it cannot be a slot's name (``slot-name``), or nobody did (``no-slot``).
        """
        workspace = Workspace.find(root)
        slotname.check(slot)
        if not _is_own_directory(f"{workspace.swarm}/{slot}"):
            raise no_slot(workspace, slot)
        return cls(workspace, slot, {})

    def commit(
        self,
        message: str,
        paths: Iterable[str | bytes | os.PathLike[str]] | None = None,
        *,
        timeout_s: float = COMMIT_WITHIN_S,
    ) -> CheckIn:
        """Land what this slot has changed on trunk, or of it what is at or below *paths*.

        *paths* are relative to the top of the worktree, or absolute paths in it. On return it is
        on disk. Files of others are neither reverted nor brought in.

        Raises:
            Conflicted: others have changed the same; nothing was committed or touched.
            Refused: nothing to commit (``nothing-to-commit``), no message (``no-message``), a
                path that is none of the worktree's (``not-in-slot``), the gate said no.
            Unavailable: not known to have landed within *timeout_s*, of many paths 4 ms each
                later; the next commit or status finds out, and nothing lands twice.
            LeaseLost: another has taken the slot.
            NotRunning: its leaf has ended (``leaf-dead``).
        """
        named = None if paths is None else [self.path_of(one) for one in paths]
        if named is not None and TOP in named:
            named = None
        answer = self.ask(
            "commit",
            patience_s=timeout_s + _ANSWER_WITHIN_S,
            message=message,
            paths=None if named is None else [treepath.to_json(one) for one in named],
            timeout_s=timeout_s,
        )
        return CheckIn(
            checkin=answer["checkin"],
            parent=answer["parent"],
            time=answer["time"],
            slot=self.name,
            message=answer["message"],
            files=answer["files"],
            merged=_paths(answer["merged"]),
            left_out=tuple((treepath.from_json(one), why) for one, why in answer["left_out"]),
            new=answer["new"],
        )

    def update(self, *, markers: bool = False, timeout_s: float = JOIN_WITHIN_S) -> Update:
        """Bring the worktree to trunk's tip; what was changed here stays changed.

        Raises:
            Conflicted: both changed the same lines; nothing was touched. With *markers* such
                files get conflict markers instead.
            And as :meth:`commit`.
        """
        answer = self.ask(
            "update",
            patience_s=timeout_s + _ANSWER_WITHIN_S,
            markers=markers,
            timeout_s=timeout_s,
        )
        return Update(
            checkin=answer["checkin"],
            previous=answer["previous"],
            files=answer["files"],
            merged=_paths(answer["merged"]),
            conflicted=_paths(answer["conflicted"]),
        )

    def status(self, *, changes: bool = False) -> dict[str, Any]:
        """Return STATUS as the leaf gives it; *changes* looks at the whole worktree.

        Raises: as :meth:`commit`.
        """
        return self.ask("status", patience_s=COMMIT_WITHIN_S, changes=changes)

    def changes(self) -> tuple[Change, ...]:
        """Return what a commit without paths would ask for, by path.

        Raises: as :meth:`commit`.
        """
        found: list[Change] = []
        more = 1
        while more:
            after = treepath.to_json(found[-1].path) if found else None
            answer = self.ask("changes", patience_s=COMMIT_WITHIN_S, after=after)
            found += [
                Change(
                    path=treepath.from_json(path),
                    kind=kind,
                    hash=name,
                    base_kind=base_kind,
                    base_hash=base_hash,
                )
                for path, kind, name, base_kind, base_hash in answer["changes"]
            ]
            more = answer["more"]
        return tuple(found)

    def close(
        self,
        result: Result = "success",
        *,
        artifact: bool = True,
        summary: str = "",
        timeout_s: float = COMMIT_WITHIN_S,
    ) -> Closed:
        """End the leaf and clean up after it: a clean slot is removed, unsaved work is rescued.

        Success means that nothing is left uncommitted and, unless *artifact* is false, that there
        was a commit since the join. A slot that was closed before is no error, gone or not.

        Raises:
            Refused: success without a commit (``no-artifact``) or with uncommitted changes
                (``uncommitted``): nothing was done.
            Unavailable: the hub is away (``hub-away``): nothing was done.
            And as :meth:`commit`.
        """
        if not _is_own_directory(self.directory):
            return Closed(slot=self.name, result=result)
        self._let_go()
        connection = connect(self._workspace, self.name)
        if connection is None:
            if _was_closed(self._workspace, self.name):
                return self._cleaned(Closed(slot=self.name, result=result, before=True))
            raise _dead(self._workspace, self.name)
        with connection:
            leaf = open_pidfd(connection.peer_pid())
            answer: dict[str, Any] | None = None
            try:
                try:
                    answer = connection.converse(
                        "close",
                        patience_s=timeout_s + _ANSWER_WITHIN_S,
                        result=result,
                        artifact=artifact,
                        summary=summary,
                        timeout_s=timeout_s,
                    )
                except Unavailable as error:
                    if error.reason != "closed":
                        raise
                # Not the end of the connection: that comes before the process has ended.
                if leaf is not None:
                    wait_exit(leaf, _ANSWER_WITHIN_S)
            finally:
                if leaf is not None:
                    os.close(leaf)
        if answer is None:  # somebody else has closed it just now
            return self._cleaned(Closed(slot=self.name, result=result, before=True))
        return self._cleaned(
            Closed(
                slot=self.name,
                result=answer["result"],
                checkin=answer["checkin"],
                commits=answer["commits"],
                changes=answer["changes"],
            )
        )

    def _cleaned(self, closed: Closed) -> Closed:
        """Clean up after the leaf, which has ended; say how in *closed*."""
        from slotgc.pruning import prune_slot  # noqa: PLC0415 - only a close removes

        pruned = prune_slot(self.root, self.name)
        closed = closed.replace(history=self.name in pruned.histories)
        if self.name in pruned.removed:
            return closed.replace(outcome="removed")
        if self.name in pruned.rescued:
            return closed.replace(outcome="rescued", rescue=pruned.rescued[self.name])
        if self.name in pruned.kept:
            return closed.replace(outcome="kept", reason=pruned.kept[self.name])
        if self.name in pruned.failed:
            return closed.replace(outcome="failed", reason=pruned.failed[self.name])
        return closed

    def run(
        self,
        argv: list[str],
        *,
        environment: Mapping[str, str] | None = None,
        commit_on_exit: bool = False,
        message: str = "",
        detach: bool = False,
        output: Callable[[list[str]], None] | None = None,
    ) -> Ran:
        """Run *argv* in the worktree as the leaf's child; return when it has ended.

        Its environment is *environment* (this process's by default) with our marks. *output* is
        given its whole lines, standard output and error together. With *commit_on_exit* what it
        leaves changed is committed with *message*. Should this process end, so does the agent;
        unless *detach*: then return at once.

        Raises:
            Refused: it cannot be executed (``not-executable``), or one runs already (``busy``).
            And as :meth:`commit`.
        """
        mask = os.umask(0)
        os.umask(mask)

        def heard(progress: dict[str, Any]) -> None:
            if output is not None and progress.get("lines"):
                skipped = progress.get("skipped")
                gap = [f"({skipped} lines were too many at once: see leaf.log)"] if skipped else []
                output([*gap, *progress["lines"]])

        answer = self.ask(
            "run",
            patience_s=_FOR_EVER_S,
            progress=heard,
            argv=argv,
            env=dict(os.environ if environment is None else environment),
            umask=mask,
            directory="",
            commit_on_exit=commit_on_exit,
            message=message,
            detach=detach,
        )
        return Ran(
            status=answer.get("status", 0),
            checkin=answer.get("checkin", ""),
            pid=answer.get("pid", 0),
        )

    def path_of(self, path: str | bytes | os.PathLike[str]) -> bytes:
        """Return *path*, absolute or relative to the top of the worktree, as seen from that top.

        The top itself is :data:`TOP`. The name itself is taken, not what a link leads to.

        Raises:
            Refused: it is outside, or git's or Fossil's own (``not-in-slot``).
        """
        name = os.fsencode(path)
        top = os.fsencode(self.worktree)
        whole = os.path.normpath(os.path.join(top, name))
        if not whole.startswith(top + b"/"):
            # By another way to the same place: what is above the name may be a link.
            above = os.path.realpath(os.path.dirname(whole))
            whole = os.path.join(above, os.path.basename(whole))
            top = os.path.realpath(top)
        if whole == top:
            return TOP
        inside = whole[len(top) + 1 :]
        if not whole.startswith(top + b"/") or not treepath.is_sound(inside):
            raise Refused(
                f"{treepath.show(name)} is no file of slot {self.name}, whose worktree is "
                f"{self.worktree}",
                reason="not-in-slot",
            )
        return inside

    def ask(
        self,
        verb: str,
        *,
        patience_s: float,
        progress: Progress | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Ask the leaf *verb* as the wire has it; *patience_s* from the last line received.

        Raises: as :meth:`commit`.
        """
        connection = self._kept_one() or self._connect()
        try:
            return connection.converse(verb, patience_s=patience_s, progress=progress, **arguments)
        finally:
            if connection.answered and not self._kept:
                self._idle.add(connection)
                self._kept.append(connection)
            else:
                connection.close()

    def _kept_one(self) -> LeafConnection | None:
        """Return the connection that was kept, for the caller alone; None if it leads nowhere."""
        try:
            connection = self._kept.pop()
        except IndexError:
            return None
        self._idle.discard(connection)
        if connection.is_quiet() and connection.place == _place(self.directory):
            return connection
        connection.close()
        return None

    def _let_go(self) -> None:
        while self._kept:
            try:
                connection = self._kept.pop()
            except IndexError:  # another thread was faster
                return
            self._idle.discard(connection)
            connection.close()

    @classmethod
    def in_child(cls) -> None:
        """Close what the parent of a forked child keeps; its leaf must notice the parent's end."""
        for connection in cls._idle:
            connection.close()
        cls._idle.clear()

    def _connect(self) -> LeafConnection:
        connection = connect(self._workspace, self.name)
        if connection is None:
            raise _dead(self._workspace, self.name)
        return connection


os.register_at_fork(after_in_child=Slot.in_child)

_FOR_EVER_S = 365 * 86_400.0
"""An agent may say nothing for as long as it likes."""


def join(
    root: str | os.PathLike[str] | None,
    slot: str,
    task: str = "",
    *,
    timeout_s: float = JOIN_WITHIN_S,
    progress: Progress | None = None,
) -> Slot:
    """Join *slot* in the workspace around *root*: make it, revive it, or find it joined.

    *task* is a label for people. *timeout_s* counts from the last sign of progress.

    Raises:
        Refused: no slot can have that name (``slot-name``), or this place will not do.
        NotRunning: no hub runs there.
        OwnedByAnother: somebody has the slot whom nothing proves to be gone.
        Unavailable: it was not ready in time, or its leaf hangs and cannot be replaced yet.
    """
    workspace = Workspace.find(root)
    slotname.check(slot)
    if _is_own_directory(f"{workspace.swarm}/{slot}"):
        info = _attached(workspace, slot)
        if info is not None:
            return Slot(workspace, slot, info)
    with _nursery(workspace, timeout_s) as connection:
        connection.whom = f"the leaf of slot {slot}"
        info = connection.converse(
            "join",
            patience_s=timeout_s + _ANSWER_WITHIN_S,
            progress=progress,
            slot=slot,
            task=task,
            timeout_s=timeout_s,
        )
    return Slot(workspace, slot, info)


def connect(workspace: Workspace, slot: str) -> LeafConnection | None:
    """Connect to the leaf of *slot*; None if none serves it.

    Raises:
        Refused: there is no such slot (``no-slot``), or another user's process answers.
    """
    directory = f"{workspace.swarm}/{slot}"
    place = _place(directory)
    if not any(place):
        raise no_slot(workspace, slot)
    connection = _connected(f"{directory}/leaf.sock")
    if connection is not None:
        connection.whom = f"the leaf of slot {slot}"
        connection.place = place
    return connection


def slot_at(path: str | os.PathLike[str] | None = None) -> tuple[str, str] | None:
    """Return root and name of the slot around *path* (the current directory), None outside one."""
    try:
        here = os.path.realpath(path) if path else os.getcwd()
    except OSError:
        return None
    names = here.split("/")
    for depth in range(len(names) - 2):
        if names[depth : depth + 2] == [SLOTS, "swarm"] and slotname.is_name(names[depth + 2]):
            root = "/".join(names[:depth]) or "/"
            if os.path.lexists(f"{root}/.git"):
                return root, names[depth + 2]
    return None


def no_slot(workspace: Workspace, slot: str) -> Refused:
    """Return the error for a slot that is not there."""
    return Refused(
        f"there is no slot {slot} in {workspace.root}: `bones swarm join --slot {slot}` makes it",
        reason="no-slot",
    )


def _dead(workspace: Workspace, slot: str) -> NotRunning:
    return NotRunning(
        f"no leaf serves slot {slot} of {workspace.root}; its files are kept: "
        f"`bones swarm join --slot {slot}` goes on with them",
        reason="leaf-dead",
    )


def _was_closed(workspace: Workspace, slot: str) -> bool:
    """Tell whether the last leaf of *slot* left by a close: trunk keeps no key of such a one."""
    from hub.trunk.registry import read  # noqa: PLC0415 - hardly ever

    entry = read(workspace).logins.get(slot)
    return entry is not None and bool(entry.joined) and not entry.public


def _attached(workspace: Workspace, slot: str) -> dict[str, Any] | None:
    """Return what the leaf that serves *slot* says; None if none does, or not at once."""
    connection = connect(workspace, slot)
    if connection is None:
        return None
    with connection:
        try:
            return connection.converse("join", patience_s=_ATTACH_WITHIN_S)
        except Unavailable:
            return None  # it hangs, ends or is being made: the nursery's business
        except LeaseLost:
            return None


def _nursery(workspace: Workspace, timeout_s: float) -> LeafConnection:
    """Connect to the nursery; one whose hub has just started is waited for.

    Raises:
        NotRunning: no hub runs here.
        Unavailable: its trunk does not serve.
    """
    deadline_s = time.monotonic() + min(timeout_s, _TRUNK_WITHIN_S)
    while True:
        hub = contact(workspace)  # refuses a state that is not ours
        if hub is None:
            raise NotRunning(
                f"no hub runs in {workspace.root}: `bones up` starts one", reason="not-running"
            )
        with hub:
            connection = _connected(workspace.leaves_socket)
        if connection is not None:
            return connection
        if time.monotonic() > deadline_s:
            raise Unavailable(
                f"the hub in {workspace.root} runs but its trunk does not serve: `hub logs trunk`",
                reason="trunk-away",
            )
        time.sleep(_RETRY_S)


def _connected(path: str) -> LeafConnection | None:
    connection = LeafConnection.open(path)
    if connection is None:
        return None
    if connection.peer_uid() != os.geteuid():
        with connection:
            raise Refused(f"another user's process answers at {path}", reason="state-foreign")
    return connection


def _is_own_directory(path: str) -> bool:
    """Tell whether *path* is a real directory of this user; as slotgc.leaf, which loads more."""
    return any(_place(path))


def _place(path: str) -> tuple[int, int]:
    """Return device and inode of *path*; zeros if it is no real directory of this user."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return 0, 0
    return status.st_dev, status.st_ino


def _error(wire: Any) -> HubError:
    if isinstance(wire, dict) and wire.get("conflicts"):
        error = Conflicted(tuple(conflict_from_json(one) for one in wire["conflicts"]))
        error.args = (str(wire.get("message", error)),)
        return error
    return from_wire(wire)


def _paths(rows: Iterable[Any]) -> tuple[bytes, ...]:
    return tuple(treepath.from_json(row) for row in rows)
