"""A cluster, alive: its members, who joins, who leaves, and its end."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from foundation import control
from foundation.atomic import remove
from foundation.errors import OwnedByAnother, Refused, Unavailable
from foundation.failpoint import hit
from hub.hold import NOTICED_WITHIN_S
from orchestrator import protocol
from orchestrator.holder.bound import ParentWatch
from orchestrator.holder.holds import Holds
from orchestrator.holder.launch import egress_of
from orchestrator.holder.log import note
from orchestrator.holder.member import Member
from orchestrator.holder.pidfile import remove_pidfile, write_pidfile
from orchestrator.holder.server import REQUEST_WITHIN_S, Server
from orchestrator.holder.telling import Telling
from orchestrator.holder.verbs import OUTLIVE, Verbs
from orchestrator.spawning import check_room, taken
from orchestrator.store import MOMENTARY_S, RETRY_S, Store, cluster_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.holder.launch import Launch
    from orchestrator.holder.parts import Parts
    from orchestrator.protocol import Status
    from orchestrator.store import Options

_BOOTS_PER_CPU = 2
"""More at once would only make each other late."""
_DRAIN_WITHIN_S = 1.0
_RESERVE_S = 5.0
"""Of a client's deadline, what is left for the end after the gentle part."""


class Holder:
    """The members of one process. All of it belongs to one loop."""

    def __init__(
        self,
        launch: Launch,
        parts: Parts,
        watch: ParentWatch | None,
        complain: Callable[[str, BaseException], None],
    ) -> None:
        """Own the descriptors of *launch* and what *parts* are of; boot nothing yet."""
        self.launch = launch
        self.parts = parts
        self.store = Store(launch.store)
        self._watch = watch
        self._complain = complain
        self._members: dict[str, Member] = {}
        self._egress = egress_of(launch)
        self._holds = Holds(self.store, launch.clusters, launch.locks)
        self._introductions: dict[str, Telling] = {}
        """Of the members that are up."""
        self._ended = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle
        self._look_every_s = self._setting("look_every_s", NOTICED_WITHIN_S)
        self._boot_within_s = self._setting("boot_within_s", protocol.BOOT_WITHIN_S)
        self._stop_within_s = self._setting("stop_within_s", protocol.STOP_WITHIN_S)
        at_once = self._setting("boots_at_once", _BOOTS_PER_CPU * len(os.sched_getaffinity(0)))
        self._turns = asyncio.Semaphore(max(1, int(at_once)))
        self._server = Server(
            Verbs(self).answer,
            outlive=OUTLIVE,
            on_unbound=self._unbound,
            complain=complain,
            request_within_s=self._setting("request_within_s", REQUEST_WITHIN_S),
        )

    def _setting(self, name: str, default: float) -> float:
        value = self.launch.settings.get(name, default)
        if type(value) not in (int, float) or not value > 0:
            raise Refused(f"{name}={value!r}: a number above 0 is needed", reason="bad-setting")
        return float(value)

    def begin(self) -> None:
        """Name this process, serve the sockets, boot every member: a bound one's, once it is bound.

        Raises:
            OSError: a member's files cannot be written.
        """
        for name in self.launch.names:
            write_pidfile(self.store, name)
        hit("holder.pidfiles")
        for name, fd in self.launch.listeners.items():
            self._make(name, self.store.config(name).options)
            self._server.listen(name, _listener(fd))
        hit("holder.serving")
        if self._watch is not None:
            self._watch.begin(self._parent_gone)
        else:
            self.boot()

    def boot(self) -> None:
        """Boot the members of the launch, once."""
        for member in self._members.values():
            member.begin()

    async def live(self) -> None:
        """Serve until the last member has left."""
        self._look_again()
        await self._ended.wait()
        self._looking.cancel()
        await self._server.drain(_DRAIN_WITHIN_S)

    def member(self, name: str) -> Member:
        """Return member *name*.

        Raises:
            Unavailable: it has left (``gone``), as if the question had come too late for a socket.
        """
        member = self._members.get(name)
        if member is None:
            raise Unavailable(f"VM {name} has ended", reason="gone")
        return member

    def statuses(self) -> list[Status]:
        """Return the states of all members."""
        return [member.status() for member in self._members.values()]

    # --- joining ---------------------------------------------------------------------------

    async def add(self, name: str, options: Options) -> Member:
        """Take *name* in and begin its boot; one that is a member already is returned as it is.

        Raises:
            OwnedByAnother: another holder has it, or the network of its cluster (``taken``).
            Unavailable: this holder is ending (``not-running``).
            Refused: it is of another cluster, of which egress is not as here (``egress``); there
                is no address left (``network-full``).
        """
        if not await self._take(name):
            return self._members[name]
        is_new, place = not self.store.exists(name), self.store.place(name)
        listener = None
        try:
            hit("add.locked")
            if self.store.egress_of(cluster_of(name), options) != self._egress:
                raise Refused(
                    f"{name} can{'not' if self._egress else ''} reach the internet, other than "
                    f"{', '.join(self._members)}: it needs a network of its own",
                    reason="egress",
                )
            config = self.store.create(name, options)
            self.store.forget_end(name)
            listener = control.listen(place.socket)
            hit("add.created")
            write_pidfile(self.store, name)
        except BaseException:
            if listener is not None:
                listener.close()
            for path in (place.pidfile, place.socket, *((place.config,) if is_new else ())):
                self._attempt(partial(remove, path))
            self._holds.release(name)
            raise
        member = self._make(name, config.options)
        self._server.listen(name, _listener(listener.detach()))
        hit("add.serving")
        member.begin()
        return member

    async def _take(self, name: str) -> bool:
        """Take the lock of *name*; return False if it is a member by now."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + MOMENTARY_S
        while True:
            while (member := self._members.get(name)) is not None:
                if member.state != protocol.STOPPING:
                    return False
                await member.over()
                deadline_s = loop.time() + MOMENTARY_S
            self._look()
            if self._ending is not None or not self._members:
                raise Unavailable("this holder is ending", reason="not-running")
            check_room(len(self._members) + 1, name)
            if self._holds.take(name):
                return True
            if loop.time() > deadline_s:
                break
            await asyncio.sleep(RETRY_S)  # who makes or destroys it has it for a moment
        is_network_ours = self._holds.has_cluster_of(name)
        self._holds.release(name)
        if is_network_ours:
            raise taken(self.store, name)
        raise OwnedByAnother(
            f"cluster {cluster_of(name)} has a holder of its own: stop that first", reason="taken"
        )

    def _make(self, name: str, options: Options) -> Member:
        member = self._members[name] = Member(
            name,
            self.store.place(name).directory,
            options,
            self.parts,
            neighbours=self._neighbours,
            on_up=self._up,
            on_over=self._over,
            complain=self._complain,
            boot_within_s=self._boot_within_s,
            turns=self._turns,
        )
        return member

    def _neighbours(self, member: Member) -> tuple[tuple[str, str], ...]:
        """Return names and addresses of the others; those that boot beside it have theirs too."""
        names = [name for name in self._members if name != member.name]
        return tuple(
            (name, self.parts.network.reserve(name)[1].partition("/")[0]) for name in names
        )

    def _up(self, member: Member) -> None:
        """Have all that are up know all others by name, and no name that is another's by now."""

        async def introduce() -> None:
            await member.introduce(self._neighbours(member))

        self._introductions[member.name] = Telling(
            f"{member.name} does not know the others by name", introduce, self._complain
        )
        for telling in self._introductions.values():
            telling.change()

    # --- leaving ---------------------------------------------------------------------------

    async def stop(self, name: str, timeout_s: float) -> dict[str, Any]:
        """Stop *name*; return the answer of the verb ``stop``."""
        member = self._members.get(name)
        how = await member.stop(_gentle_s(timeout_s)) if member is not None else "not-running"
        return {"how": how, "last": not self._members, "pid": os.getpid()}

    def _over(self, member: Member) -> None:
        """Let go of a member that has ended: whoever wants it next finds it free."""
        name = member.name
        self._server.retire(name)
        home = self._holds.home_of(name)
        if home is not None:
            if member.error is not None:
                self._attempt(partial(home.note_end, name, member.error))
            self._attempt(partial(remove, home.place(name).socket))
            hit("stop.socket-removed")
            self._attempt(partial(remove_pidfile, home, name))
        hit("stop.pidfile-removed")
        del self._members[name]
        if (introduction := self._introductions.pop(name, None)) is not None:
            introduction.close()
        self._holds.release(name)
        if not self._members:
            self._ended.set()
        hit("stop.unlocked")

    def _attempt(self, step: Callable[[], object]) -> None:
        """Do one step of an end: a full disk, a deleted directory are no reason to stay."""
        try:
            step()
        except OSError as error:
            self._complain("a member's files", error)

    def end(self, timeout_s: float = -1.0) -> None:
        """Stop all members, side by side; :meth:`live` returns then. Again is no error.

        *timeout_s*: for all of it; that of the launch by default.
        """
        if self._ending is None:
            within_s = self._stop_within_s if timeout_s < 0 else timeout_s
            self._ending = asyncio.get_running_loop().create_task(self._end(within_s))

    async def _end(self, timeout_s: float) -> None:
        gentle_s = _gentle_s(timeout_s)
        stops = [member.stop(gentle_s) for member in self._members.values()]
        for outcome in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(outcome, BaseException):
                self._complain("the end of a member", outcome)
        self._ended.set()

    def _look(self) -> None:
        """End all if a member's files have gone: nobody could find its holder, or its disk."""
        if self._ending is not None:
            return
        for name in self._members:
            if not self._holds.count(name):
                note("store-gone", member=name, store=self.store.directory)
                self.end()
                return

    def _show(self, name: str) -> None:
        """Have what *name* is found by, if somebody has removed it."""
        place = self.store.place(name)
        if not os.path.lexists(place.socket):
            self._server.listen(name, _listener(control.listen(place.socket).detach()))
        if not os.path.lexists(place.pidfile):
            write_pidfile(self.store, name)

    def _look_again(self) -> None:
        self._look()
        if self._ending is None:
            for name in self._members:
                with suppress(OSError):  # a full or read-only disk: at the next look
                    self._show(name)
        self._looking = asyncio.get_running_loop().call_later(self._look_every_s, self._look_again)

    def _unbound(self) -> None:
        """The client has closed its session, or is dying, which its pidfd is about to say."""
        if self._watch is not None and self._watch.has_ended():
            self._parent_gone()
        else:
            self.end()

    def _parent_gone(self) -> None:
        """Nobody is there to use what a gentle stop would save: end at once."""
        for member in self._members.values():
            member.kill()
        self.end(0.0)


def _gentle_s(timeout_s: float) -> float:
    return max(0.0, min(protocol.GENTLE_FOR_S, timeout_s - _RESERVE_S))


def _listener(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    return socket.socket(fileno=fd)
