"""A slot's leaf, alive: what it holds, from its join to its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import traceback
from typing import TYPE_CHECKING, Any

from foundation import codec, control
from foundation.clock import utc_now
from foundation.errors import HubError, LeaseLost, Refused, Unavailable
from foundation.failpoint import hit
from foundation.process import Identity
from hub.logs import LogFile
from slotgc.hold import refuse_foreign
from slotgc.leaf import write_record
from swarm.leaf.announcing import Announcer
from swarm.leaf.committing import Committer
from swarm.leaf.joining import acquire, join_lease, take
from swarm.leaf.life import SERVING, step
from swarm.leaf.link import Link
from swarm.leaf.server import Server
from swarm.leaf.stock import StockCommits
from swarm.leaf.verbs import Verbs
from swarm.worktree import Worktree

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from foundation.workspace import Workspace
    from owner.ownership import Owner
    from swarm.leaf.agent import Agent
    from swarm.leaf.life import LifeEvent, Phase
    from swarm.leaf.server import Client

_REGAIN_WITHIN_S = 10.0
_LEASE_LOOK_S = 0.01
_FLUSH_WITHIN_S = 0.5
_LAST_WORDS_S = 0.5
_TELLING_S = 1.0
_PLACE_EVERY_S = 2.0
"""How long a leaf may outlive its slot, and keep the next one of its name waiting."""
_LINK_AT_LEAST_S = 1.0


class Leaf:
    """The leaf of one slot. All of it belongs to one loop; its lease alone has threads."""

    worktree: Worktree
    committer: Committer
    stock: StockCommits

    def __init__(self, workspace: Workspace, name: str, task: str) -> None:
        """Hold nothing yet; :meth:`join` begins."""
        self.name = name
        self.task = task
        self.workspace = workspace
        self.directory = f"{workspace.swarm}/{name}"
        self.phase: Phase = "joining"
        self.joined_at = ""
        self.revived = False
        self.agent: Agent | None = None
        self.log: LogFile | None = None
        self.order = asyncio.Lock()
        """One at a time of all that touches the worktree."""
        self.link = Link(
            workspace, name, on_change=self._hub_changed, on_superseded=self._superseded
        )
        self.events = Announcer(self.link, name, self._event_refused)
        self._owner: Owner | None = None
        self._lock = -1
        self._place = (0, 0)
        self._over: HubError | None = None
        """Why no verb is served any more."""
        self._ending = asyncio.Event()
        self._asked = asyncio.Event()
        self._working: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._verbs = Verbs(self)
        self._server = Server(self._answer, self.complain)

    # --- its beginning ---------------------------------------------------------------------

    async def join(self, *, within_s: float, progress: Callable[..., None]) -> dict[str, Any]:
        """Make the slot, or revive it; return INFO (:mod:`swarm.slot`).

        One that has a leaf is that leaf's: its INFO is returned, and nothing was done.

        Raises:
            HubError: it cannot be joined; killed at any step, the next join carries on.
        """
        deadline_s = _now_s() + within_s
        refuse_foreign(self.workspace)
        self.workspace.make_bones()

        def note(words: str) -> None:
            progress(note=words)

        mine = await acquire(self.workspace, self.name, self.task, within_s=within_s, note=note)
        if isinstance(mine, dict):
            return mine
        self._owner = mine

        async def register() -> None:
            if not self.link.epoch:
                await self.link.register(mine.epoch, deadline_s - _now_s())

        taken = await take(self.workspace, self.name, revoke=register, note=note)
        self._lock = taken.lock
        self._place = _place(self.directory)
        hit("join.claimed")
        write_record(self.directory, _own_identity())
        hit("join.recorded")
        self._open_log()
        # Whoever asks from now on waits for the answer, and hears of our end.
        listener = control.listen(f"{self.directory}/leaf.sock")
        await register()
        hit("join.registered")
        self._open_worktree(progress)
        hit("join.worktree")
        await self.link.begin(max(_LINK_AT_LEAST_S, deadline_s - _now_s()))
        await self._serve(socket.socket(fileno=listener.detach()))
        hit("join.serving")
        return {**self.info(), "joined": True}

    def _open_log(self) -> None:
        """Write to leaf.log from now on, whatever Python says on its way out too."""
        self.log = LogFile(f"{self.directory}/leaf.log")
        for descriptor in (1, 2):
            os.dup2(self.log.fileno(), descriptor)

    def _open_worktree(self, progress: Callable[..., None]) -> None:
        self.revived = os.path.lexists(f"{self.directory}/wt")
        begin = Worktree.open if self.revived else Worktree.make
        self.worktree = begin(self.workspace, self.name, progress=progress)
        self.committer = Committer(
            self.worktree,
            self.link,
            self.name,
            self.workspace.spool,
            on_superseded=self._superseded,
            complain=self.complain,
        )
        self.stock = StockCommits(self.workspace.repository, self.name, self.worktree.checkin)
        self.committer.recall()

    async def _serve(self, listener: socket.socket) -> None:
        """Be ready: whatever comes from now on ends in an orderly way."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_end, number)
        self.joined_at = utc_now()
        self._step("joined")
        self.note("info", "joined", epoch=self.link.epoch, revived=self.revived)
        self.events.announce(
            "joined",
            task=self.task,
            pid=os.getpid(),
            worktree=self.worktree.directory,
            checkin=self.worktree.checkin,
            revived=self.revived,
        )
        self.begin(self.events.keep())
        self.begin(self._watch_lease())
        self.begin(self._watch_place())
        self._verbs.settle_soon()
        await self._server.begin(listener)

    def info(self) -> dict[str, Any]:
        """Return INFO (:mod:`swarm.slot`), but for ``joined``."""
        return {
            "slot": self.name,
            "root": self.workspace.root,
            "worktree": self.worktree.directory,
            "checkin": self.worktree.checkin,
            "epoch": self.link.epoch,
            "pid": os.getpid(),
            "task": self.task,
            "revived": self.revived,
        }

    # --- its end ---------------------------------------------------------------------------

    async def live(self) -> None:
        """Serve the slot until it is closed, lost or removed, or SIGTERM comes."""
        await self._ending.wait()
        if self.phase == "lost":  # whoever asks just now is to be told why
            try:
                async with asyncio.timeout(_TELLING_S):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def end(self) -> None:
        """Let go of everything, in an order in which a successor finds all that it needs."""
        if self.agent is not None:
            self.agent.kill()
        for task in [*self._tasks, *self._working]:
            task.cancel()
        if hasattr(self, "worktree") and self.phase not in ("lost", "gone"):
            self._close_worktree()
        if self._owner is not None:
            self._owner.release()
        await self.link.end()
        self._server.end()
        deadline_s = _now_s() + _LAST_WORDS_S
        while self._server.unsent() and _now_s() < deadline_s:  # noqa: ASYNC110 - hardly ever
            await asyncio.sleep(0.005)
        self._step("end")

    def _close_worktree(self) -> None:
        try:
            self.worktree.close()
        except (HubError, OSError) as error:  # what it has not written is mended by the next
            self.complain("worktree", error)

    def stop(self, error: HubError) -> None:
        """End, and tell *error* to whoever waits for an answer."""
        if self._over is None:
            self._over = error
            self.note("info", "ending", reason=error.reason, error=str(error))
            for task in self._working:
                task.cancel()
        self._ending.set()

    def _asked_to_end(self, number: int) -> None:
        self.note("info", "signal", number=number)
        self._asked.set()
        self.begin(self._end_politely())

    async def _end_politely(self) -> None:
        if self.agent is not None:
            self.agent.end()
        if self.phase in SERVING:
            self.events.announce("left", checkin=self.worktree.checkin)
            if not self.link.away:
                await self.events.flush(_FLUSH_WITHIN_S)
        self.stop(Unavailable(f"the leaf of slot {self.name} is ending", reason="ending"))

    # --- its lease and its hub -------------------------------------------------------------

    async def _watch_lease(self) -> None:
        """Take the lease again if it was lost and nobody has it; else stop."""
        while True:
            assert self._owner is not None
            await self._owner.lost
            reason = self._owner.lost_reason
            self.note("warning", "lease-lost", reason=reason)
            try:
                mine = join_lease(self.workspace, self.name, self.task)
            except (HubError, OSError) as error:
                words = f"its lease was lost ({reason}) and is not to be had again: {error}"
                self._superseded(LeaseLost(f"slot {self.name}: {words}", reason="lost"))
                return
            if not mine.is_owner:
                self._superseded(
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
            if not await self._log_in_again(mine.epoch):
                return

    async def _log_in_again(self, epoch: int) -> bool:
        try:
            await self.link.register(epoch, _REGAIN_WITHIN_S)
        except LeaseLost as error:
            self._superseded(error)
            return False
        except HubError as error:  # away: the link registers when it is back
            self.note("warning", "not-registered", error=str(error))
        self.note("info", "lease-regained", epoch=epoch)
        await self.link.reconnect()
        return True

    def _superseded(self, error: LeaseLost) -> None:
        """Stop: another has the slot."""
        self._step("lost")
        self.stop(error)

    def _hub_changed(self, away: str) -> None:
        self._step("hub-lost" if away else "hub-back")
        self.note("warning" if away else "info", "hub", away=away)
        if not away and self.phase in SERVING and self.committer.pending is not None:
            self.begin(self._verbs.keep_learning())

    # --- what it answers -------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any], client: Client) -> dict[str, Any]:
        """Answer one request; see :mod:`swarm.slot`.

        Raises:
            HubError: why not.
        """
        verb = self._verbs.find(request.get("verb"))
        await self._until_leased()
        self.check()
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

    def check(self) -> None:
        """Refuse to serve a slot that is no longer ours, or no longer there.

        Raises:
            HubError: it is not.
        """
        if self._over is not None:
            raise self._over
        if _place(self.directory) != self._place:
            self._step("removed")
            gone = Refused(
                f"the directory of slot {self.name} was removed or moved away: its leaf ends",
                reason="no-slot",
            )
            self.stop(gone)
            raise gone

    async def _watch_place(self) -> None:
        """Notice that the slot was removed also where nobody asks for anything."""
        while self._over is None:
            await asyncio.sleep(_PLACE_EVERY_S)
            try:
                self.check()
            except HubError:
                return

    async def _until_leased(self) -> None:
        """Wait the moment in which a lost lease is had again, or known to be another's."""
        deadline_s = _now_s() + _REGAIN_WITHIN_S
        while self._over is None and self._owner is not None and not self._owner.is_owner:
            if _now_s() > deadline_s:
                raise LeaseLost(
                    f"slot {self.name}: {self._owner.lost_reason or 'its lease has run out'}",
                    reason="lease-lost",
                )
            await asyncio.sleep(_LEASE_LOOK_S)

    def closing(self, *, begins: bool) -> None:
        """Note that a close begins, or that the slot stays after all."""
        self._step("close" if begins else "kept")
        if self.phase in SERVING and self.link.away:
            self._step("hub-lost")  # meanwhile

    def closed(self) -> HubError:
        """Serve nobody any more; return what whoever asks is told from now on."""
        self._over = Unavailable(f"slot {self.name} was closed", reason="closed")
        return self._over

    # --- the rest --------------------------------------------------------------------------

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* beside everything else, until the leaf ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.complain("bug", error)

    def _step(self, event: LifeEvent) -> None:
        self.phase = step(self.phase, event)

    def _event_refused(self, kind: str, error: HubError) -> None:
        self.note("error", "event-refused", kind=kind, error=str(error))

    def complain(self, what: str, error: BaseException) -> None:
        """Log *error*, which is nobody's answer, with where it came from."""
        self.note("error", what, error="".join(traceback.format_exception(error)))

    def note(self, level: str, event: str, **fields: Any) -> None:
        """Write one line to leaf.log."""
        if self.log is not None:
            line = {"time": utc_now(), "level": level, "event": event, **fields}
            self.log.write(codec.dumps(line).encode() + b"\n")


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _own_identity() -> Identity:
    identity = Identity.of(os.getpid())
    if identity is None:
        raise Unavailable("/proc does not show this process to itself", reason="no-proc")
    return identity


def _place(directory: str) -> tuple[int, int]:
    """Return what tells the directory from every other; zeros if it is not there."""
    try:
        status = os.lstat(directory)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
