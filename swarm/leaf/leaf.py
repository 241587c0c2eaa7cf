"""A slot's leaf, alive: what it holds, what it answers, when it ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import traceback
from typing import TYPE_CHECKING, Any

from foundation import codec, control
from foundation.clock import utc_now
from foundation.errors import HubError, LeaseLost, Refused, Unavailable, to_wire
from foundation.failpoint import hit
from foundation.process import Identity
from foundation.workspace import MARK, SLOT_MARK
from hub.commits import Conflicted
from hub.logs import LogFile
from slotgc import treepath
from slotgc.hold import refuse_foreign
from slotgc.leaf import write_record
from swarm.leaf.agent import Agent
from swarm.leaf.announcing import Announcer
from swarm.leaf.committing import Committer
from swarm.leaf.joining import acquire, join_lease, take
from swarm.leaf.life import SERVING, step
from swarm.leaf.link import Link
from swarm.leaf.server import Client, Server
from swarm.worktree import Worktree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from foundation.workspace import Workspace
    from owner.ownership import Owner
    from swarm.leaf.life import LifeEvent, Phase

    Verb = Callable[[dict[str, Any], Client], Awaitable[dict[str, Any]]]

SLOT_VARIABLE = "BONES_SLOT_WT"
"""In the environment of an agent that a leaf runs, beside the marks: its worktree."""

_COMMIT_WITHIN_S = 30.0
_UPDATE_WITHIN_S = 60.0
_SETTLE_WITHIN_S = 0.5
_SETTLE_AFTER_S = 0.3
_REGAIN_WITHIN_S = 10.0
_FLUSH_WITHIN_S = 0.5
_LEAVE_WITHIN_S = 2.0
_LAST_WORDS_S = 0.5
_LINES_BYTES = 96 * 1024
_NAMED = 20
"""How many paths an event names."""
_CHANGES_BYTES = 200 * 1024


class Leaf:
    """The leaf of one slot. All of it belongs to one loop; its lease alone has threads."""

    def __init__(self, workspace: Workspace, name: str, task: str) -> None:
        """Hold nothing yet; :meth:`join` begins."""
        self.name = name
        self.phase: Phase = "joining"
        self._workspace = workspace
        self._task = task
        self._directory = f"{workspace.swarm}/{name}"
        self._joined_at = ""
        self._revived = False
        self._owner: Owner | None = None
        self._lock = -1
        self._place = (0, 0)
        self._worktree: Worktree | None = None
        self._committer: Committer | None = None
        self._agent: Agent | None = None
        self._log: LogFile | None = None
        self._over: HubError | None = None
        """Why no verb is served any more."""
        self._ending = asyncio.Event()
        self._order = asyncio.Lock()
        """One at a time of all that touches the worktree."""
        self._settling: asyncio.TimerHandle | None = None
        self._working: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._link = Link(
            workspace, name, on_change=self._hub_changed, on_superseded=self._superseded
        )
        self._events = Announcer(self._link, name, self._event_refused)
        self._server = Server(self.answer, self._complain)
        self._verbs: dict[str, Verb] = {
            "join": self._join_again,
            "status": self._status,
            "changes": self._changes,
            "commit": self._commit,
            "update": self._update,
            "close": self._close,
            "run": self._run,
        }

    # --- its beginning ---------------------------------------------------------------------

    async def join(self, *, within_s: float, progress: Callable[..., None]) -> dict[str, Any]:
        """Make the slot, or revive it; return INFO (:mod:`swarm.slot`).

        One that has a leaf is that leaf's: its INFO is returned, and nothing was done.

        Raises:
            HubError: it cannot be joined; killed at any step, the next join carries on.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        refuse_foreign(self._workspace)
        self._workspace.make_bones()

        def note(words: str) -> None:
            progress(note=words)

        mine = await acquire(self._workspace, self.name, self._task, within_s=within_s, note=note)
        if isinstance(mine, dict):
            return mine
        self._owner = mine
        registered = False

        async def register() -> None:
            nonlocal registered
            if not registered:
                await self._link.register(mine.epoch, deadline_s - loop.time())
                registered = True

        taken = await take(self._workspace, self.name, revoke=register, note=note)
        self._lock = taken.lock
        self._place = _place(self._directory)
        hit("join.claimed")
        identity = Identity.of(os.getpid())
        if identity is None:
            raise Unavailable("/proc does not show this process to itself", reason="no-proc")
        write_record(self._directory, identity)
        hit("join.recorded")
        self._open_log()
        listener = control.listen(f"{self._directory}/leaf.sock")
        await register()
        hit("join.registered")
        self._worktree = self._open_worktree(progress)
        hit("join.worktree")
        self._committer = Committer(
            self._worktree,
            self._link,
            self.name,
            on_superseded=self._superseded,
            complain=self._complain,
        )
        await self._link.begin(max(1.0, deadline_s - loop.time()))
        self._joined_at = utc_now()
        self._step("joined")
        self._events.announce(
            "joined",
            task=self._task,
            pid=os.getpid(),
            worktree=self._worktree.directory,
            checkin=self._worktree.checkin,
            revived=self._revived,
        )
        await self._server.begin(socket.socket(fileno=listener.detach()))
        hit("join.serving")
        self._note("info", "joined", epoch=self._link.epoch, revived=self._revived)
        return {**self._info(), "joined": True}

    def _open_worktree(self, progress: Callable[..., None]) -> Worktree:
        self._revived = os.path.lexists(f"{self._directory}/wt")
        if self._revived:
            return Worktree.open(self._workspace, self.name)
        return Worktree.make(self._workspace, self.name, progress=progress)

    def _open_log(self) -> None:
        """Write to leaf.log from now on, whatever Python says on its way out too."""
        self._log = LogFile(f"{self._directory}/leaf.log")
        for descriptor in (1, 2):
            os.dup2(self._log.fileno(), descriptor)

    async def live(self) -> None:
        """Serve the slot until it is closed, lost or removed, or SIGTERM comes."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_end, number)
        self._begin(self._events.keep())
        self._begin(self._watch_lease())
        await self._ending.wait()

    async def end(self) -> None:
        """Let go of everything, in an order in which a successor finds all that it needs."""
        if self._agent is not None:
            self._agent.kill()
        for task in [*self._tasks, *self._working]:
            task.cancel()
        if self._worktree is not None and self.phase not in ("lost", "gone"):
            self._close_worktree(self._worktree)
        if self._owner is not None:
            self._owner.release()
        await self._link.end()
        self._server.end()
        deadline_s = _now_s() + _LAST_WORDS_S
        while self._server.unsent() and _now_s() < deadline_s:  # noqa: ASYNC110 - hardly ever
            await asyncio.sleep(0.005)
        self._step("end")

    def _close_worktree(self, worktree: Worktree) -> None:
        try:
            worktree.close()
        except (HubError, OSError) as error:  # what it has not written is mended by the next
            self._complain("worktree", error)

    # --- what it is told -------------------------------------------------------------------

    def _hub_changed(self, away: str) -> None:
        self._step("hub-lost" if away else "hub-back")
        self._note("warning" if away else "info", "hub", away=away)
        if not away and self._committer is not None and self._committer.pending is not None:
            self._begin(self._settle_quietly())

    def _superseded(self, error: LeaseLost) -> None:
        """Stop: trunk knows a later leaf of this slot."""
        self._lose(error)

    def _lose(self, error: LeaseLost) -> None:
        self._step("lost")
        self._stop(error)

    def _asked_to_end(self, number: int) -> None:
        self._note("info", "signal", number=number)
        self._begin(self._end_politely())

    async def _end_politely(self) -> None:
        if self._agent is not None:
            self._agent.end()
        if self.phase in SERVING:
            self._events.announce("left", checkin=self._checkin())
            if not self._link.away:
                await self._events.flush(_FLUSH_WITHIN_S)
        self._stop(Unavailable(f"the leaf of slot {self.name} is ending", reason="ending"))

    def _stop(self, error: HubError) -> None:
        """End, and tell *error* to whoever waits for an answer."""
        if self._over is None:
            self._over = error
            self._note("info", "ending", reason=error.reason, error=str(error))
            for task in self._working:
                task.cancel()
        self._ending.set()

    async def _watch_lease(self) -> None:
        """Take the lease again if it was lost and nobody has it; else stop."""
        while True:
            assert self._owner is not None
            await self._owner.lost
            self._note("warning", "lease-lost", reason=self._owner.lost_reason)
            try:
                mine = join_lease(self._workspace, self.name, self._task)
            except (HubError, OSError) as error:
                words = f"its lease was lost ({self._owner.lost_reason}) and is not to be had again"
                self._lose(LeaseLost(f"slot {self.name}: {words}: {error}", reason="lost"))
                return
            if not mine.is_owner:
                self._lose(
                    LeaseLost(
                        f"slot {self.name} was taken over by pid {mine.holder.pid} (epoch "
                        f"{mine.epoch}) at {mine.holder.acquired_at}; this leaf, pid "
                        f"{os.getpid()}, touches it no more",
                        reason="superseded",
                    )
                )
                return
            # We still have leaf.lock, so nobody has touched the slot since.
            self._owner = mine
            await self._log_in_again(mine.epoch)

    async def _log_in_again(self, epoch: int) -> None:
        try:
            await self._link.register(epoch, _REGAIN_WITHIN_S)
        except LeaseLost as error:
            self._lose(error)
            return
        except HubError as error:
            self._note("warning", "not-registered", error=str(error))
        self._note("info", "lease-regained", epoch=epoch)
        await self._link.reconnect()

    # --- what it answers -------------------------------------------------------------------

    async def answer(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        """Answer one request; see :mod:`swarm.slot`.

        Raises:
            HubError: why not.
        """
        verb = self._verbs.get(str(request.get("verb")))
        if verb is None:
            text = f"a leaf knows no verb {request.get('verb')!r}"
            raise Refused(text, reason="unknown-verb")
        self._check()
        task = asyncio.current_task()
        assert task is not None
        self._working.add(task)
        try:
            return await verb(request, client)
        except asyncio.CancelledError:
            if self._over is None:
                raise
            task.uncancel()
            raise self._over from None
        finally:
            self._working.discard(task)

    def _check(self) -> None:
        """Refuse to serve a slot that is no longer ours, or no longer there.

        Raises:
            HubError: it is not.
        """
        if self._over is not None:
            raise self._over
        if _place(self._directory) != self._place:
            self._step("removed")
            gone = Refused(
                f"the directory of slot {self.name} was removed or moved away: its leaf ends",
                reason="no-slot",
            )
            self._stop(gone)
            raise gone
        if self._owner is not None and not self._owner.is_owner:
            # It knows before its event has come around; a moment later it has it again or ends.
            raise LeaseLost(
                f"slot {self.name}: {self._owner.lost_reason or 'its lease has run out'}",
                reason="lease-lost",
            )

    async def _join_again(self, _request: dict[str, Any], _client: Client) -> dict[str, Any]:
        return {**self._info(), "joined": False}

    async def _status(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        assert self._committer is not None
        if self._committer.pending is not None and not (self._link.away or self._order.locked()):
            await self._settle_quietly()
        data = {
            **self._info(),
            "joined": False,
            "phase": self.phase,
            "hub": self._link.away or "ready",
            "since": self._joined_at,
            "commits": self._committer.commits,
            "landed": self._committer.landed,
            "pending": "" if self._committer.pending is None else self._committer.pending.id,
            "events_waiting": self._events.waiting,
            "agent": 0 if self._agent is None else self._agent.pid,
        }
        if request.get("changes"):
            data.update(await self._changes(request, _client))
        return data

    async def _changes(self, _request: dict[str, Any], _client: Client) -> dict[str, Any]:
        async with self._order:
            found = self._tree().changes()
        rows: list[Any] = []
        size = 0
        for one in found:
            row = [treepath.to_json(one.path), one.kind, one.hash, one.base_kind, one.base_hash]
            size += len(codec.dumps(row)) + 1
            if size > _CHANGES_BYTES:
                break
            rows.append(row)
        return {"checkin": self._checkin(), "changes": rows, "more": len(found) - len(rows)}

    async def _commit(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        message = request["message"]
        if not isinstance(message, str) or not message.strip():
            raise Refused("a commit needs a message: -m TEXT", reason="no-message")
        rows = request.get("paths")
        paths = None if rows is None else [treepath.from_json(row) for row in rows]
        return await self._committed(message, paths, _deadline(request, _COMMIT_WITHIN_S))

    async def _committed(
        self, message: str, paths: list[bytes] | None, deadline_s: float
    ) -> dict[str, Any]:
        assert self._committer is not None
        async with self._order:
            self._check()
            try:
                landed, files = await self._committer.commit(message, paths, deadline_s)
            except Conflicted as error:
                named = [treepath.to_json(one.path) for one in error.conflicts[:_NAMED]]
                self._events.announce("conflict", paths=named, count=len(error.conflicts))
                raise
            self._settle_soon()
        return {
            "checkin": landed.checkin,
            "parent": landed.parent,
            "time": landed.time,
            "message": landed.message,
            "files": files,
            "merged": [treepath.to_json(path) for path, _kind, _name in landed.merged],
            "new": landed.new,
        }

    def _settle_soon(self) -> None:
        """Have the check-out follow once nobody commits any more: a pause will do for all."""
        if self._settling is not None:
            self._settling.cancel()
        self._settling = asyncio.get_running_loop().call_later(
            _SETTLE_AFTER_S, lambda: self._begin(self._settle_worktree())
        )

    async def _settle_worktree(self) -> None:
        async with self._order:
            if self._over is None:
                try:
                    self._tree().settle()
                except (HubError, OSError) as error:
                    self._complain("worktree", error)

    async def _settle_quietly(self) -> None:
        """Learn what became of a commit that was not answered; what is not known stays so."""
        assert self._committer is not None
        try:
            async with self._order:
                await self._committer.settle(_now_s() + _SETTLE_WITHIN_S)
        except (HubError, OSError) as error:
            self._note("warning", "not-settled", error=str(error))

    async def _update(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        assert self._committer is not None
        deadline_s = _deadline(request, _UPDATE_WITHIN_S)
        async with self._order:
            self._check()
            await self._committer.settle(deadline_s)
            tree = self._tree()
            previous = tree.checkin
            done = tree.update(markers=bool(request.get("markers")))
        answer = {
            "checkin": done.checkin,
            "previous": previous,
            "files": done.files,
            "merged": [treepath.to_json(path) for path in done.merged],
            "conflicted": [treepath.to_json(path) for path in done.conflicted],
        }
        if done.checkin != previous:
            count = done.files + len(done.merged) + len(done.conflicted)
            self._events.announce("updated", checkin=done.checkin, previous=previous, files=count)
        return answer

    async def _close(self, request: dict[str, Any], _client: Client) -> dict[str, Any]:
        result = request.get("result")
        if result not in ("success", "fail"):
            raise Refused(f"a slot is closed as success or fail, not {result!r}", reason="result")
        return await self._closed(
            result,
            artifact=bool(request.get("artifact", True)),
            summary=str(request.get("summary") or ""),
            deadline_s=_deadline(request, _COMMIT_WITHIN_S),
        )

    async def _closed(
        self, result: str, *, artifact: bool, summary: str, deadline_s: float
    ) -> dict[str, Any]:
        assert self._committer is not None
        if self._agent is not None:
            raise Refused(
                f"slot {self.name} runs an agent, pid {self._agent.pid}: end it first",
                reason="busy",
            )
        async with self._order:
            self._check()
            await self._committer.settle(deadline_s)
            changes = self._tree().changes()
            if result == "success" and artifact:
                self._require_artifact([one.path for one in changes])
            self._step("close")
            data = {
                "slot": self.name,
                "result": result,
                "checkin": self._committer.landed,
                "commits": self._committer.commits,
                "changes": len(changes),
            }
            try:
                self._events.announce("closed", **data, summary=summary)
                if not await self._events.flush(max(0.0, deadline_s - _now_s())):
                    raise Unavailable(
                        f"the hub of {self._workspace.root} is away ({self._link.away}), slot "
                        f"{self.name} stays: `hub start --detach`, then close again",
                        reason="hub-away",
                    )
            except BaseException:
                self._step("kept")
                raise
            hit("close.announced")
        try:
            await self._link.leave(_LEAVE_WITHIN_S)
        except HubError as error:  # its epoch ends with the next join at the latest
            self._note("warning", "not-left", error=str(error))
        hit("close.left")
        over = Unavailable(f"slot {self.name} was closed", reason="closed")
        asyncio.get_running_loop().call_soon(self._stop, over)  # after the answer
        return data

    def _require_artifact(self, changed: list[bytes]) -> None:
        assert self._committer is not None
        if not self._committer.commits:
            raise Refused(
                f"slot {self.name} has committed nothing since it was joined: commit first, or "
                "close with --no-artifact or --result fail",
                reason="no-artifact",
            )
        if changed:
            shown = ", ".join(treepath.show(path) for path in changed[:5])
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""  # noqa: PLR2004
            raise Refused(
                f"slot {self.name} has changes that are not committed ({shown}{more}): commit "
                "them, or close with --no-artifact or --result fail, and they are rescued",
                reason="uncommitted",
            )

    async def _run(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        if self._agent is not None:
            raise Refused(
                f"slot {self.name} runs an agent already, pid {self._agent.pid}", reason="busy"
            )
        argv = [str(word) for word in request["argv"]]
        environment = {str(name): str(value) for name, value in request["env"].items()}
        directory = self._tree().directory
        environment |= {
            MARK: self._workspace.root,
            SLOT_MARK: self.name,
            SLOT_VARIABLE: directory,
            "PWD": directory,
        }
        program = argv[0]
        if "/" not in program:
            program = shutil.which(program, path=environment.get("PATH")) or program
        skipped = 0

        def lines(whole: bytes, first: int) -> None:
            nonlocal skipped
            if self._log is not None:
                self._log.write(whole)
            self._begin(self._link.send(f"slot.{self.name}.log", whole, {"Hub-Line": str(first)}))
            if client.gone.done() or detach:
                return
            texts = whole.decode("utf-8", "backslashreplace").split("\n")[:-1]
            if not client.progress({"lines": texts, "first": first, "skipped": skipped}):
                skipped += len(texts)
            else:
                skipped = 0

        detach = bool(request.get("detach"))
        agent = Agent(
            [os.path.join(directory, program), *argv[1:]],
            environment=environment,
            umask=int(request.get("umask", 0o022)) & 0o777,
            directory=directory,
            lines=lines,
        )
        self._agent = agent
        self._events.announce("run-started", pid=agent.pid, argv=argv[:_NAMED])
        client.progress({"pid": agent.pid})
        if detach:
            self._begin(self._see_out(agent, request))
            return {"pid": agent.pid}
        client.gone.add_done_callback(lambda _gone: agent.end())
        return await self._see_to_its_end(agent, request)

    async def _see_out(self, agent: Agent, request: dict[str, Any]) -> None:
        """Do what :meth:`_see_to_its_end` does, with nobody to tell."""
        try:
            await self._see_to_its_end(agent, request)
        except HubError as error:
            self._note("error", "run", reason=error.reason, error=str(error))

    async def _see_to_its_end(self, agent: Agent, request: dict[str, Any]) -> dict[str, Any]:
        """Wait for *agent*; commit what it left and close, as *request* asks."""
        try:
            status = await agent.wait()
        finally:
            if self._agent is agent:
                self._agent = None
        data: dict[str, Any] = {"status": status, "checkin": "", "pid": agent.pid}
        if request.get("commit_on_exit"):
            message = str(request.get("message") or f"{self.name}: the agent ended with {status}")
            try:
                landed = await self._committed(message, None, _now_s() + _COMMIT_WITHIN_S)
                data["checkin"] = landed["checkin"]
            except HubError as error:
                if error.reason != "nothing-to-commit":
                    data["error"] = to_wire(error)
        self._events.announce("run-ended", status=status, checkin=data["checkin"])
        if request.get("close"):
            result = "fail" if status or "error" in data else "success"
            data["closed"] = await self._closed(
                result, artifact=False, summary="", deadline_s=_now_s() + _COMMIT_WITHIN_S
            )
        return data

    # --- the rest --------------------------------------------------------------------------

    def _info(self) -> dict[str, Any]:
        return {
            "slot": self.name,
            "root": self._workspace.root,
            "worktree": f"{self._directory}/wt",
            "checkin": self._checkin(),
            "epoch": self._link.epoch,
            "pid": os.getpid(),
            "task": self._task,
            "revived": self._revived,
        }

    def _tree(self) -> Worktree:
        assert self._worktree is not None
        return self._worktree

    def _checkin(self) -> str:
        return "" if self._worktree is None else self._worktree.checkin

    def _step(self, event: LifeEvent) -> None:
        self.phase = step(self.phase, event)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._complain("bug", error)

    def _complain(self, what: str, error: BaseException) -> None:
        words = "".join(traceback.format_exception(error))
        self._note("error", what, error=words)

    def _event_refused(self, kind: str, error: HubError) -> None:
        self._note("error", "event-refused", kind=kind, error=str(error))

    def _note(self, level: str, event: str, **fields: Any) -> None:
        if self._log is not None:
            line = {"time": utc_now(), "level": level, "event": event, **fields}
            self._log.write(codec.dumps(line).encode() + b"\n")


def _deadline(request: dict[str, Any], default_s: float) -> float:
    """Return until when, of the loop's clock, *request* is to be answered."""
    within_s = request.get("timeout_s")
    return _now_s() + (float(within_s) if isinstance(within_s, int | float) else default_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _place(directory: str) -> tuple[int, int]:
    """Return what tells the directory from every other; zeros if it is not there."""
    try:
        status = os.lstat(directory)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
